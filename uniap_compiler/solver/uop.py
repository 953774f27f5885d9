"""`solve`: the unified optimization process, from a problem to an answer that says how much of it is proven.

1. the sweep (sweep.py) finds a plan and a bound for every candidate;
2. what it could not finish goes to the MIQP;
3. the MIQP of the winner, with derived rows, must confirm the plan (proof.py);
4. `certify` recomputes every derived value that was used, in all candidates, by independent code (certificate.py).
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from uniap_compiler.solver import backend as solvers
from uniap_compiler.solver.branch import relax
from uniap_compiler.solver.certificate import check_sweep
from uniap_compiler.solver.explain import explain
from uniap_compiler.solver.plan import Plan, Result
from uniap_compiler.solver.problem import Problem
from uniap_compiler.solver.proof import SMALL, SMALL_SECONDS, Closed, close, derive, remaining, size
from uniap_compiler.solver.sweep import Progress, Sweep, Swept, make_plan
from uniap_compiler.solver.top import further_plans

#: Seconds that the confirmation of the winner may take when there is no time limit.
CONFIRM_SECONDS = 60.0, 2.0  # at most, and at least
#: No gap below this is meaningful in double precision.
LEAST_GAP = 1e-8


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
    """The best plan of all candidates, with a bound that holds for every plan of every candidate.

    `top` > 1 adds further, different plans. `write_lp` names a folder for the models that are solved. `progress` is
    called with candidates done, incumbent, bound and seconds.
    """
    if not (math.isfinite(gap) and gap >= 0) or top < 1 or (time_limit is not None and not time_limit >= 0):
        raise ValueError("gap and time_limit must not be negative, and top is at least 1")
    solvers.check_backend(backend)
    began = time.monotonic()
    deadline = math.inf if time_limit is None else began + time_limit
    gap = max(gap, LEAST_GAP)
    sweep = Sweep(problem, list(range(len(problem.candidates))), gap, deadline, progress)
    swept = sweep.run()
    proof: dict[str, Any] = {"sweep": "stopped" if swept.stopped else "complete", "nodes": swept.nodes}
    _finish(sweep, swept, backend, gap, deadline, write_lp, proof)
    if swept.best is None:
        seconds = time.monotonic() - began
        if swept.bound < math.inf:
            return Result("unknown", [], swept.bound, None, seconds, proof=proof)
        return Result("infeasible", [], None, None, seconds, explain(list(sweep.instances.values())), proof)
    most, least = CONFIRM_SECONDS
    patience = min(most, max(least, time.monotonic() - began))  # the bound is proven: no longer than that took
    _confirm(sweep, swept, backend, gap, min(deadline, time.monotonic() + patience), write_lp, proof)
    refused = False
    if certify:
        covers = {n: node.cover() for n, node in sweep.roots.items()}
        enough = swept.best.objective * (1 - 0.9 * gap)
        report = check_sweep(problem, swept.best, enough, backend, gap, deadline, covers)
        proof["certificate"] = report.to_json()
        swept.bound = min(swept.bound, report.bound)
        refused = not report.certified
    plans = [swept.best]
    if top > 1:
        plans += further_plans(problem, swept.best, top - 1, backend, gap, deadline)
    best, bound = swept.best.objective, min(swept.bound, swept.best.objective)
    left = (best - bound) / best if best > 0 else 0.0
    status = "optimal" if left <= gap and not refused else "feasible"
    return Result(status, plans, bound, left, time.monotonic() - began, proof=proof)


def _finish(
    sweep: Sweep,
    swept: Swept,
    backend: str,
    gap: float,
    deadline: float,
    write_lp: str | Path | None,
    proof: dict[str, Any],
) -> None:
    """Candidates that the sweep left open: the MIQP itself, without derived rows, in the order of their bounds."""
    for n, least in sorted(swept.unfinished.items(), key=lambda item: item[1]):
        if least >= sweep.pool.threshold() or time.monotonic() > deadline:
            continue
        closed = close(sweep.instances[n], None, swept.best, backend, 0.5 * gap, remaining(deadline, 3600.0), write_lp)
        swept.unfinished[n] = max(least, closed.bound)
        _take(sweep, swept, n, closed)
        proof.setdefault("miqp", {})[str(n)] = closed.bound
    if swept.unfinished:
        swept.bound = min([swept.bound_elsewhere, sweep.pool.value, *swept.unfinished.values()])


def _confirm(
    sweep: Sweep,
    swept: Swept,
    backend: str,
    gap: float,
    deadline: float,
    write_lp: str | Path | None,
    proof: dict[str, Any],
) -> None:
    """The MIQP of the winner: small ones as they are, others with derived rows. It may only agree."""
    assert swept.best is not None
    n = swept.best.candidate
    if n in swept.unfinished or time.monotonic() > deadline:
        return
    at = sweep.instances[n]
    for plain in (True, False):
        if plain and size(at) > SMALL:
            continue
        threshold = swept.best.objective * (1 + 0.1 * gap)
        derived = None if plain else derive(relax(at, {}), threshold, deadline, sweep.roots[n].search)
        if derived is None and not plain:
            proof["confirmation"] = {"model": "none: no derived rows in the time given", "closed": False}
            return
        seconds = remaining(deadline, SMALL_SECONDS if plain else CONFIRM_SECONDS[0])
        closed = close(at, derived, swept.best, backend, 0.1 * gap, seconds, write_lp)
        _take(sweep, swept, n, closed)
        agrees = closed.bound >= swept.best.objective * (1 - gap)
        model = "MIQP" if plain else "MIQP with derived rows"
        proof["confirmation"] = {"model": model, "bound": closed.bound, "closed": agrees}
        if agrees:
            return


def _take(sweep: Sweep, swept: Swept, n: int, closed: Closed) -> None:
    """A plan that the MIQP found, when it is the best so far."""
    if closed.plan is None:
        return
    plan: Plan | None = make_plan(sweep.problem, n, *closed.plan)
    if plan is not None and (swept.best is None or plan.objective < swept.best.objective):
        swept.best = plan
        swept.bound = min(swept.bound, plan.objective)
        sweep.offer(plan)
