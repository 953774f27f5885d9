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


def choose_selective(module: Module, graph: StepGraph, cluster: Cluster, batch: int) -> None:
    """Write down for every pattern what recompute=selective makes again.  batch: of one device, the largest there is:
    memory is short there, and launches do not matter."""
    for (kind, tp, boundary), sizes in patterns_in(module, graph).items():
        noted = module.funcs.get(f"{pattern_name(kind, tp, boundary)}.backward")
        if noted is None:
            continue
        axes = {f"t{n}": size for n, size in enumerate(sizes)}
        try:
            forward, backward = with_data_axis(module, kind, tp, boundary, axes)
        except Diagnostic:
            forward, backward = without_data_axis(module, kind, tp, boundary)
        assert backward is not None
        noted.attrs.pop(SELECTIVE, None)
        again = worth_repeating(forward, backward, axes, batch, cluster)
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
    module: Module, graph: StepGraph, cluster: Cluster, batches: Sequence[int]
) -> dict[tuple[str, int, str], Pattern]:
    """batches: every local batch that some candidate has."""
    costs = {}
    whole: dict[str, list[str]] = {}  # why an op keeps the batch whole -> in which layers
    for (kind, tp, boundary), sizes in patterns_in(module, graph).items():
        axes = {f"t{n}": size for n, size in enumerate(sizes)}
        no_data, selective = None, None
        source = module.funcs.get(f"{pattern_name(kind, tp, boundary)}.backward")
        pairs = ["none", "selective"] if source is not None and source.attrs.get(SELECTIVE) else ["none"]
        try:
            made = [with_data_axis(module, kind, tp, boundary, axes, recompute) for recompute in pairs]
        except Diagnostic as error:
            no_data = error
            whole.setdefault(error.message, []).append(kind)
            made = [without_data_axis(module, kind, tp, boundary, recompute) for recompute in pairs]
        cost, *rest = [layer_cost(forward, backward, axes, batches, cluster) for forward, backward in made]
        if rest and (rest[0].saved < cost.saved).any():
            selective = rest[0]
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
