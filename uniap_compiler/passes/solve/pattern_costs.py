"""Layer costs of every pattern in the module: the search's sharded pairs, and the plain pairs for tp = 1.

Each pair gets the collectives over data axes that the lowering would give it, with one axis `data` for all of them.
Where an op keeps its batch whole there is no data parallelism: a warning, and an error only when nothing else is left.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from uniap_compiler.cluster import Cluster
from uniap_compiler.ir import Diagnostic, Func, Module, Struct, struct
from uniap_compiler.passes.analysis.cost.layer_cost import DATA, layer_cost
from uniap_compiler.passes.lower.insert_communication import instantiate, pattern_name

from .problem import Pattern
from .step_graph import StepGraph

log = logging.getLogger(__name__)

_ANY_SIZE = 1000003
"""Stands for the size of the data axis, which nothing here depends on (a prime: never a product of tensor axes)."""


def tensor_sizes(func: Func) -> tuple[int, ...]:
    """The sizes of t0, t1, ... of a sharded func; () of a plain one."""
    axes = func.attrs.get("tensor_axes")
    if not isinstance(axes, Struct):
        return ()
    return tuple(size for _, size in axes.fields if isinstance(size, int))


def patterns_in(module: Module, graph: StepGraph) -> dict[tuple[str, int, str], tuple[int, ...]]:
    """(kind, tp, boundary) -> sizes of the tensor axes."""
    found: dict[tuple[str, int, str], tuple[int, ...]] = {}
    for kind in graph.kinds():
        found[kind, 1, "replicated"] = ()
        for func in module.funcs.values():
            boundary, sizes = func.attrs.get("boundary"), tensor_sizes(func)
            tp = 1
            for size in sizes:
                tp *= size
            if tp > 1 and func.name == f"{pattern_name(kind, tp, str(boundary))}.forward":
                found[kind, tp, str(boundary)] = sizes
    return found


def pattern_costs(
    module: Module, graph: StepGraph, cluster: Cluster, batches: Sequence[int]
) -> dict[tuple[str, int, str], Pattern]:
    """batches: every local batch that some candidate has."""
    costs = {}
    for (kind, tp, boundary), sizes in patterns_in(module, graph).items():
        axes = {f"t{n}": size for n, size in enumerate(sizes)}
        no_data = None
        try:
            forward, backward = with_data_axis(module, kind, tp, boundary, axes)
        except Diagnostic as error:
            no_data = error
            log.warning("no data parallelism for %s: %s", kind, error.message)
            source = pattern_name(kind, tp, boundary)
            forward, backward = module.funcs[f"{source}.forward"], module.funcs.get(f"{source}.backward")
        costs[kind, tp, boundary] = Pattern(sizes, layer_cost(forward, backward, axes, batches, cluster), no_data)
    return costs


def with_data_axis(module: Module, kind: str, tp: int, boundary: str, axes: dict[str, int]) -> tuple[Func, Func | None]:
    """Clones of a pattern's pair with the batch split over `data`, collectives included.

    Raises Diagnostic for an op whose rule keeps the batch whole.
    """
    strategy = struct("strategy", dp=_ANY_SIZE, tp=tp, boundary=boundary, shard="none", recompute="none")
    return instantiate(module, kind, strategy, {DATA: _ANY_SIZE, **axes}, f"{kind}.cost")
