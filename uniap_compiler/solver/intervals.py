"""Dynamic programming over which stage holds which interval of layers (docs/solver.md, "The chain").

A plan of a chain is one interval a..b per stage, with the layout classes at its two ends. Given a time for every
(stage, interval, first class, last class), the cheapest plan whose period is at most T is found backwards,

    f_i(a, q) = min over b, r of  t_i(a..b, q, r) + min over q' of  R'_{b+1}(r, q') + f_{i+1}(b+1, q')       (12)

where an entry above the cap T (for 1F1B: a suffix above (D-i) T) is struck out. When the times are lower bounds, so is
the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uniap_compiler.solver.instance import Bools, Floats, Instance, Ints


@dataclass(frozen=True)
class Options:
    """The undominated (time, step) of one interval: parallel arrays, `q` and `r` the classes at its ends.

    `ends[n]` = (m, label): option n is that label of the last layer in `trails[m]`, which lists (parent, strategy) of
    all labels, layer by layer.
    """

    q: Ints
    r: Ints
    time: Floats
    step: Floats
    ends: list[tuple[int, int]]
    trails: list[list[tuple[Ints, Ints]]]

    def strategies(self, n: int) -> list[int]:
        """The strategies behind one option."""
        trail, label = self.ends[n]
        chosen = []
        for parent, strategy in reversed(self.trails[trail]):
            chosen.append(int(strategy[label]))
            label = int(parent[label])
        return chosen[::-1]


@dataclass
class StageIntervals:
    """The intervals that stage i may hold, sorted by (a, b).

    `t[n, q, r]` bounds the stage time p, with q and r the classes of the first and the last layer; where `exact`, it is
    attained. `sums[m][n, q, r]` bounds p + w s for weight number m of the table, when once-per-step time is spread over
    the stages.
    """

    a: Ints
    b: Ints
    t: Floats
    sums: list[Floats]
    exact: Bools

    def keep(self, mask: Bools) -> StageIntervals:
        sums = [values[mask] for values in self.sums]
        return StageIntervals(self.a[mask], self.b[mask], self.t[mask], sums, self.exact[mask])


@dataclass
class Path:
    """One interval per stage: its position in the table, and the classes of its first and last layer."""

    total: float
    period: float
    position: list[int]
    first_class: list[int]
    last_class: list[int]


class IntervalTable:
    """The intervals of every stage, with the boundary costs `hop[u, q, r]` in front of layer u.

    With `weights` w (the first is 1/D), what an interval adds to the sum is its part of sum p + s >= sum (p + s/D).
    """

    def __init__(self, at: Instance, stages: list[StageIntervals], hop: Floats, weights: list[float]) -> None:
        self.at, self.stages, self.hop, self.weights = at, stages, hop, weights
        self.classes = hop.shape[1]

    def costs(self, cap: float) -> list[Floats]:
        """What every interval adds to the sum when no stage is longer than the cap.

        With x = 1 / (D w) >= 1 and p <= cap: p + s/D = x (p + w s) - (x-1) p >= x (p + w s) - (x-1) cap.
        """
        if not self.weights:
            return [np.where(own.t > cap, np.inf, own.t) for own in self.stages]
        out = []
        for own in self.stages:
            cost = own.sums[0]
            if np.isfinite(cap):
                for w, values in zip(self.weights[1:], own.sums[1:], strict=True):
                    x = 1 / (self.at.stages * w)
                    cost = np.maximum(cost, x * values - (x - 1) * cap * (1 + 1e-12))
            out.append(np.where(own.t > cap, np.inf, cost))
        return out

    def suffix(self, cap: float) -> list[Floats]:
        """f_i of (12) for every stage, under the cap."""
        at = self.at
        D, L = at.stages, at.layers
        trips = at.steady and D > 1 and np.isfinite(cap)
        hop = np.where(self.hop > cap, np.inf, self.hop)
        costs = self.costs(cap)
        f: list[Floats] = [np.empty(0)] * D
        seconds: list[Floats] = [np.empty(0)] * D if trips and self.weights else f  # stage times alone
        for i in range(D - 1, -1, -1):
            own = self.stages[i]
            pairs = [(f, costs[i])]
            if seconds is not f:
                pairs.append((seconds, np.where(own.t > cap, np.inf, own.t)))
            for table, total in pairs:
                if i < D - 1:
                    rest = (hop + table[i + 1][:, None, :]).min(axis=2)  # rest[u, r]: from the boundary at u on
                    total = total + rest[own.b + 1][:, None, :]
                table[i] = _by_start(own.a, total.min(axis=2), L)
            if trips and D - i < at.micro_batches:
                beyond = seconds[i] > (D - i) * cap * (1 + 1e-12)  # a period is a rounded quotient
                f[i][beyond] = seconds[i][beyond] = np.inf
        return f

    def prefix(self, cap: float) -> list[Floats]:
        """F_i[a, q]: the least cost of everything before layer a when stage i starts there in class q."""
        at = self.at
        hop = np.where(self.hop > cap, np.inf, self.hop)
        start = np.full((at.layers, self.classes), np.inf)
        start[0] = 0.0
        F = [start]
        costs = self.costs(cap)
        for i in range(at.stages - 1):
            own = self.stages[i]
            ends = (costs[i] + F[i][own.a][:, :, None]).min(axis=1)
            reached = np.full((at.layers, self.classes), np.inf)
            np.minimum.at(reached, own.b, ends)
            after = np.full((at.layers, self.classes), np.inf)
            after[1:] = (reached[:-1, :, None] + hop[1:]).min(axis=1)
            F.append(after)
        return F

    def best(self, cap: float) -> Path | None:
        """The cheapest path under the cap; None when there is none."""
        f = self.suffix(cap)
        q = int(np.argmin(f[0][0]))
        if not np.isfinite(f[0][0, q]):
            return None
        return self._trace(f, q, cap)

    def _trace(self, f: list[Floats], q: int, cap: float) -> Path:
        at, a = self.at, 0
        D = at.stages
        hop = np.where(self.hop > cap, np.inf, self.hop)
        all_costs = self.costs(cap)
        path = Path(float(f[0][0, q]), 0.0, [], [], [])
        p, o = [], []
        for i in range(D):
            own = self.stages[i]
            low, high = np.searchsorted(own.a, a), np.searchsorted(own.a, a, side="right")
            costs = all_costs[i][low:high, q]  # n, r
            if i < D - 1:
                hops = hop[own.b[low:high] + 1] + f[i + 1][own.b[low:high] + 1][:, None]
                costs = costs + hops.min(axis=2)
            n, r = np.unravel_index(int(np.argmin(costs)), costs.shape)
            position = int(low + n)
            path.position.append(position)
            path.first_class.append(q)
            path.last_class.append(int(r))
            p.append(float(own.t[position, q, r]))
            a = int(own.b[position]) + 1
            if i < D - 1:
                q = int(np.argmin(hops[n, r]))
                o.append(float(self.hop[a, int(r), q]))
        path.period = max(p + o)
        if at.steady:
            for i in range(D):
                if D - i < at.micro_batches:
                    path.period = max(path.period, (sum(p[i:]) + sum(o[i:])) / (D - i))
        return path

    def totals(self, cap: float) -> list[Floats]:
        """For every interval, the least sum of stage and boundary times of a plan that uses it."""
        return [
            (cost + before[:, :, None] + after[:, None, :]).min(axis=(1, 2))
            for cost, (before, after) in zip(self.costs(cap), self.around(cap), strict=True)
        ]

    def around(self, cap: float) -> list[tuple[Floats, Floats]]:
        """Per stage, for every interval: the least cost of what is before it, by its first class, and after it, by its
        last class.
        """
        F, f = self.prefix(cap), self.suffix(cap)
        hop = np.where(self.hop > cap, np.inf, self.hop)
        out = []
        for i, own in enumerate(self.stages):
            after = np.zeros((len(own.b), self.classes))
            if i < self.at.stages - 1:
                after = (hop + f[i + 1][:, None, :]).min(axis=2)[own.b + 1]
            out.append((F[i][own.a], after))
        return out

    def under_step(self, most: float, lines: dict[float, IntervalTable]) -> IntervalTable:
        """A copy with stage times when no stage spends more than `most` once per step: p >= (p + w s) - w most."""
        times = []
        for i, own in enumerate(self.stages):
            t = own.t.copy()
            for w, table in lines.items() if np.isfinite(most) else ():
                t = np.maximum(t, table.stages[i].t * (1 - 1e-12) - w * most)
            times.append(t)
        return self._copy(times)

    def of(self, at: Instance) -> IntervalTable:
        """The same table for an instance with the same or fewer choices."""
        return IntervalTable(at, list(self.stages), self.hop, self.weights)

    def timed(self) -> IntervalTable:
        """A copy with stage times alone in the sum."""
        return self._copy([own.t.copy() for own in self.stages])

    def weighted(self, m: int) -> IntervalTable:
        """A copy with p + w s, for weight number m, in the place of stage times."""
        return self._copy([own.sums[m] for own in self.stages])

    def _copy(self, times: list[Floats]) -> IntervalTable:
        stages = [
            StageIntervals(own.a, own.b, t, [], np.zeros(t.shape, dtype=bool))
            for own, t in zip(self.stages, times, strict=True)
        ]
        return IntervalTable(self.at, stages, self.hop, [])


def _by_start(a: Ints, values: Floats, layers: int) -> Floats:
    """Row-wise minimum over the intervals that start at the same layer."""
    out = np.full((layers, values.shape[1]), np.inf)
    if len(a):
        starts = np.flatnonzero(np.r_[True, a[1:] != a[:-1]])
        out[a[starts]] = np.minimum.reduceat(values, starts, axis=0)
    return out
