"""Softmax and layer norm: the normalised dims stay whole."""

from __future__ import annotations

from uniap_compiler.ir import Op, Rule

from .spell import Groups, make_rule, shape_of, spell
from .table import rule


@rule(
    "aten._softmax", "aten._log_softmax", "aten._safe_softmax", "aten._softmax_backward_data",
    "aten._log_softmax_backward_data",
)  # fmt: skip
def softmax(op: Op) -> Rule:
    """Backward takes (gradient, output) and is linear in the gradient."""
    rank = len(shape_of(op, 0))
    dims: Groups = [(f"d{i}",) for i in range(rank)]
    dim = op.attrs.get("dim", -1)
    assert isinstance(dim, int)
    keep = [f"d{dim % rank}"] if rank else []
    backward = op.name.endswith("_backward_data")
    return make_rule(op, [dims for _ in op.operands], [dims], {}, keep=keep, linear=[(0,)] if backward else [])


def _normalized(op: Op) -> int:
    shape = op.attrs["normalized_shape"]
    assert isinstance(shape, (list, tuple))
    return len(shape)


@rule("aten.native_layer_norm")
def layer_norm(op: Op) -> Rule:
    """input, weight, bias -> output, mean, rstd"""
    n = _normalized(op)
    ones = " 1" * n
    return spell(op, f"b* n*, n*, n* -> b* n*, b*{ones}, b*{ones} | keep n*", **{"n*": n})


@rule("aten.native_layer_norm_backward")
def layer_norm_backward(op: Op) -> Rule:
    """gradient, input, mean, rstd, weight, bias -> dinput, dweight, dbias"""
    n = _normalized(op)
    ones = " 1" * n
    operands = f"b* n*, b* n*, b*{ones}, b*{ones}, n*, n*"
    grads = results(op, ["b* n*", "n*", "n*"])
    return spell(op, f"{operands} -> {grads} | sum b* | keep n* z* | linear 0", **{"n*": n})


def results(op: Op, terms: list[str]) -> str:
    """The terms of the results; one that the output mask leaves out is an empty tensor of one kept factor: z0, z1."""
    mask = op.attrs.get("output_mask")
    wanted = list(mask) if isinstance(mask, (list, tuple)) else [True] * len(terms)
    return ", ".join(t if w else f"z{i}" for i, (t, w) in enumerate(zip(terms, wanted)))


@rule("aten._native_batch_norm_legit_no_training", "aten.native_batch_norm")
def batch_norm(op: Op) -> Rule:
    """input, weight, bias, running mean, running variance.  In training it is decomposed before it comes here."""
    if op.attrs.get("training", False):
        return spell(op, "b c h*, c, c, c, c -> b c h*, c, c | keep b h*")
    return spell(op, "b c h*, c, c, c, c -> b c h*, z0, z1 | copy b c h* | keep z* | linear 1 2")
