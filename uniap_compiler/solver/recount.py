"""Bounds written a second time, straight from the raw problem, for the certificate only.

Raw(problem, n).closed_form()            (B1) with plain loops
Raw(problem, n).table().bound(limit)     class-blind interval bounds and the search over periods
Raw(problem, n).least_time(...)          the least time of an interval, by labels
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np

from uniap_compiler.solver.evaluate import MEMORY_TOLERANCE, per_stage
from uniap_compiler.solver.problem import Problem

#: Sums of this file are lowered by this fraction where they serve as bounds.
ROUNDING = 1e-10


class Raw:
    """One candidate, layer by layer: `choices[u]` strategies; `time[u][i][k]` and so on as nested lists."""

    def __init__(self, problem: Problem, index: int) -> None:
        self.problem, self.index = problem, index
        candidate = problem.candidates[index]
        self.D, self.c, self.L = candidate.stages, candidate.micro_batches, len(problem.layers)
        self.values = problem.values_of(candidate)
        self.layout, self.K = candidate.layout, len(candidate.layout)
        self.limit = problem.limits(candidate)
        self.choices = [self._choices(u) for u in range(self.L)]
        self.low, self.high = self._stages()
        zeros = [0.0] * self.K
        kinds = problem.layers
        extra = [self._extra(v) for v in range(self.L)]
        tables = {kind: [per_stage(candidate.time[kind], i) for i in range(self.D)] for kind in dict.fromkeys(kinds)}
        self.time = [
            [[t + e for t, e in zip(row, extra[u], strict=True)] for row in tables[kind]]
            if any(extra[u])
            else tables[kind]
            for u, kind in enumerate(kinds)
        ]
        self.memory = [candidate.memory[kind] for kind in kinds]
        self.step = [candidate.step_time.get(kind, zeros) for kind in kinds]
        self.work = [candidate.workspace.get(kind, zeros) for kind in kinds]
        self.reshard = [None, *(candidate.reshard[f"{a}>{b}"] for a, b in itertools.pairwise(kinds))]
        self.transfer = [None, *(candidate.transfer.get(f"{a}>{b}") for a, b in itertools.pairwise(kinds))]

    def _choices(self, u: int) -> list[int]:
        """Allowed, fixed, and possible for every layer that must take the same strategy (directly or not)."""
        candidate, group = self.problem.candidates[self.index], {u}
        for _ in self.problem.same:
            group |= {v for pair in self.problem.same if group & set(pair) for v in pair}
        left = set(range(self.K))
        for v in group:
            left &= set(candidate.allowed.get(self.problem.layers[v], range(self.K)))
            for rule in self.problem.fixed:
                if rule.layer == v and rule.strategies is not None:
                    left &= {k for k in range(self.K) if candidate.strategies[k] in rule.strategies}
        return sorted(left)

    def _stages(self) -> tuple[list[int], list[int]]:
        low = [max(0, self.D - (self.L - u)) for u in range(self.L)]
        high = [min(self.D - 1, u) for u in range(self.L)]
        for rule in self.problem.fixed:
            if rule.stage is not None:
                low[rule.layer] = max(low[rule.layer], rule.stage)
                high[rule.layer] = min(high[rule.layer], rule.stage)
        return low, high

    def _extra(self, v: int) -> list[float]:
        """What values read by layer v cost it at least, by its strategy."""
        extra = [0.0] * self.K
        for source in {value.source for value in self.values if v in value.readers}:
            tables = [value for value in self.values if value.source == source]
            for k in range(self.K):
                paid = [
                    sum(value.readers.count(v) * value.reshard[q][self.layout[k]] for value in tables)
                    for q in {self.layout[l] for l in self.choices[source]}
                ]
                extra[k] += min(paid, default=0.0)
        return extra

    def impossible(self) -> bool:
        return self.D > self.L or not all(self.choices) or any(a > b for a, b in zip(self.low, self.high, strict=True))

    def hop(self, u: int) -> float:
        """The least seconds of a stage boundary in front of layer u."""
        table = self.transfer[u]
        assert table is not None
        own = min(table[self.layout[k]][self.layout[l]] for k in self.choices[u - 1] for l in self.choices[u])
        return own + sum(v.transfer for v in self.values if v.source < u <= max(v.readers))

    def step_floor(self) -> float:
        least = [min(self.step[u][k] for k in self.choices[u]) for u in range(self.L)]
        return max(sum(least) / self.D, max(least))

    def closed_form(self) -> float:
        """(B1)"""
        least = [
            min(self.time[u][i][k] for i in range(self.low[u], self.high[u] + 1) for k in self.choices[u])
            for u in range(self.L)
        ]
        hops = sorted(self.hop(u) for u in range(1, self.L))[: self.D - 1] if self.D > 1 else []
        period = max([sum(least) / self.D, *least, *hops])
        return (sum(least) + sum(hops) + (self.c - 1) * period + self.step_floor()) * (1 - ROUNDING)

    def signature(self, i: int, a: int, b: int) -> tuple[object, ...]:
        """Intervals with equal signatures have equal least times."""
        return (
            tuple((self.problem.layers[u], tuple(self.choices[u]), tuple(self.time[u][i])) for u in range(a, b + 1)),
            tuple(tuple(self.memory[u][i]) for u in range(a, b + 1)),
            self.limit[i],
        )

    def interval_time(self, i: int, a: int, b: int, strategies: list[int], w: float) -> float | None:
        """time + w step of layers a..b with these strategies; None when they do not fit or are not allowed."""
        total = memory = work = 0.0
        for n, (u, k) in enumerate(zip(range(a, b + 1), strategies, strict=True)):
            if k not in self.choices[u]:
                return None
            total += self.time[u][i][k] + w * self.step[u][k]
            memory += self.memory[u][i][k]
            work = max(work, self.work[u][k])
            table = self.reshard[u]
            if n and table is not None:
                total += table[self.layout[strategies[n - 1]]][self.layout[k]]
        return total if memory + work <= self.limit[i] * (1 + MEMORY_TOLERANCE) else None

    def least_time(self, i: int, a: int, b: int, w: float, below: float) -> float:
        """The least time + w step of layers a..b within memory, when it is less than `below`; else infinity.

        Labels (memory, working set, seconds) by class; the completion of a label is bounded from below by memory alone
        and by seconds + l memory for several l.
        """
        room = self.limit[i] * (1 + MEMORY_TOLERANCE)
        lam = self._multipliers(i, range(a, b + 1), w)
        rest = np.zeros((len(lam) + 1, self.K))
        rests = [rest]
        for u in range(b, a, -1):  # rest[l, k]: the least cost of layers u.. when layer u-1 takes strategy k
            memory_row = [self.memory[u][i][k] for k in self.choices[u]]
            seconds_row = [self.time[u][i][k] + w * self.step[u][k] for k in self.choices[u]]
            cost = np.vstack([np.array(seconds_row) + lam[:, None] * np.array(memory_row), memory_row])
            ahead = cost + rest[:, self.choices[u]]
            move = np.array(self.reshard[u])[np.ix_(self.layout, [self.layout[k] for k in self.choices[u]])]
            rest = np.vstack([(ahead[:-1, None, :] + move[None]).min(axis=2), np.full((1, self.K), ahead[-1].min())])
            rests.append(rest)
        labels: list[tuple[float, float, float, int]] = [(0.0, 0.0, 0.0, -1)]  # memory, work, seconds, strategy
        for u in range(a, b + 1):
            rest = rests[b - u]
            grown: dict[int, list[tuple[float, float, float, int]]] = {}
            for m, x, t, before in labels:
                for k in self.choices[u]:
                    table = self.reshard[u]
                    moved = 0.0 if before < 0 or table is None else table[self.layout[before]][self.layout[k]]
                    memory, work = m + self.memory[u][i][k], max(x, self.work[u][k])
                    seconds = t + moved + self.time[u][i][k] + w * self.step[u][k]
                    if memory + work + rest[-1, k] > room or seconds + rest[0, k] >= below:
                        continue
                    if np.max(seconds + lam * (memory + work - room) + rest[:-1, k]) >= below:
                        continue
                    grown.setdefault(self.layout[k], []).append((memory, work, seconds, k))
            labels = [label for own in grown.values() for label in _undominated(own)]
            if not labels:
                return math.inf
        return min(t for _, _, t, _ in labels)

    def _multipliers(self, i: int, layers: range, w: float) -> np.ndarray:
        """0 and exchange rates of seconds for bytes between any two strategies of a kind, thinned out."""
        rates = {0.0}
        for kind in dict.fromkeys(self.problem.layers[u] for u in layers):
            u = next(u for u in layers if self.problem.layers[u] == kind)
            points = [(self.memory[u][i][k], self.time[u][i][k] + w * self.step[u][k]) for k in self.choices[u]]
            for (m, t), (n, s) in itertools.permutations(points, 2):
                if m > n and s > t:
                    rates.add((s - t) / (m - n))
        ordered = sorted(rates)
        keep = 48
        return np.array(
            ordered
            if len(ordered) <= keep
            else [ordered[round(n * (len(ordered) - 1) / (keep - 1))] for n in range(keep)]
        )

    def table(self) -> Table:
        """Class-blind bounds on p + w s of every interval, for w = 0 and for w = 1/D."""
        L, D = self.L, self.D
        bounds = np.full((2, D, L, L), np.inf)
        work = [min(self.work[u][k] for k in self.choices[u]) for u in range(L)]
        for i in range(D):
            for n, w in enumerate((0.0, 1.0 / D)):
                lam = self._multipliers(i, range(L), w)
                known: dict[tuple[object, ...], np.ndarray] = {}
                cost = np.zeros((len(lam) + 1, L))
                for u in range(L):
                    key = (self.problem.layers[u], tuple(self.choices[u]), tuple(self.time[u][i]))
                    if key not in known:
                        rows = [
                            (self.time[u][i][k] + w * self.step[u][k], self.memory[u][i][k]) for k in self.choices[u]
                        ]
                        known[key] = np.array(
                            [min(t + l * m for t, m in rows) for l in lam] + [min(m for _, m in rows)]
                        )
                    cost[:, u] = known[key]
                for a in range(L):
                    if not self.low[a] <= i <= self.high[a] or (i == 0) != (a == 0):
                        continue
                    total, most = np.zeros(len(lam) + 1), 0.0
                    for b in range(a, L):
                        if not self.low[b] <= i <= self.high[b]:
                            break
                        total = total + cost[:, b]
                        most = max(most, work[b])
                        if (i == D - 1) == (b == L - 1) and total[-1] + most <= self.limit[i] * (1 + 1e-9):
                            value = float(np.max(total[:-1] - lam * (self.limit[i] - most)))
                            bounds[n, i, a, b] = max(0.0, value * (1 - ROUNDING))
        hops = np.array([0.0] + [self.hop(u) if D > 1 else 0.0 for u in range(1, L)])
        return Table(bounds[0], bounds[1], hops, self.c)


def _undominated(labels: list[tuple[float, float, float, int]]) -> list[tuple[float, float, float, int]]:
    """In order of memory: keep what is faster, or needs a smaller working set, than everything leaner."""
    kept: list[tuple[float, float, float, int]] = []
    for label in sorted(labels):
        if not any(other[1] <= label[1] and other[2] <= label[2] for other in reversed(kept)):
            kept.append(label)
    return kept


@dataclass
class Table:
    """Bounds on p (`time`) and on p + s/D (`cost`) by stage and interval, and on the boundary in front of a layer."""

    time: np.ndarray
    cost: np.ndarray
    hops: np.ndarray
    c: int

    def least(self, cap: float) -> tuple[np.ndarray, np.ndarray]:
        """before[i, a] and after[i, b]: the least cost of the other stages around an interval of stage i."""
        D, L = self.time.shape[0], self.time.shape[1]
        cost = np.where(self.time <= cap, self.cost, np.inf)
        hops = np.where(self.hops <= cap, self.hops, np.inf)
        before, after = np.full((D, L), np.inf), np.full((D, L), np.inf)
        before[0, 0] = after[D - 1, L - 1] = 0.0
        for i in range(1, D):
            before[i, 1:] = (before[i - 1][:, None] + cost[i - 1]).min(axis=0)[:-1] + hops[1:]
        for i in range(D - 2, -1, -1):
            after[i, :-1] = (cost[i + 1] + after[i + 1][None, :]).min(axis=1)[1:] + hops[1:]
        return before, after

    def total(self, cap: float) -> float:
        before, _ = self.least(cap)
        return float((before[-1] + np.where(self.time[-1] <= cap, self.cost[-1], np.inf)[:, -1]).min())

    def bound(self, enough: float) -> float:
        """A bound on the objective, or anything that is at least `enough`: split the periods until it shows."""
        finite = self.time[np.isfinite(self.time)]
        if not len(finite):
            return math.inf
        high = max(float(finite.max()), float(self.hops.max()))
        pending, result = [(0.0, high)], math.inf
        for _ in range(400):
            if not pending:
                return result
            low, high = pending.pop()
            value = self.total(high) + (self.c - 1) * low
            if value >= enough:
                result = min(result, value)
            elif high - low <= 1e-7 * high or self.c == 1:
                return value
            else:
                middle = 0.5 * (low + high)
                pending += [(low, middle), (middle, high)]
        return 0.0

    def survivors(self, threshold: float) -> list[tuple[int, int, int]]:
        """Intervals that a plan below the threshold may use."""
        before, after = self.least(math.inf)
        total = before[:, :, None] + self.cost + after[:, None, :]
        finite = np.isfinite(total)
        value = np.where(finite, total, np.inf) + (self.c - 1) * np.where(finite, self.time, 0.0)
        return [(int(i), int(a), int(b)) for i, a, b in np.argwhere(value < threshold)]
