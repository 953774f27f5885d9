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

from uniap_compiler.solver.instance import Instance
from uniap_compiler.solver.intervals import IntervalTable, Options, Path
from uniap_compiler.solver.labels import StageTime, TooManyLabels, stage_time
from uniap_compiler.solver.tables import StageCosts, coarse_table, fine_table, hops

#: Labels per class when a plan is wanted quickly: behind coarse tables, behind fine ones.
QUICK_BEAM, BEAM = 4, 24
#: Caps are lowered by this fraction, so that "below T'" is a closed condition; bounds give it back.
BELOW = 1e-9
#: Exact times are computed a little beyond their caps, so that the derived rows of the winner can use them again.
ROOMY = 2e-4

Offer = Callable[[list[int], list[int]], None]
Incumbent = Callable[[], float]
Key = tuple[bytes, ...]


@dataclass(order=True)
class Box:
    """Plans with a period in [low, high] and a once-per-step time in [step_low, step_high] cost at least `bound`."""

    bound: float
    low: float
    high: float
    step_low: float
    step_high: float


class ChainSearch:
    """Levels: 0 nothing yet, 1 coarse tables, 2 fine tables, 3 solved (or `stuck`: the labels were too many)."""

    def __init__(
        self, at: Instance, offer: Offer, deadline: float = np.inf, times: dict[Key, StageTime] | None = None
    ) -> None:
        if at.stages == 1 and at.step.any():  # one stage: c p + s is one sum
            at = replace(at, time=at.time + at.step[:, None, :] / at.micro_batches, step=np.zeros_like(at.step))
        self.at, self.offer, self.deadline = at, offer, deadline
        self.level, self.bound, self.stuck = 0, 0.0, False
        self.rounds = at.micro_batches - 1.0
        self.stepped = bool(at.step.any())
        least = np.where(at.allowed, at.step, np.inf).min(axis=1)[at.kind]
        self.step_floor = max(float(least.sum()) / at.stages, float(least.max()))
        self.floor = 0.0
        self.costs: dict[float, list[StageCosts]] = {}
        self.times: dict[Key, StageTime] = {} if times is None else times
        self.failed: set[Key] = set()
        self.table = IntervalTable(at, [], np.zeros((1, 1, 1)))

    def refine(self, incumbent: Incumbent) -> None:
        """One level further. `incumbent()` is the objective at which a plan no longer matters, at any moment."""
        at = self.at
        spread = self._stage_costs(1 / at.stages) if self.stepped else None
        if self.level == 0:
            self.table = coarse_table(at, self._stage_costs(0.0), spread)
        elif self.level == 1:
            self._prune(incumbent())
            self.table = fine_table(at, self._stage_costs(0.0), self.table, spread)
        else:
            self._prune(incumbent())
        self.level += 1
        bound = self._bound_by_periods(incumbent) if self.level < 3 else self._solve(incumbent)
        self.bound = max(self.bound, bound)

    def _stage_costs(self, weight: float) -> list[StageCosts]:
        if weight not in self.costs:
            self.costs[weight] = [StageCosts(self.at, i, weight) for i in range(self.at.stages)]
        return self.costs[weight]

    # -- lower bounds -----------------------------------------------------------------------------------------------

    def _bound_by_periods(self, incumbent: Incumbent) -> float:
        """Split the range of periods until the least bound is known to 0.01 %."""
        root = self.table.best(np.inf)
        if root is None:
            return float("inf")
        queue = [Box(root.total, 0.0, root.period, 0.0, 0.0)]
        while queue:
            box = heapq.heappop(queue)
            if box.bound >= incumbent() or time.monotonic() > self.deadline:
                return min(box.bound * (1 - BELOW), incumbent())
            path = self.table.best(box.high)
            if path is None:
                continue
            if self.rounds * (min(path.period, box.high) - box.low) <= 1e-4 * box.bound:
                self._offer_beam(path, BEAM if self.level > 1 else QUICK_BEAM)
                return box.bound * (1 - BELOW)
            high = min(box.high, path.period)
            middle = 0.5 * (box.low + high)
            heapq.heappush(queue, Box(path.total + self.rounds * middle, middle, high, 0.0, 0.0))
            lower = self.table.best(middle)
            if lower is not None:
                bound = lower.total + self.rounds * box.low
                heapq.heappush(queue, Box(bound, box.low, min(middle, lower.period), 0.0, 0.0))
        return float("inf")

    def _prune(self, incumbent: float) -> None:
        """Drop the intervals that no plan better than the incumbent uses."""
        table = self.table
        totals = table.totals(np.inf)
        self.floor = self._least_period(incumbent)
        keep = []
        for own, total in zip(table.stages, totals, strict=True):
            longest = np.maximum(own.t.min(axis=(1, 2), initial=np.inf, where=np.isfinite(own.t)), self.floor)
            keep.append(
                np.isfinite(total) & (total + self.rounds * np.where(np.isfinite(longest), longest, 0.0) < incumbent)
            )
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

    # -- the exact search -------------------------------------------------------------------------------------------

    def _solve(self, incumbent: Incumbent) -> float:
        """Split boxes until everything is attained or excluded."""
        self.table = self.table.timed()
        root = self.table.best(np.inf)
        if root is None:
            return float("inf")
        least = root.total + self.rounds * self.floor + self.step_floor
        queue = [Box(least, self.floor, np.inf, self.step_floor, np.inf)]
        while queue:
            box = heapq.heappop(queue)
            if box.bound >= incumbent() or time.monotonic() > self.deadline:
                return min(box.bound, incumbent()) * (1 - 2 * BELOW)
            path = self._exact_path(box, incumbent)
            if path is None:
                continue
            least = path.total + self.rounds * box.low + box.step_low
            if least >= incumbent():
                continue
            if not self._is_exact(path):
                self.stuck = True
                return min(least, box.bound) * (1 - 2 * BELOW)
            step = self._offer_exact(path, box)
            for low, high in _halves(box.low, path.period) if self.rounds else []:
                least = path.total + self.rounds * low + box.step_low
                heapq.heappush(queue, Box(least, low, high, box.step_low, box.step_high))
            if self.stepped:
                low = min(path.period, box.high)
                for step_low, step_high in _halves(box.step_low, step):
                    least = path.total + self.rounds * low + step_low
                    heapq.heappush(queue, Box(least, low, box.high, step_low, step_high))
        return incumbent() * (1 - 2 * BELOW)

    def _exact_path(self, box: Box, incumbent: Incumbent) -> Path | None:
        """The best path of a box, with the intervals on it made exact until nothing changes."""
        while True:
            table = self.table.at_step(box.step_high) if self.stepped else self.table
            path = table.best(box.high)
            if path is None or path.total + self.rounds * box.low + box.step_low >= incumbent():
                return path
            if self._is_exact(path) or not self._make_exact(path, incumbent()):
                return path

    def _is_exact(self, path: Path) -> bool:
        return all(own.exact[n] for own, n in zip(self.table.stages, path.position, strict=True))

    def _make_exact(self, path: Path, incumbent: float) -> bool:
        """Replace the bounds on the path by exact times. False when nothing changed."""
        changed = False
        for i, n in enumerate(path.position):
            own = self.table.stages[i]
            a, b = int(own.a[n]), int(own.b[n])
            key = self._key(i, a, b)
            if own.exact[n] or key in self.failed:
                continue
            rests = self.table.rests(np.inf)  # again for every stage: each exact time tightens the caps of the others
            if not np.isfinite(rests[i][n]):
                return True  # no plan through here is left
            alike = np.flatnonzero((own.b - own.a == b - a) & ~own.exact & np.isfinite(rests[i]))
            twins = [int(m) for m in alike if self._key(i, int(own.a[m]), int(own.b[m])) == key]
            try:
                known = self._time(key, i, a, b, float(rests[i][twins].min()), incumbent)
            except TooManyLabels:
                self.failed.add(key)
                continue
            for m in twins:
                # What the caps cut off cannot be part of a plan better than the incumbent, and stays out.
                own.t[m] = np.inf
                np.minimum.at(own.t[m], (known.options.q, known.options.r), known.options.time)
                own.options[m] = known.options
                own.exact[m] = True
            changed = True
        return changed

    def _time(self, key: Key, i: int, a: int, b: int, rest: float, incumbent: float) -> StageTime:
        """The exact times of one interval, below the caps at which its best plan, with `rest`, is no better."""
        c = self.at.micro_batches
        caps = {0.0: (incumbent - rest - self.step_floor) / c}
        if self.stepped:
            caps[1 / c] = (incumbent - rest) / c
            caps[1.0] = incumbent - rest - self.rounds * self.floor
        known = self.times.get(key)
        if known is None or any(old < new for old, new in zip(known.caps, caps.values(), strict=True)):
            costs = [self._stage_costs(weight)[i] for weight in caps]
            entry = np.zeros(self.at.classes) if i == 0 else None  # nothing comes before: any first class will do
            roomy = [cap * (1 + ROOMY) for cap in caps.values()]
            known = self.times[key] = stage_time(self.at, i, a, b, costs, roomy, entry, deadline=self.deadline)
        return known

    def _key(self, i: int, a: int, b: int) -> Key:
        """Intervals with equal keys have equal stage times: they share one computation."""
        at = self.at
        return (
            b"first" if i == 0 else b"",
            at.kind[a : b + 1].tobytes(),
            at.edge[a + 1 : b + 1].tobytes(),
            at.time[:, i].tobytes(),
            at.memory[:, i].tobytes(),
            at.limit[i : i + 1].tobytes(),
        )

    def survivors(self, incumbent: float) -> list[tuple[int, int, int]]:
        """(stage, first layer, last layer) of the intervals that a plan below `incumbent` may use."""
        self._prune(incumbent)
        return [
            (i, int(a), int(b)) for i, own in enumerate(self.table.stages) for a, b in zip(own.a, own.b, strict=True)
        ]

    # -- plans ------------------------------------------------------------------------------------------------------

    def _offer_exact(self, path: Path, box: Box) -> float:
        """Offer the plan behind an exact path; returns its once-per-step time."""
        found, longest = [], 0.0
        for i, n in enumerate(path.position):
            own = self.table.stages[i]
            a, b, options = int(own.a[n]), int(own.b[n]), own.options[n]
            assert options is not None
            m = _pick(options, path.first_class[i], path.last_class[i], box.step_high)
            longest = max(longest, float(options.step[m]))
            found.append((a, b, self._strategies(i, a, b, options, m)))
        self._offer(found)
        return longest

    def _strategies(self, i: int, a: int, b: int, options: Options, m: int) -> list[int]:
        known = self.times[self._key(i, a, b)]
        if known.options is not options:  # computed again with higher caps meanwhile: find the same entry
            same = (known.options.q == options.q[m]) & (known.options.r == options.r[m])
            off = np.abs(known.options.time - options.time[m]) + np.abs(known.options.step - options.step[m])
            m, options = int(np.argmin(np.where(same, off, np.inf))), known.options
        return known.strategies(int(options.label[m]))

    def _offer_beam(self, path: Path, width: int) -> None:
        """A plan with the same intervals: stage after stage by a beam, entered in the cheapest way."""
        at = self.at
        weight = 1 / at.micro_batches if self.stepped else 0.0
        entry, hop, chosen = np.zeros(at.classes), hops(at), []
        for i, n in enumerate(path.position):
            a, b = int(self.table.stages[i].a[n]), int(self.table.stages[i].b[n])
            found = stage_time(at, i, a, b, [self._stage_costs(weight)[i]], [np.inf], entry, width)
            options = found.options
            if not len(options.time):
                return
            m = int(np.argmin(options.time + weight * options.step))
            chosen.append((a, b, found.strategies(int(options.label[m]))))
            if b + 1 < at.layers:
                entry = hop[b + 1, int(options.r[m])]
        self._offer(chosen)

    def _offer(self, found: list[tuple[int, int, list[int]]]) -> None:
        stage = [i for i, (a, b, _) in enumerate(found) for _ in range(a, b + 1)]
        self.offer(stage, [k for _, _, chosen in found for k in chosen])


def _pick(options: Options, q: int, r: int, most: float) -> int:
    """The option of least time between two classes with at most `most` once-per-step time."""
    fits = (options.q == q) & (options.r == r) & (options.step <= most)
    return int(np.argmin(np.where(fits, options.time, np.inf)))


def _halves(low: float, reached: float) -> list[tuple[float, float]]:
    """What is left of a range strictly below the value that was reached, in two halves; nothing when it is empty."""
    high = reached * (1 - BELOW)
    if reached <= low or high < low:
        return []
    middle = 0.5 * (low + high)
    return [(low, middle), (middle, high)] if low < middle < high else [(low, high)]
