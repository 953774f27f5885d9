"""Lower bounds on stage times by Lagrangian relaxation of memory (docs/solver.md, "Interval tables").

For any multiplier l >= 0 and any interval a..b on stage i,

    t_i(a, b, q, r) >= min over paths of sum_u (A + l M) + R  -  l (m - w),                              (13)

with w the least working set that the interval must have. The maximum over a few multipliers is used: the slopes of the
lower hulls of (M, A), at which the bound of a run of identical layers is the best possible.
"""

from __future__ import annotations

import numpy as np

from uniap_compiler.solver.instance import Floats, Instance, Ints
from uniap_compiler.solver.intervals import IntervalTable, StageIntervals

#: Rounding room in sums of memory, as in `evaluate`.
ROOM = 1 + 1e-12
#: Lower bounds give this back for the rounding of their sums.
BELOW = 1 - 1e-11
MOST_MULTIPLIERS = 14


class StageCosts:
    """What one stage costs: the multipliers, and the least A + w S + l M of every kind of layer in every class.

    With the weight w = 0 that bounds stage times; once-per-step time S counts with other weights.
    """

    def __init__(self, at: Instance, i: int, weight: float = 0.0) -> None:
        self.limit, self.weight = float(at.limit[i]), weight
        time = at.time[:, i] + weight * at.step
        memory = at.memory[:, i]
        self.multipliers = multipliers(time, memory, at.allowed)
        cost = time + self.multipliers[:, None, None] * memory  # l, kind, k
        cost = np.concatenate([cost, memory[None]])  # the last row: memory alone
        cost = np.where(at.allowed, cost, np.inf)
        self.least = np.stack(
            [np.min(cost, axis=2, initial=np.inf, where=at.layout == q) for q in range(at.classes)], axis=2
        )  # l, kind, class
        self.workspace = np.where(at.allowed, at.workspace, np.inf).min(axis=1)  # kind


def multipliers(time: Floats, memory: Floats, allowed: np.ndarray) -> Floats:
    """0 and the slopes of the lower hulls of (memory, time), kind by kind; near ones are merged."""
    slopes: list[float] = []
    for n in range(len(time)):
        points = sorted(zip(memory[n, allowed[n]].tolist(), time[n, allowed[n]].tolist(), strict=True))
        hull: list[tuple[float, float]] = []
        for x, y in points:
            if hull and y >= hull[-1][1]:
                continue
            while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-2], (x, y)):
                hull.pop()
            hull.append((x, y))
        slopes += [-_slope(p, q) for p, q in zip(hull, hull[1:], strict=False) if q[0] > p[0]]
    merged: list[float] = []
    for slope in sorted(slopes):
        if not merged or slope > merged[-1] * (1 + 1e-9):
            merged.append(slope)
    while len(merged) > MOST_MULTIPLIERS - 1:  # drop one of the two that are relatively nearest
        ratios = [merged[n + 1] / merged[n] for n in range(len(merged) - 1)]
        merged.pop(int(np.argmin(ratios)))
    return np.array([0.0, *merged])


def _slope(p: tuple[float, float], q: tuple[float, float]) -> float:
    return (q[1] - p[1]) / (q[0] - p[0]) if q[0] > p[0] else -np.inf


def hops(at: Instance) -> Floats:
    """Seconds of the boundary in front of layer u, by the classes of layers u-1 and u."""
    return np.asarray(at.transfer[at.edge] + at.crossing[:, None, None])


def coarse_table(at: Instance, costs: list[StageCosts], weighted: list[StageCosts] | None = None) -> IntervalTable:
    """Every interval of every stage, blind to classes: prefix sums of the least A + l M."""
    L, D = at.layers, at.stages
    below = np.arange(L)[:, None] <= np.arange(L)[None, :]
    work = _running_max(costs[0].workspace[at.kind])
    stages = []
    for i in range(D):
        inside = (at.first <= i) & (i <= at.last)
        blocked = np.r_[0, np.cumsum(~inside)]
        valid = below & (blocked[1:][None, :] - blocked[:-1][:, None] == 0)
        valid &= (np.arange(L) == 0)[:, None] if i == 0 else (np.arange(L) > 0)[:, None]
        valid &= (np.arange(L) == L - 1)[None, :] if i == D - 1 else (np.arange(L) < L - 1)[None, :]
        a, b = np.nonzero(valid)
        t = _coarse_stage(at, costs[i], a, b, work[a, b])
        cost = t if weighted is None else _coarse_stage(at, weighted[i], a, b, work[a, b])
        stages.append(StageIntervals(a, b, t, cost, np.zeros(len(a), dtype=bool), [None] * len(a)))
    return IntervalTable(at, stages, hops(at).min(axis=(1, 2))[:, None, None])


