"""bucket-collectives: once per step, many small messages become few large ones.

    %a_1 = comm.all_reduce(%a) {group = "a", op = "sum"}
    %b_1 = comm.all_reduce(%b) {group = "a", op = "sum"}
    ->
    %a_1, %b_1 = comm.all_reduce_many([%a, %b]) {group = "a", op = "sum"}

Only in @stage_i.reduce_gradients and @stage_i.refresh_parameters, where every collective whose operand is there may run
at once.  The runtime cuts a list into buckets of some MiB, so that memory stays bounded.  All ranks of a stage run the
same func, so the order is the same for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from uniap_compiler.ir import Attr, Func, Module, Op, Value

if TYPE_CHECKING:
    from uniap_compiler.passes.manager import Session

_KINDS = ("comm.all_reduce", "comm.reduce_scatter", "comm.all_gather")


@dataclass(frozen=True)
class BucketCollectives:
    name: ClassVar[str] = "bucket-collectives"
    requires: ClassVar[str] = "local"
    ensures: ClassVar[str] = "local"

    def run(self, module: Module, session: Session) -> str:
        before = after = 0
        for func in module.funcs.values():
            if func.attrs.get("phase") in ("reduce_gradients", "refresh_parameters"):
                before += len(func.ops)
                bucket(func)
                after += len(func.ops)
        return f"{before} ops of once per step became {after}"


def bucket(func: Func) -> None:
    """Take together what is ready at the same time; everything else keeps its order."""
    waiting, known = list(func.ops), set(func.params)
    ops: list[Op] = []
    while waiting:
        possible = [op for op in waiting if known.issuperset(_operands(op))]
        # Casts go ahead: each makes one more collective ready.
        ready = [op for op in possible if op.name == "aten._to_copy"] or [op for op in possible if op.name in _KINDS]
        if not ready:
            ready = [waiting[0]]
        chosen = set(ready)
        waiting = [op for op in waiting if op not in chosen]
        for same in _alike(ready):
            ops.append(same[0] if len(same) == 1 else joined(same))
        known |= {r for op in ready for r in op.results}
    func.ops = ops


def _operands(op: Op) -> list[Value]:
    return [v for v in op.flat_operands() if v is not None]


def _alike(ops: list[Op]) -> list[list[Op]]:
    """Ops of one kind, group, reduction and dtype."""
    found: dict[tuple[object, ...], list[Op]] = {}
    for n, op in enumerate(ops):
        key = (op.name, op.attrs["group"], op.attrs.get("op"), op.results[0].type.dtype) if op.name in _KINDS else (n,)
        found.setdefault(key, []).append(op)
    return list(found.values())


def joined(ops: list[Op]) -> Op:
    """One op for several collectives of one kind, group and dtype."""
    attrs: dict[str, Attr] = {key: ops[0].attrs[key] for key in ("group", "op") if key in ops[0].attrs}
    if ops[0].name != "comm.all_reduce":
        attrs["dims"] = [op.attrs["dim"] for op in ops]
        if any(op.attrs.get("outer", 1) != 1 for op in ops):
            attrs["outers"] = [op.attrs.get("outer", 1) for op in ops]
    operands: list[Value | None] = [v for op in ops for v in _operands(op)]
    return Op(f"{ops[0].name}_many", [operands], [op.results[0] for op in ops], attrs)
