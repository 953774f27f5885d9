"""Lower bounds on stage times by Lagrangian relaxation of memory (docs/solver.md, "Interval tables").

For any multiplier l >= 0 and any interval a..b on stage i,

    t_i(a, b, q, r) >= min over paths of sum_u (A + l M) + R  -  l (m - w),                              (13)

with w the least working set that the interval must have. The maximum over a few multipliers is used: the slopes of the
lower hulls of (M, A), at which the bound of a run of identical layers is the best possible.
"""

from __future__ import annotations

import time

import numpy as np

from uniap_compiler.solver.instance import Floats, Instance, Ints, dominated
from uniap_compiler.solver.intervals import IntervalTable, StageIntervals

#: Rounding room in sums of memory, as in `evaluate`.
ROOM = 1 + 1e-12
#: Lower bounds give this back for the rounding of their sums.
BELOW = 1 - 1e-11
MOST_MULTIPLIERS = 20
#: Up to so many kinds of layers have multipliers of their own for every range of working sets.
FEW_KINDS = 10
#: Ranges of working sets, made from at most so many runs of values.
MOST_RANGES, MOST_VALUES = 7, 60
#: Least costs under ceilings are kept for so many sets of ceilings.
MOST_KEPT = 60
#: Costs of parts of a stage are kept for so many intervals.
MOST_PARTS = 8


class OutOfTime(Exception):
    """The deadline struck in the middle of something."""


def in_time(deadline: float) -> None:
    if time.monotonic() > deadline:
        raise OutOfTime


class StageCosts:
    """What one stage costs: the multipliers, and the least A + w S + l M of every kind of layer in every class.

    With the weight w = 0 that bounds stage times; once-per-step time S counts with other weights. `ranges` splits what
    the largest working set can be: `low` in the range, and strategies up to `high`.
    """

    def __init__(self, at: Instance, i: int, weight: float = 0.0) -> None:
        self.at, self.i, self.limit, self.weight = at, i, float(at.limit[i]), weight
        self.time, self.memory = at.time[:, i] + weight * at.step, at.memory[:, i]
        self.workspace = np.where(at.allowed, at.workspace, np.inf).min(axis=1)  # kind
        self.ranges = working_sets(at)
        slopes = [multipliers(self.time, self.memory, at.allowed)]
        for _, high in self.ranges[:-1] if len(at.allowed) <= FEW_KINDS else ():
            slopes.append(multipliers(self.time, self.memory, at.allowed & (at.workspace <= high)))
        self.multipliers = thinned(np.unique(np.concatenate(slopes)), MOST_MULTIPLIERS)
        self._least: dict[bytes, Floats] = {}
        self._choices: dict[float, list[Ints]] = {}
        self._parts: dict[bytes, StageCosts] = {}

    def part(self, a: int, b: int) -> StageCosts:
        """The same for layers a..b alone: `at` holds nothing else, and the multipliers are those of their own hulls."""
        key = self.at.kind[a : b + 1].tobytes() + self.at.edge[a : b + 1].tobytes()
        if key not in self._parts:
            if len(self._parts) >= MOST_PARTS:
                self._parts.clear()
            self._parts[key] = StageCosts(self.at.part(a, b), self.i, self.weight)
        return self._parts[key]

    def under(self, ceilings: Floats) -> Floats:
        """The least A + w S + l M with working sets up to each ceiling: ceiling, l (the last: memory), kind, class."""
        key = ceilings.tobytes()
        if key not in self._least:
            at = self.at
            cost = self.time + self.multipliers[:, None, None] * self.memory  # l, kind, k
            cost = np.concatenate([cost, self.memory[None]])
            allowed = at.allowed & (at.workspace <= ceilings[:, None, None])  # ceiling, kind, k
            if len(self._least) >= MOST_KEPT:
                self._least.clear()
            least = np.empty((len(ceilings), *cost.shape[:2], at.classes))
            for q in range(at.classes):
                own = np.flatnonzero(at.layout == q)
                least[..., q] = np.where(allowed[:, None, :, own], cost[:, :, own], np.inf).min(axis=3)
            self._least[key] = least
        return self._least[key]

    def ceilings(self, a: int, b: int) -> Floats:
        """What the largest working set of layers a..b can be."""
        kinds = np.unique(self.at.kind[a : b + 1])
        values = np.unique(self.at.workspace[kinds][self.at.allowed[kinds]])
        return np.asarray(values[values >= self.workspace[kinds].max()])

    def choices(self, ceiling: float) -> list[Ints]:
        """The strategies of every kind with working sets up to the ceiling, without those that are dominated here."""
        if ceiling not in self._choices:
            at, out = self.at, []
            for n in range(len(at.allowed)):
                mask = at.allowed[n] & (at.workspace[n] <= ceiling)
                own = at.time[n, self.i], self.memory[n], at.step[n]
                out.append(np.flatnonzero(mask & ~dominated(at.layout, mask, *own)))
            self._choices[ceiling] = out
        return self._choices[ceiling]


