"""Layout states and collective arcs of one tensor: a small network shared by everybody who reads it.

A node is (phase, state).  Inside a phase an arc is one collective over the axes in which its ends differ; from
forward to backward an arc keeps the tensor (same state, bytes but no time).  Serving all readers is a Steiner tree
from the node in which the tensor is made: a pending sum needed split AND whole costs one reduce-scatter and one
all-gather, not a reduce-scatter and an all-reduce.

    made pending --reduce_scatter--> split 0 --all_gather--> whole --slice--> split 1
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from heapq import heapify, heappop, heappush
from itertools import groupby
from typing import Literal

from uniap_compiler.ir import Op

from ..exchange import exchanges, routed_axes
from .choices import MAX, SUM, WHOLE, State
from .costs import LayerCost, Shape
from .graph import BACKWARD, FORWARD, Tensor

MESSAGE = 4 * 2**20
"""Bytes that make a whole round: of a small message the latency counts, and it is in the seconds."""

PATIENCE = 20.0
"""The round of a smaller message costs at most so many times its seconds, however long the layer takes."""

Kind = Literal["all_reduce", "reduce_scatter", "all_gather", "all_to_all", "slice", "first", "save"]
Node = tuple[int, State]


@dataclass(frozen=True, slots=True)
class Move:
    """A collective between two states: over which axes, and which atoms it joins and splits."""

    kind: Kind
    axes: tuple[int, ...]
    joined: int | None = None
    split: int | None = None


@dataclass(frozen=True, slots=True)
class Arc:
    source: Node
    target: Node
    move: Move
    cost: float


def move_between(a: State, b: State) -> Move | None:
    """The single collective that turns layout a into b, None where it takes several or is impossible."""
    axes = tuple(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
    olds, news = {a[i] for i in axes}, {b[i] for i in axes}
    if len(olds) != 1 or len(news) != 1:
        return None
    old, new = olds.pop(), news.pop()
    for state, atom in ((a, old), (b, new)):
        # An atom is split major to minor in mesh order, so only its minor axes can be joined or added.
        if isinstance(atom, int) and any(s == atom and i not in axes and i > axes[0] for i, s in enumerate(state)):
            return None
    if old in (SUM, MAX) and new == WHOLE:
        return Move("all_reduce", axes)
    if isinstance(new, int):
        if old == SUM:
            return Move("reduce_scatter", axes, split=new)
        if old == WHOLE:
            return Move("slice", axes, split=new)
        if isinstance(old, int):
            return Move("all_to_all", axes, old, new)
        return None
    if isinstance(old, int):
        return Move("all_gather", axes, old) if new == WHOLE else None
    return Move("first", axes) if old == WHOLE and new == SUM else None


@lru_cache(maxsize=4096)
def moves_among(states: tuple[State, ...]) -> list[tuple[State, State, Move]]:
    """All pairs that a single collective joins; the tensors of a layer have few different sets of states."""
    moves = [(a, b, move_between(a, b) if a != b else None) for a in states for b in states]
    return [(a, b, move) for a, b, move in moves if move is not None]


def with_intermediates(states: Collection[State]) -> list[State]:
    """The states, whole, and for mixed states those on the way to whole, in a fixed order."""
    found = set(states)
    for state in states:
        found.add((WHOLE,) * len(state))
        runs = [list(run) for _, run in groupby(range(len(state)), key=lambda i: state[i])]
        if len(runs) > 1:
            for run in runs:
                found.add(tuple(WHOLE if i in run else s for i, s in enumerate(state)))
    return sorted(found, key=state_key)


def state_key(state: State) -> tuple[str, ...]:
    return tuple(f"{s:04d}" if isinstance(s, int) else s for s in state)


class Prices:
    """Objective units: seconds / `second`, prices per byte saved or at rest, and a hair for what is free.

    A free slice costs a hair, so that equal plans are told apart by more than the solver's tolerance.
    """

    HAIR = 1e-3

    def __init__(
        self,
        cost: LayerCost,
        mesh: tuple[int, ...],
        second: float,
        saved: float,
        rest: float,
        round: float,
        communication: float,
    ) -> None:
        self.cost, self.mesh, self.second, self.round, self.communication = cost, mesh, second, round, communication
        self.saved_byte, self.rest_byte = saved, rest
        self._known: dict[tuple[str, tuple[int, ...], float], float] = {}

    def move(self, move: Move, size: float) -> float:
        """size: bytes on one device, where it is larger."""
        return self.HAIR if move.kind in ("slice", "first") else self._collective(move.kind, move.axes, size)

    def _collective(self, kind: str, axes: tuple[int, ...], size: float, least: float = 0.25) -> float:
        """least: the part of a round that the smallest message is."""
        key = (kind, axes, size)
        if key not in self._known:
            self._known[key] = self.cost.collective_seconds(kind, axes, size)
        seconds = self._known[key] / self.second
        rounds = self.round * (2 if kind == "all_reduce" else 1) * max(least, min(1.0, size / MESSAGE))
        return self.communication * seconds + (min(rounds, PATIENCE * seconds) if size < MESSAGE else rounds)

    def exchanges(self, op: Op, operands: Sequence[Shape | None]) -> float:
        """Of what an op on a route sends inside.  Counts go right ahead of what they count: no round of their own."""
        axes = tuple(int(axis[1:]) for axis in routed_axes(op))
        sizes = [float(size) for size in exchanges(op, operands, kept=True)]
        return sum(self._collective("all_to_all", axes, size, least=0.25 if size > 0 else 0.0) for size in sizes)

    def save(self, tensor: Tensor, state: State) -> float:
        return self.HAIR + self.saved_byte * tensor.local_bytes(state, self.mesh, self.cost.batch)

    def rest(self, tensor: Tensor, state: State) -> float:
        return self.rest_byte * tensor.local_bytes(state, self.mesh, self.cost.batch)

    def pending_gradient(self, tensor: Tensor, gradient: State) -> float:
        """A gradient that is left pending is all-reduced once per step, small ones together."""
        axes = tuple(i for i, s in enumerate(gradient) if s == SUM)
        if not axes:
            return 0.0
        size = tensor.local_bytes(gradient, self.mesh, self.cost.batch)
        return self.cost.gradient_share * self._collective("all_reduce", axes, size, least=0.0)


def arcs_of(tensor: Tensor, states: list[State], phases: Collection[int], prices: Prices) -> list[Arc]:
    """All arcs of a tensor; a parameter is at rest in both phases, so it is never saved."""
    arcs = []
    size = {state: tensor.local_bytes(state, prices.mesh, prices.cost.batch) for state in states}
    for a, b, move in moves_among(tuple(states)):
        if move.kind == "all_to_all" and (tensor.source == "parameter" or _same_dim(tensor, move)):
            continue
        price = prices.move(move, max(size[a], size[b]))
        arcs += [Arc((phase, a), (phase, b), move, price) for phase in sorted(phases)]
    if tensor.source != "parameter" and tensor.phase == FORWARD and BACKWARD in phases:
        arcs += [Arc((FORWARD, s), (BACKWARD, s), Move("save", ()), prices.save(tensor, s)) for s in states]
    return arcs


def _same_dim(tensor: Tensor, move: Move) -> bool:
    return any(move.joined in group and move.split in group for group in tensor.dims)


def steiner_tree(root: Node, terminals: Collection[Node], arcs: Sequence[Arc]) -> tuple[float, dict[Node, Arc]]:
    """The cheapest tree from root to all terminals (Dreyfus and Wagner): its cost and the arc into each node.

    cost[mask][n] is that of a tree from n to the terminals in mask: it goes along an arc, or divides into two trees.
    """
    goals = [t for t in dict.fromkeys(terminals) if t != root]
    if not goals:
        return 0.0, {}
    incoming: dict[Node, list[Arc]] = {}
    for arc in arcs:
        incoming.setdefault(arc.target, []).append(arc)

    full = (1 << len(goals)) - 1
    cost: list[dict[Node, float]] = [{} for _ in range(full + 1)]
    how: list[dict[Node, Arc | int]] = [{} for _ in range(full + 1)]
    for mask in range(1, full + 1):
        here, steps = cost[mask], how[mask]
        if mask & (mask - 1) == 0:
            here[goals[mask.bit_length() - 1]] = 0.0
        half = (mask - 1) & mask
        while half:
            if half & (mask & -mask):
                other = cost[mask ^ half]
                for n, part in cost[half].items():
                    if n in other and part + other[n] < here.get(n, float("inf")):
                        here[n], steps[n] = part + other[n], half
            half = (half - 1) & mask
        _relax(here, steps, incoming)
    if root not in cost[full]:
        return float("inf"), {}
    tree: dict[Node, Arc] = {}
    stack = [(full, root)]
    while stack:
        mask, n = stack.pop()
        step = how[mask].get(n)
        if isinstance(step, Arc):
            tree.setdefault(step.target, step)
            stack.append((mask, step.target))
        elif step is not None:
            stack += [(step, n), (mask ^ step, n)]
    return cost[full][root], tree


def distances(root: Node, arcs: Sequence[Arc]) -> dict[Node, float]:
    """What it costs to get from root to every node that can be reached."""
    outgoing: dict[Node, list[Arc]] = {}
    for arc in arcs:
        outgoing.setdefault(arc.source, []).append(Arc(arc.target, arc.source, arc.move, arc.cost))
    cost = {root: 0.0}
    _relax(cost, {}, outgoing)
    return cost


def _relax(cost: dict[Node, float], how: dict[Node, Arc | int], incoming: dict[Node, list[Arc]]) -> None:
    """Lower the costs along arcs, towards their sources, until no arc does (Dijkstra)."""
    heap = [(c, i, n) for i, (n, c) in enumerate(cost.items())]
    heapify(heap)
    number = len(heap)  # equal costs are taken in the order in which they were found
    while heap:
        c, _, n = heappop(heap)
        if c > cost[n]:
            continue
        for arc in incoming.get(n, ()):
            if c + arc.cost < cost.get(arc.source, float("inf")):
                cost[arc.source], how[arc.source] = c + arc.cost, arc
                heappush(heap, (c + arc.cost, number, arc.source))
                number += 1
