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
    """The undominated (time, step) of one interval: parallel arrays, `q` and `r` the classes at its ends."""

    q: Ints
    r: Ints
    time: Floats
    step: Floats
    label: Ints


@dataclass
class StageIntervals:
    """The intervals that stage i may hold, sorted by (a, b).

    `t[n, q, r]` bounds the stage time and `cost[n, q, r]` what the interval adds to the sum of the objective (the same
    array unless once-per-step time is spread over the stages). `exact[n]`: the entries of interval n are attained, and
    `options` lists its pairs (time, once-per-step time).
    """

    a: Ints
    b: Ints
    t: Floats
    cost: Floats
    exact: Bools
    options: list[Options | None]

    def keep(self, mask: Bools) -> StageIntervals:
        cost = self.t[mask] if self.cost is self.t else self.cost[mask]
        left = [option for option, kept in zip(self.options, mask, strict=True) if kept]
        return StageIntervals(self.a[mask], self.b[mask], self.t[mask], cost, self.exact[mask], left)


@dataclass
class Path:
    """One interval per stage: its position in the table, and the classes of its first and last layer."""

    total: float
    period: float
    position: list[int]
    first_class: list[int]
    last_class: list[int]


class IntervalTable:
    """The intervals of every stage, with the boundary costs `hop[u, q, r]` in front of layer u."""

    def __init__(self, at: Instance, stages: list[StageIntervals], hop: Floats) -> None:
        self.at, self.stages, self.hop = at, stages, hop
        self.classes = hop.shape[1]

    def suffix(self, cap: float) -> list[Floats]:
        """f_i of (12) for every stage, under the cap."""
        at = self.at
        D, L = at.stages, at.layers
        hop = np.where(self.hop > cap, np.inf, self.hop)
        f: list[Floats] = [np.empty(0)] * D
        for i in range(D - 1, -1, -1):
            own = self.stages[i]
            total = np.where(own.t > cap, np.inf, own.cost)
            if i < D - 1:
                rest = (hop + f[i + 1][:, None, :]).min(axis=2)  # rest[u, r]: from the boundary in front of u on
                total = total + rest[own.b + 1][:, None, :]
            f[i] = _by_start(own.a, total.min(axis=2), L)
            if at.steady and D - i < at.micro_batches and own.cost is own.t:
                f[i][f[i] > (D - i) * cap * (1 + 1e-12)] = np.inf  # a period is a rounded quotient
        return f

    def prefix(self, cap: float) -> list[Floats]:
        """F_i[a, q]: the least cost of everything before layer a when stage i starts there in class q."""
        at = self.at
        hop = np.where(self.hop > cap, np.inf, self.hop)
        start = np.full((at.layers, self.classes), np.inf)
        start[0] = 0.0
        F = [start]
        for i in range(at.stages - 1):
            own = self.stages[i]
            ends = (np.where(own.t > cap, np.inf, own.cost) + F[i][own.a][:, :, None]).min(axis=1)
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
        path = Path(float(f[0][0, q]), 0.0, [], [], [])
        p, o = [], []
        for i in range(D):
            own = self.stages[i]
            low, high = np.searchsorted(own.a, a), np.searchsorted(own.a, a, side="right")
            costs = np.where(own.t[low:high, q] > cap, np.inf, own.cost[low:high, q])  # n, r
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
            (np.where(own.t > cap, np.inf, own.cost) + rest).min(axis=(1, 2))
            for own, rest in zip(self.stages, self._around(cap), strict=True)
        ]

    def rests(self, cap: float) -> list[Floats]:
        """For every interval, the least sum of everything else in a plan that uses it, whatever its end classes."""
        return [
            np.where(own.t > cap, np.inf, rest).min(axis=(1, 2))
            for own, rest in zip(self.stages, self._around(cap), strict=True)
        ]

    def _around(self, cap: float) -> list[Floats]:
        """rest[n, q, r]: the least cost before and after interval n with classes q, r at its ends."""
        F, f = self.prefix(cap), self.suffix(cap)
        hop = np.where(self.hop > cap, np.inf, self.hop)
        out = []
        for i, own in enumerate(self.stages):
            rest = np.broadcast_to(F[i][own.a][:, :, None], own.t.shape)
            if i < self.at.stages - 1:
                rest = rest + (hop + f[i + 1][:, None, :]).min(axis=2)[own.b + 1][:, None, :]
            out.append(rest)
        return out

    def at_step(self, most: float) -> IntervalTable:
        """The table in which every exact interval takes its least time with at most `most` once-per-step time."""
        stages = []
        for own in self.stages:
            t = own.t.copy()
            for n in np.flatnonzero(own.exact):
                option = own.options[n]
                assert option is not None
                fits = option.step <= most
                t[n] = np.inf
                np.minimum.at(t[n], (option.q[fits], option.r[fits]), option.time[fits])
            stages.append(StageIntervals(own.a, own.b, t, t, own.exact, own.options))
        return IntervalTable(self.at, stages, self.hop)

    def timed(self) -> IntervalTable:
        """The same intervals with stage times alone in the sum."""
        stages = [StageIntervals(own.a, own.b, own.t, own.t, own.exact, own.options) for own in self.stages]
        return IntervalTable(self.at, stages, self.hop)


def _by_start(a: Ints, values: Floats, layers: int) -> Floats:
    """Row-wise minimum over the intervals that start at the same layer."""
    out = np.full((layers, values.shape[1]), np.inf)
    if len(a):
        starts = np.flatnonzero(np.r_[True, a[1:] != a[:-1]])
        out[a[starts]] = np.minimum.reduceat(values, starts, axis=0)
    return out
