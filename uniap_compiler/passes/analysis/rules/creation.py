"""Ops that make a tensor out of numbers: every device makes its own part."""

from __future__ import annotations

from uniap_compiler.ir import Op, Rule

from .spell import spell
from .table import rule


@rule("aten.full", "aten.zeros", "aten.ones", "aten.empty", "aten.scalar_tensor", "aten.empty_strided")
def full(op: Op) -> Rule:
    return spell(op, "-> d*", **{"d*": len(op.results[0].type.shape)})


@rule("aten.new_zeros", "aten.new_ones", "aten.new_full", "aten.new_empty")
def new(op: Op) -> Rule:
    """The first operand gives only dtype and device: splitting it changes nothing."""
    return spell(op, "x* -> d* | copy x*", **{"d*": len(op.results[0].type.shape)})


@rule("aten.arange", "aten.linspace", "aten.eye")
def arange(op: Op) -> Rule:
    """The values depend on the position."""
    return spell(op, "-> d* | keep d*", **{"d*": len(op.results[0].type.shape)})
