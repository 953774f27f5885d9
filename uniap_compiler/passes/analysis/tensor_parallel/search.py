"""The tensor-parallel search of one layer: graph, problem, programme, sharded funcs.

search(@block.forward, @block.backward, sizes=(2, 2), boundary="sequence", cost)
-> @block.tp4.sequence.forward, @block.tp4.sequence.backward
"""

from __future__ import annotations

import logging
from time import perf_counter

from uniap_compiler.ir import Func

from .apply import apply
from .costs import LayerCost
from .graph import boundary_states, build_graph
from .model import solve
from .problem import LocalOps, Weights, build_problem, local_ops
from .segments import Segments, find_segments

BOUNDARIES = ("replicated", "sequence")

COLUMNS = 60_000
"""Of a programme.  A count, not seconds: a layer gets the same plan on every machine, whatever else it does."""

log = logging.getLogger("uniap_compiler.tensor_parallel")


def boundary_matters(forward: Func, backward: Func, sizes: tuple[int, ...]) -> bool:
    """Whether some activation lies differently between layers: 49 patches are whole on four devices, either way."""
    states = [boundary_states(forward, backward, tuple(sizes), boundary) for boundary in BOUNDARIES]
    return states[0] != states[1]


class LayerSearch:
    """The searches of one layer on tensor axes t0 (major), t1, ... with these prime sizes; only prices differ.

    forward, backward: a differentiated pair with refined rules; they are left as they are.  boundary: the layout of
    activations between layers, "replicated" or "sequence" (dim 1 of batch-first values, where it divides).  columns:
    of the programme, at most.  A layer that would have more is searched in segments (those of the first prices that it
    is searched with), and its funcs say so in `bounded`.
    """

    def __init__(
        self, forward: Func, backward: Func, sizes: tuple[int, ...], boundary: str, columns: int = COLUMNS
    ) -> None:
        if boundary not in BOUNDARIES:
            raise ValueError(f"boundary {boundary!r} is none of {', '.join(BOUNDARIES)}")
        self.boundary, self.columns = boundary, columns
        self.graph = build_graph(forward, backward, tuple(sizes), boundary)
        self.size = self.graph.size()
        if self.size > columns:
            self.graph = build_graph(forward, backward, tuple(sizes), boundary, mixed=False)
        self._local: dict[int, LocalOps] = {}
        self._segments: Segments | None = None

    def find(self, cost: LayerCost, weights: Weights | None = None) -> tuple[Func, Func]:
        """The fastest way to run the layer.  weights: what counts beside seconds."""
        start, graph = perf_counter(), self.graph
        if cost.batch not in self._local:
            self._local = {cost.batch: local_ops(graph, cost.batch)}
        problem = build_problem(graph, cost, weights or Weights(), self._local[cost.batch])
        built = perf_counter()
        if self.size <= self.columns:
            solution = solve(problem)
        else:
            self._segments = self._segments or find_segments(problem)
            solution = solve(problem, self._segments, self.columns)
            found = solution.bounded or f"{len(graph.steps)} ops in {len(set(self._segments.leader))} segments"
            solution.bounded = f"about {self.size} columns, {self.columns} at most: {found}"
        log.info(
            "@%s on %s, boundary %s: %d tensors, %d steps, %s; built in %.2f s, solved in %.2f s, cost %.4f%s",
            graph.forward.name,
            "x".join(map(str, graph.mesh)),
            self.boundary,
            len(graph.tensors),
            len(graph.steps),
            solution.statistics,
            built - start,
            perf_counter() - built,
            solution.cost,
            f"; bounded ({solution.bounded})" if solution.bounded else "",
        )
        pair = apply(problem, solution, self.boundary)
        if solution.bounded:
            for func in pair:
                func.attrs["bounded"] = solution.bounded
        return pair


def search(
    forward: Func,
    backward: Func,
    sizes: tuple[int, ...],
    boundary: str,
    cost: LayerCost,
    weights: Weights | None = None,
) -> tuple[Func, Func]:
    """One search of one layer: see LayerSearch."""
    return LayerSearch(forward, backward, sizes, boundary).find(cost, weights)