def working_sets(at: Instance) -> list[tuple[float, float]]:
    """Ranges (least, greatest) that together hold every working set of the strategies left: neighbours are merged."""
    values = np.unique(at.workspace[at.allowed])
    ranges = [(float(part[0]), float(part[-1])) for part in np.array_split(values, min(len(values), MOST_VALUES))]
    while len(ranges) > MOST_RANGES:
        n = min(range(len(ranges) - 1), key=lambda n: ranges[n + 1][1] - ranges[n][0])
        ranges[n : n + 2] = [(ranges[n][0], ranges[n + 1][1])]
    return ranges


def multipliers(time: Floats, memory: Floats, allowed: np.ndarray) -> Floats:
    """0 and the slopes of the lower hulls of (memory, time), kind by kind; near ones are merged."""
    slopes: set[float] = set()
    for n in range(len(time)):
        points = sorted(zip(memory[n, allowed[n]].tolist(), time[n, allowed[n]].tolist(), strict=True))
        hull: list[tuple[float, float]] = []
        for x, y in points:
            if hull and y >= hull[-1][1]:
                continue
            while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], (x, y)):
                hull.pop()
            hull.append((x, y))
        slopes.update(-_slope(p, q) for p, q in zip(hull, hull[1:], strict=False) if q[0] > p[0])
    return np.array([0.0, *sorted(slopes)])


def thinned(slopes: Floats, most: int) -> Floats:
    """0 and at most `most - 1` of the ascending positive slopes: of near ones only some."""
    merged = slopes[slopes > 0]
    if len(merged) > most - 1:
        merged = merged[np.r_[True, merged[1:] > merged[:-1] * (1 + 1e-9)]]
    if len(merged) > 5 * most:  # first the least one of every piece of an even grid of their logarithms
        piece = np.floor(np.log(merged / merged[0]) * (4 * most / max(np.log(merged[-1] / merged[0]), 1e-9)))
        merged = merged[np.r_[True, piece[1:] > piece[:-1]]]
    while len(merged) > most - 1:  # drop one of the two that are relatively nearest
        merged = np.delete(merged, int(np.argmin(merged[1:] / merged[:-1])))
    return np.asarray(np.r_[0.0, merged])


def _slope(p: tuple[float, float], q: tuple[float, float]) -> float:
    return (q[1] - p[1]) / (q[0] - p[0]) if q[0] > p[0] else -np.inf


def hops(at: Instance) -> Floats:
    """Seconds of the boundary in front of layer u, by the classes of layers u-1 and u."""
    return np.asarray(at.transfer[at.edge] + at.crossing[:, None, None])


def coarse_table(at: Instance, costs: dict[float, list[StageCosts]], deadline: float = np.inf) -> IntervalTable:
    """Every interval of every stage, blind to classes: prefix sums of the least A + w S + l M.

    `costs` by weight w: 0, and those of the table.
    """
    L, D = at.layers, at.stages
    below = np.arange(L)[:, None] <= np.arange(L)[None, :]
    work = _running_max(costs[0.0][0].workspace[at.kind])
    stages = []
    for i in range(D):
        in_time(deadline)
        inside = (at.first <= i) & (i <= at.last)
        blocked = np.r_[0, np.cumsum(~inside)]
        valid = below & (blocked[1:][None, :] - blocked[:-1][:, None] == 0)
        valid &= (np.arange(L) == 0)[:, None] if i == 0 else (np.arange(L) > 0)[:, None]
        valid &= (np.arange(L) == L - 1)[None, :] if i == D - 1 else (np.arange(L) < L - 1)[None, :]
        a, b = np.nonzero(valid)
        t, *sums = [_coarse_stage(at, own[i], a, b, work[a, b]) for own in costs.values()]
        stages.append(StageIntervals(a, b, t, sums, np.zeros(t.shape, dtype=bool)))
    return IntervalTable(at, stages, hops(at).min(axis=(1, 2))[:, None, None], list(costs)[1:])


