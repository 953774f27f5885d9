"""A candidate closed without the MIQP, for the certificate only: all stages of better plans, then all such plans.

    fronts = Fronts(raw, table, threshold)
    fronts.bound()        # at least `threshold` when no plan is below it; TooHard when there is too much to look at

A stage matters by four numbers: time, once-per-step time, and the classes of its first and last layer. For every
interval of layers that the table cannot exclude, labels find all of these that are not dominated and lie below the caps
at which the table excludes them. Then plans are put together stage by stage, from the last one on, in the same manner.

Seconds and bytes are counted in whole units (powers of two, about 1e-14 of the threshold and of the memory), each entry
rounded down once. So sums are exact and do not depend on their order: of the many ways to give the same strategies to
identical layers one label is left, and everything here is a lower bound on what the entries say.
"""

from __future__ import annotations

import itertools
import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from uniap_compiler.solver.evaluate import MEMORY_TOLERANCE
from uniap_compiler.solver.recount import Raw, Table, TooHard

#: Labels times choices that one candidate may take, and the labels that may be alive at once.
WORK, ALIVE = 4e7, 100_000
#: Ranges of periods are split until (c-1) times their width is this fraction of the threshold, or there are more.
NARROW, BOXES = 3e-4, 48
#: The least time of a stage is looked for up to these parts of the way from its bound to its cap.
REACH = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
#: With which multipliers, around the best one of the whole interval, a label's completion is bounded.
AROUND = (-2, -1, 0, 1, 2)
#: Caps are widened by this fraction; sums with multipliers are lowered by this fraction of the greatest term.
WIDER, ROUNDING = 1e-9, 1e-12

Caps = dict[float, float]
Key = tuple[int, int, int]


@dataclass(frozen=True)
class Front:
    """Undominated (time, step) of one interval in units; `first` and `last` are numbers of classes."""

    first: np.ndarray
    last: np.ndarray
    time: np.ndarray
    step: np.ndarray

    def least(self, w: float) -> float:
        return float((self.time + w * self.step).min(initial=math.inf))


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


