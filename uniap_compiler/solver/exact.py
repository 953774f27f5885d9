"""The exact search of one chain (docs/solver.md, "The chain"): boxes of once-per-step times, boxes of periods, A*.

Let F(s) be the least of all stage and boundary times and (c-1) periods when no stage spends more than s once per step.
It never rises with s, and a candidate costs min F(s) + s. A range [s1, s2] costs at least F(s2) + s1; the plan behind
F(s2) spends some s' <= s2, and only s < s' is left of the range. For F(s2) the same is done with periods: a range
[T1, T2] costs at least g(T2) + (c-1) T1, with g of (12) under the cap T2; its plan has a period T', and T < T' is left.

g is found with lower bounds of stage times. The intervals on its path are settled by labels, in reach of the bound
first, until the path is attained: what labels do not reach is a better bound.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from uniap_compiler.solver.instance import Instance, Ints
from uniap_compiler.solver.intervals import IntervalTable, Path
from uniap_compiler.solver.labels import Budget, Limit, StageTime, TooManyLabels, stage_time
from uniap_compiler.solver.tables import StageCosts, fine_table

#: Ranges end this fraction below what was reached, so that "below" is a closed condition; bounds give it back.
BELOW = 1e-9
#: One call refines until the bound has risen by this fraction, then by WIDER times as much, and so on.
NEAR, WIDER = 1e-3, 3.0
#: Labels first reach this far above the bound of an interval, and FURTHER times as far whenever that was not enough.
REACH, FURTHER = 1e-3, 3.0
#: Ranges of once-per-step times and of periods are split down to these fractions of the bound before labels are asked.
WIDE, SHORT = 2e-3, 3e-4
#: Weights w of once-per-step time in bounds p >= (p + w s) - w s2.
STEP_WEIGHTS = 8
#: Labels that a candidate may make before its MIQP is asked.
FIRST_WORK = 5e6

Key = tuple[object, ...]
Found = list[tuple[int, int, list[int]]]


@dataclass(order=True)
class Range:
    """Plans with a value in [low, high] cost at least `bound`."""

    bound: float
    low: float
    high: float


@dataclass
class Settled:
    """What labels have shown, by what an interval consists of: shared by all nodes of a candidate."""

    known: dict[Key, list[StageTime]] = field(default_factory=dict)
    reach: dict[Key, float] = field(default_factory=dict)
    numbers: dict[bytes, int] = field(default_factory=dict)
    budget: Budget = field(default_factory=lambda: Budget(FIRST_WORK))

    def number(self, content: bytes) -> int:
        return self.numbers.setdefault(content, len(self.numbers))


class ExactSearch:
    """Refined call by call until `solved`: nothing below the incumbent is left; `stuck`: the labels were too many."""

    def __init__(
        self,
        table: IntervalTable,
        costs: dict[float, list[StageCosts]],
        floor: float,
        step_floor: float,
        deadline: float,
        offer: Callable[[Found], None],
        settled: Settled,
    ) -> None:
        self.at, self.costs, self.deadline, self.offer = table.at, costs, deadline, offer
        self.rounds = table.at.micro_batches - 1.0
        self.base, self.floor = table.timed(), floor
        self.lines = {w: fine_table(self.at, {w: own}, self.base, True, deadline) for w, own in costs.items() if w > 0}
        self.solved, self.stuck, self.near = False, False, NEAR
        self.known, self.reach, self.budget = settled.known, settled.reach, settled.budget
        self.places: dict[Key, list[tuple[int, int]]] = {}
        self.contents = _contents(self.at, settled)
        for i, own in enumerate(self.base.stages):
            for n in range(len(own.a)):
                self.places.setdefault(self._key(i, int(own.a[n]), int(own.b[n])), []).append((i, n))
        at = self.at
        self.unit = 1e-3 * float(max(at.time[:, 0][at.allowed].max(), at.reshard.max(), 1e-30))  # of what reach is
        root = self.base.best(np.inf)
        self.least = np.inf if root is None else root.total + self.rounds * max(floor, 0.0)
        self.queue = [] if root is None else [Range(self.least + step_floor, step_floor, np.inf)]

    def refine(self, incumbent: Callable[[], float]) -> float:
        """Raise the bound, which is returned; plans on the way are offered."""
        goal = self.queue[0].bound * (1 + self.near) if self.queue and self.queue[0].bound > 0 else np.inf
        self.near *= WIDER
        while self.queue and self.queue[0].bound < incumbent():
            if self.stuck or self.queue[0].bound >= goal or time.monotonic() > self.deadline:
                return self.queue[0].bound * (1 - 2 * BELOW)
            part = heapq.heappop(self.queue)
            following = min(goal, self.queue[0].bound if self.queue else np.inf)
            if self.lines:
                part = self._narrowed(part, incumbent)
                wide = np.isfinite(part.high) and part.high - part.low > WIDE * incumbent()
                if wide and part.bound <= following:
                    middle = 0.5 * (part.low + part.high)
                    heapq.heappush(self.queue, Range(part.bound - part.low + middle, middle, part.high))
                    part = Range(part.bound, part.low, middle)
                if wide or part.bound > following:
                    heapq.heappush(self.queue, part)
                    continue
            enough = max(following, part.bound + SHORT * incumbent())  # some progress, always
            bound, step = self._least(part, incumbent, enough - part.low)
            part.bound = max(part.bound, bound + part.low)
            if step is None:
                heapq.heappush(self.queue, part)
            elif self.lines:
                for low, end in _halves(part.low, step):
                    heapq.heappush(self.queue, Range(bound + low, low, end))
        self.solved = True
        return incumbent() * (1 - 2 * BELOW)

    def _narrowed(self, part: Range, incumbent: Callable[[], float]) -> Range:
        """Once-per-step times s with F(high) + s at the incumbent or above are cut off the range, again and again."""
        low, high, bound = part.low, part.high, part.bound
        while True:
            least, _ = self._least(Range(bound, low, high), incumbent, np.inf, settle=False)
            bound = max(bound, least + low)
            end = incumbent() - least
            if end <= low:
                return Range(max(bound, incumbent()), low, high)
            if not end < high - 0.1 * (high - low) and not (np.isinf(high) and np.isfinite(end)):
                return Range(bound, low, high)
            high = end

    def _least(
        self, part: Range, incumbent: Callable[[], float], enough: float, settle: bool = True
    ) -> tuple[float, float | None]:
        """F(part.high) and the once-per-step time of its plan; a bound and None when it was not attained.

        That is so when the bound is `enough`, or beyond the incumbent, or when nothing may be settled.
        """
        table = self.base.under_step(part.high, self.lines)
        for key in self.places:
            for found in self.known.get(key, ()):
                self._apply(table, key, found, part.high)
        best: tuple[float, float | None] = (np.inf, None)
        queue = [Range(max(self.least, part.bound - part.low), self.floor, np.inf)]
        while queue and queue[0].bound < best[0]:
            if queue[0].bound >= min(enough, incumbent() - part.low) or time.monotonic() > self.deadline:
                return queue[0].bound, None
            periods = heapq.heappop(queue)
            path = table.best(periods.high)
            if path is None:
                continue
            periods.bound = max(periods.bound, path.total + self.rounds * periods.low)
            if queue and periods.bound > queue[0].bound:
                heapq.heappush(queue, periods)
                continue
            open_stages = [i for i in range(self.at.stages) if not _settled(table, path, i)]
            if not open_stages:
                step = self._offer_path(table, path, part.high)
                value = path.total + self.rounds * path.period
                if value < best[0]:
                    best = value, step
                for low, high in _halves(periods.low, path.period) if self.rounds else []:
                    heapq.heappush(queue, Range(path.total + self.rounds * low, low, high))
                continue
            value, reached = path.total + self.rounds * path.period, min(path.period, periods.high)
            if self.rounds * (reached - periods.low) > SHORT * value:
                middle = 0.5 * (periods.low + reached)
                heapq.heappush(queue, Range(path.total + self.rounds * middle, middle, periods.high))
                heapq.heappush(queue, Range(periods.bound, periods.low, middle))
            else:
                most = incumbent() - part.low - self.rounds * periods.low  # of a path that matters
                if not settle or not all(
                    self._settle(table, path, i, periods.high, part.high, most) for i in open_stages
                ):
                    return periods.bound, None
                heapq.heappush(queue, periods)
        return best

    def _settle(self, table: IntervalTable, path: Path, i: int, period: float, step_high: float, most: float) -> bool:
        """Labels for the interval of stage i on the path, in reach of its bound. False when they are too many.

        Paths that cost `most` or more need not be told apart.
        """
        own, n = table.stages[i], path.position[i]
        a, b = int(own.a[n]), int(own.b[n])
        key = self._key(i, a, b)
        before, after = (ends[n] for ends in table.around(period)[i])
        q, r = path.first_class[i], path.last_class[i]
        through = float(before[q] + own.t[n, q, r] + after[r])
        if not np.isfinite(through):
            return True  # another stage of the path was settled, and this path is gone
        reach = self.reach.setdefault(key, REACH)
        near = through + reach * max(float(own.t[n, q, r]), self.unit)
        limit = Limit(min(near, most * (1 + BELOW)), before, after, 0.0, step_high)
        entry = np.zeros(self.at.classes) if i == 0 else None  # nothing comes before: any first class will do
        costs = [stages[i] for stages in self.costs.values()]
        try:
            found = stage_time(self.at, i, a, b, costs, limit, entry, deadline=self.deadline, budget=self.budget)
        except TooManyLabels:
            self.stuck = time.monotonic() <= self.deadline
            return False
        self.known.setdefault(key, []).append(found)
        self._apply(table, key, found, step_high)
        if not own.exact[n, q, r]:
            self.reach[key] = reach * FURTHER
        return True

    def _apply(self, table: IntervalTable, key: Key, found: StageTime, step_high: float) -> None:
        """What is known of an interval: entries in reach are attained, others are out of it."""
        if found.limit.step < step_high:
            return
        options, room = found.options, found.limit.room * (1 - 1e-11)
        first = key[0] == 0
        fits = np.flatnonzero(options.step <= step_high)
        times = np.full(room.shape, np.inf)
        np.minimum.at(times, (options.q[fits], options.r[fits]), options.time[fits])
        reached = np.isfinite(times)
        for i, n in self.places[key]:
            t, exact = table.stages[i].t[n], table.stages[i].exact[n]
            if first:  # one row holds the least over all first classes
                t[:] = np.where(exact, t, np.maximum(t, room[0]))
                t[1:, reached[0]] = np.inf
                t[0, reached[0]] = times[0, reached[0]]
                exact[:, reached[0]] = True
            else:
                t[:] = np.where(reached, times, np.where(exact, t, np.maximum(t, room)))
                exact |= reached

    def _offer_path(self, table: IntervalTable, path: Path, step_high: float) -> float:
        """Offer the plan behind an attained path; returns its once-per-step time."""
        found: Found = []
        longest = 0.0
        for i, n in enumerate(path.position):
            own = table.stages[i]
            a, b, q, r = int(own.a[n]), int(own.b[n]), path.first_class[i], path.last_class[i]
            best: tuple[float, float, list[int]] = (np.inf, np.inf, [])
            for result in self.known[self._key(i, a, b)]:
                options = result.options
                fits = np.flatnonzero((options.q == q) & (options.r == r) & (options.step <= step_high))
                for m in fits.tolist():
                    if (options.time[m], options.step[m]) < best[:2]:
                        best = float(options.time[m]), float(options.step[m]), options.strategies(m)
            longest = max(longest, best[1])
            found.append((a, b, best[2]))
        self.offer(found)
        return longest

    def _key(self, i: int, a: int, b: int) -> Key:
        """Intervals with equal keys have equal stage times: they share one computation."""
        kinds = self.contents[i][self.at.kind[a : b + 1]].tobytes()
        return (min(i, 1), float(self.at.limit[i]), kinds, self.at.edge[a + 1 : b + 1].tobytes())


def step_weights(at: Instance) -> list[float]:
    """Weights w of once-per-step time s: what one more second of it is worth in stage time, from least to most."""
    return [0.0, *np.geomspace(1 / (at.stages * at.micro_batches), 1.0, STEP_WEIGHTS).tolist()]


def _contents(at: Instance, settled: Settled) -> list[Ints]:
    """A number for every kind of layer on every stage: equal where everything is equal."""
    fixed = [b"".join(table[n].tobytes() for table in (at.step, at.workspace, at.allowed)) for n in range(len(at.step))]
    return [
        np.array(
            [
                settled.number(at.time[n, i].tobytes() + at.memory[n, i].tobytes() + content)
                for n, content in enumerate(fixed)
            ]
        )
        for i in range(at.stages)
    ]


def _settled(table: IntervalTable, path: Path, i: int) -> bool:
    return bool(table.stages[i].exact[path.position[i], path.first_class[i], path.last_class[i]])


def _halves(low: float, reached: float) -> list[tuple[float, float]]:
    """What is left of a range strictly below the value that was reached, in two halves; nothing when it is empty."""
    high = reached * (1 - BELOW)
    if reached <= low or high < low:
        return []
    middle = 0.5 * (low + high)
    return [(low, middle), (middle, high)] if low < middle < high else [(low, high)]
