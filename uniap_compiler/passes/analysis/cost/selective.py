"""Which forward values are worth keeping for backward, by time per byte: what recompute=selective makes again.

Every set of kept values is a point (seconds of backward, bytes per micro-batch): recompute=none is one end, full the
other, and mixing the two over layers reaches the line between them.  The set chosen here is the one whose point lies
farthest below that line, that is, which minimises

    seconds of what is made again + price * bytes of what is kept,    price = seconds / bytes of full against none

So what costs less time per byte than the layer on average (norms, activations, softmax) is made again, and what costs
more (contractions, attention) is kept.  Keeping a value may save the ops before it and each memory counts once, however
many views it has, which makes the optimum a minimum cut:

    source -> op       seconds of the op            on the sink's side: it runs again
    op -> its result   price * bytes of the result  from side to side: it is kept
    result -> reader   infinite                     what an op that runs again reads is kept or made again

Collectives never run again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import networkx
import numpy as np

from uniap_compiler.cluster import Cluster
from uniap_compiler.ir import Func, Op, Value

from .layer_cost import FREE, held_inputs, kept_values, recomputed_ops, sum_bytes
from .liveness import storage
from .op_cost import Roofline, local_bytes, local_dims

_SOURCE, _SINK = "source", "sink"
_SCALE = 2**40
"""Capacities are integers: an exact cut, the same on every machine."""


def worth_repeating(
    forward: Func, backward: Func, sizes: Mapping[str, int], batch: int, cluster: Cluster
) -> list[str]:
    """The forward values that backward should make again, in the order of forward; [] when none is worth it.

    sizes: of the tensor axes.  batch: of one device.
    """
    kept = kept_values(forward, backward)
    seconds = _seconds(forward, sizes, batch, cluster)
    inputs = held_inputs(forward, kept)
    freed = _number(sum_bytes(forward, kept, sizes, batch)) - _number(sum_bytes(forward, inputs, sizes, batch))
    whole = sum(seconds[op] for op in recomputed_ops(forward, kept) if not op.name.startswith("comm."))
    if freed <= 0 or whole <= 0:
        return []
    again = _cut(forward, kept, inputs, seconds, whole / freed, sizes, batch)
    needed = recomputed_ops(forward, kept, again)
    return [r.name for op in forward.ops if op in needed for r in op.results]


def _number(size: object) -> float:
    return float(np.max(np.asarray(size, dtype=np.float64)))


def _seconds(forward: Func, sizes: Mapping[str, int], batch: int, cluster: Cluster) -> dict[Op, float]:
    """Of every op that moves nothing between devices."""
    roofline = Roofline(cluster)
    seconds = {}
    for op in forward.ops:
        operands = [local_dims(v.type, sizes, batch) if v is not None else None for v in op.flat_operands()]
        results = [local_dims(v.type, sizes, batch) for v in op.results]
        seconds[op] = _number(roofline.op_seconds(op, operands, results))
    return seconds


def _cut(
    forward: Func, kept: Sequence[Value], inputs: Sequence[Value], seconds: Mapping[Op, float], price: float,
    sizes: Mapping[str, int], batch: int,
) -> set[Op]:
    """The ops on the sink's side of the minimum cut."""
    base = storage(forward)
    unit = _SCALE / (sum(seconds.values()) or 1.0)
    graph = networkx.DiGraph()
    graph.add_nodes_from((_SOURCE, _SINK))
    node: dict[Value, object] = {}
    """value -> what its readers depend on: its memory, or the view that makes it; absent where it is always there"""

    def bytes_of(value: Value) -> int:
        return round(unit * price * _number(local_bytes(value.type, sizes, batch)))

    for p in inputs:
        node[p] = p
        graph.add_edge(_SOURCE, p, capacity=bytes_of(p))
    for op in forward.ops:
        if _may_repeat(op):
            graph.add_edge(_SOURCE, op, capacity=round(unit * seconds[op]))
        else:
            graph.add_edge(_SOURCE, op)  # no capacity: infinite
        for operand in op.flat_operands():
            if operand in node:
                graph.add_edge(node[operand], op)
        for result in op.results:
            if base[result] is not result and _may_repeat(op):
                node[result] = op  # a view is not kept: what it shows is
            else:
                node[result] = result
                graph.add_edge(op, result, capacity=bytes_of(result))
    for value in kept:
        if value in node:
            graph.add_edge(node[value], _SINK)
    _, (_, sink_side) = networkx.minimum_cut(graph, _SOURCE, _SINK)
    return {op for op in forward.ops if op in sink_side}


def _may_repeat(op: Op) -> bool:
    return "peers" not in op.attrs and (not op.name.startswith("comm.") or op.name in FREE)
