"""What tensor parallelism written by hand sends for a kind of layer, by formula.

Bytes that a device sends per micro-batch, forward and backward, ring algorithms, r = (t - 1) / t, n bytes of the
layer's activation [b, s, h], P bytes of its parameters:

    Megatron-LM       attention, feed-forward: an all-reduce forward, one backward    4 r n each   (Shoeybi et al. 2019)
                      cross attention: one more backward, of the encoder's gradient     + 2 r n
                      vocabulary-parallel embedding: an all-reduce forward              2 r n
                      vocabulary-parallel head and loss: three all-reduces of [b, s],   2 r n + 6 r b s 4
                      one of the gradient
                      a linear layer alone: column parallel, its output gathered        r n' forward, 2 r n backward
    Megatron-SP       every all-reduce as a gather and a scatter, one of them on the other side; gathering again in
                      backward what forward gathered is not counted                     (Korthikanti et al. 2022, 4.2)
    Ulysses           all-to-alls of q, k, v and the output; the rest of the layer on its part of the sequence
                      with whole parameters                                             (Jacobs et al. 2023)
      + ZeRO-3        the same memory for parameters as the others: gathered twice, gradients scattered: 3 r P
    ZeRO-3 alone      linear layers on a part of the sequence  3 r P       (Rajbhandari et al. 2020)
    expert parallel   two all-to-alls each way of k copies of every token: 4 r k n / t  (Lepikhin et al. 2020, GShard)

A gradient that is reduced once per step counts with its share of a micro-batch: that of norms and biases with split
sequences, and of all parameters for Ulysses without ZeRO-3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from uniap_compiler.ir import ITEM_BYTES, Affine, Func, Op, Value, at


@dataclass(frozen=True)
class Scheme:
    """bytes: per micro-batch.  parameters_whole: it keeps all parameters on every device."""

    name: str
    bytes: float
    parameters_whole: bool = False


def size(value: Value, rows: int) -> float:
    return float(prod(at(d, rows) for d in value.type.shape)) * ITEM_BYTES[value.type.dtype]


def schemes(forward: Func, t: int, boundary: str, rows: int, micro_batches: int) -> tuple[list[Scheme], str]:
    """The schemes that exist for the layer on t devices, the usual one first, and, where that is missing, why."""
    r = (t - 1) / t
    named: dict[str, list[Op]] = {}
    for op in forward.ops:
        named.setdefault(op.name, []).append(op)
    attention, contractions, experts = (named.get(f"nn.{n}", []) for n in ("attention", "contract", "experts"))
    parameters = [p for p in forward.params if p.attrs["role"] == "param"]
    whole = sum(size(p, rows) for p in parameters)
    vectors = sum(size(p, rows) for p in parameters if len(p.type.shape) == 1)
    given = [p for p in forward.params if p.attrs["role"] == "activation" and _has_batch(p)]
    outputs = [v for v, kind in zip(forward.returns, _kinds(forward), strict=True) if kind == "value" and v is not None]
    length = (given or outputs)[0].type.shape[1] if len((given or outputs)[0].type.shape) == 3 else None
    split = boundary == "sequence" and isinstance(length, int) and length % t == 0
    once = 2 * r * vectors / micro_batches if split else 0.0
    usual = "Megatron-SP" if split else "Megatron"
    moves = {"aten.convolution", "aten.slice.Tensor", "aten.slice"} & named.keys()  # rows of the sequence are mixed
    alone = [Scheme("ZeRO-3", 3 * r * whole)] if split and not moves else []

    if "nn.pick" in named and contractions:
        rows_of, weight = contractions[-1].flat_operands()[:2]
        assert rows_of is not None and weight is not None
        classes = weight.type.shape[0]
        if int(str(classes)) % t:
            return alone, f"{classes} classes"
        n = size(rows_of, rows)
        return [Scheme(usual, 2 * r * n + 6 * r * n / int(str(rows_of.type.shape[-1])) + once), *alone], ""
    if attention or experts:
        return _block(forward, attention, experts, given, size(outputs[0], rows), t, split, whole, once, micro_batches)
    if "nn.embedding" in named:
        tables = [op.flat_operands()[0] for op in named["nn.embedding"]]
        words = max(int(str(v.type.shape[0])) for v in tables if v is not None)
        if words % t:
            return alone, f"{words} words"
        return [Scheme(usual, 2 * r * size(outputs[0], rows) + once), *alone], ""
    if "aten.convolution" in named:
        return [], "none is known"
    if len(contractions) == 1:
        x = contractions[0].flat_operands()[0]
        assert x is not None
        if split:  # Megatron's column-parallel layer does not gather its output where sequences are split
            return alone, "none is known"
        column = r * (2 * size(x, rows) + size(contractions[0].results[0], rows))
        return [Scheme("column parallel", column)], ""
    if contractions:  # a feed-forward layer alone
        return [Scheme(usual, 4 * r * size(outputs[0], rows) + once), *alone], ""
    return [Scheme("repeated", once)], ""


def _block(
    forward: Func, attention: Sequence[Op], experts: Sequence[Op], given: Sequence[Value], n: float, t: int,
    split: bool, whole: float, once: float, micro_batches: int,
) -> tuple[list[Scheme], str]:  # fmt: skip
    """A transformer layer or a part of it: attentions, then a feed-forward layer or experts."""
    r = (t - 1) / t
    heads = [int(str(v.type.shape[-3])) for op in attention for v in op.flat_operands()[1:2] if v is not None]
    if any(h % t for h in heads):
        return [], f"{heads[0]} heads"
    inside = sum(op.name == "nn.contract" for op in forward.ops)
    fused = any(op.name == "nn.contract" and _widens(op, 3) for op in forward.ops)
    dense = inside > (2 if fused else 4) * len(attention) and not experts
    total = 4 * r * n * (len(attention) + dense)
    if len(given) > 1:  # cross attention
        total += 2 * r * n
    if not experts:
        found = [Scheme("Megatron-SP" if split else "Megatron", total + once)]
    else:
        index, gate_up = experts[0].flat_operands()[1], experts[0].flat_operands()[3]
        assert index is not None and gate_up is not None
        copies, number = int(str(index.type.shape[-1])), int(str(gate_up.type.shape[0]))
        if number % t:
            return [], f"{number} experts"
        found = [Scheme("Megatron-SP" if split else "Megatron", total + 4 * r * n + once)]
        if split:
            found.append(Scheme("Megatron-SP + expert parallel", total + 4 * r * n * copies / t + once))
    if split and attention and not experts and len(given) == 1:
        q, k = attention[0].flat_operands()[:2]
        assert q is not None and k is not None
        if q.type.shape[-2] != given[0].type.shape[1]:  # attention in windows
            return found, ""
        narrow = int(str(k.type.shape[-3])) / int(str(q.type.shape[-3]))
        exchanged = 2 * r * n / t * (2 + 2 * narrow)
        found.append(Scheme("Ulysses + ZeRO-3", exchanged + 3 * r * whole))
        found.append(Scheme("Ulysses", exchanged + 2 * r * whole / micro_batches, parameters_whole=True))
    return found, ""


def _widens(op: Op, times: int) -> bool:
    """q, k and v by one product (followed by the split into three)."""
    weight = op.flat_operands()[1]
    if weight is None or len(weight.type.shape) != 2:
        return False
    a, b = (int(str(d)) for d in weight.type.shape)
    return max(a, b) == times * min(a, b)


def _has_batch(value: Value) -> bool:
    return any(isinstance(d, Affine) for d in value.type.shape)


def _kinds(func: Func) -> list[str]:
    given = func.attrs["results"]
    assert isinstance(given, (list, tuple))
    return [str(kind) for kind in given]
