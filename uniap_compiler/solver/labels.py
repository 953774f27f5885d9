"""The exact least time of a stage: constrained shortest paths by labels (docs/solver.md, "Exact stage times").

A label is a partial choice of strategies for layers a..u: (class of a, class of u, time, memory, working set, step). It
is dropped when another one is no worse in everything, when no completion can fit, or when by (13) no completion can be
below a cap. What a cap cut off is only known to be above the cap.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields

import numpy as np

from uniap_compiler.solver.instance import Bools, Floats, Instance, Ints
from uniap_compiler.solver.intervals import Options
from uniap_compiler.solver.tables import ROOM, StageCosts

MOST_LABELS = 40_000
#: Two labels count as equal within this fraction of the cap and of the memory: orders of summation differ.
SAME_TIME, SAME_MEMORY = 1e-12, 2e-15


class TooManyLabels(Exception):
    """The interval is too hard for labels; its lower bound stands."""


@dataclass
class Labels:
    """Labels that end at one layer, in parallel arrays; `parent` and `strategy` lead back."""

    group: Ints  # class of the first layer * Q + class of this one
    time: Floats
    memory: Floats
    work: Floats
    step: Floats
    parent: Ints
    strategy: Ints

    def take(self, index: Ints | Bools) -> Labels:
        return Labels(*(getattr(self, field.name)[index] for field in fields(self)))

    def __len__(self) -> int:
        return len(self.time)


@dataclass
class StageTime:
    """The undominated (time, step) of layers a..b below the caps, and the way back to their strategies."""

    options: Options
    caps: list[float]
    trail: list[tuple[Ints, Ints]]

    def strategies(self, label: int) -> list[int]:
        """The strategies behind one label of the last layer."""
        n, chosen = label, []
        for parent, strategy in reversed(self.trail):
            chosen.append(int(strategy[n]))
            n = int(parent[n])
        return chosen[::-1]


def stage_time(
    at: Instance,
    i: int,
    a: int,
    b: int,
    costs: list[StageCosts],
    caps: list[float],
    entry: Floats | None = None,
    beam: int | None = None,
    most: int = MOST_LABELS,
    deadline: float = np.inf,
) -> StageTime:
    """The least times of stage i over layers a..b: all with time + w step <= cap, for every (weight, cap) given.

    With `entry[q]`, seconds paid on entering in class q, the first class is no longer told apart (it is 0 everywhere).
    With `beam` only that many labels per class survive: the times are attained, but may not be the least.
    """
    bounds = [_Completion(at, i, a, b, own) for own in costs]
    slacks = [cap * (1 + 1e-11) for cap in caps]
    labels = _first(at, i, a, entry)
    # The stage's largest working set is at least the least of its greediest layer: below that, labels do not differ.
    labels.work = np.maximum(labels.work, costs[0].workspace[at.kind[a : b + 1]].max())
    trail = []
    for u in range(a, b + 1):
        if u > a:
            labels = _extend(at, i, u, labels)
        for bound, slack in zip(bounds, slacks, strict=True):
            labels = labels.take(bound.hopeful(u, labels, slack))
        if beam is not None:
            labels = labels.take(bounds[-1].best(u, labels, 4 * beam))
        labels = labels.take(_undominated(labels, slacks[0], costs[0].limit))
        if beam is not None:
            labels = labels.take(bounds[-1].best(u, labels, beam))
        elif len(labels) > most or time.monotonic() > deadline:
            raise TooManyLabels
        trail.append((labels.parent, labels.strategy))
    last = _undominated(labels, slacks[0], np.inf)
    labels = labels.take(last)
    q, r = np.divmod(labels.group, at.classes)
    return StageTime(Options(q, r, labels.time, labels.step, last), caps, trail)


def _first(at: Instance, i: int, a: int, entry: Floats | None) -> Labels:
    k = at.strategies(a)
    n = at.kind[a]
    q = at.layout[k]
    group, seconds = q * at.classes + q, at.time[n, i, k]
    if entry is not None:
        group, seconds = q, seconds + entry[q]
    start = np.full(len(k), -1)
    return Labels(group, seconds, at.memory[n, i, k], at.workspace[n, k], at.step[n, k], start, k)


def _extend(at: Instance, i: int, u: int, old: Labels) -> Labels:
    """Every label with every strategy of layer u."""
    k = at.strategies(u)
    n, Q = at.kind[u], at.classes
    r = at.layout[k]
    q = old.group % Q
    seconds = old.time[:, None] + at.reshard[at.edge[u]][q[:, None], r[None, :]] + at.time[n, i, k][None, :]
    return Labels(
        ((old.group - q)[:, None] + r[None, :]).ravel(),
        seconds.ravel(),
        (old.memory[:, None] + at.memory[n, i, k][None, :]).ravel(),
        np.maximum(old.work[:, None], at.workspace[n, k][None, :]).ravel(),
        (old.step[:, None] + at.step[n, k][None, :]).ravel(),
        np.repeat(np.arange(len(old)), len(k)),
        np.tile(k, len(old)),
    )


class _Completion:
    """Bounds on what layers u+1..b still cost, for every multiplier and class of u."""

    def __init__(self, at: Instance, i: int, a: int, b: int, costs: StageCosts) -> None:
        self.at, self.limit, self.multipliers, self.weight = at, costs.limit, costs.multipliers, costs.weight
        self.rest = np.zeros((b - a + 1, len(costs.least), at.classes))  # u, l (the last: memory), class of u
        self.work = np.zeros(b - a + 1)
        self.a = a
        for u in range(b - 1, a - 1, -1):
            ahead = costs.least[:, at.kind[u + 1]] + self.rest[u + 1 - a]  # l, class of u+1
            step = at.reshard[at.edge[u + 1]]
            self.rest[u - a, :-1] = (ahead[:-1, None, :] + step[None]).min(axis=2)
            self.rest[u - a, -1] = ahead[-1].min()
            self.work[u - a] = max(self.work[u + 1 - a], costs.workspace[at.kind[u + 1]])

    def hopeful(self, u: int, labels: Labels, slack: float) -> Bools:
        """Labels that may still end within memory and within the cap."""
        rest, q = self.rest[u - self.a], labels.group % self.at.classes
        used = labels.memory + np.maximum(labels.work, self.work[u - self.a])
        keep = np.asarray(used + rest[-1, q] <= self.limit * ROOM)
        if np.isfinite(slack):
            value = labels.time + self.weight * labels.step
            for n, multiplier in enumerate(self.multipliers):
                keep &= value + multiplier * (used - self.limit) + rest[n, q] <= slack
        return keep

    def best(self, u: int, labels: Labels, width: int) -> Ints:
        """The `width` most promising labels of every group, and the leanest one, which can always be completed."""
        rest, q = self.rest[u - self.a], labels.group % self.at.classes
        used = labels.memory + np.maximum(labels.work, self.work[u - self.a])
        value = labels.time + self.weight * labels.step
        score = (value + self.multipliers[:, None] * (used - self.limit) + rest[:-1, q]).max(axis=0)
        chosen = np.zeros(len(labels), dtype=bool)
        for order, most in ((np.lexsort((score, labels.group)), width), (np.lexsort((used, labels.group)), 1)):
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
    counted: list[tuple[Floats, float]] = []
    if np.isfinite(limit):
        counted.append((labels.memory, dm))
        if np.any(labels.work != labels.work[0]):
            counted.append((labels.memory + labels.work, dm))
    if labels.step.any():
        counted.append((labels.step, dt))
    order = np.lexsort((*(values for values, _ in reversed(counted)), labels.time, labels.group))
    group, seconds = labels.group[order], labels.time[order]
    bounds = np.flatnonzero(np.r_[True, group[1:] != group[:-1], True])
    columns = [(values[order], tolerance) for values, tolerance in counted]
    kept: list[Ints] = []
    works = labels.work[order]
    for low, high in zip(bounds[:-1], bounds[1:], strict=True):
        own = [(values[low:high], tolerance) for values, tolerance in columns]
        if not own:
            kept.append(np.array([low]))
        elif len(own) == 1:
            kept.append(low + _descending(seconds[low:high], own[0][0], dt, own[0][1]))
        elif labels.step.any() or not np.isfinite(limit):
            kept.append(low + _front(own))
        else:  # few different working sets: one resource at a time first, then all of them
            some = []
            for work in np.unique(works[low:high]):
                alike = np.flatnonzero(works[low:high] == work)
                some.append(alike[_descending(seconds[low:high][alike], own[0][0][alike], dt, dm)])
            left = np.sort(np.concatenate(some))
            kept.append(low + (left[_front([(v[left], t) for v, t in own])] if len(some) > 1 else left))
    return np.asarray(order[np.concatenate(kept)])


def _descending(seconds: Floats, values: Floats, dt: float, tolerance: float) -> Ints:
    """One resource: in order of time, keep what needs less than everything before."""
    lowest = np.minimum.accumulate(values)
    keep = np.flatnonzero(np.r_[True, values[1:] < lowest[:-1] - tolerance])
    if len(keep) > 1:  # equal times within rounding: the leaner one, which comes later, replaces the earlier
        twin = seconds[keep[1:]] <= seconds[keep[:-1]] + dt
        keep = np.r_[keep[:-1][~twin], keep[-1:]]
    return keep


def _front(columns: list[tuple[Floats, float]]) -> Ints:
    """Several resources, points in order of time: keep what no kept point before beats or equals in all of them."""
    block = 256
    points = np.stack([values for values, _ in columns], axis=1)
    room = np.array([tolerance for _, tolerance in columns])
    kept: list[Ints] = []
    front = np.empty((0, len(columns)))
    for start in range(0, len(points), block):
        index = np.arange(start, min(start + block, len(points)))
        if len(front):
            beaten = np.ones((len(index), len(front)), dtype=bool)
            for column in range(points.shape[1]):
                beaten &= front[None, :, column] <= points[index, None, column] + room[column]
            index = index[~beaten.any(axis=1)]
        if len(index) > 1:
            mine = points[index]
            beats = np.ones((len(index), len(index)), dtype=bool)
            for column in range(points.shape[1]):
                beats &= mine[None, :, column] <= mine[:, None, column] + room[column]
            beats &= np.tri(len(index), k=-1, dtype=bool)  # only earlier ones
            index = index[~beats.any(axis=1)]
        kept.append(index)
        front = np.concatenate([front, points[index]])
    return np.concatenate(kept)
