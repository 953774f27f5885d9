"""The certificate: every derived value recomputed from the raw problem by code that shares nothing with the search.

For every candidate, one of four arguments must show that no plan is below the threshold:
- "closed form": the bound (B1), summed again with plain loops;
- "interval bounds": the class-blind bounds of stage times and the search over periods, both written again here;
- "stage by stage": all stages that a better plan could hold, by labels, and all plans of them (fronts.py);
- "MIQP": the exact model closes with derived rows. Each row's value is attained by the strategies that come with it
  (summed from the raw tables), and a label search of its own finds nothing below it; where labels are too many, the
  bound of this file's own tables is the row. Which intervals may be left out is decided here, not taken over.

This file reads `Problem` only. It is slower and simpler than what it checks, on purpose.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

from uniap_compiler.solver.branch import Cover, relax
from uniap_compiler.solver.evaluate import evaluate
from uniap_compiler.solver.fronts import Fronts
from uniap_compiler.solver.instance import build_instance
from uniap_compiler.solver.miqp import StageTimes
from uniap_compiler.solver.plan import Plan
from uniap_compiler.solver.problem import Fixed, Problem
from uniap_compiler.solver.proof import close, least_times, remaining
from uniap_compiler.solver.recount import Raw, Table, TooHard

#: A value is confirmed when it is met within this fraction.
AGREE = 1e-9
#: Labels that may be made for the exact rows of one candidate.
ROWS_WORK = 2e6


@dataclass
class Report:
    """Whether everything was confirmed, by which arguments, and the bound that is certified."""

    certified: bool
    bound: float
    arguments: dict[str, int] = field(default_factory=dict)
    values: int = 0
    refusals: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        data = {"certified": self.certified, "arguments": self.arguments, "values_recomputed": self.values}
        return data | ({"refusals": self.refusals[:10]} if self.refusals else {})


def check_sweep(
    problem: Problem,
    plan: Plan,
    threshold: float,
    backend: str,
    gap: float,
    deadline: float = math.inf,
    covers: dict[int, Cover] | None = None,
) -> Report:
    """Show for every candidate that no plan is below `threshold`. `covers` are hints where to split candidates."""
    report = Report(True, threshold)
    objective, bad = evaluate(problem, plan.candidate, plan.stage, plan.strategy)
    if bad or abs(objective - plan.objective) > AGREE * max(objective, 1e-300):
        report.refusals.append(f"the plan is not what it claims: {bad or objective}")
    check = _Check(plan, threshold, backend, gap, deadline, report)
    for n in range(len(problem.candidates)):
        if time.monotonic() > deadline:
            report.refusals.append("time ran out")
            report.bound = 0.0
            break
        check.candidate(problem, n, (covers or {}).get(n, Cover()))
    report.certified = not report.refusals
    return report


@dataclass
class _Check:
    """One candidate after the other, split where the hints say so; what is found goes to the report."""

    plan: Plan
    threshold: float
    backend: str
    gap: float
    deadline: float
    report: Report

    def candidate(self, problem: Problem, n: int, cover: Cover) -> None:
        """Candidate n of the problem, whose fixed choices may be those of one part only."""
        raw, argument = Raw(problem, n), "MIQP"
        if raw.impossible():
            argument = "no plan exists"
        elif raw.closed_form() >= self.threshold:
            argument = "closed form"
        else:
            table = raw.table()
            reached = table.bound(self.threshold) >= self.threshold
            if not reached and raw.hard():
                raw.sharpen(table, self.threshold)
                reached = table.bound(self.threshold) >= self.threshold
            if reached:
                argument = "interval bounds"
            elif cover.parts:
                argument = "split"
                self.parts(problem, n, raw, cover)
            elif self.fronts(raw, table):
                argument = "stage by stage"
            else:
                self.miqp(problem, n, raw, table)
        self.report.arguments[argument] = self.report.arguments.get(argument, 0) + 1

    def parts(self, problem: Problem, n: int, raw: Raw, cover: Cover) -> None:
        """Every choice that the layer of the cover has is in one part. Which ones there are is decided here."""
        names, u = problem.candidates[n].strategies, cover.layer
        choices = raw.choices[u]
        if cover.by_class:
            groups = {q: [k for k in choices if raw.layout[k] == q] for q in sorted({raw.layout[k] for k in choices})}
        else:
            groups = {k: [k] for k in choices if not raw.beaten(u, k)}
        for key, group in groups.items():
            if time.monotonic() > self.deadline:
                self.report.refusals.append("time ran out")
                self.report.bound = 0.0
                return
            fixed = [*problem.fixed, Fixed(u, strategies=[names[k] for k in group])]
            self.candidate(replace(problem, fixed=fixed), n, cover.parts.get(key, Cover()))

    def fronts(self, raw: Raw, table: Table) -> bool:
        """Whether everything that a better plan could be made of was looked at, and none was found."""
        try:
            return Fronts(raw, table, self.threshold, self.deadline).bound() >= self.threshold
        except TooHard:
            return False

    def miqp(self, problem: Problem, n: int, raw: Raw, table: Table) -> None:
        at, intervals = build_instance(problem, n), table.survivors(self.threshold)
        derived = least_times(relax(at, {}), intervals, self.threshold, self.deadline)
        raw.work_left = ROWS_WORK
        refusals, checked = check_rows(raw, derived, self.deadline, intervals)
        self.report.refusals += refusals
        self.report.values += checked
        derived = derived.filled({key: table.row(*key) for key in derived.hard})
        start = self.plan if self.plan.candidate == n else None
        seconds = remaining(self.deadline, 600.0)
        closed = close(at, derived, start, self.backend, 0.1 * self.gap, seconds)
        if closed.bound < self.threshold * (1 - AGREE):
            self.report.refusals.append(f"candidate {n}: the MIQP closes at {closed.bound!r} only")
            self.report.bound = min(self.report.bound, closed.bound)


def check_rows(
    raw: Raw, derived: StageTimes, deadline: float = math.inf, intervals: list[tuple[int, int, int]] | None = None
) -> tuple[list[str], int]:
    """Recompute every value of the derived rows. Returns the refusals and how many values were looked at.

    With `intervals`, those without any row must hold nothing that fits. What takes too many labels becomes hard.
    """
    refusals: list[str] = []
    checked = 0
    for i, a, b in sorted(set(intervals or ()) - set(derived.hard) - set(derived.entries)):
        if time.monotonic() > deadline:
            return [*refusals, "time ran out"], checked
        checked += 1
        try:
            possible = raw.least_time(i, a, b, 0.0, math.inf)
        except TooHard:
            derived.hard.append((i, a, b))
            continue
        if possible < math.inf:
            refusals.append(f"candidate {raw.index}, stage {i}, layers {a}-{b}: no row, but {possible!r} is possible")
    seen: dict[tuple[object, ...], float] = {}
    for (i, a, b), values in list(derived.entries.items()):
        for w, value in values.items():
            if time.monotonic() > deadline:
                return [*refusals, "time ran out"], checked
            checked += 1
            where = f"candidate {raw.index}, stage {i}, layers {a}-{b}, weight {w:g}"
            strategies = derived.witness.get((i, a, b), {}).get(w)
            attained = None if strategies is None else raw.interval_time(i, a, b, strategies, w)
            if attained is None or abs(attained - value) > AGREE * max(value, attained):
                refusals.append(f"{where}: {value!r} is claimed, its strategies give {attained!r}")
                continue
            key = (raw.signature(i, a, b), w)
            if key not in seen:
                try:
                    seen[key] = raw.least_time(i, a, b, w, value * (1 - AGREE))
                except TooHard:
                    derived.give_up(i, a, b)
                    break
            if seen[key] < value * (1 - AGREE):
                refusals.append(f"{where}: {value!r} is claimed, but {seen[key]!r} is possible")
    return refusals, checked
