"""What an op on a route (ir/rules.py) sends between the devices of its axes.

    nn.experts(%x, %choice, %weights, ...) {split = #split<t0 = exchange>, peers = 2}

Tokens x [.., h] with k choices each; a device has its tokens and its experts.  A token is sent once to every device
that has one of its experts, with its choices and weights, and comes back from each as one row.  With choices that fall
evenly on p devices, 1 - (1 - 1/p)^k is the chance that a device is among those of a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

from uniap_compiler.ir import ITEM_BYTES, Op, Rule, Struct

from .cost.op_cost import Dims, Size, product

COUNTS = 0.0
"""Bytes of the exchange of how many rows follow: nothing but its latency."""


def routed_axes(op: Op) -> tuple[str, ...]:
    """The axes on which the op exchanges tokens."""
    rule, split = op.attrs.get("rule"), op.attrs.get("split")
    if not isinstance(rule, Rule) or not rule.route or not isinstance(split, Struct):
        return ()
    routes = dict(rule.route)
    return tuple(axis for axis, choice in split.fields if str(choice) in routes)


def with_peers(op: Op, sizes: Mapping[str, int]) -> Op:
    """The op with the attribute `peers` where it exchanges tokens: with how many devices, itself included."""
    axes = routed_axes(op)
    if not axes:
        return op
    return Op(op.name, op.operands, op.results, {**op.attrs, "peers": prod(sizes[a] for a in axes)}, None, op.loc)


def exchanges(op: Op, operands: Sequence[Dims | None], kept: bool = False) -> list[Size]:
    """Bytes that one device puts into each all-to-all of the op, rows for itself included; [] where there is none.

    kept: a backward op is taken to have what its forward op has sent, which it otherwise shows by one operand more.
    """
    peers = op.attrs.get("peers", 1)
    if not isinstance(peers, int) or peers == 1:
        return []
    backward = op.name == "nn.experts_backward"
    first = 1 if backward else 0
    values = op.flat_operands()
    index, weights, down = operands[first + 1], values[first + 2], operands[first + 4]
    gate_up, given = operands[first + 3], values[0]
    assert index is not None and weights is not None and down is not None and gate_up is not None and given is not None
    rows = product(index[:-1]) * peers * (1.0 - (1.0 - 1.0 / peers) ** index[-1])
    item, choices = ITEM_BYTES[given.type.dtype], index[-1] * ITEM_BYTES[weights.type.dtype]
    numbers = choices + 4.0 * index[-1]
    narrow, wide = gate_up[-1], down[1]  # of x and of the result
    if backward and len(values) < 8 and not kept:  # what forward sent was not kept
        return [COUNTS, rows * (item * (narrow + wide) + numbers), rows * (item * narrow + choices)]
    if backward:
        return [rows * item * wide, rows * (item * narrow + choices)]
    return [COUNTS, rows * (item * narrow + numbers), rows * ITEM_BYTES[op.results[0].type.dtype] * wide]
