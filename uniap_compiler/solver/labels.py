"""The exact least time of a stage: constrained shortest paths by labels (docs/solver.md, "Exact stage times").

The largest working set of a stage is one of finitely many values, its *ceiling*. With the ceiling fixed, strategies
above it are out, and the memory left is a sum over layers. So labels are extended ceiling by ceiling: a label is a
partial choice of strategies for layers a..u (class of a, class of u, time, memory, step). It is dropped when another
one is no worse in everything, when no completion can fit, or when by (13) no completion can meet a limit. What a limit
cut off is only known to be beyond the limit.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from copy import copy
from dataclasses import dataclass

import numpy as np

from uniap_compiler.solver.instance import Bools, Floats, Instance, Ints
from uniap_compiler.solver.intervals import Options
from uniap_compiler.solver.tables import ROOM, StageCosts

#: Labels that one layer may have, and how many times as many may be made for one interval.
MOST_LABELS, MOST_WORK = 40_000, 100
#: How many ceilings a beam follows, and how many pairs of a weight and a multiplier a label is tested with.
BEAM_CEILINGS, TESTS = 2, 12
#: Ceilings are judged together in at most so many ranges, or two for each that is split.
MOST_RANGES = 24
#: Two labels count as equal within this fraction of the cap and of the memory: orders of summation differ.
SAME_TIME, SAME_MEMORY = 1e-12, 2e-15
#: Limits are raised by this fraction against rounding.
SLACK = 1 + 1e-11


#: Bounds that cost as much as one label.
PER_LABEL = 4


class TooManyLabels(Exception):
    """The interval is too hard for labels; its lower bound stands."""


@dataclass
class Budget:
    """How many more labels may be made; the same everywhere, unlike seconds."""

    left: float

    def spend(self, count: int) -> None:
        if count > self.left:
            raise TooManyLabels
        self.left -= count


@dataclass(frozen=True)
class Limit:
    """Wanted: before[q] + time + weight step + after[r] <= most with end classes q, r; and step <= `step`."""

    most: float
    before: Floats
    after: Floats
    weight: float = 0.0
    step: float = np.inf

    @property
    def room(self) -> Floats:
        """What time + weight step may be, by end classes."""
        return np.asarray(self.most - self.before[:, None] - self.after[None, :])

    def slack(self, weight: float) -> float:
        """What before + time + v step + after may be for another weight v, as the step is bounded."""
        more = (weight - self.weight) * self.step if weight > self.weight else 0.0
        return (self.most + more) * SLACK


@dataclass
class Labels:
    """Labels that end at one layer, in parallel arrays; `parent` and `strategy` lead back."""

    group: Ints  # class of the first layer * Q + class of this one
    time: Floats
    memory: Floats
    step: Floats
    parent: Ints
    strategy: Ints

    def take(self, index: Ints | Bools) -> Labels:
        group, time, memory, step = self.group[index], self.time[index], self.memory[index], self.step[index]
        return Labels(group, time, memory, step, self.parent[index], self.strategy[index])

    def __len__(self) -> int:
        return len(self.time)


@dataclass
class StageTime:
    """The undominated (time, step) of layers a..b within the limit. `labels`: the most that one layer had."""

    options: Options
    limit: Limit
    labels: int


def stage_time(
    at: Instance,
    i: int,
    a: int,
    b: int,
    costs: list[StageCosts],
    limit: Limit,
    entry: Floats | None = None,
    beam: int | None = None,
    most: int = MOST_LABELS,
    deadline: float = np.inf,
    budget: Budget | None = None,
) -> StageTime:
    """The least times of stage i over layers a..b within the limit. `costs`: several weights bound completions.

    With `entry[q]`, seconds paid on entering in class q, the first class is no longer told apart (it is 0 everywhere).
    With `beam` only that many labels per class survive: the times are attained, but may not be the least.
    """
    useful = [own.part(a, b) for own in costs if own.weight == limit.weight or np.isfinite(limit.step)]
    at, a, b = useful[0].at, 0, b - a
    if budget is None or beam is not None:
        budget = Budget(np.inf if beam is not None else most * MOST_WORK)
    values = useful[0].ceilings(a, b)
    pending = [_ranges(values, MOST_RANGES)]
    trails: list[list[tuple[Ints, Ints]]] = []
    finals: list[Labels] = []
    while pending:
        bounds, hopeful = _hopeful_ranges(at, a, b, useful, limit, *pending.pop(), entry, beam, budget)
        lows, highs = bounds[0].lows, bounds[0].highs
        wide = []  # ranges of ceilings that labels do not exclude
        for j in hopeful if beam is None or np.all(lows[hopeful] == highs[hopeful]) else ():
            found = _under_ceiling(at, i, a, b, int(j), bounds, entry, beam, most, budget, deadline)
            if found is not None and lows[j] < highs[j]:
                wide.append(j)
            elif found is not None:
                trails.append(found[0])
                finals.append(found[1])
        if beam is not None and not np.all(lows[hopeful] == highs[hopeful]):
            wide = hopeful.tolist()
        if wide:
            inside = [values[(values >= lows[j]) & (values <= highs[j])] for j in wide]
            parts = [_ranges(part, max(2, MOST_RANGES // len(inside))) for part in inside]
            pending.append((np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])))
    if not finals:
        none, empty = np.empty(0, dtype=np.int64), np.empty(0)
        return StageTime(Options(none, none, empty, empty, [], []), limit, 0)
    ends = [(n, m) for n, labels in enumerate(finals) for m in range(len(labels))]
    labels = Labels(*(np.concatenate([getattr(own, name) for own in finals]) for name in Labels.__annotations__))
    last = _undominated(labels, limit.slack(useful[0].weight), np.inf)
    labels = labels.take(last)
    q, r = np.divmod(labels.group, at.classes)
    options = Options(q, r, labels.time, labels.step, [ends[n] for n in last], trails)
    return StageTime(options, limit, max(len(layer[0]) for trail in trails for layer in trail))


def least_possible(at: Instance, a: int, b: int, costs: StageCosts) -> float:
    """A bound on time + w step of layers a..b, by (13) for every ceiling of the working set; infinite if none fits."""
    none, costs = np.zeros(at.classes), costs.part(a, b)
    at, a, b = costs.at, 0, b - a
    lows, highs = _ranges(costs.ceilings(a, b), MOST_RANGES)
    roots = _Completion(at, a, b, costs, Limit(np.inf, none, none), lows, highs, None).root()
    return max(0.0, float(roots.min()))


def _hopeful_ranges(
    at: Instance,
    a: int,
    b: int,
    costs: list[StageCosts],
    limit: Limit,
    lows: Floats,
    highs: Floats,
    entry: Floats | None,
    beam: int | None,
    budget: Budget,
) -> tuple[list[_Completion], Ints]:
    """Bounds by every weight, and the ranges of ceilings that they leave: in order of the weights."""
    bounds: list[_Completion] = []
    hopeful = np.arange(len(lows))
    for own in costs:
        bound = _Completion(at, a, b, own, limit, lows, highs, entry)
        budget.spend(bound.rest.size // PER_LABEL)
        hopeful = np.flatnonzero(bound.root() <= bound.slack)
        bounds = [old.take(hopeful) for old in [*bounds, bound]]
        lows, highs = lows[hopeful], highs[hopeful]
        if not len(lows):
            break
    hopeful = np.arange(len(lows))
    if beam is not None:
        hopeful = np.argsort(bounds[-1].root(), kind="stable")[:BEAM_CEILINGS]
    return bounds, hopeful


def _ranges(values: Floats, most: int) -> tuple[Floats, Floats]:
    """Ascending values in at most so many runs: the least and the greatest of each."""
    parts = np.array_split(values, min(len(values), most))
    return np.array([part[0] for part in parts]), np.array([part[-1] for part in parts])


def _under_ceiling(
    at: Instance,
    i: int,
    a: int,
    b: int,
    j: int,
    bounds: list[_Completion],
    entry: Floats | None,
    beam: int | None,
    most: int,
    budget: Budget,
    deadline: float,
) -> tuple[list[tuple[Ints, Ints]], Labels] | None:
    """Labels of the last layer under ceiling j, and the trail to them; None when nothing meets the limits."""
    costs = bounds[0].costs
    ceiling = float(bounds[0].highs[j])
    choices = costs.choices(ceiling)
    test = _Test(bounds, j)
    steps = _least_steps(at, a, b, choices) if np.isfinite(bounds[0].limit.step) else None
    trail = []
    labels = None
    for u in range(a, b + 1):
        k = choices[int(at.kind[u])]
        budget.spend((1 if labels is None else len(labels)) * len(k))
        labels = _first(at, i, a, k, entry) if labels is None else _extend(at, i, u, k, labels)
        if steps is not None:
            labels = labels.take(labels.step <= bounds[0].limit.step * SLACK - steps[u - a])
        labels = labels.take(test.hopeful(u, labels))
        if beam is not None:
            labels = labels.take(test.best(u, labels, 4 * beam))
        labels = labels.take(_undominated(labels, bounds[0].slack, costs.limit))
        if beam is not None:
            labels = labels.take(test.best(u, labels, beam))
        elif len(labels) > most or time.monotonic() > deadline:
            raise TooManyLabels
        if not len(labels):
            return None
        trail.append((labels.parent, labels.strategy))
    assert labels is not None
    if beam is None:  # what stays below the range is found there, and so is whatever dominates in this one
        labels = labels.take(_working_set(at, a, trail) >= float(bounds[0].lows[j]))
        trail[-1] = labels.parent, labels.strategy
    return (trail, labels) if len(labels) else None


def _working_set(at: Instance, a: int, trail: list[tuple[Ints, Ints]]) -> Floats:
    """The largest working set of every label of the last layer."""
    label = np.arange(len(trail[-1][0]))
    largest = np.zeros(len(label))
    for n in range(len(trail) - 1, -1, -1):
        parent, strategy = trail[n]
        largest = np.maximum(largest, at.workspace[at.kind[a + n], strategy[label]])
        label = parent[label]
    return largest


def _first(at: Instance, i: int, a: int, k: Ints, entry: Floats | None) -> Labels:
    n = at.kind[a]
    q = at.layout[k]
    group, seconds = q * at.classes + q, at.time[n, i, k]
    if entry is not None:
        group, seconds = q, seconds + entry[q]
    return Labels(group, seconds, at.memory[n, i, k], at.step[n, k], np.full(len(k), -1), k)


def _extend(at: Instance, i: int, u: int, k: Ints, old: Labels) -> Labels:
    """Every label with every strategy of layer u."""
    n, Q = at.kind[u], at.classes
    r = at.layout[k]
    q = old.group % Q
    seconds = old.time[:, None] + at.reshard[at.edge[u]][q[:, None], r[None, :]] + at.time[n, i, k][None, :]
    return Labels(
        ((old.group - q)[:, None] + r[None, :]).ravel(),
        seconds.ravel(),
        (old.memory[:, None] + at.memory[n, i, k][None, :]).ravel(),
        (old.step[:, None] + at.step[n, k][None, :]).ravel(),
        np.repeat(np.arange(len(old)), len(k)),
        np.tile(k, len(old)),
    )


def _least_steps(at: Instance, a: int, b: int, choices: list[Ints]) -> Floats:
    """What the layers after u = a..b add at least to once-per-step time."""
    least = np.array([at.step[n, choices[n]].min(initial=np.inf) for n in at.kind[a : b + 1]])
    return np.asarray(np.r_[np.cumsum(least[:0:-1])[::-1], 0.0])


class _Completion:
    """Bounds on what layers u+1..b still cost, for every ceiling, multiplier and class of u; `after` included.

    A ceiling is one value, or anything from `lows` to `highs`.
    """

    def __init__(
        self,
        at: Instance,
        a: int,
        b: int,
        costs: StageCosts,
        limit: Limit,
        lows: Floats,
        highs: Floats,
        entry: Floats | None,
    ) -> None:
        self.at, self.a, self.costs, self.limit, self.lows, self.highs = at, a, costs, limit, lows, highs
        self.slack = limit.slack(costs.weight)
        start_cost = limit.before if entry is None else entry
        self.before = limit.before if entry is None else np.zeros_like(limit.before)  # in the labels already
        least = costs.under(highs)  # ceiling, l (the last: memory), kind, class
        Q = at.classes
        self.rest = np.zeros((b - a + 1, len(highs), least.shape[1], Q))
        self.rest[-1, :, :-1] = limit.after
        for u in range(b - 1, a - 1, -1):
            ahead = least[:, :, at.kind[u + 1]] + self.rest[u + 1 - a]  # ceiling, l, class of u+1
            step = at.reshard[at.edge[u + 1]]
            self.rest[u - a, :, :-1] = (ahead[:, :-1, None, :] + step).min(axis=3)
            self.rest[u - a, :, -1] = ahead[:, -1].min(axis=1)[:, None]
        start = least[:, :, at.kind[a]] + self.rest[0]
        room = costs.limit - lows
        values = (start[:, :-1] + start_cost).min(axis=2) - costs.multipliers * room[:, None]  # ceiling, l
        values[start[:, -1].min(axis=1) > room + costs.limit * (ROOM - 1)] = np.inf
        self.values = values

    def take(self, index: Ints) -> _Completion:
        """The same for some of the ceilings."""
        part = copy(self)
        part.lows, part.highs, part.rest, part.values = (
            self.lows[index], self.highs[index], self.rest[:, index], self.values[index]
        )  # fmt: skip
        return part

    def root(self) -> Floats:
        """The least before + time + w step + after under every ceiling."""
        return np.asarray(self.values.max(axis=1))


class _Test:
    """Which labels under one ceiling may still meet the limit: by the weights and multipliers that say most of it."""

    def __init__(self, bounds: list[_Completion], j: int) -> None:
        own = bounds[0]
        self.a, self.classes, self.before = own.a, own.at.classes, own.before
        self.room = own.costs.limit - float(own.lows[j])
        self.fits = self.room + own.costs.limit * (ROOM - 1)
        self.memory = own.rest[:, j, -1]
        pairs = [(bound, n) for bound in bounds for n in range(len(bound.costs.multipliers))]
        if np.isfinite(own.slack):  # the one that comes nearest to the limit first
            pairs.sort(key=lambda pair: pair[0].slack - pair[0].values[j, pair[1]])
        else:
            pairs.sort(key=lambda pair: -pair[0].values[j, pair[1]])
        itself = next((bound, 0) for bound in bounds if bound.costs.weight == own.limit.weight)
        pairs = [*pairs[:TESTS], itself]  # at the last layer that one is the limit itself: beyond it not all is known
        self.weights = np.array([bound.costs.weight for bound, _ in pairs])
        self.multipliers = np.array([bound.costs.multipliers[n] for bound, n in pairs])
        self.slack = np.array([bound.slack for bound, _ in pairs])
        self.rest = np.stack([bound.rest[:, j, n] for bound, n in pairs], axis=1)  # layer, test, class

    def values(self, u: int, labels: Labels, tests: slice) -> Floats:
        """The least that labels can end with, test by test."""
        p, q = np.divmod(labels.group, self.classes)
        value = labels.time + self.before[p] + self.weights[tests, None] * labels.step
        value += self.multipliers[tests, None] * (labels.memory - self.room)
        return np.asarray(value + self.rest[u - self.a, tests][:, q])

    def hopeful(self, u: int, labels: Labels) -> Ints:
        """Labels that may still end within memory and within the limit."""
        left = np.flatnonzero(labels.memory + self.memory[u - self.a][labels.group % self.classes] <= self.fits)
        if np.isfinite(self.slack[0]):
            for tests in (slice(0, 2), slice(2, None)):
                values = self.values(u, labels.take(left), tests)
                left = left[np.all(values <= self.slack[tests, None], axis=0)]
        return left

    def best(self, u: int, labels: Labels, width: int) -> Ints:
        """The `width` most promising labels of every group, and the leanest one, which can always be completed."""
        score = self.values(u, labels, slice(None)).max(axis=0)
        chosen = np.zeros(len(labels), dtype=bool)
        for order, most in ((np.lexsort((score, labels.group)), width), (np.lexsort((labels.memory, labels.group)), 1)):
            group = labels.group[order]
            starts = np.flatnonzero(np.append(True, group[1:] != group[:-1]))
            rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.append(starts, len(order))))
            chosen[order[rank < most]] = True
        return np.flatnonzero(chosen)


def _undominated(labels: Labels, slack: float, limit: float) -> Ints:
    """Labels that no other one of their group beats or equals in everything. With `limit` inf memory does not count."""
    if len(labels) < 2:
        return np.arange(len(labels))
    scale = slack if np.isfinite(slack) else float(labels.time.max(initial=0.0))
    dt, dm = SAME_TIME * scale, SAME_MEMORY * limit if np.isfinite(limit) else 0.0
    counted = [(labels.memory, dm)] if np.isfinite(limit) else []
    if labels.step.any():
        counted.append((labels.step, dt))
    order = np.lexsort((*(values for values, _ in reversed(counted)), labels.time, labels.group))
    group, seconds = labels.group[order], labels.time[order]
    if len(counted) == 2:
        (first, room), (second, slack) = counted
        return np.asarray(order[_front(group, first[order], second[order], room, slack)])
    bounds = np.flatnonzero(np.r_[True, group[1:] != group[:-1], True])
    kept: list[Ints] = []
    for low, high in zip(bounds[:-1], bounds[1:], strict=True):
        if counted:
            values, tolerance = counted[0]
            kept.append(low + _descending(seconds[low:high], values[order[low:high]], dt, tolerance))
        else:
            kept.append(np.array([low]))
    return np.asarray(order[np.concatenate(kept)])


def _descending(seconds: Floats, values: Floats, dt: float, tolerance: float) -> Ints:
    """One resource: in order of time, keep what needs less than everything before."""
    lowest = np.minimum.accumulate(values)
    keep = np.flatnonzero(np.r_[True, values[1:] < lowest[:-1] - tolerance])
    if len(keep) > 1:  # equal times within rounding: the leaner one, which comes later, replaces the earlier
        twin = seconds[keep[1:]] <= seconds[keep[:-1]] + dt
        keep = np.r_[keep[:-1][~twin], keep[-1:]]
    return keep


def _front(group: Ints, first: Floats, second: Floats, room: float, slack: float) -> Ints:
    """Two resources, points by group and in order of time: keep what no kept point before beats or equals in both.

    `xs` ascends and `ys` descends: the points of the staircase so far.
    """
    xs: list[float] = []
    ys: list[float] = []
    kept, current = [], -1
    for n, (own, x, y) in enumerate(zip(group.tolist(), first.tolist(), second.tolist(), strict=True)):
        if own != current:
            current, xs, ys = own, [], []
        low = bisect_right(xs, x + room)
        if low and ys[low - 1] <= y + slack:
            continue
        kept.append(n)
        low = high = bisect_left(xs, x)
        while high < len(xs) and ys[high] >= y:
            high += 1
        xs[low:high], ys[low:high] = [x], [y]
    return np.array(kept, dtype=np.int64)
