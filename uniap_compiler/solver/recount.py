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


class TooHard(Exception):
    """`Raw.work_left` labels were not enough."""


class Raw:
    """One candidate, layer by layer: `choices[u]` strategies; `time[u][i][k]` and so on as nested lists.

    `work_left`: how many more labels may be made.
    """

    work_left = math.inf

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

    def beaten(self, u: int, k: int) -> bool:
        """Whether another choice of the same class is no worse anywhere, for layer u and all that agree with it."""
        group = {u}
        for _ in self.problem.same:
            group |= {v for pair in self.problem.same if group & set(pair) for v in pair}

        def costs(l: int) -> list[float]:
            rows = [[self.step[v][l], self.work[v][l]] for v in group]
            rows += [[self.time[v][i][l], self.memory[v][i][l]] for v in group for i in range(self.D)]
            return [value for row in rows for value in row]

        mine = costs(k)
        return any(
            all(x <= y for x, y in zip(costs(l), mine, strict=True)) and (l < k or costs(l) != mine)
            for l in self.choices[u]
            if l != k and self.layout[l] == self.layout[k]
        )

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

        The largest working set is one of finitely many: each is tried as a ceiling that is set aside.
        """
        needed = max(min(self.work[u][k] for k in self.choices[u]) for u in range(a, b + 1))
        ceilings = {self.work[u][k] for u in range(a, b + 1) for k in self.choices[u]}
        lam = self.multipliers(i, range(a, b + 1), w)
        found = [self._least_under(i, a, b, w, below, top, lam) for top in sorted(ceilings) if top >= needed]
        return min(found, default=math.inf)

    def _least_under(self, i: int, a: int, b: int, w: float, below: float, top: float, lam: np.ndarray) -> float:
        """The same with working sets up to `top`, of which that much is set aside.

        Labels (memory, seconds) by class; the completion of a label is bounded from below by memory alone and by
        seconds + l memory for several l.
        """
        room = self.limit[i] * (1 + MEMORY_TOLERANCE) - top
        choices = {u: [k for k in self.choices[u] if self.work[u][k] <= top] for u in range(a, b + 1)}
        rest = np.zeros((len(lam) + 1, self.K))
        rests = {b: rest}
        for u in range(b, a, -1):  # rest[l, k]: the least cost of layers u.. when layer u-1 takes strategy k
            memory_row = [self.memory[u][i][k] for k in choices[u]]
            seconds_row = [self.time[u][i][k] + w * self.step[u][k] for k in choices[u]]
            cost = np.vstack([np.array(seconds_row) + lam[:, None] * np.array(memory_row), memory_row])
            ahead = cost + rest[:, choices[u]]
            move = np.array(self.reshard[u])[np.ix_(self.layout, [self.layout[k] for k in choices[u]])]
            rest = np.vstack([(ahead[:-1, None, :] + move[None]).min(axis=2), np.full((1, self.K), ahead[-1].min())])
            rests[u - 1] = rest
        labels: list[tuple[float, float, int]] = [(0.0, 0.0, -1)]  # memory, seconds, strategy
        for u in range(a, b + 1):
            rest, table = rests[u], self.reshard[u]
            self.work_left -= len(labels) * len(choices[u])
            if self.work_left < 0:
                raise TooHard
            grown: dict[int, list[tuple[float, float, int]]] = {}
            for m, t, before in labels:
                for k in choices[u]:
                    moved = 0.0 if before < 0 or table is None else table[self.layout[before]][self.layout[k]]
                    memory = m + self.memory[u][i][k]
                    seconds = t + moved + self.time[u][i][k] + w * self.step[u][k]
                    if memory + rest[-1, k] > room or seconds + rest[0, k] >= below:
                        continue
                    if np.max(seconds + lam * (memory - room) + rest[:-1, k]) >= below:
                        continue
                    grown.setdefault(self.layout[k], []).append((memory, seconds, k))
            labels = [label for own in grown.values() for label in _undominated(own)]
            if not labels:
                return math.inf
        return min(t for _, t, _ in labels)

    def multipliers(self, i: int, layers: range, w: float) -> np.ndarray:
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

    def _working_sets(self) -> list[tuple[float, float]]:
        """A few ranges (least, greatest) that together hold the working set of every choice."""
        values = sorted({self.work[u][k] for u in range(self.L) for k in self.choices[u]})
        size = -(-len(values) // 6)
        return [(values[n], values[min(n + size, len(values)) - 1]) for n in range(0, len(values), size)]

    def _costs(self, i: int, w: float, lam: np.ndarray, high: float) -> np.ndarray:
        """By layer: the least of time + w step + l memory for every l, then of memory; working sets up to `high`."""
        known: dict[tuple[object, ...], np.ndarray] = {}
        cost = np.zeros((len(lam) + 1, self.L))
        for u in range(self.L):
            key = (self.problem.layers[u], tuple(self.choices[u]), tuple(self.time[u][i]))
            if key not in known:
                own = [k for k in self.choices[u] if self.work[u][k] <= high]
                seconds = np.array([self.time[u][i][k] + w * self.step[u][k] for k in own])
                memory = np.array([self.memory[u][i][k] for k in own])
                both = np.vstack([seconds + lam[:, None] * memory, memory[None]])
                known[key] = both.min(axis=1, initial=np.inf)
            cost[:, u] = known[key]
        return cost

    def table(self) -> Table:
        """Class-blind bounds on p + w s of every interval, for w = 0 and for w = 1/D."""
        L, D = self.L, self.D
        bounds = np.full((2, D, L, L), np.inf)
        work = np.array([min(self.work[u][k] for k in self.choices[u]) for u in range(L)])
        ranges = self._working_sets()
        for i in range(D):
            inside = [self.low[u] <= i <= self.high[u] for u in range(L)]
            for n, w in enumerate((0.0, 1.0 / D)):
                lam = self.multipliers(i, range(L), w)
                for low, high in ranges:
                    cost = self._costs(i, w, lam, high)
                    for a in range(L):
                        if not inside[a] or (i == 0) != (a == 0):
                            continue
                        end = next((u for u in range(a, L) if not inside[u]), L)
                        total = np.cumsum(cost[:, a:end], axis=1)
                        room = self.limit[i] - np.maximum(np.maximum.accumulate(work[a:end]), low)
                        value = (total[:-1] - lam[:, None] * room).max(axis=0) * (1 - ROUNDING)
                        value[total[-1] > room + 1e-9 * self.limit[i]] = np.inf
                        if i == D - 1:
                            value[: max(0, min(end, L - 1) - a)] = np.inf
                        elif end == L:
                            value[-1] = np.inf
                        bounds[n, i, a, a:end] = np.minimum(bounds[n, i, a, a:end], np.maximum(value, 0.0))
        hops = np.array([0.0] + [self.hop(u) if D > 1 else 0.0 for u in range(1, L)])
        steady = self.problem.schedule == "1f1b" and D < self.c
        return Table(bounds[0], bounds[1], hops, self.c, (self.c - 1) / D if steady else 0.0, self.step_floor())

    def hard(self) -> bool:
        """Whether there is more to say than what `table` knows: classes, and resharding between them."""
        return len({self.layout[k] for own in self.choices for k in own}) > 1

    def sharpen(self, table: Table, threshold: float) -> None:
        """Raise the bounds of the intervals that matter: classes and resharding counted, for ranges of working sets."""
        alive: dict[tuple[int, int], int] = {}
        for i, a, b in table.survivors(threshold):
            alive[i, a] = max(alive.get((i, a), 0), b)
        names = sorted(set(self.layout))
        move = [
            np.zeros((len(names), len(names))) if own is None else np.array(own)[np.ix_(names, names)]
            for own in self.reshard
        ]
        work = np.array([min(self.work[u][k] for k in self.choices[u]) for u in range(self.L)])
        ranges = self._working_sets()
        for i in range(self.D):
            starts = {a: b for (j, a), b in alive.items() if j == i}
            for values, w in ((table.time, 0.0), (table.cost, 1.0 / self.D)):
                lam = self.multipliers(i, range(self.L), w) if starts else np.zeros(1)
                known: dict[tuple[object, ...], np.ndarray] = {}
                for a, end in starts.items():
                    state = np.zeros((len(ranges), len(lam) + 1, len(names)))
                    for u in range(a, end + 1):
                        if u > a:
                            ahead = (state[:, :-1, :, None] + move[u]).min(axis=2)
                            held = np.broadcast_to(state[:, -1:].min(axis=2, keepdims=True), state[:, -1:].shape)
                            state = np.concatenate([ahead, held], axis=1)
                        key = (self.problem.layers[u], tuple(self.choices[u]), tuple(self.time[u][i]))
                        if key not in known:
                            known[key] = self._by_class(u, i, w, lam, names, [high for _, high in ranges])
                        state = state + known[key]
                        least = np.array([low for low, _ in ranges])
                        room = self.limit[i] - np.maximum(least, work[a : u + 1].max())
                        total = state.min(axis=2)
                        bound = (total[:, :-1] - lam * room[:, None]).max(axis=1) * (1 - ROUNDING)
                        bound[total[:, -1] > room + 1e-9 * self.limit[i]] = np.inf
                        values[i, a, u] = max(values[i, a, u], float(bound.min()))

    def _by_class(self, u: int, i: int, w: float, lam: np.ndarray, names: list[int], tops: list[float]) -> np.ndarray:
        """The least time + w step + l memory, then memory, of layer u: by range of working sets, l and class."""
        out = np.full((len(tops), len(lam) + 1, len(names)), np.inf)
        for n, top in enumerate(tops):
            for k in self.choices[u]:
                if self.work[u][k] <= top:
                    q, m = names.index(self.layout[k]), self.memory[u][i][k]
                    cost = np.append(self.time[u][i][k] + w * self.step[u][k] + lam * m, m)
                    out[n, :, q] = np.minimum(out[n, :, q], cost)
        return out


def _undominated(labels: list[tuple[float, float, int]]) -> list[tuple[float, float, int]]:
    """In order of memory: keep what is faster than everything leaner."""
    kept: list[tuple[float, float, int]] = []
    for label in sorted(labels):
        if not kept or label[1] < kept[-1][1]:
            kept.append(label)
    return kept


@dataclass
class Table:
    """Bounds on p (`time`) and on p + s/D (`cost`) by stage and interval, and on the boundary in front of a layer.

    `trips`: how often 1F1B's mean round trip counts besides once, (c-1)/D; `step` bounds the once-per-step time.
    """

    time: np.ndarray
    cost: np.ndarray
    hops: np.ndarray
    c: int
    trips: float
    step: float

    def least(self, cap: float, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """before[i, a] and after[i, b]: the least of the other stages around an interval of stage i, under a period."""
        D, L = self.time.shape[0], self.time.shape[1]
        cost = np.where(self.time <= cap, values, np.inf)
        hops = np.where(self.hops <= cap, self.hops, np.inf)
        before, after = np.full((D, L), np.inf), np.full((D, L), np.inf)
        before[0, 0] = after[D - 1, L - 1] = 0.0
        for i in range(1, D):
            before[i, 1:] = (before[i - 1][:, None] + cost[i - 1]).min(axis=0)[:-1] + hops[1:]
        for i in range(D - 2, -1, -1):
            after[i, :-1] = (cost[i + 1] + after[i + 1][None, :]).min(axis=1)[1:] + hops[1:]
        return before, after

    def through(self, low: float, high: float) -> np.ndarray:
        """By stage and interval: the least objective of plans with it, with a period from `low` to `high`."""
        out = []
        for values, times, extra in (
            (self.cost, 1.0, (self.c - 1) * low),
            (self.time, 1.0, (self.c - 1) * low + self.step),
            (self.time, 1.0 + self.trips, self.step),
        ):
            before, after = self.least(high, values)
            total = before[:, :, None] + values + after[:, None, :]
            out.append(np.where(self.time <= high, times * total, np.inf) + extra)
        return np.asarray(np.maximum.reduce(out))

    def bound(self, enough: float) -> float:
        """A bound on the objective, or anything that is at least `enough`: split the periods until it shows."""
        pending, result = self._periods(), math.inf
        for _ in range(400):
            if not pending:
                return result
            low, high = pending.pop()
            value = float(self.through(low, high)[0].min())
            if value >= enough:
                result = min(result, value)
            elif high - low <= 1e-7 * high or self.c == 1:
                return value
            else:
                middle = 0.5 * (low + high)
                pending += [(low, middle), (middle, high)]
        return 0.0

    def row(self, i: int, a: int, b: int) -> dict[float, float]:
        """Bounds on p + w s of one interval, by w."""
        step = 1.0 / self.time.shape[0]
        return {0.0: float(self.time[i, a, b]), step: float(self.cost[i, a, b])}

    def survivors(self, threshold: float) -> list[tuple[int, int, int]]:
        """Intervals that a plan below the threshold may use."""
        pending, alive = self._periods(), np.zeros(self.time.shape, dtype=bool)
        while pending:
            low, high = pending.pop()
            useful = self.through(low, high) < threshold
            if not (useful & ~alive).any():
                continue
            if (high - low) * (self.c - 1) <= 1e-3 * threshold or self.c == 1:
                alive |= useful
            else:
                middle = 0.5 * (low + high)
                pending += [(low, middle), (middle, high)]
        return [(int(i), int(a), int(b)) for i, a, b in np.argwhere(alive)]

    def _periods(self) -> list[tuple[float, float]]:
        finite = self.time[np.isfinite(self.time)]
        return [(0.0, max(float(finite.max()), float(self.hops.max())))] if len(finite) else []
