"""The segments of one step: @stage_i.reduce_gradients and @stage_i.refresh_parameters.

Both walk the parameters in one global order, so that what one stage sends another is waiting for: no deadlock.
"""

from __future__ import annotations

from dataclasses import replace

from uniap_compiler.ir import Func, Op, Value

from .parameters import Resident
from .segment import Segment
from .stage_plan import StagePlan


def _homes(plan: StagePlan) -> list[Resident]:
    return [r for r in plan.residents if r.is_home]


def reduce_gradients(plan: StagePlan, stage: int) -> Func | None:
    """Accumulators -> final gradients at the homes; gradients of copies are added there."""
    seg = Segment(f"stage_{stage}.reduce_gradients", plan.mesh, stage=stage, phase="reduce_gradients")
    for home in _homes(plan):
        if not plan.needs_gradient(home.name):
            continue
        readers = [r for r in (home, *plan.copies_of(home.name)) if r.gradient is not None]
        kept = plan.precision.accumulated(home.value.type.dtype)
        sent = plan.precision.reduced(home.value.type.dtype)
        total: Value | None = None
        for r in readers:
            if r.stage == stage:
                assert r.gradient is not None
                if readers == [home] and r.gradient == home.rest:
                    continue  # the accumulator is the final gradient as it is
                accumulator = seg.arg(f"grad:{r.name}", plan.gradient_type(r))
                part = seg.reduced(accumulator, home.rest, sent)
                if home.stage != stage:
                    part = seg.cast(part, sent)
                    seg.func.ops.append(Op("comm.send", [part], [], {"to_stage": home.stage}))
                    continue
            elif home.stage == stage:
                part = _receive(seg, home, sent, r.stage, f"{r.name}.grad")
            else:
                continue
            part = seg.cast(part, kept)
            total = part if total is None else seg.add(total, part, f"{home.name}.grad")
        if total is not None:
            seg.give(f"grad:{home.name}", total)
    return seg.done() or (seg.func if _finish_sends(seg) else None)


def refresh_parameters(plan: StagePlan, stage: int) -> Func | None:
    """Homes -> copies, after the optimizer."""
    seg = Segment(f"stage_{stage}.refresh_parameters", plan.mesh, stage=stage, phase="refresh_parameters")
    for home in _homes(plan):
        if not plan.needs_gradient(home.name):
            continue
        for copy in plan.copies_of(home.name):
            if home.stage == stage:
                value = seg.arg(f"param:{home.name}", home.value.type.with_layout(home.rest))
                if copy.stage != stage:
                    seg.func.ops.append(Op("comm.send", [value], [], {"to_stage": copy.stage}))
                    continue
            elif copy.stage == stage:
                value = _receive(seg, home, home.value.type.dtype, home.stage, copy.name)
            else:
                continue
            seg.give(f"param:{copy.name}", seg.to(value, copy.rest))
    return seg.done() or (seg.func if _finish_sends(seg) else None)


def _receive(seg: Segment, home: Resident, dtype: str, from_stage: int, wish: str) -> Value:
    """A tensor in the home's layout from the device at the same place of another stage."""
    type = replace(home.value.type, dtype=dtype, layout=home.rest)
    return seg.op("comm.recv", [], type, wish, from_stage=from_stage)


def _finish_sends(seg: Segment) -> bool:
    """A segment that only sends still has to exist."""
    seg.func.attrs["args"], seg.func.attrs["results"] = list(seg.args), []
    return bool(seg.func.ops)
