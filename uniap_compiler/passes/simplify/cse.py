"""Merge ops that compute the same: equal name, symbol, operands, attributes and result types.

    %a = aten.exp(%x) : tensor<4xf32>
    %b = aten.exp(%x) : tensor<4xf32>                   goes; its readers read %a

The first op stays, with its location and names.  An op that acts (dce.acts) or draws random numbers is not merged;
a call is merged only when its func is pure all the way down.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

from ...ir import Func, Module, Op, Value
from ...ir.printer import print_attrs
from ..manager import Session
from .dce import acts

_RANDOM = ("aten.bernoulli", "aten.native_dropout", "aten.rand", "aten.normal", "aten.multinomial", "aten.uniform")


@dataclass(frozen=True)
class Cse:
    name: ClassVar[str] = "cse"
    requires: ClassVar[tuple[str, ...]] = ()
    ensures: ClassVar[str | None] = None

    def run(self, module: Module, session: Session) -> str:
        merged = sum(merge_equal_ops(func, module) for func in module.funcs.values())
        return f"{merged} ops merged"


def pure(op: Op, module: Module) -> bool:
    if op.name == "plan.call":
        callee = module.funcs.get(op.symbol or "")
        return callee is not None and all(pure(inner, module) for inner in callee.ops)
    return not acts(op) and not op.name.startswith(_RANDOM)


def merge_equal_ops(func: Func, module: Module) -> int:
    """Returns how many went."""
    seen: dict[Hashable, Op] = {}
    replaced: dict[Value, Value] = {}
    kept: list[Op] = []
    for op in func.ops:
        op.replace_operands(lambda v: replaced.get(v, v))
        first = seen.setdefault(_key(op), op) if pure(op, module) else op
        if first is op:
            kept.append(op)
        else:
            replaced.update(zip(op.results, first.results))
    merged = len(func.ops) - len(kept)
    func.ops = kept
    func.returns = [replaced.get(v, v) if v is not None else None for v in func.returns]
    return merged


def _key(op: Op) -> Hashable:
    operands = tuple(tuple(o) if isinstance(o, list) else o for o in op.operands)
    attrs = print_attrs(dict(sorted(op.attrs.items())))  # text tells 1 from 1.0 from true
    return op.name, op.symbol, operands, attrs, tuple(r.type for r in op.results)
