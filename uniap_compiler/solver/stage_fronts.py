"""All stages that an interval of layers could be, for the certificate only: by labels, in exact units.

    stages = StageFronts(raw, threshold, work)
    stages.front(i, a, b, caps, limit)     # TooHard when the labels are too many

Seconds and bytes are counted in whole units (powers of two, about 1e-14 of the threshold and of the memory), each entry
rounded down once. So sums are exact and do not depend on their order: of the many ways to give the same strategies to
identical layers one label is left, and everything here is a lower bound on what the entries say.

The largest working set of a stage is set aside: in a range of it [low, high] strategies go up to high, memory is what
low leaves, and one layer at least reaches low; so no range finds what is found in a lower one.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from uniap_compiler.solver.evaluate import MEMORY_TOLERANCE
from uniap_compiler.solver.recount import Raw, TooHard

#: Labels that may be alive at once.
ALIVE = 100_000
#: With which multipliers, around the best one of the whole interval, a label's completion is bounded.
AROUND = (-2, -1, 0, 1, 2)
#: Ranges of largest working sets are split into so many.
SPLIT = 16
#: Sums with multipliers are lowered by this fraction of the greatest term.
ROUNDING = 1e-12

Caps = dict[float, float]


@dataclass(frozen=True)
class Front:
    """Undominated (time, step) of one interval in units; `first` and `last` are numbers of classes."""

    first: np.ndarray
    last: np.ndarray
    time: np.ndarray
    step: np.ndarray

    def least(self) -> float:
        return float(self.time.min(initial=math.inf))

    def below(self, caps: Caps) -> Front:
        own = np.logical_and.reduce([self.time + w * self.step < cap for w, cap in caps.items()])
        return Front(self.first[own], self.last[own], self.time[own], self.step[own])


@dataclass(frozen=True, eq=False)
class _Kind:
    """What one layer may take on one stage: class, time, memory, once per step, working set, in units."""

    cls: np.ndarray
    time: np.ndarray
    memory: np.ndarray
    step: np.ndarray
    work: np.ndarray

    def merged(self, w: float) -> _Kind:
        """With time + w step for the time."""
        return replace(self, time=np.floor(self.time + w * self.step), step=0.0 * self.step)

    def under(self, top: float) -> _Kind:
        own = self.work <= top
        return _Kind(self.cls[own], self.time[own], self.memory[own], self.step[own], self.work[own])


class StageFronts:
    """The stages of one candidate; `left`: how many more labels times choices may be made."""

    def __init__(self, raw: Raw, threshold: float, work: float, deadline: float = math.inf) -> None:
        self.raw, self.left, self.deadline = raw, work, deadline
        self.second = 2.0 ** (math.ceil(math.log2(threshold)) - 47)
        self.byte = 2.0 ** (math.ceil(math.log2(max(*raw.limit, 1.0))) - 47)
        self.names = sorted(set(raw.layout))
        pick = np.ix_(self.names, self.names)
        self.move = [None if own is None else self.floor(np.array(own)[pick], self.second) for own in raw.reshard]
        crossing = [sum(v.transfer for v in raw.values if v.source < u <= max(v.readers)) for u in range(raw.L)]
        self.hop = [
            None if own is None else self.floor(np.array(own)[pick] + extra, self.second)
            for own, extra in zip(raw.transfer, crossing, strict=True)
        ]
        self.kinds: list[list[_Kind]] = [self._kinds(i) for i in range(raw.D)]

    @staticmethod
    def floor(values: np.ndarray, unit: float) -> np.ndarray:
        return np.asarray(np.floor(values / unit))

    def _kinds(self, i: int) -> list[_Kind]:
        """By layer; equal layers share one object."""
        raw, known, out = self.raw, dict[tuple[object, ...], _Kind](), []
        for u in range(raw.L):
            key = (raw.problem.layers[u], tuple(raw.choices[u]), tuple(raw.time[u][i]))
            if key not in known:
                k = raw.choices[u]
                known[key] = _Kind(
                    np.array([self.names.index(raw.layout[n]) for n in k]),
                    self.floor(np.array(raw.time[u][i])[k], self.second),
                    self.floor(np.array(raw.memory[u][i])[k], self.byte),
                    self.floor(np.array(raw.step[u])[k], self.second),
                    self.floor(np.array(raw.work[u])[k], self.byte),
                )
            out.append(known[key])
        return out

    def front(self, i: int, a: int, b: int, caps: Caps, limit: float, w: float | None = None) -> Front:
        """All undominated (class, class, time, step) of layers a..b on stage i below the caps, with step up to a limit.

        With `w`, and without a limit, the sum time + w step is all that counts. The largest working set is set aside:
        ranges of it are excluded together, with the room that their least leaves, or split, down to single ones.
        """
        kinds, merged = self.kinds[i][a : b + 1], w if limit == math.inf else None
        if merged is not None:
            kinds, caps = _mapped(kinds, partial(_Kind.merged, w=merged)), {0.0: caps[merged]}
        caps = {v: cap / self.second for v, cap in caps.items()}
        rates = {v: self.raw.multipliers(i, range(a, b + 1), v if merged is None else merged) for v in caps}
        lams = {v: own * self.byte / self.second for v, own in rates.items()}
        needed = max(float(kind.work.min()) for kind in kinds)
        tops = np.unique(np.concatenate([kind.work for kind in set(kinds)]))
        tops = tops[tops >= needed]
        room = self.raw.limit[i] * (1 + MEMORY_TOLERANCE) / self.byte
        parts: list[np.ndarray] = []
        pending = [tops]
        while pending:
            self.in_time()
            wide = pending.pop()
            for ceilings in np.array_split(wide, min(len(wide), SPLIT)):
                low, high = float(ceilings[0]), float(ceilings[-1])
                own = _mapped(kinds, partial(_Kind.under, top=high))
                best = self._blind(own, low, room - low, caps, lams)
                if best is None:
                    continue
                rows = [(v, lams[v][min(max(best[v] + n, 0), len(lams[v]) - 1)]) for v in caps for n in AROUND]
                rows += [(v, 0.0) for v in caps]
                labels = self._labels(own, a, low, room - low, caps, list(dict.fromkeys(rows)), limit / self.second)
                if len(labels) and low < high:
                    pending.append(ceilings)
                elif len(labels):
                    parts.append(labels)
        every = np.concatenate(parts) if parts else np.zeros((0, 4))
        classes = every[:, 0] * len(self.names) + every[:, 1]
        every = every[undominated(every[:, 2], every[:, 3], np.zeros(len(every)), classes)]
        return Front(every[:, 0].astype(int), every[:, 1].astype(int), every[:, 2], every[:, 3])

    def _blind(
        self, kinds: list[_Kind], low: float, room: float, caps: Caps, lams: dict[float, np.ndarray]
    ) -> dict[float, int] | None:
        """None when (13), without classes, reaches a cap, or nothing fits; else the number of the best l by weight.

        One layer at least has a working set of `low` or more.
        """
        counts = Counter(kinds)
        reach = {kind: kind.work >= low for kind in counts}
        if sum(n * float(kind.memory.min()) for kind, n in counts.items()) > room:
            return None
        best = {}
        for w in caps:
            value, extra = -lams[w] * room, np.full(len(lams[w]), math.inf)
            for kind, n in counts.items():
                cost = kind.time + w * kind.step + lams[w][:, None] * kind.memory
                least = cost.min(axis=1)
                value = value + n * least
                if reach[kind].any():
                    extra = np.minimum(extra, cost[:, reach[kind]].min(axis=1) - least)
            value = value + extra
            best[w] = int(np.argmax(value))
            if value[best[w]] - ROUNDING * lams[w][best[w]] * room >= caps[w]:
                return None
        return best

    def _labels(
        self,
        kinds: list[_Kind],
        a: int,
        low: float,
        room: float,
        caps: Caps,
        rows: list[tuple[float, float]],
        limit: float,
    ) -> np.ndarray:
        """(first class, last class, time, step), undominated, of what fits into this room with steps up to a limit.

        Some working set must reach `low`: everything else is found in a lower range.
        """
        weight, lam = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
        cap = np.array([caps[w] for w in weight])
        rests, least = self._rests(kinds, a, low, weight, lam)
        steps = np.cumsum([0.0, *(float(kind.step.min()) for kind in kinds[:0:-1])])[::-1]  # of the layers after
        # columns: first class, last class, memory, time, step, whether the low has been reached
        labels = np.zeros((1, 6))
        for n, kind in enumerate(kinds):
            self.spend(len(labels) * len(kind.cls))
            moved = np.zeros((len(labels), len(kind.cls)))
            move = self.move[a + n]
            if n and move is not None:
                moved = move[np.ix_(labels[:, 1].astype(int), kind.cls)]
            memory = labels[:, 2:3] + kind.memory
            seconds = labels[:, 3:4] + moved + kind.time
            step = labels[:, 4:5] + kind.step
            reached = (labels[:, 5:6] > 0) | (kind.work >= low)
            alive = (memory + least[n] <= room) & (step + steps[n] <= limit)
            for m in range(len(rows)):
                rest = np.where(reached, rests[n][1, m, kind.cls], rests[n][0, m, kind.cls])
                total = seconds + weight[m] * step + lam[m] * (memory - room) + rest
                alive &= total - ROUNDING * lam[m] * room < cap[m]
            row, k = np.nonzero(alive)
            last = kind.cls[k].astype(float)
            first = labels[row, 0] if n else last
            memory, seconds, step, done = memory[row, k], seconds[row, k], step[row, k], reached[row, k].astype(float)
            keep = undominated(memory, seconds, step, (first * len(self.names) + last) * 2 + done)
            labels = np.stack([first, last, memory, seconds, step, done], axis=1)[keep]
            if len(labels) > ALIVE:
                raise TooHard
        return labels[:, [0, 1, 3, 4]]

    def _rests(
        self, kinds: list[_Kind], a: int, low: float, weight: np.ndarray, lam: np.ndarray
    ) -> tuple[list[np.ndarray], list[float]]:
        """What layers after n cost at least: time + w step + l memory by row and class of n; and memory.

        rests[n][0] when one of them must have a working set of `low` or more, rests[n][1] when none must.
        """
        Q = len(self.names)
        self.spend(len(kinds) * len(weight) * Q // 2)  # as long as so many labels take
        rest, least = np.zeros((2, len(weight), Q)), 0.0
        rest[0] = math.inf
        rests, leasts = [rest], [least]
        for n in range(len(kinds) - 1, 0, -1):
            kind, move = kinds[n], self.move[a + n]
            after = np.stack(
                [np.where(kind.work >= low, rest[1][:, kind.cls], rest[0][:, kind.cls]), rest[1][:, kind.cls]]
            )
            ahead = kind.time + weight[:, None] * kind.step + lam[:, None] * kind.memory + after
            if move is not None:
                rest = (ahead[:, :, None, :] + move[:, kind.cls]).min(axis=3)
            else:
                rest = np.broadcast_to(ahead.min(axis=2, keepdims=True), (2, len(weight), Q))
            least += float(kind.memory.min())
            rests.append(rest)
            leasts.append(least)
        return rests[::-1], leasts[::-1]

    def spend(self, labels: int) -> None:
        self.left -= labels
        if self.left < 0:
            raise TooHard
        self.in_time()

    def in_time(self) -> None:
        if time.monotonic() > self.deadline:
            raise TooHard


def _mapped(kinds: list[_Kind], change: Callable[[_Kind], _Kind]) -> list[_Kind]:
    """Equal layers stay one object."""
    known = {id(kind): change(kind) for kind in kinds}
    return [known[id(kind)] for kind in kinds]


def undominated(x: np.ndarray, y: np.ndarray, z: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Which rows stay when those go that another row of their group meets or beats in x, y and z."""
    order = np.lexsort((z, y, x, group))
    if not z.any() and len(order):
        lower = (y - (y.max() + 1.0) * group)[order]  # below everything of the groups before
        return np.asarray(order[np.concatenate([[True], lower[1:] < np.minimum.accumulate(lower)[:-1]])])
    keep: list[int] = []
    ys, zs = list[float](), list[float]()  # of the group: increasing, with the least z so far decreasing
    before = None
    for n, g, v, w in zip(order.tolist(), group[order].tolist(), y[order].tolist(), z[order].tolist(), strict=True):
        if g != before:
            ys, zs, before = [], [], g
        at = bisect_left(ys, v)
        equal = at < len(ys) and ys[at] == v
        if (equal and zs[at] <= w) or (at and zs[at - 1] <= w):
            continue
        keep.append(n)
        end = at
        while end < len(ys) and zs[end] >= w:
            end += 1
        ys[at:end], zs[at:end] = [v], [w]
    return np.array(keep, dtype=int)