def _coarse_stage(at: Instance, own: StageCosts, a: Ints, b: Ints, work: Floats) -> Floats:
    sums = np.zeros((len(own.least), at.layers + 1))
    np.cumsum(own.least.min(axis=2)[:, at.kind], axis=1, out=sums[:, 1:])
    spent = sums[:, b + 1] - sums[:, a]
    t = (spent[:-1] - own.multipliers[:, None] * (own.limit - work)).max(axis=0) * BELOW
    t[spent[-1] + work > own.limit * (1 + 1e-9)] = np.inf  # prefix sums round: judged exactly later
    return np.asarray(np.maximum(t, 0.0)[:, None, None])


def fine_table(
    at: Instance, costs: list[StageCosts], coarse: IntervalTable, weighted: list[StageCosts] | None = None
) -> IntervalTable:
    """The intervals of `coarse` with the classes of their ends, and resharding inside them: (13)."""
    cache: dict[bytes, Floats] = {}

    def times(i: int, own: StageIntervals, stage: StageCosts) -> Floats:
        parts = (own.a, own.b, at.time[:, i], at.memory[:, i], at.limit[i : i + 1], np.array([stage.weight]))
        key = b"|".join(part.tobytes() for part in parts)
        if key not in cache:
            cache[key] = _fine_stage(at, stage, own.a, own.b)
        return cache[key].copy()

    stages = []
    for i, own in enumerate(coarse.stages):
        t = times(i, own, costs[i])
        cost = t if weighted is None else times(i, own, weighted[i])
        stages.append(StageIntervals(own.a, own.b, t, cost, own.exact.copy(), list(own.options)))
    return IntervalTable(at, stages, hops(at))


def _fine_stage(at: Instance, own: StageCosts, a: Ints, b: Ints) -> Floats:
    """All intervals at once, one layer longer in every round; rows are the starts that are still needed."""
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
    lam = own.multipliers[:, None, None, None]
    state = np.full((len(own.least), len(starts), Q, Q), np.inf)  # l, start, first class, last class
    state[:, :, np.arange(Q), np.arange(Q)] = own.least[:, at.kind[starts]]
    work = own.workspace[at.kind[starts]]
    rows = np.arange(len(starts))
    for n in range(int(longest.max()) + 1):
        if n:
            alive = longest[rows] >= n
            rows, state, work = rows[alive], state[:, alive], work[alive]
            u = starts[rows] + n
            step = at.reshard[at.edge[u]]  # start, q, r
            paid = state[:-1, :, :, :, None] + step[None, :, None]
            new = np.empty_like(state)
            new[:-1] = paid.min(axis=3)
            new[-1] = state[-1].min(axis=2, keepdims=True)
            state = new + own.least[:, at.kind[u]][:, :, None, :]
            work = np.maximum(work, own.workspace[at.kind[u]])
        now = by_length[at_length[n] : at_length[n + 1]]
        if len(now):
            local = np.searchsorted(rows, row_of[now])
            held, w = state[:, local], work[local][:, None, None]
            t = (held[:-1] - lam * (own.limit - w)).max(axis=0) * BELOW
            t[held[-1] + w > own.limit * (1 + 1e-9)] = np.inf
            out[now] = t
    return np.asarray(np.maximum(out, 0.0))


def _running_max(values: Floats) -> Floats:
    """out[a, b] = max(values[a..b]); entries with b < a are not used."""
    out = np.broadcast_to(values, (len(values), len(values))).copy()
    out[np.tril_indices(len(values), -1)] = -np.inf
    return np.asarray(np.maximum.accumulate(out, axis=1))
