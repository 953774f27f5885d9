"""Ops that make a tensor out of numbers: every device makes its own part."""

from __future__ import annotations

from uniap_compiler.ir import Op, Rule

from .spell import spell
from .table import rule


@rule("aten.full", "aten.zeros", "aten.ones", "aten.scalar_tensor")
def full(op: Op) -> Rule:
    return spell(op, "-> d*", **{"d*": len(op.results[0].type.shape)})


@rule("aten.new_zeros", "aten.new_ones", "aten.new_full")
def new(op: Op) -> Rule:
    """The first operand gives only dtype and device: splitting it changes nothing."""
    linear = " | linear 0" if op.name == "aten.new_zeros" else ""
    return spell(op, f"x* -> d* | copy x*{linear}", **{"d*": len(op.results[0].type.shape)})


@rule("aten.arange", "aten.linspace", "aten.logspace", "aten.eye", "aten.tril_indices", "aten.triu_indices")
def arange(op: Op) -> Rule:
    """The values depend on the position."""
    return spell(op, "-> d* | keep d*", **{"d*": len(op.results[0].type.shape)})
