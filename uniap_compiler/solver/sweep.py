"""The sweep over (stages, micro_batches): candidates in the order of their bounds, each solved or excluded."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from uniap_compiler.solver import backend as solvers
from uniap_compiler.solver.bounds import closed_form
from uniap_compiler.solver.evaluate import evaluate
from uniap_compiler.solver.instance import Instance, build_instance
from uniap_compiler.solver.miqp import build_miqp
from uniap_compiler.solver.plan import Plan, Result
from uniap_compiler.solver.problem import Problem

Progress = Callable[[dict[str, Any]], None]


def solve(
    problem: Problem,
    *,
    backend: str = "cbc",
    time_limit: float | None = None,
    gap: float = 1e-6,
    top: int = 1,
    write_lp: str | Path | None = None,
    certify: bool = False,
    progress: Progress | None = None,
) -> Result:
    """The best plan of all candidates, with a bound that holds for every plan of every candidate."""
    began = time.monotonic()
    solvers.check_backend(backend)
    deadline = math.inf if time_limit is None else began + time_limit
    instances = [build_instance(problem, n) for n in range(len(problem.candidates))]
    order = sorted((closed_form(at), at.index) for at in instances)
    best: Plan | None = None
    bound = math.inf
    for least, n in order:
        if best is not None and least >= best.objective * (1 - gap):
            bound = min(bound, least)
            continue
        if least == math.inf:
            continue
        plan, proven = _solve_one(instances[n], backend, gap, deadline - time.monotonic(), write_lp)
        bound = min(bound, proven)
        if plan is not None and (best is None or plan.objective < best.objective):
            best = plan
    seconds = time.monotonic() - began
    if best is None:
        status = "infeasible" if bound == math.inf else "unknown"
        return Result(status, [], None, None, seconds, {} if status == "infeasible" else None)
    bound = min(bound, best.objective)
    left = (best.objective - bound) / best.objective if best.objective else 0.0
    return Result("optimal" if left <= gap else "feasible", [best], bound, left, seconds)


def _solve_one(
    at: Instance, backend: str, gap: float, seconds: float, write_lp: str | Path | None
) -> tuple[Plan | None, float]:
    miqp = build_miqp(at, backend)
    if write_lp is not None:
        folder = Path(write_lp)
        folder.mkdir(parents=True, exist_ok=True)
        miqp.model.write(str(folder / f"n{at.index:02d}_D{at.stages}_c{at.micro_batches}.lp"))
    outcome = solvers.run(miqp, backend, gap * 0.5, min(seconds, 3600.0))
    if not outcome.found:
        return None, outcome.bound
    stage, strategy = miqp.read()
    return make_plan(at.problem, at.index, stage, strategy), outcome.bound


def make_plan(problem: Problem, index: int, stage: list[int], strategy: list[int]) -> Plan | None:
    """A plan re-evaluated from the raw problem; None when it violates anything."""
    objective, bad = evaluate(problem, index, stage, strategy)
    if bad:
        return None
    candidate = problem.candidates[index]
    return Plan(index, candidate.stages, candidate.micro_batches, stage, strategy, objective)
