"""Operations and bytes of one op on one device, and the seconds that a roofline gives them.

    %h = nn.contract(%x, %w) {equation = "b s k, n k -> b s n"}     2 * b * s * k * n operations, x + w + h bytes
    %a = aten.exp(%h)                                               h + a bytes, a few operations per element
    %v = aten.view(%a)                                              nothing but its launch

Sizes are LOCAL: a dim is what one device holds of it.  A size that depends on the batch may be a numpy vector over
several batches at once, so one walk over a func prices it for every micro-batch and data-parallel degree; the same
functions take plain ints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Union

import numpy as np
from numpy.typing import NDArray

from uniap_compiler.cluster import Cluster, Mesh
from uniap_compiler.ir import ALIASING_OPS, ITEM_BYTES, Affine, Dim, Func, Op, TensorType

Vector = NDArray[np.float64]
Size = Union[int, float, Vector]
Dims = Sequence[Size]
"""The local size of every dim of one tensor."""

ELEMENTARY = frozenset(
    "aten." + name
    for name in (
        "exp log log2 log1p expm1 sin cos tanh sigmoid erf gelu silu softplus pow.Tensor_Scalar pow.Tensor_Tensor "
        "gelu_backward silu_backward tanh_backward sigmoid_backward softplus_backward _softmax _log_softmax "
        "_softmax_backward_data _log_softmax_backward_data logsumexp mish mish_backward"
    ).split()
) | {
    "nn.sum_exp", "nn.cross_entropy", "nn.cross_entropy_backward", "nn.bernoulli", "nn.uniform", "nn.normal"
}
"""Pointwise ops that evaluate an elementary function for each element."""

#: Operations of one elementary function.  A vectorised exp on a CPU core makes 1.2e9 elements per second where a matrix
#: product makes 1e11 operations (measured, torch 2.13); GPUs have units for them.
_ELEMENTARY_OPERATIONS = {"cpu": 80.0, "cuda": 8.0}

_DROPOUT_BLOCK = {"cpu": 2.0**18, "cuda": 2.0**23}
"""Scores that attention with dropout makes at a time (runtime/attention_dropout.py)."""

_GATHERS = {"nn.embedding": (0,), "aten.embedding": (0,), "aten.index_select": (0,), "nn.pick": (0,)}
"""Operands of which only the picked rows are read: they are counted by the result."""

_EXPERTS = ("nn.experts", "nn.experts_backward")


def product(dims: Dims) -> Size:
    size: Size = 1.0
    for dim in dims:
        size = size * dim
    return size


def local_dims(type: TensorType, sizes: Mapping[str, int], batch: Size) -> list[Size]:
    """What one device holds of every dim.  sizes: of the axes that a layout may name; others count as 1.

    `batch` is the local batch: the axes that split it (data axes) must not be in `sizes`.
    """
    dims: list[Size] = []
    for n, dim in enumerate(type.shape):
        size = size_at(dim, batch)
        if type.layout is not None:
            for part in type.layout.dims[n]:
                for axis in part.axes:
                    size = size / sizes.get(axis, 1)
        dims.append(size)
    return dims


def size_at(dim: Dim, batch: Size) -> Size:
    return dim.coef * batch + dim.offset if isinstance(dim, Affine) else float(dim)


def local_bytes(type: TensorType, sizes: Mapping[str, int], batch: Size) -> Size:
    return ITEM_BYTES[type.dtype] * product(local_dims(type, sizes, batch))


def operations(op: Op, operands: Sequence[Dims | None], results: Sequence[Dims], kind: str = "cpu") -> Size:
    """Arithmetic operations; a multiply-add counts as two.  kind: of device."""
    name = op.name
    if name in ALIASING_OPS or name.startswith("comm."):
        return 0.0
    if name == "nn.contract":
        sizes: dict[str, Size] = {}
        for term, dims in zip(str(op.attrs["equation"]).split("->")[0].split(","), operands, strict=True):
            sizes.update(zip(term.split(), dims or (), strict=True))
        return 2.0 * product(list(sizes.values()))
    if name in ("nn.attention", "nn.attention_backward"):
        q, k, v = operands[:3] if name == "nn.attention" else operands[1:4]
        assert q is not None and k is not None and v is not None
        scores = product(q[:-1]) * k[-2]
        if op.attrs.get("causal") and uses_flash(op, kind):
            scores = scores * 0.5
        # q k' and p v forward; the scores again, g v', p' g, ds k and ds' q backward.
        width = 2.0 * (q[-1] + v[-1]) if name == "nn.attention" else 2.0 * (3.0 * q[-1] + 2.0 * v[-1])
        functions = 4.0 if "dropout_p" in op.attrs else 2.0  # a word of the hash costs as much as two of them
        return scores * (width + functions * _ELEMENTARY_OPERATIONS[kind])
    if name in _EXPERTS:
        rows, wide, up, down = _experts(op, operands)
        # Backward needs the first product again (not the second one), and each product's two gradients.
        products = 3.0 * up + 2.0 * down if name == "nn.experts_backward" else up + down
        return rows * (2.0 * products + _ELEMENTARY_OPERATIONS[kind] * wide)
    if name in ("aten.convolution", "aten.convolution_backward"):
        back = name == "aten.convolution_backward"
        weight, out = (operands[2], operands[0]) if back else (operands[1], results[0])
        given = operands[1] if back else operands[0]
        assert weight is not None and out is not None and given is not None
        pixels = product(given if op.attrs.get("transposed") else out)
        once = 2.0 * pixels * product(weight[1:])
        mask = op.attrs.get("output_mask")
        wanted = sum(map(bool, mask[:2])) if isinstance(mask, (list, tuple)) else 2
        return once * (wanted if back else 1)
    elements = product(results[0]) if results else 0.0
    for dims in operands:
        if dims is not None:
            elements = np.maximum(elements, product(dims)) if name not in _GATHERS else elements
    return elements * (_ELEMENTARY_OPERATIONS[kind] if name in ELEMENTARY else 1.0)


def _experts(op: Op, operands: Sequence[Dims | None]) -> tuple[Size, Size, Size, Size]:
    """Of nn.experts on one device: how many choices it computes, the inner dim, and the sizes of an expert's matrices.

    Choices are taken to be spread evenly over the experts.  `peers`: devices that exchange tokens, each with its own.
    """
    first = 1 if op.name == "nn.experts_backward" else 0
    index, gate_up, down = operands[first + 1], operands[first + 3], operands[first + 4]
    experts = op.flat_operands()[first + 3]
    peers = op.attrs.get("peers", 1)
    assert index is not None and gate_up is not None and down is not None and experts is not None
    assert isinstance(peers, int)
    rows = product(index) * gate_up[0] * peers / size_at(experts.type.shape[0], 1.0)
    return rows, gate_up[1], product(gate_up[1:]), product(down[1:])


def matrix_operations(func: Func, sizes: Mapping[str, int], batch: Size) -> Size:
    """Of contractions, attention, experts and convolutions: what tensor parallelism is there to divide."""
    total: Size = 0.0
    for op in func.ops:
        if op.name.startswith(("nn.contract", "nn.attention", "nn.experts", "aten.convolution")):
            operands = [local_dims(v.type, sizes, batch) if v is not None else None for v in op.flat_operands()]
            total = total + operations(op, operands, [local_dims(v.type, sizes, batch) for v in op.results])
    return total


def uses_flash(op: Op, kind: str) -> bool:
    """Whether the runtime's attention takes a flash kernel: equal head sizes; no mask together with `causal` on a CPU,
    none at all and half precision on a GPU.  Otherwise it makes the scores."""
    q, k, v, mask = op.flat_operands()[:4] if op.name == "nn.attention" else op.flat_operands()[1:5]
    assert q is not None and k is not None and v is not None
    if q.type.shape[-1] != v.type.shape[-1] or op.attrs.get("mask_grad") or "dropout_p" in op.attrs:
        return False
    if op.attrs.get("causal") and q.type.shape[-2] != k.type.shape[-2]:
        return False
    if kind == "cuda":
        return mask is None and q.type.dtype in ("bf16", "f16")
    return mask is None or not op.attrs.get("causal")


def scratch_bytes(op: Op, operands: Sequence[Dims | None], kind: str) -> Size:
    """Memory that an op needs for itself while it runs: the scores of attention without a flash kernel, the
    rows of an expert."""
    if op.name in _EXPERTS:  # one expert at a time; twice its share, because choices are never even
        rows, wide, _, _ = _experts(op, operands)
        gate_up = operands[4 if op.name == "nn.experts_backward" else 3]
        assert gate_up is not None
        return 2.0 * ITEM_BYTES[op_dtype(op)] * rows / gate_up[0] * (4.0 * gate_up[-1] + 3.0 * wide)
    if op.name not in ("nn.attention", "nn.attention_backward") or uses_flash(op, kind):
        return 0.0
    q, k = operands[:2] if op.name == "nn.attention" else operands[1:3]
    assert q is not None and k is not None
    if "dropout_p" in op.attrs:  # block by block, at least one key head at a time, two words of the hash per score
        scores, heads = product(q[:-1]) * k[-2], product(k[:-2])
        block = np.minimum(scores, np.maximum(_DROPOUT_BLOCK[kind], scores / heads))
        return block * (16.0 + 4.0 * max(4, ITEM_BYTES[op_dtype(op)])) + 8.0 * product(q[:-1])
    copies = 3.0 if op.name == "nn.attention" else 4.0
    return copies * max(4, ITEM_BYTES[op_dtype(op)]) * product(q[:-1]) * k[-2]


def moved_bytes(op: Op, operands: Sequence[Dims | None], results: Sequence[Dims]) -> Size:
    """Bytes read and written, each operand and result once."""
    if op.name in ALIASING_OPS:
        return 0.0
    skip = _GATHERS.get(op.name, ())
    total: Size = 0.0
    for n, (value, dims) in enumerate(zip(op.flat_operands(), operands, strict=True)):
        if value is not None and dims is not None and n not in skip:
            total = total + ITEM_BYTES[value.type.dtype] * product(dims)
    for value, dims in zip(op.results, results, strict=True):
        weight = 2.0 if skip else 1.0  # the picked rows are read before they are written
        total = total + weight * ITEM_BYTES[value.type.dtype] * product(dims)
    if op.name in _EXPERTS:  # rows are picked, projected, and added up
        rows, wide, _, _ = _experts(op, operands)
        passes = 2.0 if op.name == "nn.experts_backward" else 1.0
        total = total + passes * ITEM_BYTES[op_dtype(op)] * rows * (5.0 * results[0][-1] + 3.0 * wide)
    return total


def op_dtype(op: Op) -> str:
    """The dtype of the arithmetic: the widest floating operand or result."""
    values = [v for v in (*op.flat_operands(), *op.results) if v is not None]
    floating = [v.type.dtype for v in values if v.type.dtype in ("f64", "f32", "bf16", "f16")]
    return max(floating, key=lambda d: (ITEM_BYTES[d], d), default="f32")


@dataclass(frozen=True)
class Roofline:
    """max(operations / peak, bytes / bandwidth) and the launch of the op.

    Launches on a GPU run ahead of it: an op costs the larger of launch and work.  A CPU does one after the other.
    """

    cluster: Cluster

    def seconds(self, count: Size, moved: Size, dtype: str) -> Size:
        work = np.maximum(count / self.cluster.flops(dtype), moved / self.cluster.memory_bandwidth())
        launch = self.cluster.launch()
        return np.maximum(work, launch) if self.cluster.device.kind == "cuda" else work + launch

    def op_seconds(self, op: Op, operands: Sequence[Dims | None], results: Sequence[Dims]) -> Size:
        count = operations(op, operands, results, self.cluster.device.kind)
        return self.seconds(count, moved_bytes(op, operands, results), op_dtype(op))


@dataclass(frozen=True)
class SearchCost:
    """What the tensor-parallel search of one layer asks: seconds of ops and collectives for one local batch.

    axes: the mesh axes that stand for t0, t1, ...; gradient_share: what one micro-batch pays of a reduction that
    happens once per step; latency: what collectives cost beside their bytes, as a part of what they really do.
    """

    mesh: Mesh
    axes: tuple[str, ...]
    batch: int
    gradient_share: float
    latency: float = 1.0

    def op_seconds(self, op: Op, operands: Sequence[Dims | None], results: Sequence[Dims]) -> float:
        return float(Roofline(self.mesh.cluster).op_seconds(op, operands, results))

    def collective_seconds(self, kind: str, axes: Sequence[int], size: float) -> float:
        """size: of the whole tensor, as in `Mesh.seconds`."""
        alpha, beta = self.mesh.alpha_beta(kind, tuple(self.axes[n] for n in axes))
        return self.latency * alpha + beta * size

    @property
    def devices(self) -> int:
        return math.prod(self.mesh.axes[axis] for axis in self.axes)
