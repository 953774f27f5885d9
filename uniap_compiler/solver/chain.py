"""The exact optimum of a chain: lower-bound tables first, exact stage times only where the optimum looks.

    search = ChainSearch(instance, offer)   # an instance without values and ties (branch.py removes those)
    search.refine(incumbent)                # one level further: coarse tables -> fine tables -> exact
    search.bound                            # holds for every plan of the instance that was not offered

The period T and the once-per-step time s are found by splitting boxes: with g(T, s) the least sum under both caps,
every plan in [T1, T2] x [s1, s2] costs at least g(T2, s2) + (c-1) T1 + s1, and the plan behind g costs
g + (c-1) T' + s' with T' <= T2, s' <= s2, so that only T < T' and s < s' are left.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from uniap_compiler.solver.exact import ExactSearch, Found, Settled, step_weights
from uniap_compiler.solver.instance import Instance
from uniap_compiler.solver.intervals import IntervalTable, Path
from uniap_compiler.solver.labels import Limit, stage_time
from uniap_compiler.solver.miqp import StageTimes
from uniap_compiler.solver.tables import OutOfTime, StageCosts, coarse_table, fine_table, hops, in_time

#: Labels per class when a plan is wanted quickly: behind coarse tables, behind fine ones.
QUICK_BEAM, BEAM = 4, 24
#: Bounds are lowered by this fraction against rounding.
BELOW = 1e-9
Offer = Callable[[list[int], list[int]], None]
Incumbent = Callable[[], float]


@dataclass(order=True)
class Box:
    """Plans with a period, or with a once-per-step time, in [low, high] cost at least `bound`."""

    bound: float
    low: float
    high: float


class ChainSearch:
    """Levels: 0 nothing yet, 1 coarse tables, 2 fine tables, 3 those by ranges of the working set; then `solved`.

    `stuck`: the labels were too many.
    """

    def __init__(
        self,
        at: Instance,
        offer: Offer,
        deadline: float = np.inf,
        settled: Settled | None = None,
        parent: ChainSearch | None = None,
    ) -> None:
        self.merged = at.stages == 1 and bool(at.step.any())
        if self.merged:  # one stage: c p + s is one sum
            at = replace(at, time=at.time + at.step[:, None, :] / at.micro_batches, step=np.zeros_like(at.step))
        self.at, self.offer, self.deadline = at, offer, deadline
        self.level, self.bound, self.solved, self.stuck = 0, 0.0, False, False
        self.rounds = at.micro_batches - 1.0
        self.stepped = bool(at.step.any())
        least = np.where(at.allowed, at.step, np.inf).min(axis=1)[at.kind]
        self.step_floor = max(float(least.sum()) / at.stages, float(least.max()))
        self.floor, self.cutoff = 0.0, np.inf  # the table lacks what only plans from `cutoff` on use
        self.costs: dict[float, list[StageCosts]] = {}
        self.table = IntervalTable(at, [], np.zeros((1, 1, 1)), [])
        # In 1F1B the period is at least the mean round trip of stage 0: the sum counts this often.
        self.trips = 1 + self.rounds / at.stages if at.steady and at.stages < at.micro_batches else 0.0
        self.weights = [1 / at.stages, 1 / (at.stages * at.micro_batches)] if self.stepped else []
        if self.stepped and self.trips:
            self.weights.append(1 / (at.stages * self.trips))
        self.settled = Settled() if settled is None else settled
        self.exact: ExactSearch | None = None
        self.first = parent is None
        if parent is not None and parent.level >= 3:  # with fewer choices, nothing gets faster
            self.table, self.floor, self.level = parent.table.of(at), parent.floor, 2

    def go_on(self, work: float) -> None:
        """Not stuck any more: so many more labels may be made."""
        self.settled.budget.left = work
        self.stuck = False
        if self.exact is not None:
            self.exact.stuck = False

    def refine(self, incumbent: Incumbent, matters: Incumbent | None = None) -> None:
        """One level further.

        `incumbent()` is the value from which on plans of this chain are not looked for, at any moment; `matters()`, at
        least as much, the objective from which on plans do not matter in the whole problem.
        """
        try:
            bound = self._refine(incumbent, matters or incumbent)
        except OutOfTime:
            return
        self.bound = max(self.bound, bound)

    def _refine(self, incumbent: Incumbent, matters: Incumbent) -> float:
        if self.exact is not None:
            bound = self.exact.refine(incumbent)
            self.solved, self.stuck = self.exact.solved, self.exact.stuck
            return bound
        at, costs = self.at, {weight: self._stage_costs(weight) for weight in [0.0, *self.weights]}
        if self.level == 0:
            self.table = coarse_table(at, costs, self.deadline)
        else:
            self._prune(matters())
        if self.level in (1, 2):
            self.table = fine_table(at, costs, self.table, self.level == 2, self.deadline)
        if self.level == 3:
            costs = {weight: self._stage_costs(weight) for weight in step_weights(at) if self.stepped or not weight}
            self.exact = ExactSearch(
                self.table, costs, self.floor, self.step_floor, self.deadline, self._offer, self.settled
            )
        self.level += 1
        if self.level == 2 and len(costs[0.0][0].ranges) == 1:
            self.level = 3
        return self._bound_by_periods(incumbent) if self.level <= 3 else self._refine(incumbent, matters)

    def _stage_costs(self, weight: float) -> list[StageCosts]:
        if weight not in self.costs:
            in_time(self.deadline)
            self.costs[weight] = [StageCosts(self.at, i, weight) for i in range(self.at.stages)]
        return self.costs[weight]

    # -- lower bounds -----------------------------------------------------------------------------------------------

    def _bound_by_periods(self, incumbent: Incumbent) -> float:
        """Split the range of periods until the least bound is known to 0.01 %."""
        root = self.table.best(np.inf)
        if root is None:
            return float("inf")
        least = 0.0
        if len(self.table.weights) == 3:
            mean = self.table.weighted(2).best(np.inf)
            assert mean is not None
            least = self.trips * mean.total
        queue = [Box(max(root.total, least), 0.0, root.period)]
        while queue:
            box = heapq.heappop(queue)
            box.bound = max(box.bound, least)
            if box.bound >= incumbent() or time.monotonic() > self.deadline:
                return min(box.bound * (1 - BELOW), incumbent())
            path = self.table.best(box.high)
            if path is None:
                continue
            if self.rounds * (min(path.period, box.high) - box.low) <= 1e-4 * box.bound:
                self._offer_beam(path, BEAM if self.level == 3 and self.first else QUICK_BEAM)
                return box.bound * (1 - BELOW)
            high = min(box.high, path.period)
            middle = 0.5 * (box.low + high)
            heapq.heappush(queue, Box(path.total + self.rounds * middle, middle, high))
            lower = self.table.best(middle)
            if lower is not None:
                bound = lower.total + self.rounds * box.low
                heapq.heappush(queue, Box(bound, box.low, min(middle, lower.period)))
        return float("inf")

    def _prune(self, incumbent: float) -> None:
        """Drop the intervals that no plan better than the incumbent uses."""
        table = self.table
        self.cutoff = min(self.cutoff, incumbent)
        totals = table.totals(np.inf)
        self.floor = self._least_period(incumbent)
        keep = []
        for own, total in zip(table.stages, totals, strict=True):
            longest = np.maximum(own.t.min(axis=(1, 2), initial=np.inf, where=np.isfinite(own.t)), self.floor)
            keep.append(
                np.isfinite(total) & (total + self.rounds * np.where(np.isfinite(longest), longest, 0.0) < incumbent)
            )
        if len(table.weights) == 3:
            for mask, total in zip(keep, table.weighted(2).totals(np.inf), strict=True):
                mask &= self.trips * total < incumbent
        table.stages = [own.keep(mask) for own, mask in zip(table.stages, keep, strict=True)]

    def _least_period(self, incumbent: float) -> float:
        """A period below which no plan better than the incumbent exists: the range is split, the lowest part first."""
        timed = self.table.timed()
        root = timed.best(np.inf)
        if root is None or self.rounds == 0:
            return 0.0
        pending = [(self.floor, max(self.floor, root.period))]
        while pending:
            low, high = pending.pop()
            path = self.table.best(high)
            if path is None or path.total + self.rounds * low >= incumbent or timed.best(high) is None:
                continue
            if high - low <= 1e-5 * high:
                return low
            middle = 0.5 * (low + high)
            pending += [(middle, high), (low, middle)]
        return max(self.floor, root.period)

    def rows(self, threshold: float) -> StageTimes:
        """Bounds of the tables as derived rows for the MIQP of any instance that this chain relaxes."""
        weights = [1 / self.at.micro_batches if self.merged else 0.0, *self.table.weights]
        self._prune(threshold)
        entries = {}
        for i, own in enumerate(self.table.stages):
            least = [values.min(axis=(1, 2)).tolist() for values in (own.t, *own.sums)]
            for a, b, *values in zip(own.a.tolist(), own.b.tolist(), *least, strict=True):
                entries[i, a, b] = dict(zip(weights, values, strict=True))
        return StageTimes(min(threshold, self.cutoff), entries)

    # -- plans ------------------------------------------------------------------------------------------------------

    def _offer_beam(self, path: Path, width: int) -> None:
        """A plan with the same intervals."""
        intervals = [(int(own.a[n]), int(own.b[n])) for own, n in zip(self.table.stages, path.position, strict=True)]
        weight = 1 / self.at.micro_batches if self.stepped else 0.0
        found = beam_plan(self.at, intervals, self._stage_costs(weight), width)
        if found is not None:
            self._offer(found)

    def _offer(self, found: Found) -> None:
        stage = [i for i, (a, b, _) in enumerate(found) for _ in range(a, b + 1)]
        self.offer(stage, [k for _, _, chosen in found for k in chosen])


def beam_plan(at: Instance, intervals: list[tuple[int, int]], costs: list[StageCosts], width: int) -> Found | None:
    """A plan with these layers a..b on every stage: stage after stage by a beam, entered in the cheapest way."""
    entry, hop, none = np.zeros(at.classes), hops(at), np.zeros(at.classes)
    chosen: Found = []
    for i, (a, b) in enumerate(intervals):
        own = costs[i]
        options = stage_time(at, i, a, b, [own], Limit(np.inf, none, none, own.weight), entry, width).options
        if not len(options.time):
            return None
        m = int(np.argmin(options.time + own.weight * options.step))
        chosen.append((a, b, options.strategies(m)))
        if b + 1 < at.layers:
            entry = hop[b + 1, int(options.r[m])]
    return chosen