class Fronts:
    """One candidate. Once-per-step time of stages is looked at with the weights `weights`."""

    def __init__(self, raw: Raw, table: Table, threshold: float, deadline: float = math.inf) -> None:
        self.raw, self.threshold, self.deadline, self.work_left = raw, threshold, deadline, WORK
        self.second = 2.0 ** (math.ceil(math.log2(threshold)) - 47)
        self.byte = 2.0 ** (math.ceil(math.log2(max(*raw.limit, 1.0))) - 47)
        self.names = sorted(set(raw.layout))
        pick = np.ix_(self.names, self.names)
        self.move = [None if own is None else self._floor(np.array(own)[pick], self.second) for own in raw.reshard]
        crossing = [sum(v.transfer for v in raw.values if v.source < u <= max(v.readers)) for u in range(raw.L)]
        self.hop = [
            None if own is None else self._floor(np.array(own)[pick] + extra, self.second)
            for own, extra in zip(raw.transfer, crossing, strict=True)
        ]
        self.stepped = any(any(own) for own in raw.step)
        self.trips = 1.0 + table.trips
        self.weights = [0.0]
        if any(any(own) for own in raw.step):
            self.weights = sorted({0.0, 1.0, *(1.0 / (raw.D * n) for n in (1, raw.c, self.trips))})
        self.table, self.lines = table, {w: table.time.copy() for w in self.weights}
        self.lines[1.0 / raw.D] = table.cost.copy()
        self.kinds: list[list[_Kind]] = [self._kinds(i) for i in range(raw.D)]

    @staticmethod
    def _floor(values: np.ndarray, unit: float) -> np.ndarray:
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
                    self._floor(np.array(raw.time[u][i])[k], self.second),
                    self._floor(np.array(raw.memory[u][i])[k], self.byte),
                    self._floor(np.array(raw.step[u])[k], self.second),
                    self._floor(np.array(raw.work[u])[k], self.byte),
                )
            out.append(known[key])
        return out

    # -- all plans ----------------------------------------------------------------------------------------------------

    def bound(self) -> float:
        """At least the threshold when no plan is below it."""
        known: set[tuple[Key, float]] = set()
        fronts: dict[Key, Front] = {}
        while True:
            caps = self._caps()
            w = next((w for w in self.weights[:-1] if any((key, w) not in known for key in caps)), None)
            if w is not None:
                groups = self._groups(key for key in caps if (key, w) not in known)
                for keys in groups[: max(4, len(groups) // 4)]:  # then a new look at what is left
                    self._raise(keys, w, max(caps[key][w] for key in keys))
                    known.update((key, w) for key in keys)
            elif groups := self._groups(key for key in caps if key not in fronts):
                for keys in groups[: max(4, len(groups) // 4)]:
                    front = self._front(*keys[0], {w: max(caps[key][w] for key in keys) for w in self.weights})
                    fronts.update(dict.fromkeys(keys, front))
                    for w, line in self.lines.items():
                        for key in keys:
                            line[key] = max(line[key], front.least(w) * self.second * (1 - WIDER))
            else:
                return self._plans({key: self._below(fronts[key], caps[key]) for key in caps})

    def _groups(self, keys: Iterable[Key]) -> list[list[Key]]:
        """Intervals with the same layers, numbers and room; those with the fewest layers first."""
        same: dict[tuple[object, ...], list[Key]] = {}
        for key in sorted(keys, key=lambda key: (key[2] - key[1], key)):
            same.setdefault((key[0], self.raw.signature(*key)), []).append(key)
        return list(same.values())

    def _raise(self, keys: list[Key], w: float, cap: float) -> None:
        """The least p + w s below the cap, looked for in steps.

        A plan below the threshold stays below the cap. So where nothing is found, no such plan has this interval.
        """
        line = self.lines[w]
        first = min(max(self.lines[v][key] for v in self.weights if v <= w) for key in keys)
        low = math.inf
        for part in REACH if first < cap else ():
            below = {w: first + part * (cap - first)}
            least = self._front(*keys[0], below, w).least(0.0) * self.second * (1 - WIDER)
            if least < math.inf:
                low = least
                break
        for key in keys:
            line[key] = max(line[key], low)
            if low == math.inf:
                self.lines[0.0][key] = math.inf

    def _below(self, front: Front, caps: Caps) -> Front:
        own = np.ones(len(front.time), dtype=bool)
        for w, cap in caps.items():
            own &= front.time + w * front.step < cap / self.second
        return Front(front.first[own], front.last[own], front.time[own], front.step[own])

    def _caps(self) -> dict[Key, Caps]:
        """By interval and weight: a plan below the threshold has p + w s below this, in seconds.

        The range of periods is split. With a period T in [low, high], p <= high, and these are below the threshold:
            sum (p + s/D) + (c-1) T,    sum p + (c-1) T + s,    trips sum p + s,    trips sum (p + s / (D trips))
        with boundaries in all sums. There p + s/D >= x (p + w s) - (x-1) high, with x = 1/(D w) >= 1.
        """
        D, c, floor, trips = self.raw.D, self.raw.c, self.table.step, self.trips
        seconds = self.lines[0.0]
        out: dict[float, np.ndarray] = {w: np.full(seconds.shape, -math.inf) for w in self.weights}
        final, pending = (
            False,
            [(0.0, self.threshold / c)],
        )  # the longest stage, boundary or mean round trip counts c times
        split: list[tuple[float, float]] = []
        while pending or split:
            self._in_time()
            if not pending:  # level by level
                pending, split = split, []
                final = len(pending) > BOXES
            low, high = pending.pop()
            rounds = (c - 1) * low
            cost = self.lines[1.0 / D]
            for w in self.weights:
                if 0.0 < w < 1.0 / D:
                    x = 1.0 / (D * w)
                    cost = np.maximum(cost, (x * self.lines[w] - (x - 1.0) * high) * (1 - WIDER))
            sums = [(1.0 / D, cost, 1.0, rounds), (0.0, seconds, 1.0, rounds + floor), (0.0, seconds, trips, floor)]
            if 1.0 / (D * trips) in self.weights:
                sums.append((1.0 / (D * trips), self.lines[1.0 / (D * trips)], trips, 0.0))
            useful, rests = seconds <= high, []
            for w, values, times, extra in sums:
                before, after = Table(seconds, cost, self.table.hops, c, 0.0, floor).least(high, values)
                rest = (self.threshold - extra) / times - (before[:, :, None] + after[:, None, :])
                useful &= values < rest
                rests.append((w, rest))
            if not useful.any():
                continue
            if (high - low) * (c - 1) > NARROW * self.threshold and not final:
                middle = 0.5 * (low + high)
                split += [(low, middle), (middle, high)]
                continue
            least = np.minimum.reduce([np.full(seconds.shape, high), *(rest for _, rest in rests)])[useful]
            for w in self.weights:
                cap = w * (rests[1][1][useful] + floor) + (1.0 - w) * least
                for own, rest in rests if w else ():
                    cap = np.minimum(cap, rest[useful]) if own == w else cap
                out[w][useful] = np.maximum(out[w][useful], cap)
        for v, w in itertools.pairwise(reversed(self.weights)):
            out[w] = np.minimum(out[w], out[v])
        return {
            (int(i), int(a), int(b)): {w: float(out[w][i, a, b]) * (1 + WIDER) for w in self.weights}
            for i, a, b in np.argwhere(out[0.0] > -math.inf)
        }

    def _plans(self, fronts: dict[Key, Front]) -> float:
        """Stage by stage from the last one: labels (sum, period, once per step) by first layer and class."""
        raw, Q = self.raw, len(self.names)
        rounds, floor = raw.c - 1.0, self.table.step / self.second * (1 - WIDER)
        before, _ = self.table.least(math.inf, self.lines[0.0])
        enough = self.threshold / self.second
        steady = raw.problem.schedule == "1f1b"
        after: dict[tuple[int, int], np.ndarray] = {}
        for i in range(raw.D - 1, -1, -1):
            grown: dict[tuple[int, int], list[np.ndarray]] = {}
            for (j, a, b), front in sorted(fronts.items()):
                for n in range(len(front.time) if j == i else 0):
                    self._in_time()
                    p, s, ends = front.time[n], front.step[n], []
                    if b == raw.L - 1:
                        ends = [np.array([[p, p, s]])]
                    for q in range(Q) if b < raw.L - 1 else ():
                        rest = after.get((b + 1, q))
                        if rest is not None:
                            hop = self.hop[b + 1]
                            assert hop is not None
                            o = hop[front.last[n], q]
                            total, longest = rest[:, 0] + p + o, np.maximum(rest[:, 1], max(p, o))
                            ends.append(np.stack([total, longest, np.maximum(rest[:, 2], s)], axis=1))
                    for own in ends:
                        if steady and raw.D - i < raw.c:
                            own[:, 1] = np.maximum(own[:, 1], np.floor(own[:, 0] / (raw.D - i)))
                        lead = before[i, a] / self.second * (1 - WIDER)
                        least = lead + own[:, 0] + rounds * own[:, 1] + np.maximum(own[:, 2], floor)
                        grown.setdefault((a, int(front.first[n])), []).append(own[least < enough])
            after = {}
            for key, parts in grown.items():
                own = np.concatenate(parts)
                own = own[undominated(own[:, 0], own[:, 1], own[:, 2], np.zeros(len(own)))]
                self._spend(len(own))
                if len(own):
                    after[key] = own
        ends = [own[:, 0] + rounds * own[:, 1] + np.maximum(own[:, 2], floor) for own in after.values()]
        return self.threshold if not ends else float(min(own.min() for own in ends)) * self.second

    # -- one stage ----------------------------------------------------------------------------------------------------

    def _front(self, i: int, a: int, b: int, caps: Caps, merge: float | None = None) -> Front:
        """All undominated (class, class, time, step) of layers a..b on stage i below the caps.

        With `merge`, the sum time + merge step is all that counts. The largest working set is set aside: ranges of it
        are excluded together, or halved, down to single ones.
        """
        kinds = self.kinds[i][a : b + 1]
        if merge is not None:
            kinds, caps = _mapped(kinds, partial(_Kind.merged, w=merge)), {0.0: caps[merge]}
        caps = {w: cap / self.second for w, cap in caps.items()}
        lams = {w: self.raw.multipliers(i, range(a, b + 1), merge or w) * self.byte / self.second for w in caps}
        needed = max(float(kind.work.min()) for kind in kinds)
        tops = np.unique(np.concatenate([kind.work for kind in set(kinds)]))
        tops = tops[tops >= needed]
        room = self.raw.limit[i] * (1 + MEMORY_TOLERANCE) / self.byte
        parts: list[np.ndarray] = []
        pending = [(0, len(tops) - 1)]
        while pending:
            self._in_time()
            low, high = pending.pop()
            own = _mapped(kinds, partial(_Kind.under, top=float(tops[high])))
            best = self._blind(own, room - float(tops[low]), caps, lams)
            if best is None:
                continue
            if low < high:
                middle = (low + high) // 2
                pending += [(low, middle), (middle + 1, high)]
                continue
            rows = [(w, lams[w][min(max(best[w] + n, 0), len(lams[w]) - 1)]) for w in caps for n in AROUND]
            rows += [(w, 0.0) for w in caps]
            parts.append(self._labels(own, a, room - float(tops[low]), caps, list(dict.fromkeys(rows))))
        every = np.concatenate(parts) if parts else np.zeros((0, 4))
        keep = undominated(every[:, 2], every[:, 3], np.zeros(len(every)), every[:, 0] * len(self.names) + every[:, 1])
        every = every[keep]
        return Front(every[:, 0].astype(int), every[:, 1].astype(int), every[:, 2], every[:, 3])

    def _blind(
        self, kinds: list[_Kind], room: float, caps: Caps, lams: dict[float, np.ndarray]
    ) -> dict[float, int] | None:
        """None when (13), without classes, reaches a cap, or nothing fits; else the number of the best l by weight."""
        counts = {kind: kinds.count(kind) for kind in set(kinds)}
        if sum(n * float(kind.memory.min()) for kind, n in counts.items()) > room:
            return None
        best = {}
        for w in caps:
            value = -lams[w] * room
            for kind, n in counts.items():
                value = value + n * (kind.time + w * kind.step + lams[w][:, None] * kind.memory).min(axis=1)
            best[w] = int(np.argmax(value))
            if value[best[w]] - ROUNDING * lams[w][best[w]] * room >= caps[w]:
                return None
        return best

    def _labels(
        self, kinds: list[_Kind], a: int, room: float, caps: Caps, rows: list[tuple[float, float]]
    ) -> np.ndarray:
        """(first class, last class, time, step) under one ceiling, undominated."""
        weight, lam = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
        cap = np.array([caps[w] for w in weight])
        rests, least = self._rests(kinds, a, weight, lam)
        # columns: first class, last class, memory, time, step
        labels = np.zeros((1, 5))
        for n, kind in enumerate(kinds):
            self._spend(len(labels) * len(kind.cls))
            moved = np.zeros((len(labels), len(kind.cls)))
            move = self.move[a + n]
            if n and move is not None:
                moved = move[np.ix_(labels[:, 1].astype(int), kind.cls)]
            memory = labels[:, 2:3] + kind.memory
            seconds = labels[:, 3:4] + moved + kind.time
            step = labels[:, 4:5] + kind.step
            alive = memory + least[n] <= room
            for m in range(len(rows)):
                total = seconds + weight[m] * step + lam[m] * (memory - room) + rests[n][m][kind.cls]
                alive &= total - ROUNDING * lam[m] * room < cap[m]
            row, k = np.nonzero(alive)
            last = kind.cls[k].astype(float)
            first = labels[row, 0] if n else last
            memory, seconds, step = memory[row, k], seconds[row, k], step[row, k]
            keep = undominated(memory, seconds, step, first * len(self.names) + last)
            labels = np.stack([first, last, memory, seconds, step], axis=1)[keep]
            if len(labels) > ALIVE:
                raise TooHard
        return labels[:, [0, 1, 3, 4]]

    def _rests(
        self, kinds: list[_Kind], a: int, weight: np.ndarray, lam: np.ndarray
    ) -> tuple[list[np.ndarray], list[float]]:
        """After layer n: by row and its class, the least of time + w step + l memory of the rest; and its memory."""
        Q = len(self.names)
        rest, least = np.zeros((len(weight), Q)), 0.0
        rests, leasts = [rest], [least]
        for n in range(len(kinds) - 1, 0, -1):
            kind, move = kinds[n], self.move[a + n]
            ahead = kind.time + weight[:, None] * kind.step + lam[:, None] * kind.memory + rest[:, kind.cls]
            if move is not None:
                rest = (ahead[:, None, :] + move[:, kind.cls][None]).min(axis=2)
            else:
                rest = np.broadcast_to(ahead.min(axis=1, keepdims=True), (len(weight), Q))
            least += float(kind.memory.min())
            rests.append(rest)
            leasts.append(least)
        return rests[::-1], leasts[::-1]

    def _spend(self, labels: int) -> None:
        self.work_left -= labels
        if self.work_left < 0:
            raise TooHard
        self._in_time()

    def _in_time(self) -> None:
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
