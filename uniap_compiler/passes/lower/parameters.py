"""Where every parameter lives: its home, its copies, and how its state and gradient are spread.

The home `NAME` is what the optimizer updates, on the stage of the first layer that reads it, in the layout of its
state.  A reader that wants another layout, or is on another stage, reads a copy `NAME@copyK`: its gradient is added
up at the home once per step (`reduce_gradients`) and the new value comes back (`refresh_parameters`).

    shard         read from                 gradient of a micro-batch     home (and optimizer state)
    none          the home                  pending over data             whole on data
    optimizer     a copy, whole on data     pending over data             split over data
    gradients     a copy, whole on data     split over data               split over data
    parameters    the home, gathered        split over data               split over data
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from uniap_compiler.ir import Dim, Layout, Part, Value, split_by
from uniap_compiler.ir.layouts import Axes


@dataclass
class Resident:
    """One tensor that a stage keeps between steps.

    rest: its layout between steps.  read: the layout that layers want (gathered from `rest` at each use where they
    differ), None for a home that no layer reads.  gradient: the layout of its accumulator, None where there is none.
    """

    name: str
    value: Value
    stage: int
    shard: str
    rest: Layout
    read: Layout | None = None
    gradient: Layout | None = None

    @property
    def of(self) -> str:
        return self.name.split("@copy")[0]

    @property
    def is_home(self) -> bool:
        return "@copy" not in self.name


def reader(
    name: str, value: Value, stage: int, shard: str, layout: Layout, data: Axes, pending: Axes, mesh: dict[str, int]
) -> tuple[Resident, Layout]:
    """The resident tensor that a layer reads in `layout`, and the layout of the optimizer's state.

    pending: the tensor axes over which the layer leaves gradients as pending sums.
    """
    split = split_over_data(value.type.shape, layout, data, mesh) if shard != "none" else layout
    scattered = shard in ("gradients", "parameters") and split != layout
    order = list(mesh)
    sums = sorted(pending if scattered else (*pending, *data), key=order.index)
    gradient = Layout((split if scattered else layout).dims, tuple(("sum", axis) for axis in sums))
    return Resident(name, value, stage, shard, split if shard == "parameters" else layout, layout, gradient), split


def split_over_data(shape: Sequence[Dim], layout: Layout, data: Axes, mesh: dict[str, int]) -> Layout:
    """`layout` with one dim also split over the data axes: the first that divides, whole dims before split ones.

    Unchanged when no dim divides (the parameter then stays whole, and the plan says so).
    """
    parts = 1
    for axis in data:
        parts *= mesh[axis]
    if parts == 1:
        return layout
    local = layout.local_shape(tuple(shape), mesh, 1)
    whole_first = sorted(range(len(local)), key=lambda d: bool(layout.dims[d][0].axes))
    for d in whole_first:
        if len(layout.dims[d]) == 1 and local[d] % parts == 0:
            axes = (*layout.dims[d][0].axes, *data)
            dim = split_by(*axes) if layout.dims[d][0].size is None else (Part(axes, layout.dims[d][0].size),)
            return Layout((*layout.dims[:d], dim, *layout.dims[d + 1 :]), layout.pending)
    return layout
