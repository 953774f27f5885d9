"""The sweep over (stages, micro_batches): best-first refinement of bounds until one plan is proven (docs/solver.md).

Every candidate waits in a queue with the best bound known for it; the one with the least bound is refined one level
further (closed form, coarse tables, fine tables, exact, then branched over values and ties). When the least bound in
the queue is within the gap of the incumbent, the incumbent is optimal over everything that was not looked at.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uniap_compiler.solver.bounds import closed_form
from uniap_compiler.solver.branch import Node, Pool
from uniap_compiler.solver.chain import BELOW
from uniap_compiler.solver.evaluate import evaluate
from uniap_compiler.solver.exact import FIRST_WORK
from uniap_compiler.solver.instance import Instance, build_instance
from uniap_compiler.solver.plan import Plan
from uniap_compiler.solver.problem import Problem
from uniap_compiler.solver.proof import close, remaining

Progress = Callable[[dict[str, Any]], None]

#: Nodes of one sweep before the MIQP takes over, and of one candidate before its MIQP is asked.
MOST_NODES, MANY_NODES = 4000, 100
#: A candidate that labels cannot finish: nodes of its MIQP, round by round, and MORE times as many labels after each.
MIQP_NODES, MORE = (300, 3000), 4.0


@dataclass
class Swept:
    """What the sweep knows: a plan, a bound for all others, and the candidates that it could not finish."""

    best: Plan | None
    bound: float
    bound_elsewhere: float
    closed: dict[int, float]
    unfinished: dict[int, float] = field(default_factory=dict)
    miqp: dict[int, float] = field(default_factory=dict)
    nodes: int = 0
    stopped: bool = False


class Sweep:
    """One pass over the candidates `indices` of a problem."""

    def __init__(
        self,
        problem: Problem,
        indices: list[int],
        gap: float,
        deadline: float = math.inf,
        progress: Progress | None = None,
        backend: str = "cbc",
        write_lp: str | Path | None = None,
    ) -> None:
        self.backend, self.write_lp = backend, write_lp
        self.problem, self.deadline, self.progress = problem, deadline, progress
        self.began = time.monotonic()
        self.instances: dict[int, Instance] = {n: build_instance(problem, n) for n in indices}
        self.gap = gap
        self.pool = Pool(0.5 * gap, self._offer)
        self.best: Plan | None = None
        self.roots: dict[int, Node] = {}

    def offer(self, plan: Plan) -> None:
        """A plan known from elsewhere."""
        self._offer(plan.candidate, plan.stage, plan.strategy, plan.objective)

    def run(self) -> Swept:
        """Refine until the incumbent is proven, or until time or nodes run out."""
        closed = {n: closed_form(at) for n, at in self.instances.items()}
        out = Swept(None, math.inf, math.inf, closed)
        queue: list[tuple[float, int, int, Node]] = []
        for n, at in self.instances.items():
            if closed[n] < math.inf:
                self.roots[n] = Node(at, self.pool, {}, closed[n], self.deadline)
                queue.append((closed[n], n, out.nodes, self.roots[n]))
                out.nodes += 1
        heapq.heapify(queue)
        count, rounds = dict.fromkeys(self.roots, 1), dict.fromkeys(self.roots, 0)
        while queue and not self.pool.excludes(queue[0][0]):
            if time.monotonic() > self.deadline or out.nodes > MOST_NODES:
                out.stopped = True
                break
            _, n, serial, node = heapq.heappop(queue)
            if node.stuck or count[n] > MANY_NODES * 4 ** rounds[n]:
                if rounds[n] == len(MIQP_NODES) and node.stuck:
                    out.unfinished[n] = min(out.unfinished.get(n, math.inf), node.bound)
                    continue
                if rounds[n] < len(MIQP_NODES):
                    out.miqp[n] = max(self._by_miqp(n, MIQP_NODES[rounds[n]]), out.miqp.get(n, 0.0))
                    rounds[n] += 1
                    node.bound = max(node.bound, out.miqp[n])
                    self._report(queue, node)
                    if self.pool.excludes(out.miqp[n]):
                        queue = [entry for entry in queue if entry[1] != n]
                        heapq.heapify(queue)
                        out.bound_elsewhere = min(out.bound_elsewhere, out.miqp[n])
                        continue
                node.go_on(FIRST_WORK * MORE ** rounds[n])
                heapq.heappush(queue, (node.bound, n, serial, node))
                continue
            if node.solved:
                for child in node.branch():
                    heapq.heappush(queue, (child.bound, n, out.nodes, child))
                    out.nodes += 1
                    count[n] += 1
                continue
            node.refine()
            self._report(queue, node)
            if node.bound < math.inf:
                heapq.heappush(queue, (node.bound, n, serial, node))
        for bound, n, _, _ in queue:
            if not self.pool.excludes(bound):
                out.unfinished[n] = min(out.unfinished.get(n, math.inf), bound)
            else:
                out.bound_elsewhere = min(out.bound_elsewhere, bound)
        out.best = self.best
        # Nodes that left the queue were excluded at the threshold of their time, which is at least today's.
        out.bound_elsewhere = min(out.bound_elsewhere, self.pool.threshold() * (1 - 4 * BELOW))
        out.bound = min([out.bound_elsewhere, *out.unfinished.values()])
        return out

    def _by_miqp(self, n: int, nodes: int) -> float:
        """A bound for candidate n by its MIQP, with the tables of its root as derived rows."""
        rows = self.roots[n].rows(self.pool.threshold())
        seconds = remaining(self.deadline, math.inf)
        closed = close(self.instances[n], rows, self.best, self.backend, 0.1 * self.gap, seconds, self.write_lp, nodes)
        if closed.plan is not None:
            plan = make_plan(self.problem, n, *closed.plan)
            if plan is not None:
                self.offer(plan)
        return closed.bound

    def _offer(self, index: int, stage: list[int], strategy: list[int], objective: float) -> None:
        if objective < self.pool.value:
            plan = make_plan(self.problem, index, stage, strategy)
            if plan is not None:
                self.pool.value, self.best = plan.objective, plan

    def _report(self, queue: list[tuple[float, int, int, Node]], node: Node) -> None:
        if self.progress is None:
            return
        waiting = {n for bound, n, _, _ in queue if not self.pool.excludes(bound)}
        self.progress(
            {
                "done": len(self.instances) - len(waiting),
                "candidates": len(self.instances),
                "incumbent": self.pool.value if self.best else None,
                "bound": min([node.bound, *(bound for bound, *_ in queue)]),
                "seconds": time.monotonic() - self.began,
                "note": f"stages {node.at.stages}, micro-batches {node.at.micro_batches}",
            }
        )


def make_plan(problem: Problem, index: int, stage: list[int], strategy: list[int]) -> Plan | None:
    """A plan re-evaluated from the raw problem; None when it violates anything."""
    objective, bad = evaluate(problem, index, stage, strategy)
    if bad:
        return None
    candidate = problem.candidates[index]
    return Plan(index, candidate.stages, candidate.micro_batches, list(stage), list(strategy), objective)
