"""Seconds of a value between two layers: another layout on the same stage, or the way to the next stage.

    block under dp=4:  @[a*b, _, _]   ->   block under dp=2, tp=2:  @[a, _, _]        an all-gather over b
    and back for the gradient:                                                        a slice, free

The steps are those that the lowering emits (`passes/lower/reshard.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from uniap_compiler.cluster import Mesh
from uniap_compiler.ir import Layout, Part, TensorType
from uniap_compiler.passes.lower.reshard import reshard

from .op_cost import Vector, local_bytes

UNREACHABLE = 1e6
"""Seconds where there is no way from one layout to the other."""


def on_mesh(layout: Layout, axes: Mapping[str, tuple[str, ...]]) -> Layout:
    """A layout over t0, t1, ..., data as one over the axes of a mesh; an axis may stand for several or for none."""
    dims = tuple(
        tuple(Part(tuple(real for axis in part.axes for real in axes[axis]), part.size) for part in dim)
        for dim in layout.dims
    )
    return Layout(dims, tuple((kind, real) for kind, axis in layout.pending for real in axes[axis])).canonical()


def reshard_seconds(type: TensorType, now: Layout, goal: Layout, mesh: Mesh, batch: Vector) -> Vector:
    """batch: of a micro-batch on the whole stage."""
    total = np.zeros_like(batch)
    if now == goal:
        return total
    sizes = mesh.axes
    try:
        steps = reshard(now, goal, list(sizes))
    except ValueError:
        return total + UNREACHABLE
    for step in steps:
        before, after = (local_bytes(type.with_layout(layout), sizes, batch) for layout in (now, step.layout))
        now = step.layout
        if step.op in ("slice", "first"):
            continue
        axes = dict(step.attrs)["axes"]
        assert isinstance(axes, list)
        size = after if step.op == "all_gather" else before
        total = total + mesh.seconds(step.op, [str(axis) for axis in axes], np.asarray(size))
    return total


def send_seconds(type: TensorType, layout: Layout, mesh: Mesh, batch: Vector) -> Vector:
    """Every device of the stage sends what it holds to its peer in the next stage."""
    size = local_bytes(type.with_layout(layout), mesh.axes, batch)
    return mesh.send_seconds(np.broadcast_to(np.asarray(size, dtype=np.float64), batch.shape))
