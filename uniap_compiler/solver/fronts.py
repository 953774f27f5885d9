"""A candidate closed without the MIQP, for the certificate only: all stages of better plans, then all such plans.

    fronts = Fronts(raw, table, threshold)
    fronts.bound()        # at least `threshold` when no plan is below it; TooHard when there is too much to look at

A stage matters by four numbers: time, once-per-step time, and the classes of its first and last layer. For every
interval of layers that the table cannot exclude, labels find all of these that are not dominated and lie below the caps
at which the table excludes them. Then plans are put together stage by stage, from the last one on, in the same manner.
Where that is too much, the range of once-per-step times is split. All sums are exact, see stage_fronts.py.
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from uniap_compiler.solver.recount import Raw, Table, TooHard
from uniap_compiler.solver.stage_fronts import Caps, Front, StageFronts, undominated

#: Labels times choices that one candidate may take.
WORK = 1e8
#: Ranges of periods are split until (c-1) times their width is this fraction of the threshold, or there are more.
NARROW, BOXES = 3e-4, 48
#: The least time of a stage is looked for up to these parts of the way from its bound to its cap.
REACH = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)
#: Labels that may be made for all stages in a wide range: so many at first, twice as many whenever they were too few.
TRIAL = 3e6
#: The part of a range, with the greatest values, that is looked at first when the whole range is too much.
RIGHT = 0.2
#: So many intervals are looked at before the caps are computed again, or a quarter of them.
AT_ONCE = 48
#: Ranges of once-per-step times are wide above this fraction of the threshold.
NEAR = 1e-4
#: Caps are widened by this fraction.
WIDER = 1e-9

Key = tuple[int, int, int]


class Fronts:
    """One candidate. Once-per-step time of stages is looked at with the weights `weights`."""

    def __init__(self, raw: Raw, table: Table, threshold: float, deadline: float = math.inf) -> None:
        self.raw, self.threshold, self.deadline = raw, threshold, deadline
        self.stages = StageFronts(raw, threshold, WORK, deadline)
        self.second, self.names, self.hop = self.stages.second, self.stages.names, self.stages.hop
        self.stepped = any(any(own) for own in raw.step)
        self.trips = 1.0 + table.trips
        self.weights = [0.0]
        if self.stepped:
            self.weights = sorted({0.0, 1.0, *(1.0 / (raw.D * n) for n in (1, raw.c, self.trips))})
        self.table, self.lines = table, {w: table.time.copy() for w in self.weights}
        self.lines[1.0 / raw.D] = table.cost.copy()
        self.trial = TRIAL

    def bound(self) -> float:
        """At least the threshold when no plan is below it.

        The range of once-per-step times is split where looking at all stages takes too many labels. Let F(s) be the
        least sum of times and (c-1) periods of plans with at most s once per step. In [low, high] a plan costs at least
        F(high) + low, and only s < threshold - F(high) is left of that range.
        """
        self._raise_lines()
        pending = [(self.table.step, math.inf, self.lines[0.0])]
        while pending:
            low, high, seconds = pending.pop()
            caps, seconds = self._under(low, high, seconds)
            if not caps:
                continue
            wide = self.stepped and high - low > NEAR * self.threshold
            least = self._in_trial(caps, low, high, seconds) if wide else self._all(caps, low, high, seconds)
            if least is not None:
                if least < self.threshold:
                    return least
                continue
            end = min(high, self.threshold - self._blind_least(seconds))
            if end <= low:
                continue
            if high - end > end - low:
                pending.append((low, end, seconds))
            else:
                middle = end - RIGHT * (end - low)
                pending += [(low, middle, seconds), (middle, end, seconds)]
        return self.threshold

    def _raise_lines(self) -> None:
        """Least p + w s of all intervals that matter, weight by weight."""
        known: set[tuple[Key, float]] = set()
        while True:
            caps = self._caps(self.lines[0.0], self.table.step)
            w = next((w for w in self.weights[:-1] if any((key, w) not in known for key in caps)), None)
            if w is None:
                return
            groups = self._groups(key for key in caps if (key, w) not in known)
            for keys in groups[: max(AT_ONCE, len(groups) // 4)]:  # then a new look at what is left
                self._raise(self.lines[w], keys, {w: max(caps[key][w] for key in keys)}, w)
                known.update((key, w) for key in keys)

    def _under(self, low: float, high: float, seconds: np.ndarray) -> tuple[dict[Key, Caps], np.ndarray]:
        """Caps of plans with from `low` to `high` seconds once per step, and what stage times are at least in them.

        Without a limit `high` all is known from `_raise_lines`.
        """
        if high == math.inf:
            return self._caps(seconds, low), seconds
        for w, line in self.lines.items():
            seconds = np.maximum(seconds, (line - w * high) * (1 - WIDER))
        raised: set[Key] = set()
        while True:
            caps = self._caps(seconds, low)
            caps = {key: {w: min(cap, own[0.0] + w * high) for w, cap in own.items()} for key, own in caps.items()}
            groups = self._groups(key for key in caps if key not in raised)
            if not groups:
                return caps, seconds
            for keys in groups[: max(AT_ONCE, len(groups) // 4)]:
                self._raise(seconds, keys, {w: max(caps[key][w] for key in keys) for w in self.weights}, 0.0, high)
                raised.update(keys)

    def _all(self, caps: dict[Key, Caps], low: float, high: float, seconds: np.ndarray) -> float:
        """The least objective of all plans below the caps: every stage of them by labels, then stage after stage."""
        fronts: dict[Key, Front] = {}
        for keys in self._groups(caps):
            front = self.stages.front(*keys[0], {w: max(caps[key][w] for key in keys) for w in self.weights}, high)
            fronts |= {key: front.below({w: cap / self.second for w, cap in caps[key].items()}) for key in keys}
        return self._plans(fronts, low, seconds)

    def _in_trial(self, caps: dict[Key, Caps], low: float, high: float, seconds: np.ndarray) -> float | None:
        """The same with few labels; None when they were not enough."""
        left, trial = self.stages.left, min(self.stages.left, self.trial)
        self.stages.left = trial
        try:
            return self._all(caps, low, high, seconds)
        except TooHard:
            if left <= trial or time.monotonic() > self.deadline:
                raise
            self.trial *= 2.0
            return None
        finally:
            self.stages.left += left - trial

    def _blind_least(self, seconds: np.ndarray) -> float:
        """A bound on the sum of times and (c-1) periods, classes aside; ranges of periods are split, best first."""
        table = replace(self.table, time=seconds, cost=seconds, step=0.0)
        pending = [(0.0, 0.0, self.threshold / self.raw.c)]
        while True:
            self.stages.in_time()
            bound, low, high = heapq.heappop(pending)
            if (high - low) * self.raw.c <= 0.01 * NEAR * self.threshold:
                return bound
            middle = 0.5 * (low + high)
            for part in ((low, middle), (middle, high)):
                heapq.heappush(pending, (float(table.through(*part)[0].min()), *part))

    def _groups(self, keys: Iterable[Key]) -> list[list[Key]]:
        """Intervals with the same layers, numbers and room; those with the fewest layers first."""
        same: dict[tuple[object, ...], list[Key]] = {}
        for key in sorted(keys, key=lambda key: (key[2] - key[1], key)):
            same.setdefault((key[0], self.raw.signature(*key)), []).append(key)
        return list(same.values())

    def _raise(self, line: np.ndarray, keys: list[Key], caps: Caps, w: float, high: float = math.inf) -> None:
        """The least p + w s below the caps, looked for in steps, with at most `high` once per step.

        A plan below the threshold stays below the caps. So where nothing is found, no such plan has this interval.
        """
        first = min(float(line[key]) for key in keys)
        if high == math.inf:
            first = min(max(self.lines[v][key] for v in self.weights if v <= w) for key in keys)
        low = math.inf
        for part in REACH if first < caps[w] else ():
            below = {**caps, w: first + part * (caps[w] - first)}
            least = self.stages.front(*keys[0], below, high, w).least() * self.second * (1 - WIDER)
            if least < math.inf:
                low = least
                break
        for key in keys:
            line[key] = max(line[key], low)
            if low == math.inf and high == math.inf:
                self.lines[0.0][key] = math.inf

    def _caps(self, seconds: np.ndarray, floor: float) -> dict[Key, Caps]:
        """By interval and weight: a plan below the threshold has p + w s below this, in seconds.

        `seconds` are bounds of stage times, and `floor` one of once-per-step time.

        The range of periods is split. With a period T in [low, high], p <= high, and these are below the threshold:
            sum (p + s/D) + (c-1) T,    sum p + (c-1) T + s,    trips sum p + s,    trips sum (p + s / (D trips))
        with boundaries in all sums. There p + s/D >= x (p + w s) - (x-1) high, with x = 1/(D w) >= 1.
        """
        D, c, trips = self.raw.D, self.raw.c, self.trips
        out: dict[float, np.ndarray] = {w: np.full(seconds.shape, -math.inf) for w in self.weights}
        final, pending = (
            False,
            [(0.0, self.threshold / c)],
        )  # the longest stage, boundary or mean round trip counts c times
        split: list[tuple[float, float]] = []
        while pending or split:
            self.stages.in_time()
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

    def _plans(self, fronts: dict[Key, Front], step: float, seconds: np.ndarray) -> float:
        """From the last stage on, labels (sum, period, once per step, which is `step` at least) by layer and class."""
        raw, Q = self.raw, len(self.names)
        rounds, floor = raw.c - 1.0, step / self.second * (1 - WIDER)
        before, _ = self.table.least(math.inf, seconds)
        enough = self.threshold / self.second
        steady = raw.problem.schedule == "1f1b"
        after: dict[tuple[int, int], np.ndarray] = {}
        for i in range(raw.D - 1, -1, -1):
            grown: dict[tuple[int, int], list[np.ndarray]] = {}
            for (j, a, b), front in sorted(fronts.items()):
                for n in range(len(front.time) if j == i else 0):
                    self.stages.in_time()
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
                self.stages.spend(len(own))
                if len(own):
                    after[key] = own
        ends = [own[:, 0] + rounds * own[:, 1] + np.maximum(own[:, 2], floor) for own in after.values()]
        return min((float(own.min()) for own in ends), default=math.inf) * self.second
