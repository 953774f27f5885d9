"""Pointwise ops: dims are aligned from the right, as broadcasting does.

Any aten overload that torch tags as pointwise is covered; what needs writing down is in which operands an op is
linear (a pending sum may pass through it), and the few pointwise ops that torch does not tag.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import inf

from uniap_compiler.ir import Op, Rule

from .spell import Groups, make_rule, result_shape
from .table import opaque, packet, rule

Linear = list[tuple[int, ...]]


def _alpha_free(op: Op) -> Linear:
    """a + b: both pending, or none.  a + 3 is not linear."""
    return [(0, 1)] if len(op.flat_operands()) == 2 else []


def _float_to_float(op: Op) -> Linear:
    """A cast between floats (or from an int that is counted) keeps sums; a cast to int or bool does not."""
    source = op.flat_operands()[0]
    assert source is not None
    to = op.results[0].type.dtype
    return [] if to == "i1" or (to[0] in "iu" and source.type.dtype != to) else [(0,)]


def _zero_fill(op: Op) -> Linear:
    """Entries that every device overwrites with 0 (or an infinity) still add up; with anything else they do not."""
    return [(0,)] if op.attrs.get("value", 0) in (0, inf, -inf) else []


def _where(op: Op) -> Linear:
    """where(c, x, y): x and y together; a number in the place of one of them must be 0."""
    if len(op.flat_operands()) == 3:
        return [(1, 2)]
    return [(1,)] if op.attrs.get("other", op.attrs.get("self", 0)) == 0 else []


def _power_of_one(op: Op) -> Linear:
    return [(0,)] if op.attrs.get("exponent") == 1 else []


def _division(op: Op) -> Linear:
    return [(0,)] if op.attrs.get("rounding_mode") is None else []


FIRST: Linear = [(0,)]

LINEAR: dict[str, Linear | Callable[[Op], Linear]] = {
    "aten.add.Tensor": _alpha_free,
    "aten.sub.Tensor": _alpha_free,
    "aten.mul.Tensor": [(0,), (1,)],
    "aten.mul.Scalar": FIRST,
    "aten.div.Tensor": _division,
    "aten.div.Scalar": _division,
    "aten.true_divide": FIRST,
    "aten.neg": FIRST,
    "aten.positive": FIRST,
    "aten.clone": FIRST,
    "aten.addcmul": [(0, 1), (0, 2)],
    "aten.addcdiv": [(0, 1)],
    "aten.lerp.Scalar": [(0, 1)],
    "aten.masked_fill.Scalar": _zero_fill,
    "aten.where": _where,
    "aten.pow.Tensor_Scalar": _power_of_one,
    # Derivatives are linear in the gradient, which comes first.
    "aten.native_dropout_backward": FIRST,
    "aten.gelu_backward": FIRST,
    "aten.silu_backward": FIRST,
    "aten.sigmoid_backward": FIRST,
    "aten.tanh_backward": FIRST,
    "aten.threshold_backward": FIRST,
    "aten.logit_backward": FIRST,
    "aten.binary_cross_entropy": [(2,)],  # the weight
    "aten.binary_cross_entropy_backward": [(0,), (3,)],
}

UNTAGGED: dict[str, Linear | Callable[[Op], Linear]] = {
    "aten._to_copy": _float_to_float,
    "aten.detach": FIRST,
    "aten.alias": FIRST,
    "aten.lift_fresh_copy": FIRST,
    "aten.zeros_like": FIRST,
    "aten.ones_like": [],
    "aten.full_like": [],
    "aten.fill": [],
    "aten.masked_fill.Tensor": [(0, 2)],
    "aten.softplus_backward": FIRST,
    "aten.hardtanh_backward": FIRST,
    "aten.leaky_relu_backward": FIRST,
    "aten.elu_backward": FIRST,
    "aten.mish_backward": FIRST,
    "aten.hardswish": [],
    "aten.hardswish_backward": FIRST,
    "aten.hardsigmoid_backward": FIRST,
    "aten.log_sigmoid_backward": FIRST,
    "aten.hardshrink_backward": FIRST,
    "aten.softshrink_backward": FIRST,
    "aten._prelu_kernel": [],
    "aten._prelu_kernel_backward": FIRST,
    "aten.where.ScalarOther": _where,
    "aten.where.ScalarSelf": _where,
    "aten.where.Scalar": [],
    "aten.rsub.Tensor": _alpha_free,
    "nn.replace_gradient": FIRST,
}
# aten.where.ScalarSelf(c, 0, y): the tensor operands are c and y, so position 1 is y in both scalar forms.


@cache
def is_pointwise(name: str) -> bool:
    """True for aten overloads that torch tags as pointwise and that are not random."""
    import torch

    if not name.startswith("aten."):
        return False
    _, op, *overload = name.split(".")
    found = getattr(getattr(torch.ops.aten, op, None), overload[0] if overload else "default", None)
    tags = getattr(found, "tags", ())
    return torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags


def pointwise(op: Op) -> Rule:
    """Dims aligned from the right; a dim of size one against a longer one is `1`."""
    out: Groups = [(f"d{i}",) for i in range(max(len(r.type.shape) for r in op.results))]
    operands: list[Groups | None] = [
        None if v is None else out[len(out) - len(v.type.shape) :] for v in op.flat_operands()
    ]
    results: list[Groups] = [out[len(out) - len(r.type.shape) :] for r in op.results]
    sizes = {f"d{i}": n for i, n in enumerate(result_shape(op))}
    found = UNTAGGED.get(op.name, LINEAR.get(op.name))
    if found is None:
        found = LINEAR.get(packet(op.name), UNTAGGED.get(packet(op.name), []))
    return make_rule(op, operands, results, sizes, linear=found(op) if callable(found) else found)


rule(*UNTAGGED)(pointwise)


@rule("aten.binary_cross_entropy", "aten.binary_cross_entropy_backward")
def per_item(op: Op) -> Rule:
    """A loss that leaves its items as they are; capture writes the sum or mean as an op of its own."""
    if op.attrs.get("reduction", 1) != 0:
        return opaque(op)
    return pointwise(op)
