"""From one layout to another: the collectives, in order.

    @[a, _, _; sum b]  ->  @[a, b, _]        comm.reduce_scatter over b along dim 1
    @[a*b, _]          ->  @[a, _]           comm.all_gather over b along dim 0
    @[a, b, _]         ->  @[a, _, b]        comm.all_to_all over b
    @[_, _]            ->  @[a, _]           comm.slice, no communication

Every step names the axes, the dim and the layout after it; `emit` appends the steps as comm ops on global types.  The
order keeps messages small: slices first, then reductions, then exchanges, gathers last.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from uniap_compiler.ir import Attr, Dim, Layout, Loc, Namer, Op, Part, Value, affine, at
from uniap_compiler.ir.layouts import Axes, DimLayout


@dataclass(frozen=True)
class Step:
    """One comm op: its name (without `comm.`), attributes, and the layout of its result."""

    op: str
    attrs: tuple[tuple[str, Attr], ...]
    layout: Layout


def _replace(layout: Layout, dim: int, part: int, axes: Axes) -> Layout:
    parts = list(layout.dims[dim])
    parts[part] = Part(axes, parts[part].size)
    return Layout((*layout.dims[:dim], tuple(parts), *layout.dims[dim + 1 :]), layout.pending)


def _aligned(now: DimLayout, goal: DimLayout) -> tuple[DimLayout, DimLayout]:
    """Both dims with the same parts: a larger one is cut (64*B: B, 64), and what splits it splits its major part."""
    if [p.size for p in now] == [p.size for p in goal]:
        return now, goal
    if len(now) == 1 < len(goal):
        return (Part(now[0].axes, goal[0].size), *(Part((), p.size) for p in goal[1:])), goal
    if len(goal) == 1 < len(now):
        return now, (Part(goal[0].axes, now[0].size), *(Part((), p.size) for p in now[1:]))
    left, right = list(now), list(goal)
    n = 0
    while n < min(len(left), len(right)):
        a, b = left[n], right[n]
        if a.size != b.size:
            if (rest := _over(a.size, b.size)) is not None:
                left[n : n + 1] = [Part(a.axes, b.size), Part((), rest)]
            elif (rest := _over(b.size, a.size)) is not None:
                right[n : n + 1] = [Part(b.axes, a.size), Part((), rest)]
            else:
                break
        n += 1
    if n < max(len(left), len(right)):
        raise ValueError(f"the dim layouts {now} and {goal} factor the dim differently")
    return tuple(left), tuple(right)


def _over(size: Dim | None, part: Dim | None) -> Dim | None:
    """size / part, for sizes that divide whatever the batch is."""
    if size is None or part is None or part == 0:
        return None
    if isinstance(size, int):
        return size // part if isinstance(part, int) and size % part == 0 else None
    if isinstance(part, int):
        divides = size.coef % part == 0 and size.offset % part == 0
        return affine(size.coef // part, size.offset // part) if divides else None
    times = size.coef // part.coef if size.coef % part.coef == 0 else 0
    return times if times and part * times == size else None


def _runs(axes: Axes, order: Sequence[str]) -> list[Axes]:
    """Cut axes into runs that follow the mesh order, so that each run is one process group."""
    runs: list[list[str]] = []
    for axis in axes:
        if runs and order.index(runs[-1][-1]) < order.index(axis):
            runs[-1].append(axis)
        else:
            runs.append([axis])
    return [tuple(run) for run in runs]


def _common(a: Axes, b: Axes) -> int:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    return n


def reshard(now: Layout, goal: Layout, order: Sequence[str]) -> list[Step]:
    """The steps from `now` to `goal`; order: the mesh axes, slowest first.  Layouts in all results are canonical."""
    pairs = [_aligned(a, b) for a, b in zip(now.dims, goal.dims, strict=True)]
    state = Layout(tuple(a for a, _ in pairs), now.pending)
    target = Layout(tuple(b for _, b in pairs), goal.pending)
    places = [(d, p) for d, dim in enumerate(target.dims) for p in range(len(dim))]
    steps: list[Step] = []

    def step(name: str, layout: Layout, /, **attrs: Attr) -> None:
        nonlocal state
        state = layout
        steps.append(Step(name, tuple(attrs.items()), layout.canonical()))

    def busy() -> set[str]:
        return {*state.split_axes(), *state.pending_axes()}

    def missing(d: int, p: int) -> Axes:
        """The axes that the goal appends to what splits this part now; () while something must first go away."""
        have, want = state.dims[d][p].axes, target.dims[d][p].axes
        return want[len(have) :] if want[: len(have)] == have else ()

    def drop_pending(layout: Layout, axes: Axes) -> Layout:
        return Layout(layout.dims, tuple(q for q in layout.pending if q[1] not in axes))

    def slices() -> None:
        for d, p in places:
            for run in _runs(missing(d, p), order):
                if busy() & set(run):
                    break
                step("slice", _replace(state, d, p, (*state.dims[d][p].axes, *run)), axes=list(run), dim=d)

    slices()
    # Pending axes: scatter onto the dim that wants them, else reduce.
    for kind in ("sum", "max"):
        for d, p in places:
            for run in _runs(missing(d, p), order):
                if kind != "sum" or not all((kind, axis) in state.pending for axis in run):
                    break
                layout = drop_pending(_replace(state, d, p, (*state.dims[d][p].axes, *run)), run)
                step("reduce_scatter", layout, axes=list(run), dim=d)
        gone = tuple(q[1] for q in state.pending if q[0] == kind and q not in target.pending)
        if gone:
            step("all_reduce", drop_pending(state, gone), axes=sorted(gone, key=order.index), op=kind)
    slices()
    # An exchange where the axes that leave one dim are the ones that another dim wants.  (Within one dim, the runs that
    # are cut and those that are joined would depend on each other; that is rare and goes by way of the whole.)
    for d, p in places:
        have, want = state.dims[d][p].axes, target.dims[d][p].axes
        leaving = have[_common(have, want) :]
        if not leaving or len(_runs(leaving, order)) > 1:
            continue
        for e, q in places:
            if e != d and missing(e, q)[: len(leaving)] == leaving:
                layout = _replace(state, d, p, have[: len(have) - len(leaving)])
                layout = _replace(layout, e, q, (*state.dims[e][q].axes, *leaving))
                step("all_to_all", layout, axes=list(leaving), split_dim=e, concat_dim=d)
                break
    for d, p in places:
        have, want = state.dims[d][p].axes, target.dims[d][p].axes
        for run in reversed(_runs(have[_common(have, want) :], order)):
            axes = state.dims[d][p].axes
            step("all_gather", _replace(state, d, p, axes[: len(axes) - len(run)]), axes=list(run), dim=d)
    slices()
    added = tuple(q for q in target.pending if q not in state.pending)
    if added:
        step("first", Layout(state.dims, target.pending), axes=[axis for _, axis in added])
    if state.canonical() != goal.canonical():
        raise ValueError(f"no way from {now} to {goal} (reached {state})")
    return steps


def emit(
    value: Value, goal: Layout, order: Sequence[str], ops: list[Op], namer: Namer, loc: Loc | None = None
) -> Value:
    """Append the comm ops that bring `value` (with a layout in its type) to `goal`; returns the last result."""
    assert value.type.layout is not None, f"%{value.name} has no layout"
    for step in reshard(value.type.layout, goal, order):
        result = Value(namer(value.name), value.type.with_layout(step.layout))
        ops.append(Op(f"comm.{step.op}", [value], [result], dict(step.attrs), loc=loc))
        value = result
    return value


def outer_blocks(layout: Layout, dim: int, axes: Sequence[str], mesh: Mapping[str, int], batch: int) -> int:
    """How many runs of a local dim the split over `axes` (its factor's minor place) consists of."""
    blocks = 1
    for part in layout.dims[dim]:
        if set(axes) & set(part.axes):
            return blocks
        assert part.size is not None or len(layout.dims[dim]) == 1
        size = at(part.size, batch) if part.size is not None else 1
        for axis in part.axes:
            size //= mesh[axis]
        blocks *= size
    raise ValueError(f"{layout} is not split over {axes} in dim {dim}")
