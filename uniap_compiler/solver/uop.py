"""`solve`: the unified optimization process, from a problem to an answer that says how much of it is proven.

1. the sweep (sweep.py) finds a plan and a bound for every candidate;
2. what it could not finish goes to the MIQP;
3. the MIQP of the winner, with derived rows, must confirm the plan (proof.py);
4. `certify` recomputes every derived value that was used, in all candidates, by independent code (certificate.py).
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uniap_compiler.solver import backend as solvers
from uniap_compiler.solver.branch import relax
from uniap_compiler.solver.certificate import check_sweep
from uniap_compiler.solver.explain import explain, leanest_plan
from uniap_compiler.solver.miqp import build_miqp
from uniap_compiler.solver.plan import Plan, Result
from uniap_compiler.solver.problem import Problem
from uniap_compiler.solver.proof import SMALL, SMALL_SECONDS, Closed, close, derive, remaining, size, write
from uniap_compiler.solver.sweep import Progress, Sweep, Swept, make_plan
from uniap_compiler.solver.top import further_plans

#: Seconds that the MIQP of an unfinished candidate, and the confirmation of the winner, may take at most.
MIQP_SECONDS, CONFIRM_SECONDS = 600.0, 60.0
#: The bound is proven when the winner is confirmed: that may take this part of the proof's time, or this many seconds.
PATIENCE, PART = 2.0, 0.5
#: Further plans may take as long as everything before them, or this many seconds.
TOP_SECONDS = 5.0
#: No gap below this is meaningful in double precision.
LEAST_GAP = 1e-8
#: Seconds after the time limit in which any plan at all is looked for, when there is none yet.
GRACE = 0.5


def solve(
    problem: Problem,
    *,
    backend: str = "cbc",
    time_limit: float | None = None,
    gap: float = 1e-6,
    top: int = 1,
    top_gap: float | None = None,
    write_lp: str | Path | None = None,
    certify: bool = False,
    progress: Progress | None = None,
) -> Result:
    """The best plan of all candidates, with a bound that holds for every plan of every candidate.

    `top` > 1 adds further, different plans, as far as TOP_SECONDS or the time of the first one go, each within
    `top_gap` (`gap` if None) of the best of its kind. `write_lp` names a folder for the models that are solved.
    `progress` is called with candidates done, incumbent, bound and seconds.
    """
    if not (math.isfinite(gap) and gap >= 0) or top < 1 or (time_limit is not None and not time_limit >= 0):
        raise ValueError("gap and time_limit must not be negative, and top is at least 1")
    solvers.check_backend(backend)
    began = time.monotonic()
    deadline = math.inf if time_limit is None else began + time_limit
    run = _Run(problem, backend, max(gap, LEAST_GAP), deadline, write_lp, progress)
    run.finish()
    best = run.swept.best
    if best is None:
        seconds = time.monotonic() - began
        if run.swept.bound < math.inf:
            return Result("unknown", [], run.swept.bound, None, seconds, proof=run.proof)
        return Result("infeasible", [], None, None, seconds, explain(list(run.sweep.instances.values())), run.proof)
    run.confirm(min(deadline, time.monotonic() + max(PATIENCE, PART * (time.monotonic() - began))))
    certified = run.certify() if certify else True
    best, bound = run.plan, min(run.swept.bound, run.plan.objective)
    plans = [best]
    if top > 1:
        until = min(deadline, time.monotonic() + max(TOP_SECONDS, time.monotonic() - began))
        more, proven = further_plans(problem, best, top - 1, backend, max(run.gap, top_gap or 0.0), until)
        plans += more
        run.proof["further"] = {"asked": top - 1, "found": len(more), "proven": proven}
    left = (best.objective - bound) / best.objective if best.objective > 0 else 0.0
    status = "optimal" if left <= run.gap and certified else "feasible"
    return Result(status, plans, bound, left, time.monotonic() - began, proof=run.proof)


@dataclass
class _Run:
    """One call of `solve`: the sweep, and what the MIQP adds to it."""

    problem: Problem
    backend: str
    gap: float
    deadline: float
    write_lp: str | Path | None
    progress: Progress | None
    sweep: Sweep = field(init=False)
    swept: Swept = field(init=False)
    proof: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        indices = list(range(len(self.problem.candidates)))
        self.sweep = Sweep(self.problem, indices, self.gap, self.deadline, self.progress, self.backend, self.write_lp)
        self.swept = self.sweep.run()
        self.proof = {"sweep": "stopped" if self.swept.stopped else "complete", "nodes": self.swept.nodes}
        if self.swept.miqp:
            self.proof["miqp"] = {str(n): bound for n, bound in sorted(self.swept.miqp.items())}

    @property
    def plan(self) -> Plan:
        assert self.swept.best is not None
        return self.swept.best

    def finish(self) -> None:
        """Candidates that the sweep left open: the MIQP itself, without derived rows, in the order of their bounds."""
        swept = self.swept
        if swept.best is None and swept.unfinished:
            self._any_plan()
        for n, least in sorted(swept.unfinished.items(), key=lambda item: item[1]):
            if self.sweep.pool.excludes(least) or time.monotonic() > self.deadline:
                continue
            seconds = remaining(self.deadline, MIQP_SECONDS)
            at = self.sweep.instances[n]
            rows = self.sweep.roots[n].rows(self.sweep.pool.threshold())
            closed = close(at, rows, swept.best, self.backend, 0.5 * self.gap, seconds, self.write_lp)
            swept.unfinished[n] = max(least, closed.bound)
            self._take(n, closed)
            self.proof.setdefault("miqp", {})[str(n)] = closed.bound if math.isfinite(closed.bound) else None
        if swept.unfinished:
            swept.bound = min([swept.bound_elsewhere, self.sweep.pool.value, *swept.unfinished.values()])

    def _any_plan(self) -> None:
        """Time is over and there is no plan: the leanest ones are quickly found."""
        until = max(time.monotonic(), self.deadline) + GRACE
        for n in sorted(self.swept.unfinished):
            lean = leanest_plan(self.sweep.instances[n])
            plan = None if lean is None else make_plan(self.problem, n, *lean)
            if plan is not None:
                self.sweep.offer(plan)
                self.swept.best = self.sweep.best
            if plan is not None or time.monotonic() > until:
                return

    def confirm(self, deadline: float) -> None:
        """The MIQP of the winner: small ones as they are, others with derived rows. It may only agree."""
        n = self.plan.candidate
        if n in self.swept.unfinished or time.monotonic() > deadline:
            return
        if n in self.swept.miqp and self.sweep.pool.excludes(self.swept.miqp[n]):
            closed_at = self.swept.miqp[n]
            self.proof["confirmation"] = {"model": "MIQP with bounds as rows", "closed": True, "bound": closed_at}
            return
        at = self.sweep.instances[n]
        for plain in (True, False):
            if plain and size(at) > SMALL:
                continue
            if not plain and self.sweep.roots[n].children:
                self.proof["confirmation"] = {"model": "none: the candidate was split", "closed": False}
                if self.write_lp is not None:
                    write(build_miqp(at, self.backend), self.write_lp)
                return
            threshold = self.plan.objective * (1 + 0.1 * self.gap)
            derived = None if plain else derive(relax(at, {}), threshold, deadline, self.sweep.roots[n].search)
            if derived is None and not plain:
                self.proof["confirmation"] = {"model": "none: time ran out", "closed": False}
                return
            seconds = remaining(deadline, SMALL_SECONDS if plain else CONFIRM_SECONDS)
            closed = close(at, derived, self.plan, self.backend, 0.1 * self.gap, seconds, self.write_lp)
            self._take(n, closed, self.gap)  # nearly as good: whether that is found in time must not matter
            agrees = closed.bound >= self.plan.objective * (1 - self.gap)
            model = "MIQP" if plain else "MIQP with derived rows"
            self.proof["confirmation"] = {"model": model, "closed": agrees}
            if agrees:
                self.proof["confirmation"]["bound"] = closed.bound
                return

    def certify(self) -> bool:
        """Every candidate shown again by independent code; False when something was refused or not reached."""
        covers = {n: node.cover() for n, node in self.sweep.roots.items()}
        enough = self.plan.objective * (1 - 0.9 * self.gap)
        report = check_sweep(self.problem, self.plan, enough, self.backend, self.gap, self.deadline, covers)
        self.proof["certificate"] = report.to_json()
        return report.certified

    def _take(self, n: int, closed: Closed, much: float = 0.0) -> None:
        """A plan that the MIQP found, when it is the best so far by that fraction."""
        if closed.plan is None:
            return
        plan = make_plan(self.problem, n, *closed.plan)
        if plan is not None and (self.swept.best is None or plan.objective < self.swept.best.objective * (1 - much)):
            self.swept.best = plan
            self.swept.bound = min(self.swept.bound, plan.objective)
            self.sweep.offer(plan)
