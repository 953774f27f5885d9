"""One candidate of a problem as numpy arrays: what the bounds, the dynamic programmes and the MIQP compute with.

Layers that are the same (type, choices left to them) share a *kind*, so that identical layers stay bit-identical and
every per-layer table is stored once per kind. Classes are renumbered 0..Q-1; strategies keep the problem's indices.

    time[n, i, k]    A: seconds of a layer of kind n on stage i with strategy k, one micro-batch
    memory[n, i, k]  M: bytes          step[n, k]  once per step          workspace[n, k]  largest working set
    allowed[n, k]    which strategies are left, dominated ones removed
    reshard[e], transfer[e]   R, R': class by class, for the edge e = edge[u] between layers u-1 and u
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from uniap_compiler.solver.problem import Candidate, Problem, Value

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Instance:
    """The arrays of one candidate. `first[u]..last[u]` is the window of stages that layer u can be on."""

    problem: Problem
    index: int
    layers: int
    stages: int
    micro_batches: int
    classes: int
    layout: Ints
    kind: Ints
    time: Floats
    memory: Floats
    step: Floats
    workspace: Floats
    allowed: Bools
    limit: Floats
    edge: Ints
    reshard: Floats
    transfer: Floats
    crossing: Floats
    first: Ints
    last: Ints
    values: list[Value] = field(default_factory=list)
    ties: list[list[int]] = field(default_factory=list)

    @property
    def candidate(self) -> Candidate:
        return self.problem.candidates[self.index]

    @property
    def steady(self) -> bool:
        """Whether the 1F1B period rows apply."""
        return self.problem.schedule == "1f1b"

    @property
    def possible(self) -> bool:
        """False when no plan can exist for a reason that needs no search: a layer without stage or strategy."""
        return bool(
            self.stages <= self.layers and np.all(self.first <= self.last) and np.all(self.allowed[self.kind].any(1))
        )

    def part(self, a: int, b: int) -> Instance:
        """Layers a..b alone, as layers 0..b-a, with the kinds that they have; without values and ties."""
        kinds, kind = np.unique(self.kind[a : b + 1], return_inverse=True)
        return replace(
            self,
            layers=b - a + 1,
            kind=kind,
            time=self.time[kinds],
            memory=self.memory[kinds],
            step=self.step[kinds],
            workspace=self.workspace[kinds],
            allowed=self.allowed[kinds],
            edge=self.edge[a : b + 1],
            crossing=self.crossing[a : b + 1],
            first=self.first[a : b + 1],
            last=self.last[a : b + 1],
            values=[],
            ties=[],
        )

    def window(self, u: int) -> range:
        return range(int(self.first[u]), int(self.last[u]) + 1)

    def strategies(self, u: int) -> Ints:
        """The strategies left to layer u, ascending."""
        return np.flatnonzero(self.allowed[self.kind[u]])


def build_instance(problem: Problem, index: int) -> Instance:
    """The arrays of candidate `index`, with forced choices applied and dominated strategies removed."""
    candidate = problem.candidates[index]
    L, D, K = len(problem.layers), candidate.stages, len(candidate.strategies)
    names = {raw: q for q, raw in enumerate(sorted(set(candidate.layout)))}
    layout = np.array([names[raw] for raw in candidate.layout], dtype=np.int64)
    raw_classes = np.array(sorted(names), dtype=np.int64)
    ties = tied_groups(problem)
    masks = _choices(problem, candidate, ties)
    tied = {u: n for n, group in enumerate(ties) for u in group}
    # A tied layer is a kind of its own: what is dominated for it alone may be needed by its twin.
    keys = [(kind, masks[u].tobytes(), tied.get(u, -1)) for u, kind in enumerate(problem.layers)]
    order = {key: n for n, key in enumerate(dict.fromkeys(keys))}
    kind = np.array([order[key] for key in keys], dtype=np.int64)
    types = [key[0] for key in order]
    zeros = [0.0] * K
    time = np.array([np.broadcast_to(np.asarray(candidate.time[t], dtype=float), (D, K)) for t in types])
    memory = np.array([candidate.memory[t] for t in types], dtype=float)
    step = np.array([candidate.step_time.get(t, zeros) for t in types], dtype=float)
    workspace = np.array([candidate.workspace.get(t, zeros) for t in types], dtype=float)
    allowed = np.array([np.frombuffer(key[1], dtype=bool) for key in order])
    for n, key in enumerate(order):
        if key[2] < 0:
            allowed[n] &= ~dominated(layout, allowed[n], time[n], memory[n], step[n], workspace[n])
    for group in ties:  # one strategy for all: dominated only when it is for every layer of the group
        own = sorted({int(kind[u]) for u in group})
        weak = dominated(layout, allowed[own[0]], time[own], memory[own], step[own], workspace[own])
        for n in own:
            allowed[n] &= ~weak
    limit = np.array(problem.limits(candidate), dtype=float)
    edge, reshard, transfer = _edges(problem, candidate, raw_classes)
    first, last = _windows(problem, D)
    return Instance(
        problem=problem,
        index=index,
        layers=L,
        stages=D,
        micro_batches=candidate.micro_batches,
        classes=len(names),
        layout=layout,
        kind=kind,
        time=time,
        memory=memory,
        step=step,
        workspace=workspace,
        allowed=allowed,
        limit=limit,
        edge=edge,
        reshard=reshard,
        transfer=transfer,
        crossing=_crossing(problem, candidate),
        first=first,
        last=last,
        values=[
            Value(v.source, v.readers, _pick(v.reshard, raw_classes).tolist(), v.transfer)
            for v in problem.values_of(candidate)
        ],
        ties=ties,
    )


def tied_groups(problem: Problem) -> list[list[int]]:
    """Layers that must take the same strategy, as sorted groups (the connected components of "same")."""
    root = {u: u for pair in problem.same for u in pair}

    def find(u: int) -> int:
        while root[u] != u:
            u = root[u]
        return u

    for u, v in problem.same:
        a, b = sorted((find(u), find(v)))
        root[b] = a
    groups: dict[int, list[int]] = {}
    for u in sorted(root):
        groups.setdefault(find(u), []).append(u)
    return [group for group in groups.values() if len(group) > 1]


def _choices(problem: Problem, candidate: Candidate, ties: list[list[int]]) -> list[Bools]:
    """Which strategies a layer may take: "allowed" by type, "fixed" by layer, what it shares with layers tied to it."""
    K = len(candidate.strategies)
    by_type: dict[str, Bools] = {}
    for kind in set(problem.layers):
        mask = np.zeros(K, dtype=bool)
        mask[candidate.allowed.get(kind, list(range(K)))] = True
        by_type[kind] = mask
    masks = [by_type[kind].copy() for kind in problem.layers]
    for choice in problem.fixed:
        if choice.strategies is not None:
            masks[choice.layer] &= np.array([name in choice.strategies for name in candidate.strategies])
    for group in ties:
        common = np.logical_and.reduce([masks[u] for u in group])
        for u in group:
            masks[u] = common.copy()
    return masks


def dominated(layout: Ints, allowed: Bools, *tables: Floats) -> Bools:
    """Strategies that another one of the same class beats or equals in every table (of equal ones the first stays)."""
    gone = np.zeros(len(layout), dtype=bool)
    left = np.flatnonzero(allowed)
    costs = np.concatenate([table.reshape(-1, len(layout)) for table in tables])[:, left]
    weak = np.logical_and.reduce(costs[:, :, None] <= costs[:, None, :], axis=0)  # rival, strategy
    weak &= layout[left][:, None] == layout[left]
    earlier = left[:, None] < left
    gone[left] = np.any(weak & (~weak.T | earlier), axis=0)  # no worse, and better somewhere or earlier
    return gone


def _pick(table: list[list[float]], raw_classes: Ints) -> Floats:
    return np.asarray(table, dtype=float)[np.ix_(raw_classes, raw_classes)]


def _edges(problem: Problem, candidate: Candidate, raw_classes: Ints) -> tuple[Ints, Floats, Floats]:
    pairs = [f"{a}>{b}" for a, b in zip(problem.layers, problem.layers[1:], strict=False)]
    order = {pair: e for e, pair in enumerate(dict.fromkeys(pairs))}
    edge = np.array([0, *(order[pair] for pair in pairs)], dtype=np.int64)
    Q = len(raw_classes)
    reshard = np.zeros((max(1, len(order)), Q, Q))
    transfer = np.zeros((max(1, len(order)), Q, Q))
    for pair, e in order.items():
        reshard[e] = _pick(candidate.reshard[pair], raw_classes)
        if candidate.stages > 1:
            transfer[e] = _pick(candidate.transfer[pair], raw_classes)
    return edge, reshard, transfer


def _crossing(problem: Problem, candidate: Candidate) -> Floats:
    """Seconds that the values add to a stage boundary between layers u-1 and u; exact, because stages are in order."""
    crossing = np.zeros(len(problem.layers))
    for value in problem.values_of(candidate):
        crossing[value.source + 1 : max(value.readers) + 1] += value.transfer
    return crossing


def _windows(problem: Problem, D: int) -> tuple[Ints, Ints]:
    """Stages in order and none empty: layer u is on a stage i with D - (L-u) <= i <= u; fixed stages tighten this."""
    L = len(problem.layers)
    u = np.arange(L)
    first, last = np.maximum(0, D - (L - u)), np.minimum(D - 1, u)
    for choice in problem.fixed:
        if choice.stage is not None:
            first[choice.layer] = max(first[choice.layer], choice.stage)
            last[choice.layer] = min(last[choice.layer], choice.stage)
    first = np.maximum.accumulate(first)
    last = np.minimum.accumulate(last[::-1])[::-1]
    return first.astype(np.int64), last.astype(np.int64)
