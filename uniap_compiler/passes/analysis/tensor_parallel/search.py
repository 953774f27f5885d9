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
from .graph import build_graph
from .model import solve
from .problem import Weights, build_problem

BOUNDARIES = ("replicated", "sequence")

log = logging.getLogger("uniap_compiler.tensor_parallel")


def boundary_matters(forward: Func, backward: Func, sizes: tuple[int, ...]) -> bool:
    """Whether some activation lies differently between layers: 49 patches are whole on four devices, either way."""
    graphs = [build_graph(forward, backward, tuple(sizes), boundary) for boundary in BOUNDARIES]
    states = [([t.state for t in graph.tensors], [s.state for s in graph.sinks]) for graph in graphs]
    return states[0] != states[1]


def search(
    forward: Func,
    backward: Func,
    sizes: tuple[int, ...],
    boundary: str,
    cost: LayerCost,
    weights: Weights | None = None,
) -> tuple[Func, Func]:
    """The fastest way to run a layer on the tensor axes t0 (major), t1, ... with these prime sizes.

    forward, backward: a differentiated pair with refined rules; they are left as they are.  boundary: the layout of
    activations between layers, "replicated" or "sequence" (dim 1 of batch-first values, where it divides).  weights:
    what counts beside seconds.
    """
    if boundary not in BOUNDARIES:
        raise ValueError(f"boundary {boundary!r} is none of {', '.join(BOUNDARIES)}")
    start = perf_counter()
    graph = build_graph(forward, backward, tuple(sizes), boundary)
    problem = build_problem(graph, cost, weights or Weights())
    built = perf_counter()
    solution = solve(problem)
    log.info(
        "@%s on %s, boundary %s: %d tensors, %d steps, %s; built in %.2f s, solved in %.2f s, cost %.4f",
        forward.name,
        "x".join(map(str, sizes)),
        boundary,
        len(graph.tensors),
        len(graph.steps),
        solution.statistics,
        built - start,
        perf_counter() - built,
        solution.cost,
    )
    return apply(problem, solution, boundary)
