"""`solve`: the unified optimization process, from a problem to an answer that says how much of it is proven."""

from __future__ import annotations

import math
import time
from pathlib import Path

from uniap_compiler.solver import backend as solvers
from uniap_compiler.solver.instance import Instance
from uniap_compiler.solver.miqp import build_miqp
from uniap_compiler.solver.plan import Plan, Result
from uniap_compiler.solver.problem import Problem
from uniap_compiler.solver.sweep import Progress, Sweep, make_plan


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
    sweep = Sweep(problem, list(range(len(problem.candidates))), gap, deadline, progress)
    swept = sweep.run()
    best, bound = swept.best, swept.bound
    for n, least in sorted(swept.unfinished.items(), key=lambda item: item[1]):
        if time.monotonic() > deadline:
            break
        plan, proven = _solve_miqp(sweep.instances[n], backend, gap, deadline - time.monotonic(), write_lp)
        swept.unfinished[n] = max(least, proven)
        if plan is not None and (best is None or plan.objective < best.objective):
            best = plan
    if swept.unfinished:
        bound = min([swept.bound, *swept.unfinished.values()])
    seconds = time.monotonic() - began
    if best is None:
        status = "infeasible" if bound == math.inf else "unknown"
        return Result(status, [], None, None, seconds, {} if status == "infeasible" else None)
    bound = min(bound, best.objective)
    left = (best.objective - bound) / best.objective if best.objective else 0.0
    return Result("optimal" if left <= gap else "feasible", [best], bound, left, seconds)


def _solve_miqp(
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
