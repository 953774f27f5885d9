"""enumerate-strategies: which tensor patterns every kind of layer may take, each found by the search.

    func @block.forward(...)   func @block.backward(...)
    -> func @block.tp2.replicated.forward(...) ...    func @block.tp2.sequence.forward(...) ...     and so on
       plan.cluster @laptop {...}
       plan.strategy @block.tp2.replicated {tp = 2, boundary = "replicated", batch = [1, 2, 4], forward = [...], ...}

One search per (kind of layer, tensor degree, boundary); kinds that differ in numbers only share it (alike.py).  Data
degree, parameter sharding, recomputation, stages and micro-batches need no code of their own here: solve-parallelism
adds them by formula.  Tensor axes stay inside a node unless they are forced across (`across_nodes`).  The rows say what
a micro-batch costs by the batch of one device.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from uniap_compiler.cluster import Cluster, Mesh
from uniap_compiler.ir import Attrs, Diagnostic, Func, Module, Op, Symbol
from uniap_compiler.passes.analysis.cost.op_cost import SearchCost, matrix_operations
from uniap_compiler.passes.analysis.cost.strategy_cost import Strategy
from uniap_compiler.passes.lower.insert_communication import pattern_name

from .alike import plain_pair
from .cluster_op import cluster_of, record_cluster
from .force import Force, admits, check_degrees, parse_force
from .pattern_costs import COSTS, choose_selective, make_pairs, pattern_costs
from .problem import Pattern, batches_of, divisors
from .step_graph import StepGraph

if TYPE_CHECKING:
    from uniap_compiler.passes.analysis.tensor_parallel.problem import Weights
    from uniap_compiler.passes.manager import Session

log = logging.getLogger(__name__)

_LESS, _MUCH_LESS = 0.1, 0.01
"""Parts of the real latency that the search is told where it divides nothing with the real one."""

_ENOUGH = 0.75
"""A pattern divides the work when a device has at most this part of the layer's matrix operations."""

BOUNDED = "bounded"
"""The attribute with which the search says that a layer was too large to look at all plans."""

_REPORTED = 8
"""Local batches that a row of plan.strategy lists, at most."""