def _coarse_stage(at: Instance, own: StageCosts, a: Ints, b: Ints, work: Floats) -> Floats:
    """(13) for every range of the working set; the least of them."""
    best = np.full(len(a), np.inf)
    least = own.under(np.array([high for _, high in own.ranges])).min(axis=3)  # range, l, kind
    for (low, _), cost in zip(own.ranges, least, strict=True):
        steps = np.where(np.isfinite(cost), cost, 0.0)[:, at.kind]
        sums = np.zeros((len(cost), at.layers + 1))
        np.cumsum(steps, axis=1, out=sums[:, 1:])
        out = np.r_[0, np.cumsum(~np.isfinite(cost[-1])[at.kind])]  # kinds without any strategy in this range
        spent, room = sums[:, b + 1] - sums[:, a], own.limit - np.maximum(low, work)
        t = (spent[:-1] - own.multipliers[:, None] * room).max(axis=0) * BELOW
        t[(spent[-1] > room + 1e-9 * own.limit) | (out[b + 1] > out[a])] = np.inf  # sums round: judged exactly later
        best = np.minimum(best, t)
    return np.asarray(np.maximum(best, 0.0)[:, None, None])


def fine_table(
    at: Instance,
    costs: dict[float, list[StageCosts]],
    before: IntervalTable,
    ranged: bool = False,
    deadline: float = np.inf,
) -> IntervalTable:
    """The intervals of `before` with the classes of their ends, and resharding inside them: (13).

    `ranged`: for every range of working sets separately.
    """
    cache: dict[bytes, Floats] = {}

    def times(i: int, own: StageIntervals, stage: StageCosts) -> Floats:
        parts = (own.a, own.b, at.time[:, i], at.memory[:, i], at.limit[i : i + 1], np.array([stage.weight]))
        key = b"|".join(part.tobytes() for part in parts)
        if key not in cache:
            ranges = stage.ranges if ranged else [(stage.ranges[0][0], stage.ranges[-1][1])]
            cache[key] = _fine_stage(at, stage, own.a, own.b, ranges, deadline)
        return cache[key]

    stages = []
    for i, own in enumerate(before.stages):
        known = [own.t, *own.sums]
        t, *sums = [np.maximum(times(i, own, c[i]), old) for c, old in zip(costs.values(), known, strict=True)]
        stages.append(StageIntervals(own.a, own.b, t, sums, np.zeros(t.shape, dtype=bool)))
    return IntervalTable(at, stages, hops(at), before.weights)


def _fine_stage(
    at: Instance, own: StageCosts, a: Ints, b: Ints, ranges: list[tuple[float, float]], deadline: float
) -> Floats:
    """All intervals and ranges at once, one layer longer in every round; rows are the starts that are still needed."""
    Q = at.classes
    out = np.full((len(a), Q, Q), np.inf)
    if not len(a):
        return out
    starts, row_of = np.unique(a, return_inverse=True)
    length = b - a
    longest = np.zeros(len(starts), dtype=np.int64)
    np.maximum.at(longest, row_of, length)
    by_length = np.argsort(length, kind="stable")
    at_length = np.searchsorted(length[by_length], np.arange(int(longest.max()) + 2))
    lows = np.array([low for low, _ in ranges])
    least = own.under(np.array([high for _, high in ranges]))  # range, l, kind, class
    lam = own.multipliers[None, :, None, None, None]
    state = np.full((*least.shape[:2], len(starts), Q, Q), np.inf)  # range, l, start, first class, last class
    state[..., np.arange(Q), np.arange(Q)] = least[:, :, at.kind[starts]]
    work = own.workspace[at.kind[starts]]
    rows = np.arange(len(starts))
    for n in range(int(longest.max()) + 1):
        in_time(deadline)
        if n:
            alive = longest[rows] >= n
            rows, state, work = rows[alive], state[:, :, alive], work[alive]
            u = starts[rows] + n
            step = at.reshard[at.edge[u]]  # start, q, r
            new = np.empty_like(state)
            new[:, :-1] = state[:, :-1, :, :, :1] + step[:, :1]
            for q in range(1, Q):
                np.minimum(new[:, :-1], state[:, :-1, :, :, q : q + 1] + step[:, q : q + 1], out=new[:, :-1])
            new[:, -1] = state[:, -1].min(axis=3, keepdims=True)
            state = new + least[:, :, at.kind[u]][:, :, :, None, :]
            work = np.maximum(work, own.workspace[at.kind[u]])
        now = by_length[at_length[n] : at_length[n + 1]]
        if len(now):
            local = np.searchsorted(rows, row_of[now])
            held = state[:, :, local]
            room = own.limit - np.maximum(lows[:, None], work[local])[:, None, :, None, None]
            t = (held[:, :-1] - lam * room).max(axis=1) * BELOW
            t[held[:, -1] > room[:, 0] + 1e-9 * own.limit] = np.inf
            out[now] = t.min(axis=0)
    return np.asarray(np.maximum(out, 0.0))


def _running_max(values: Floats) -> Floats:
    """out[a, b] = max(values[a..b]); entries with b < a are not used."""
    out = np.broadcast_to(values, (len(values), len(values))).copy()
    out[np.tril_indices(len(values), -1)] = -np.inf
    return np.asarray(np.maximum.accumulate(out, axis=1))
