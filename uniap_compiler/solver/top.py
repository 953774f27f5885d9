"""Further plans: another (stages, micro_batches), or at least 10 % of the layers on another stage or strategy."""

from __future__ import annotations

import math
import time

import mip

from uniap_compiler.solver import backend as solvers
from uniap_compiler.solver.instance import build_instance
from uniap_compiler.solver.miqp import build_miqp
from uniap_compiler.solver.plan import Plan
from uniap_compiler.solver.problem import Problem
from uniap_compiler.solver.proof import expensive
from uniap_compiler.solver.sweep import Sweep, make_plan

#: Seconds for one plan that must differ from the others of its (stages, micro_batches).
DIFFERENT_SECONDS = 10.0


def further_plans(
    problem: Problem, best: Plan, count: int, backend: str, gap: float, deadline: float
) -> tuple[list[Plan], int]:
    """Up to `count` more plans, best first, every one different from all before it; and how many of them are proven.

    First the best plan of every other (stages, micro_batches): proven, as the first plan is, to be within the gap of
    the best that these have. When there are fewer of them than asked for, plans of a (stages, micro_batches) that was
    used, far enough away from all plans so far, from the MIQP with one more row: proven when that closes.
    """
    plans, proven = [best], 0
    while len(plans) <= count and time.monotonic() < deadline:
        used = {(plan.stages, plan.micro_batches) for plan in plans}
        indices = [n for n, at in enumerate(problem.candidates) if (at.stages, at.micro_batches) not in used]
        swept = Sweep(problem, indices, gap, deadline, backend=backend).run() if indices else None
        if swept is None or swept.best is None:
            break
        plans.append(swept.best)
        proven += swept.bound >= swept.best.objective * (1 - gap)
    shapes = list(dict.fromkeys((plan.stages, plan.micro_batches) for plan in plans))
    while shapes and len(plans) <= count and time.monotonic() < deadline:
        found, closed = _of_shape(problem, shapes[0], plans, backend, gap, deadline)
        if found is None:
            shapes.pop(0)  # nothing else is different enough there
        else:
            plans.append(found)
            proven += closed
    return sorted(plans[1:], key=lambda plan: (plan.objective, plan.candidate)), proven


def _of_shape(
    problem: Problem, shape: tuple[int, int], plans: list[Plan], backend: str, gap: float, deadline: float
) -> tuple[Plan | None, bool]:
    """The best plan with these stages and micro-batches that differs from all `plans`; whether that is proven."""
    found: list[Plan] = []
    proven = True
    for n, candidate in enumerate(problem.candidates):
        if (candidate.stages, candidate.micro_batches) == shape:
            seconds = min(DIFFERENT_SECONDS, deadline - time.monotonic())
            plan, closed = _different(problem, n, plans, backend, gap, seconds) if seconds > 0 else (None, False)
            found += [] if plan is None else [plan]
            proven &= closed
    return min(found, key=lambda plan: plan.objective, default=None), proven


def _different(
    problem: Problem, n: int, plans: list[Plan], backend: str, gap: float, seconds: float
) -> tuple[Plan | None, bool]:
    """The best plan of candidate n that differs from all `plans`, as far as the time goes; whether it is the best."""
    at = build_instance(problem, n)
    if not at.possible:
        return None, True
    if expensive(at, seconds):
        return None, False
    began = time.monotonic()
    miqp = build_miqp(at, backend)
    for m, plan in enumerate(plans):
        if (plan.stages, plan.micro_batches) == (at.stages, at.micro_batches):
            same = [
                miqp.y[u, i, k]
                for u, (i, k) in enumerate(zip(plan.stage, plan.strategy, strict=True))
                if (u, i, k) in miqp.y
            ]
            most = at.layers - max(1, math.ceil(0.1 * at.layers))
            miqp.model.add_constr(mip.LinExpr(same, [1.0] * len(same), -most, "<"), f"eqN_different_{m}")
    outcome = solvers.run(miqp, backend, gap, seconds - (time.monotonic() - began))
    if not outcome.found:
        return None, outcome.status == "infeasible"
    plan_found = make_plan(problem, n, *miqp.read())
    if plan_found is None or not all(plan_found.differs(plan) for plan in plans):
        return None, False
    return plan_found, outcome.status == "optimal"