@dataclass(frozen=True)
class EnumerateStrategies:
    name: ClassVar[str] = "enumerate-strategies"
    requires: ClassVar[str] = "annotated"
    ensures: ClassVar[str] = "annotated"

    across_nodes: bool = False

    def run(self, module: Module, session: Session) -> str:
        if session.cluster is not None:
            record_cluster(module, session.cluster)
        cluster, batch = cluster_of(module), global_batch(module)
        graph, force = StepGraph.of(module), force_of(module)
        check_degrees(force, graph.names, cluster.devices, batch)
        wanted = list(self._wanted(graph, force, cluster, batch))
        done: list[tuple[str, int, str, SearchCost]] = []
        bounded: dict[str, dict[int, str]] = {}
        for kind, tp, boundary, cost in wanted:
            sizes = tuple(cost.mesh.axes[a] for a in cost.axes)
            pair = _as_replicated(module, kind, tp, sizes) if (kind, tp, "replicated", cost) in done else None
            for func in pair or search_pattern(module, kind, sizes, boundary, cost):
                module.funcs.pop(func.name, None)
                module.add(func)
                if BOUNDED in func.attrs:
                    bounded.setdefault(kind, {})[tp] = str(func.attrs[BOUNDED])
            done.append((kind, tp, boundary, cost))
        for kind, notes in bounded.items():
            degrees = ", ".join(f"tp={tp} ({note})" for tp, note in notes.items())
            log.warning("the layer %s is large, there may be better patterns for %s", kind, degrees)
        batches = batches_of(cluster.devices, batch, len(graph.layers))
        made = make_pairs(module, graph)
        choose_selective(module, graph, cluster, batches[-1], made)
        costs = pattern_costs(module, graph, cluster, batches, made)
        session.found[COSTS] = (module, costs)
        _write_rows(module, graph, batches, costs)
        large = f", not all plans of {', '.join(bounded)}" if bounded else ""
        return f"{len(graph.layers)} layers of {len(graph.kinds())} kinds, {len(wanted)} patterns searched{large}"

    def _wanted(
        self, graph: StepGraph, force: Force, cluster: Cluster, batch: int
    ) -> Iterator[tuple[str, int, str, SearchCost]]:
        """(kind, tp, boundary, cost); each tensor degree on the axes of the fewest stages that have it."""
        chosen: dict[str, list[dict[str, int | str]]] = {}
        for layer in graph.layers:
            chosen.setdefault(graph.like[layer.kind], []).append(force.for_layer(layer.name))
        seen: set[tuple[str, int, str]] = set()
        for stages in divisors(cluster.devices):
            if stages > len(graph.layers) or force.pp not in (None, stages):
                continue
            mesh = Mesh.of(cluster, stages, 0)
            for tp in divisors(mesh.devices):
                axes = mesh.tensor_axes(tp)
                if tp == 1 or axes is None or batch % (mesh.devices // tp):
                    continue
                asked = any("tp" in c or "dp" in c for each in chosen.values() for c in each)
                if tp > cluster.devices_per_node and not asked and not self.across_nodes:
                    continue
                for kind, choices in chosen.items():
                    for boundary in ("replicated", "sequence"):
                        strategy = Strategy(tp, mesh.devices // tp, boundary)
                        degrees = [{k: v for k, v in c.items() if k in ("tp", "dp", "boundary")} for c in choices]
                        key = (kind, tp, boundary)
                        if key in seen or not any(admits(c, strategy) for c in degrees):
                            continue
                        seen.add(key)
                        yield *key, search_cost(mesh, axes, batch, strategy.dp, force.micro_batches)


def search_cost(mesh: Mesh, axes: tuple[str, ...], batch: int, dp: int, micro_batches: int | None) -> SearchCost:
    """For a middling number of micro-batches, where none is forced."""
    counts = [c for c in divisors(batch) if batch // c % dp == 0 and micro_batches in (None, c)] or [1]
    count = counts[len(counts) // 2]
    return SearchCost(mesh, axes, max(1, batch // count // dp), 1.0 / count)


def search_pattern(
    module: Module, kind: str, sizes: tuple[int, ...], boundary: str, cost: SearchCost
) -> tuple[Func, Func]:
    """The pair of the search.  Where collectives cost so much that nothing is worth splitting, the pattern would be
    tensor parallelism in name only (with less memory nowhere): then it is what the search finds with less latency."""
    from uniap_compiler.passes.analysis.tensor_parallel.search import LayerSearch

    forward, backward = _plain(module, kind)
    layer = LayerSearch(forward, backward, sizes, boundary)
    enough = _ENOUGH * _work((forward, backward), (), cost.batch)

    def told(latency: float) -> tuple[tuple[Func, Func], bool]:
        """The pattern, and whether it divides the work."""
        weights = None if latency == 1.0 else _cheap(latency)
        pair = layer.find(replace(cost, latency=latency), weights)
        return pair, _work(pair, sizes, cost.batch) <= enough

    first, divides = told(1.0)
    if divides:
        return first
    pair, divides = told(_LESS)
    if divides:
        return pair
    last, divides = told(0.0)
    if not divides:  # nothing divides by these sizes
        return first
    pair, divides = told(_MUCH_LESS)
    return pair if divides else last


def _plain(module: Module, kind: str) -> tuple[Func, Func]:
    forward, backward = plain_pair(module, kind)
    if backward is None:  # nothing in the layer needs a gradient
        backward = Func(f"{kind}.backward", attrs={"kind": "backward", "of": forward.name, "results": []})
    return forward, backward


def _as_replicated(module: Module, kind: str, tp: int, sizes: tuple[int, ...]) -> tuple[Func, Func] | None:
    """The pattern with boundary=sequence where the layer has no sequence that divides: it is the replicated one."""
    from uniap_compiler.passes.analysis.tensor_parallel.search import boundary_matters

    if boundary_matters(*_plain(module, kind), sizes):
        return None
    pair = []
    for phase in ("forward", "backward"):
        func = module.funcs[f"{pattern_name(kind, tp, 'replicated')}.{phase}"]
        pair.append(func.clone(f"{pattern_name(kind, tp, 'sequence')}.{phase}"))
        pair[-1].attrs["boundary"] = "sequence"
    pair[1].attrs["of"] = Symbol(pair[0].name)
    return pair[0], pair[1]


def _cheap(share: float) -> Weights:
    """Rounds at a part of their price, and collectives at the seconds that they take."""
    from uniap_compiler.passes.analysis.tensor_parallel.problem import Weights

    return Weights(round=share * Weights().round, communication=1.0)


def _work(pair: tuple[Func, Func], sizes: tuple[int, ...], batch: int) -> float:
    axes = {f"t{n}": size for n, size in enumerate(sizes)}
    return sum(float(matrix_operations(func, axes, batch)) for func in pair)


def _write_rows(
    module: Module, graph: StepGraph, batches: list[int], costs: dict[tuple[str, int, str], Pattern]
) -> None:
    module.ops = [op for op in module.ops if op.name != "plan.strategy"]
    others = {kind: [k for k, first in graph.like.items() if first == kind != k] for kind in graph.like}
    for (kind, tp, boundary), pattern in costs.items():
        if graph.like[kind] != kind:
            continue
        cost, some = pattern.cost, pattern.selective
        selective: Attrs = {}
        if some is not None:
            selective["selective"] = [int(n) for n in some.saved[-_REPORTED:]]
            selective["selective_backward"] = [short(t) for t in some.backward_seconds[-_REPORTED:]]
        sent = [c for c in cost.communications if "data" not in c.axes and c.phase != "recompute"]
        module.ops.append(
            Op(
                "plan.strategy",
                symbol=kind if tp == 1 else f"{kind}.tp{tp}.{boundary}",
                attrs={
                    "tp": tp,
                    "boundary": boundary,
                    **({"alike": others[kind]} if tp == 1 and others[kind] else {}),
                    "batch": batches[-_REPORTED:],
                    "forward": [short(t) for t in cost.forward_seconds[-_REPORTED:]],
                    "backward": [short(t) for t in cost.backward_seconds[-_REPORTED:]],
                    "saved": [int(n) for n in cost.saved[-_REPORTED:]],
                    "inputs": [int(n) for n in cost.inputs[-_REPORTED:]],
                    **selective,
                    "parameters": int(sum(p.bytes for p in cost.parameters)),
                    "collectives": [f"{c.phase} {c.count} {c.kind} {'*'.join(c.axes)} {int(c.size[-1])}" for c in sent],
                },
            )
        )


def short(seconds: float) -> float:
    """Four digits: enough to read."""
    return float(f"{seconds:.4g}")


def global_batch(module: Module) -> int:
    batch = module.attrs.get("global_batch")
    if not isinstance(batch, int):
        raise Diagnostic("the module does not say its global_batch", help="compile with --global-batch N")
    return batch


def force_of(module: Module) -> Force:
    given = module.attrs.get("force")
    return parse_force(str(given)) if given else Force()
