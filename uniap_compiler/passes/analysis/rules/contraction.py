"""Contractions: the equation is the rule."""

from __future__ import annotations

from uniap_compiler.ir import Op, Rule

from .spell import spell
from .table import rule


@rule("nn.contract")
def contract(op: Op) -> Rule:
    equation = str(op.attrs["equation"])
    left, right = equation.split("->")
    lost = sorted(set(left.replace(",", " ").split()) - set(right.split()))
    return spell(op, f"{equation} | sum {' '.join(lost)} | linear 0 | linear 1")


# The forms that a hand-written func, or a func before the contraction pass, may still have.
SIMPLE = {
    "aten.mm": "m k, k n -> m n | sum k | linear 0 | linear 1",
    "aten.bmm": "b m k, b k n -> b m n | sum k | linear 0 | linear 1",
    "aten.mv": "m k, k -> m | sum k | linear 0 | linear 1",
    "aten.dot": "k, k -> | sum k | linear 0 | linear 1",
    # The bias would be added on every device: k stays whole.  nn.contract + aten.add has no such limit.
    "aten.addmm": "m n, m k, k n -> m n | keep k | linear 0 1 | linear 0 2",
}


@rule(*SIMPLE)
def simple(op: Op) -> Rule:
    text = SIMPLE[op.name]
    if op.name == "aten.addmm" and len(op.operands) and _rank(op, 0) == 1:
        text = text.replace("m n, m k", "n, m k", 1)
    return spell(op, text)


@rule("aten.linear")
def linear(op: Op) -> Rule:
    if len(op.operands) > 2 and op.operands[2] is not None:
        return spell(op, "b* k, n k, n -> b* n | keep k | linear 0 2 | linear 1 2")
    return spell(op, "b* k, n k -> b* n | sum k | linear 0 | linear 1")


def _rank(op: Op, position: int) -> int:
    value = op.flat_operands()[position]
    return 0 if value is None else len(value.type.shape)
