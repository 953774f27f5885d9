"""Remove ops whose results nobody reads.

    %unused = aten.relu(%x) : tensor<4xf32>             goes
    %loss, %count = plan.call @head(%h)                 stays while one of the results is read
    comm.send(%x) {to_stage = 1}                        has no result: it acts, so it stays

Ops are functional, so an op without a reader may go unless it communicates or has no results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ...ir import Func, Module, Op, Value
from ..manager import Session


@dataclass(frozen=True)
class Dce:
    name: ClassVar[str] = "dce"
    requires: ClassVar[tuple[str, ...]] = ()
    ensures: ClassVar[str | None] = None

    def run(self, module: Module, session: Session) -> str:
        removed = sum(remove_dead_ops(func) for func in module.funcs.values())
        return f"{removed} ops removed"


def acts(op: Op) -> bool:
    """Must it run although nobody reads its results?  A collective must: the other ranks take part in it."""
    return not op.results or op.name.startswith(("comm.", "sched."))


def remove_dead_ops(func: Func) -> int:
    """Returns how many went."""
    live: set[Value | None] = set(func.returns)
    kept: list[Op] = []
    for op in reversed(func.ops):
        if acts(op) or any(result in live for result in op.results):
            live.update(op.flat_operands())
            kept.append(op)
    removed = len(func.ops) - len(kept)
    func.ops = kept[::-1]
    return removed
