"""What the search asks about time: a protocol, and a roofline with alpha-beta collectives to stand for it.

The search prices one micro-batch on one device.  Shapes are local and concrete (the batch is `cost.batch`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Protocol

from uniap_compiler.ir import ALIASING_OPS, ITEM_BYTES, Op

Shape = tuple[int, ...]


class LayerCost(Protocol):
    """The seconds of one micro-batch on one device, and what memory is worth."""

    @property
    def batch(self) -> int:
        """The local batch for which the layer is searched."""

    @property
    def gradient_share(self) -> float:
        """Which part of a once-per-step reduction of a gradient one micro-batch pays: 1 / micro-batches."""

    def op_seconds(self, op: Op, operands: list[Shape | None], results: list[Shape]) -> float:
        """A compute op on local shapes; op gives name, attrs and dtypes."""

    def collective_seconds(self, kind: str, axes: tuple[int, ...], size: float) -> float:
        """all_reduce, reduce_scatter, all_gather or all_to_all over the tensor axes with these indices.

        size: bytes on one device of its operand (all_gather: of its result, which is the larger one).
        """


@dataclass(frozen=True, slots=True)
class RooflineCost:
    """max(flops/peak, bytes/bandwidth) per op; latency + bytes over the ring per collective."""

    mesh: tuple[int, ...]
    batch: int = 1
    gradient_share: float = 0.25
    flops: float = 312e12 * 0.6
    bandwidth: float = 1.5e12
    overhead: float = 0.0
    link: float = 200e9
    latency: float = 10e-6

    def op_seconds(self, op: Op, operands: list[Shape | None], results: list[Shape]) -> float:
        if op.name in ALIASING_OPS:
            return 0.0
        values = [
            (v.type.dtype, s)
            for v, s in zip(op.flat_operands(), operands, strict=True)
            if v is not None and s is not None
        ]
        values += [(v.type.dtype, s) for v, s in zip(op.results, results, strict=True)]
        moved = sum(ITEM_BYTES[dtype] * prod(shape) for dtype, shape in values)
        return max(flop_count(op, operands) / self.flops, moved / self.bandwidth) + self.overhead

    def collective_seconds(self, kind: str, axes: tuple[int, ...], size: float) -> float:
        group = prod(self.mesh[axis] for axis in axes)
        rounds = 2 if kind == "all_reduce" else 1
        sent = size * (group - 1) / group
        return self.latency + rounds * sent / self.link


def flop_count(op: Op, operands: list[Shape | None]) -> float:
    """Of the contractions, attention and experts; every other op is bound by memory."""
    if op.name == "nn.contract":
        sizes: dict[str, int] = {}
        terms = str(op.attrs["equation"]).split("->")[0].split(",")
        for term, shape in zip(terms, operands, strict=True):
            sizes.update(zip(term.split(), shape or (), strict=True))
        return 2.0 * prod(sizes.values())
    if op.name in ("nn.attention", "nn.attention_backward"):
        q, k = (0, 1) if op.name == "nn.attention" else (1, 2)
        scores = prod(operands[q] or ()) * (operands[k] or (0, 0))[-2]
        return scores * (4.0 if q == 0 else 10.0) * (0.5 if op.attrs.get("causal") else 1.0)
    if op.name in ("nn.experts", "nn.experts_backward"):
        first = 1 if op.name == "nn.experts_backward" else 0
        index, gate_up, down = (operands[first + n] or () for n in (1, 3, 4))
        whole = op.flat_operands()[first + 3]
        assert whole is not None and isinstance(whole.type.shape[0], int)
        rows = prod(index) * gate_up[0] * int(str(op.attrs.get("peers", 1))) / whole.type.shape[0]
        up, back = prod(gate_up[1:]), prod(down[1:])
        return 2.0 * rows * (3 * up + 2 * back if first else up + back)
    return 0.0
