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
from uniap_compiler.solver.sweep import Sweep, make_plan

#: Seconds for one plan that must differ from the others of its (stages, micro_batches).
DIFFERENT_SECONDS = 10.0


def further_plans(problem: Problem, best: Plan, count: int, backend: str, gap: float, deadline: float) -> list[Plan]:
    """Up to `count` more plans, best first, every one different from all before it.

    First the best plan of every other (stages, micro_batches), each proven like the first. When there are fewer of them
    than asked for, plans of the same (stages, micro_batches) that are far enough away, from the MIQP with one more row.
    """
    plans = [best]
    while len(plans) <= count and time.monotonic() < deadline:
        used = {(plan.stages, plan.micro_batches) for plan in plans}
        indices = [n for n, at in enumerate(problem.candidates) if (at.stages, at.micro_batches) not in used]
        found = Sweep(problem, indices, gap, deadline).run().best if indices else None
        if found is None:
            break
        plans.append(found)
    shapes = list(dict.fromkeys((plan.stages, plan.micro_batches) for plan in plans))
    while shapes and len(plans) <= count and time.monotonic() < deadline:
        found = _of_shape(problem, shapes[0], plans, backend, gap, deadline)
        if found is None:
            shapes.pop(0)  # nothing else is different enough there
        else:
            plans.append(found)
    return sorted(plans[1:], key=lambda plan: (plan.objective, plan.candidate))


def _of_shape(
    problem: Problem, shape: tuple[int, int], plans: list[Plan], backend: str, gap: float, deadline: float
) -> Plan | None:
    """The best plan with these stages and micro-batches that differs from all `plans`."""
    found = []
    for n, candidate in enumerate(problem.candidates):
        if (candidate.stages, candidate.micro_batches) == shape and time.monotonic() < deadline:
            seconds = max(0.05, min(DIFFERENT_SECONDS, deadline - time.monotonic()))
            found.append(_different(problem, n, plans, backend, gap, seconds))
    return min((plan for plan in found if plan is not None), key=lambda plan: plan.objective, default=None)


def _different(problem: Problem, n: int, plans: list[Plan], backend: str, gap: float, seconds: float) -> Plan | None:
    """The best plan of candidate n that differs from all `plans`, as far as the time goes."""
    at = build_instance(problem, n)
    if not at.possible:
        return None
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
    outcome = solvers.run(miqp, backend, gap, seconds)
    if not outcome.found:
        return None
    plan_found = make_plan(problem, n, *miqp.read())
    if plan_found is None or not all(plan_found.differs(plan) for plan in plans):
        return None
    return plan_found
