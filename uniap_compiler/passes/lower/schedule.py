"""schedule: the order in which every stage works through its micro-batches, as a table.

    sched.stage @stage_0 {table = [["forward", 0], ["send", "h", 0], ["recv_grad", "h", 0], ["backward", 0]]}

1F1B starts with as many forwards as stages follow, then alternates; GPipe runs all forwards first.  Receives and sends
stand around the segment that needs or makes the value, one row per value and micro-batch, in the same order on both
sides of a boundary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from uniap_compiler.ir import Func, Module, Op
from uniap_compiler.passes.solve.simulate_schedule import compute_order

if TYPE_CHECKING:
    from uniap_compiler.passes.manager import Session


@dataclass(frozen=True)
class Schedule:
    name: ClassVar[str] = "schedule"
    requires: ClassVar[str] = "local"
    ensures: ClassVar[str] = "local"

    def run(self, module: Module, session: Session) -> str:
        info = module.find("plan.plan")
        assert info is not None
        stages, micro_batches = int(info.attrs["stages"]), int(info.attrs["micro_batches"])  # type: ignore[arg-type]
        kind = str(info.attrs["schedule"])
        module.ops = [op for op in module.ops if op.name != "sched.stage"]
        rows = 0
        for stage in range(stages):
            table: list[list[str | int]] = []
            order = compute_order(kind, stages, micro_batches, stage)
            for n, (phase, m) in enumerate(order):
                if n + 1 == len(order) and f"stage_{stage}.{phase}_last" in module.funcs:
                    phase = f"{phase}_last"
                func = module.funcs.get(f"stage_{stage}.{phase}")
                if func is None:
                    continue
                table += [[role.split(":")[0], role.split(":", 1)[1], m] for role in _roles(func, "args", "recv")]
                table.append([phase, m])
                table += [[role.split(":")[0], role.split(":", 1)[1], m] for role in _roles(func, "results", "send")]
            rows += len(table)
            module.ops.append(Op("sched.stage", symbol=f"stage_{stage}", attrs={"table": [list(row) for row in table]}))
        return f"{kind}, {rows} rows"


def _roles(func: Func, key: str, prefix: str) -> list[str]:
    roles = func.attrs[key]
    assert isinstance(roles, (list, tuple))
    return sorted(str(role) for role in roles if str(role).startswith(prefix))
