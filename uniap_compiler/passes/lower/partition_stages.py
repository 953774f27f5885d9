"""partition-stages: the step becomes, for every stage, functions of one micro-batch and of one step.

    @stage_0.prelude             values computed from inputs and constants only
    @stage_0.forward             the stage's layers, in order; what crosses a boundary is `recv:` and `send:`
    @stage_0.backward            their gradients, in reverse
    @stage_0.reduce_gradients    once per step: pending sums over data axes, gradients of copies
    @stage_0.refresh_parameters  once per step, after the optimizer: gathered parameters and copies

Params and results are bound by role strings (docs/bundle.md).  A value that skips stages is relayed: each stage in
between receives it and sends it on, and its gradient comes back the same way.  Types are global with layouts, and
resharding between layers stands here as comm ops; `localize` makes all of it local.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from uniap_compiler.ir import Attrs, Func, Module, Op

from .mesh import stage_mesh
from .parameters import Resident
from .stage_plan import StagePlan
from .stage_segments import backward, forward, prelude
from .step_segments import reduce_gradients, refresh_parameters

if TYPE_CHECKING:
    from uniap_compiler.passes.manager import Session


@dataclass(frozen=True)
class PartitionStages:
    name: ClassVar[str] = "partition-stages"
    requires: ClassVar[str] = "sharded"
    ensures: ClassVar[str] = "staged"

    def run(self, module: Module, session: Session) -> str:
        plan = StagePlan.of(module, stage_mesh(module))
        segments: list[Func] = []
        for stage in range(plan.stages):
            for build in (prelude, forward, backward, reduce_gradients, refresh_parameters):
                func = build(plan, stage)
                if func is not None:
                    segments.append(func)
        layers = [f for f in module.funcs.values() if f.attrs.get("kind") in ("forward", "backward")]
        used = {op.symbol for f in segments for op in f.ops if op.name == "plan.call"}
        recomputed = [f for f in plan.recompute_funcs.values() if f.name in used]
        module.funcs = {f.name: f for f in (*(f for f in layers if f.name in used), *recomputed, *segments)}
        _declare(module, plan)
        return f"{plan.stages} stages, {len(plan.residents)} resident tensors, {plan.count_copies()} copies"


def _declare(module: Module, plan: StagePlan) -> None:
    """Module-level ops that name every resident tensor, buffer and input."""
    ops = [op for op in module.ops if op.name not in ("plan.parameter", "plan.buffer", "plan.input")]
    for r in plan.residents:
        ops.append(_parameter(r, plan))
    step = plan.step
    for p in step.params:
        role, attrs = p.attrs.get("role"), {"shape": list(p.type.shape), "dtype": p.type.dtype}
        if role == "buffer":
            stages = plan.stages_reading(p)
            ops.append(Op("plan.buffer", symbol=str(p.attrs["path"]), attrs={**attrs, "stages": stages}))
        elif role == "input":
            ops.append(Op("plan.input", symbol=str(p.attrs["path"]), attrs={**attrs, "stages": plan.stages_reading(p)}))
    module.ops = ops


def _parameter(r: Resident, plan: StagePlan) -> Op:
    attrs: Attrs = {
        "of": r.of, "shape": list(r.value.type.shape), "dtype": r.value.type.dtype, "stage": r.stage,
        "layout": r.rest, "shard": r.shard, "grad": plan.needs_gradient(r.of), "home": r.is_home,
        "aliases": list(r.value.attrs.get("aliases", []) or []),  # type: ignore[arg-type]
    }  # fmt: skip
    if "unpadded" in r.value.attrs:
        attrs["unpadded"] = r.value.attrs["unpadded"]
    return Op("plan.parameter", symbol=r.name, attrs=attrs)

