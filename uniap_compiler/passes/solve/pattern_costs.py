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
from uniap_compiler.passes.analysis.cost.selective import worth_repeating
from uniap_compiler.passes.lower.insert_communication import SELECTIVE, instantiate, pattern_name
from uniap_compiler.passes.lower.rematerialize import rematerialize

from .problem import Pattern
from .step_graph import StepGraph

log = logging.getLogger(__name__)

COSTS = "pattern-costs"
"""Under this name enumerate-strategies leaves the costs to solve-parallelism."""

_ANY_SIZE = 1000003
"""Stands for the size of the data axis, which nothing here depends on (a prime: never a product of tensor axes)."""


def tensor_sizes(func: Func) -> tuple[int, ...]:
    """The sizes of t0, t1, ... of a sharded func; () of a plain one."""
    axes = func.attrs.get("tensor_axes")
    if not isinstance(axes, Struct):
        return ()
    return tuple(size for _, size in axes.fields if isinstance(size, int))


def patterns_in(module: Module, graph: StepGraph) -> dict[tuple[str, int, str], tuple[int, ...]]:
    """(kind, tp, boundary) -> sizes of the tensor axes; of the first of the kinds that are alike."""
    found: dict[tuple[str, int, str], tuple[int, ...]] = {}
    for kind in dict.fromkeys(graph.like.values()):
        found[kind, 1, "replicated"] = ()
        for func in module.funcs.values():
            boundary, sizes = func.attrs.get("boundary"), tensor_sizes(func)
            tp = 1
            for size in sizes:
                tp *= size
            if tp > 1 and func.name == f"{pattern_name(kind, tp, str(boundary))}.forward":
                found[kind, tp, str(boundary)] = sizes
    return found


Made = dict[tuple[str, int, str], tuple[tuple[Func, Func | None], Diagnostic | None]]
"""Pattern -> its pair over the data axis; where it has none, the pair without, and why."""


def make_pairs(module: Module, graph: StepGraph) -> Made:
    return {pattern: _over_data(module, pattern, sizes) for pattern, sizes in patterns_in(module, graph).items()}


def _over_data(
    module: Module, pattern: tuple[str, int, str], sizes: tuple[int, ...], recompute: str = "none"
) -> tuple[tuple[Func, Func | None], Diagnostic | None]:
    try:
        return with_data_axis(module, *pattern, _axes(sizes), recompute), None
    except Diagnostic as error:
        return without_data_axis(module, *pattern, recompute), error


def _axes(sizes: tuple[int, ...]) -> dict[str, int]:
    return {f"t{n}": size for n, size in enumerate(sizes)}


def choose_selective(module: Module, graph: StepGraph, cluster: Cluster, batch: int, made: Made) -> None:
    """Write down for every pattern what recompute=selective makes again.  batch: of one device, the largest there is:
    memory is short there, and launches do not matter."""
    for (kind, tp, boundary), sizes in patterns_in(module, graph).items():
        noted = module.funcs.get(f"{pattern_name(kind, tp, boundary)}.backward")
        if noted is None:
            continue
        (forward, backward), _ = made[kind, tp, boundary]
        assert backward is not None
        noted.attrs.pop(SELECTIVE, None)
        again = worth_repeating(forward, backward, _axes(sizes), batch, cluster)
        if again:
            noted.attrs[SELECTIVE] = [*again]
    for kind, first in graph.like.items():
        backward = module.funcs.get(f"{kind}.backward")
        if backward is not None and kind != first:
            backward.attrs.pop(SELECTIVE, None)
            chosen = module.funcs[f"{first}.backward"].attrs.get(SELECTIVE)
            if isinstance(chosen, list):
                backward.attrs[SELECTIVE] = [*chosen]


def pattern_costs(
    module: Module, graph: StepGraph, cluster: Cluster, batches: Sequence[int], made: Made | None = None
) -> dict[tuple[str, int, str], Pattern]:
    """batches: every local batch that some candidate has.  made: the pairs, where they have been made before."""
    costs = {}
    made = make_pairs(module, graph) if made is None else made
    whole: dict[str, list[str]] = {}  # why an op keeps the batch whole -> in which layers
    for pattern, sizes in patterns_in(module, graph).items():
        kind, tp, boundary = pattern
        pair, no_data = made[pattern]
        if no_data is not None:
            whole.setdefault(no_data.message, []).append(kind)
        cost, selective = layer_cost(*pair, _axes(sizes), batches, cluster), None
        source = module.funcs.get(f"{pattern_name(kind, tp, boundary)}.backward")
        if source is not None and source.attrs.get(SELECTIVE):
            again, _ = _over_data(module, pattern, sizes, "selective")
            less = layer_cost(*again, _axes(sizes), batches, cluster)
            selective = less if (less.saved < cost.saved).any() else None
        for other in (other for other, first in graph.like.items() if first == kind):
            costs[other, tp, boundary] = Pattern(sizes, cost, no_data, selective)
    for reason, kinds in whole.items():
        log.warning("no data parallelism for %s: %s", ", ".join(dict.fromkeys(kinds)), reason)
    return costs


def with_data_axis(
    module: Module, kind: str, tp: int, boundary: str, axes: dict[str, int], recompute: str = "none"
) -> tuple[Func, Func | None]:
    """Clones of a pattern's pair with the batch split over `data`, collectives included.

    Raises Diagnostic for an op whose rule keeps the batch whole.
    """
    strategy = struct("strategy", dp=_ANY_SIZE, tp=tp, boundary=boundary, shard="none", recompute=recompute)
    return instantiate(module, kind, strategy, {DATA: _ANY_SIZE, **axes}, f"{kind}.cost")


def without_data_axis(
    module: Module, kind: str, tp: int, boundary: str, recompute: str = "none"
) -> tuple[Func, Func | None]:
    """A pattern's pair as it is."""
    source = pattern_name(kind, tp, boundary)
    forward, backward = module.funcs[f"{source}.forward"], module.funcs.get(f"{source}.backward")
    again = backward.attrs.get(SELECTIVE) if backward is not None else None
    if recompute == "selective" and backward is not None and isinstance(again, (list, tuple)):
        return rematerialize(forward, backward, [str(name) for name in again])
    return forward, backward
