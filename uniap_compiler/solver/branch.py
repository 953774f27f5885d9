"""Values across layers and tied layers, by branching over chains (docs/solver.md, "Beyond chains").

A `Node` is a candidate with some layers restricted to some strategies. Its relaxation is a chain: tied layers may
differ, and a value costs each reader the least over the classes that its source may still take. When the optimum of
the chain is a plan of the same cost, the node is done; otherwise its children fix what the relaxation got wrong: the
strategy of one tied group, or the class of one source.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from uniap_compiler.solver.chain import BELOW, ChainSearch, beam_plan
from uniap_compiler.solver.evaluate import evaluate
from uniap_compiler.solver.exact import Settled
from uniap_compiler.solver.instance import Bools, Floats, Instance, dominated
from uniap_compiler.solver.miqp import StageTimes, period, skip_edges, stage_times
from uniap_compiler.solver.tables import StageCosts

#: Costs are called equal within this fraction.
EQUAL = 1e-9
#: Labels per class when a plan of the relaxation is repaired.
REPAIR_BEAM = 6


@dataclass
class Pool:
    """The incumbent: the best plan so far, and how far below it a plan must be to matter."""

    slack: float
    offer: Callable[[int, list[int], list[int], float], None]
    value: float = np.inf
    repaired: set[tuple[object, ...]] = field(default_factory=set)

    def threshold(self) -> float:
        return self.value * (1 - self.slack) if np.isfinite(self.value) else np.inf

    def excludes(self, bound: float) -> bool:
        """Whether plans from `bound` on do not matter; searches give back a little of their threshold for rounding."""
        return bound >= self.threshold() * (1 - 4 * BELOW)


@dataclass(frozen=True)
class Cover:
    """A candidate split by the class, or the strategy, of one layer (and those tied to it); a leaf has no parts."""

    layer: int = -1
    by_class: bool = False
    parts: dict[int, Cover] = field(default_factory=dict)


class Node:
    """One candidate under restrictions; refined level by level, then branched."""

    def __init__(
        self,
        at: Instance,
        pool: Pool,
        restrict: dict[int, Bools],
        bound: float,
        deadline: float,
        parent: Node | None = None,
    ) -> None:
        self.at, self.pool, self.restrict, self.deadline, self.parent = at, pool, restrict, deadline, parent
        self.settled: Settled = Settled() if parent is None else parent.settled
        self.bound = bound
        self.split, self.children = (-1, False), dict[int, Node]()
        self.local = np.inf
        self.plan: tuple[list[int], list[int]] | None = None
        self.true = np.inf
        self.search: ChainSearch | None = None
        self.chain: Instance | None = None

    @property
    def solved(self) -> bool:
        return self.search is not None and self.search.solved

    @property
    def stuck(self) -> bool:
        return self.search is not None and self.search.stuck

    def go_on(self, work: float) -> None:
        """Not stuck any more: so many more labels may be made."""
        if self.search is not None:
            self.search.go_on(work)

    def rows(self, threshold: float) -> StageTimes | None:
        """Derived rows for the MIQP of this node."""
        return self.search.rows(threshold) if self.search is not None and self.search.level else None

    def refine(self) -> None:
        """One level further; `bound` rises."""
        if self.search is None:
            self.chain = relax(self.at, self.restrict)
            if not self.chain.possible:
                self.bound = np.inf
                return
            before = self.parent.search if self.parent is not None else None
            self.search = ChainSearch(self.chain, self._offer, self.deadline, self.settled, before)
            self.parent = None
        self.search.refine(self._threshold, self.pool.threshold)
        self.bound = max(self.bound, min(self.search.bound, self.local))

    def branch(self) -> list[Node]:
        """Children that together hold every plan of this node that is better than the incumbent."""
        if self.plan is None or self.true <= self.local * (1 + EQUAL):
            return []
        stage, strategy = self.plan
        for group in self.at.ties:
            if len({strategy[u] for u in group}) > 1:
                return self._split(group)
        worst, source = 0.0, -1
        q = self.at.layout[strategy]
        for u, v, table in skip_edges(self.at):
            relaxed = table[self._classes(u)].min(axis=0)[q[v]]
            if table[q[u], q[v]] - relaxed > worst:
                worst, source = float(table[q[u], q[v]] - relaxed), u
        return [] if source < 0 else self._split([source])

    def _split(self, group: list[int]) -> list[Node]:
        """By the class of these layers; by their strategy, when one class is left."""
        common = np.logical_and.reduce([self._mask(u) for u in group])
        classes = sorted(set(self.at.layout[common].tolist()))
        if len(classes) > 1:
            parts = {q: common & (self.at.layout == q) for q in classes}
        else:
            parts = {int(k): _only(common, int(k)) for k in np.flatnonzero(common)}
        self.children = {key: self._child(dict.fromkeys(group, part)) for key, part in parts.items()}
        self.split = group[0], len(classes) > 1
        return list(self.children.values())

    def cover(self) -> Cover:
        """How this node was split, down to the leaves."""
        raw = sorted(set(self.at.candidate.layout))
        layer, by_class = self.split
        parts = {raw[key] if by_class else key: child.cover() for key, child in self.children.items()}
        return Cover(layer, by_class, parts)

    def _child(self, restrict: dict[int, Bools]) -> Node:
        return Node(self.at, self.pool, self.restrict | restrict, self.bound, self.deadline, self)

    def _mask(self, u: int) -> Bools:
        own = self.at.allowed[self.at.kind[u]]
        return np.asarray(own & self.restrict[u]) if u in self.restrict else own

    def _classes(self, u: int) -> list[int]:
        return sorted(set(self.at.layout[self._mask(u)].tolist()))

    def _threshold(self) -> float:
        return min(self.pool.threshold(), self.local * (1 - self.pool.slack) if np.isfinite(self.local) else np.inf)

    def _offer(self, stage: list[int], strategy: list[int]) -> None:
        assert self.chain is not None
        p, o, s, _ = stage_times(self.chain, stage, strategy)
        value = sum(p) + sum(o) + (self.at.micro_batches - 1) * period(self.chain, p, o) + max(s)
        true, bad = evaluate(self.at.problem, self.at.index, stage, strategy)
        if bad:
            true = np.inf
        if value < self.local:
            self.local, self.plan, self.true = value, (stage, strategy), true
        if not bad:
            self.pool.offer(self.at.index, stage, strategy, true)
        if true > value * (1 + EQUAL) and value < self.pool.threshold():
            self._repair(stage, strategy)

    def _repair(self, stage: list[int], strategy: list[int]) -> None:
        """Plans near one of the relaxation: its ties agree on one of the strategies, its sources keep their classes.

        That is a chain without anything relaxed; the layers stay on their stages.
        """
        at = self.at
        cuts = [u for u in range(1, at.layers) if stage[u] != stage[u - 1]]
        intervals = list(zip([0, *cuts], [*(cut - 1 for cut in cuts), at.layers - 1], strict=True))
        for choose in (0, -1, None) if at.ties else (0,):
            restrict = dict(self.restrict)
            for group in at.ties:
                common = np.logical_and.reduce([self._mask(u) for u in group])
                restrict |= dict.fromkeys(group, _only(common, self._agreed(group, common, strategy, choose)))
            for source in sorted({u for u, _, _ in skip_edges(at)} - {u for group in at.ties for u in group}):
                restrict[source] = self._mask(source) & (at.layout == at.layout[strategy[source]])
            key = tuple(cuts), tuple((u, mask.tobytes()) for u, mask in sorted(restrict.items()))
            if key in self.pool.repaired or time.monotonic() > self.deadline:
                continue
            self.pool.repaired.add(key)
            chain = relax(at, restrict)
            if not chain.possible:
                continue
            weight = 1 / at.micro_batches if chain.step.any() else 0.0
            found = beam_plan(chain, intervals, [StageCosts(chain, i, weight) for i in range(at.stages)], REPAIR_BEAM)
            if found is not None:
                chosen = [k for _, _, part in found for k in part]
                true, bad = evaluate(at.problem, at.index, stage, chosen)
                if not bad:
                    self.pool.offer(at.index, stage, chosen, true)

    def _agreed(self, group: list[int], common: Bools, strategy: list[int], choose: int | None) -> int:
        """One strategy for tied layers: that of the first or of the last one, or the leanest."""
        if choose is not None and common[strategy[group[choose]]]:
            return strategy[group[choose]]
        kinds = [int(self.at.kind[u]) for u in group]
        held = (self.at.memory[kinds].mean(axis=1) + self.at.workspace[kinds]).sum(axis=0)
        return int(np.argmin(np.where(common, held, np.inf)))


def relax(at: Instance, restrict: dict[int, Bools]) -> Instance:
    """The chain of a node: ties dropped, values at their least; dominance once more, now that layers stand alone."""
    if not at.values and not at.ties and not restrict:
        return at
    masks = [at.allowed[n] & restrict[u] if u in restrict else at.allowed[n] for u, n in enumerate(at.kind)]
    extra: list[Floats] = [np.zeros(at.classes) for _ in range(at.layers)]
    for u, v, table in skip_edges(at):
        classes = sorted(set(at.layout[masks[u]].tolist()))
        if classes:
            extra[v] = extra[v] + table[classes].min(axis=0)
    keys = [(int(n), masks[u].tobytes(), extra[u].tobytes()) for u, n in enumerate(at.kind)]
    order = {key: m for m, key in enumerate(dict.fromkeys(keys))}
    old = np.array([key[0] for key in order])
    added = np.array([np.frombuffer(key[2])[at.layout] for key in order])
    chain = replace(
        at,
        kind=np.array([order[key] for key in keys], dtype=np.int64),
        time=at.time[old] + added[:, None, :],
        memory=at.memory[old],
        step=at.step[old],
        workspace=at.workspace[old],
        allowed=np.array([np.frombuffer(key[1], dtype=bool) for key in order]),
        values=[],
        ties=[],
    )
    for n in range(len(order)):
        chain.allowed[n] &= ~dominated(
            at.layout, chain.allowed[n], chain.time[n], chain.memory[n], chain.step[n], chain.workspace[n]
        )
    return chain


def _only(mask: Bools, chosen: int) -> Bools:
    out = np.zeros_like(mask)
    out[chosen] = mask[chosen]
    return out
