"""Every pair of layouts: the steps of `reshard`, carried out on numpy blocks of all devices, give the goal's blocks."""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniap_compiler.ir import Layout, Part, affine
from uniap_compiler.passes.lower.mesh import axes_of
from uniap_compiler.passes.lower.parameters import split_over_data
from uniap_compiler.passes.lower.reshard import _aligned, outer_blocks, reshard

MESH = {"a": 2, "b": 3, "c": 2}
SHAPE = (24, 36)
Device = tuple[int, ...]
DEVICES: list[Device] = list(product(*(range(n) for n in MESH.values())))


def block(full: np.ndarray, layout: Layout, device: Device) -> np.ndarray:
    """What a device holds of a complete tensor."""
    at = dict(zip(MESH, device))
    for dim, parts in enumerate(layout.dims):
        sizes = [full.shape[dim] if p.size is None else int(p.size) for p in parts]  # type: ignore[call-overload]
        view = full.reshape(*full.shape[:dim], *sizes, *full.shape[dim + 1 :])
        for k, part in enumerate(parts):
            index, count = 0, 1
            for axis in part.axes:
                index, count = index * MESH[axis] + at[axis], count * MESH[axis]
            view = np.split(view, count, axis=dim + k)[index]
        full = view.reshape(*full.shape[:dim], -1, *view.shape[dim + len(sizes) :])
    return full


def group(device: Device, axes: list[str]) -> list[Device]:
    fixed = {n: c for n, (axis, c) in enumerate(zip(MESH, device)) if axis not in axes}
    return [d for d in DEVICES if all(d[n] == c for n, c in fixed.items())]


def split_runs(x: np.ndarray, dim: int, outer: int, count: int) -> list[np.ndarray]:
    view = x.reshape(*x.shape[:dim], outer, -1, *x.shape[dim + 1 :])
    return [s.reshape(*x.shape[:dim], -1, *x.shape[dim + 1 :]) for s in np.split(view, count, axis=dim + 1)]


def join_runs(parts: list[np.ndarray], dim: int, outer: int) -> np.ndarray:
    x = parts[0]
    views = [p.reshape(*p.shape[:dim], outer, -1, *p.shape[dim + 1 :]) for p in parts]
    return np.concatenate(views, axis=dim + 1).reshape(*x.shape[:dim], -1, *x.shape[dim + 1 :])


def carry_out(held: dict[Device, np.ndarray], step, before: Layout) -> dict[Device, np.ndarray]:
    attrs, axes = dict(step.attrs), list(dict(step.attrs)["axes"])

    def outer(layout: Layout, key: str = "dim") -> int:
        return outer_blocks(layout, attrs[key], axes, MESH, 1)

    result = {}
    for device in DEVICES:
        mates = group(device, axes)
        values, me = [held[m] for m in mates], mates.index(device)
        if step.op == "slice":
            result[device] = split_runs(values[me], attrs["dim"], outer(step.layout), len(mates))[me]
        elif step.op == "all_gather":
            result[device] = join_runs(values, attrs["dim"], outer(before))
        elif step.op == "all_reduce":
            result[device] = sum(values)
        elif step.op == "reduce_scatter":
            result[device] = split_runs(sum(values), attrs["dim"], outer(step.layout), len(mates))[me]
        elif step.op == "all_to_all":
            runs = outer(step.layout, "split_dim")
            pieces = [split_runs(v, attrs["split_dim"], runs, len(mates))[me] for v in values]
            result[device] = join_runs(pieces, attrs["concat_dim"], outer(before, "concat_dim"))
        elif step.op == "first":
            result[device] = values[me] if me == 0 else np.zeros_like(values[me])
        else:
            raise AssertionError(step.op)
    return result


def check(now: Layout, goal: Layout) -> list[str]:
    full = np.random.default_rng(0).integers(-99, 99, SHAPE).astype(float)
    held = {}
    for device in DEVICES:
        pending = [axis for _, axis in now.pending]
        mine = block(full, now, device)
        mates = group(device, pending)
        seeds = [sum(9**n * c for n, c in enumerate(m)) for m in mates]
        noise = [np.random.default_rng(seed).integers(-9, 9, mine.shape) for seed in seeds]
        held[device] = noise[mates.index(device)] + 0.0
        if device == mates[0]:  # the parts of all mates add up to the true block
            held[device] = mine - sum(noise[1:])
    state = now
    steps = reshard(now, goal, list(MESH))
    for step in steps:
        held = carry_out(held, step, state)
        state = step.layout
    for device in DEVICES:
        total = sum(held[m] for m in group(device, [axis for _, axis in goal.pending]))
        np.testing.assert_array_equal(total, block(full, goal, device))
    return [step.op for step in steps]


@st.composite
def layouts(draw: st.DrawFn, pending: bool = True) -> Layout:
    places: dict[int, list[str]] = {0: [], 1: []}
    sums = []
    for axis in draw(st.permutations(list(MESH))):
        where = draw(st.sampled_from([0, 1, "whole", "sum"] if pending else [0, 1, "whole"]))
        if where in (0, 1):
            places[where].append(axis)
        elif where == "sum":
            sums.append(axis)
    dims = tuple((Part(tuple(axes)),) for axes in places.values())
    return Layout(dims, tuple(("sum", axis) for axis in MESH if axis in sums))


@given(layouts(), layouts())
@settings(max_examples=250, deadline=None)
def test_any_layout_to_any_other(now: Layout, goal: Layout) -> None:
    check(now, goal)


@given(layouts(pending=False), st.sampled_from(list(MESH)), st.booleans())
@settings(max_examples=60, deadline=None)
def test_a_split_inside_a_dim(layout: Layout, axis: str, gather: bool) -> None:
    if axis in layout.split_axes() or len(layout.dims[0][0].axes) > 1:
        return
    outer = Part(layout.dims[0][0].axes, 6)
    inside = Layout(((outer, Part((axis,), 4)), layout.dims[1]))
    if axis != "b":
        check(inside, layout) if gather else check(layout, inside)


@st.composite
def factored(draw: st.DrawFn) -> Layout:
    """Dim 0 is 2 x 3 x 2 x 2, and axes split some of these factors; neighbours that nothing splits are one."""
    fine = (2, 3, 2, 2)
    axes: list[tuple[str, ...]] = [() for _ in fine]
    rows: list[str] = []
    for axis in draw(st.permutations(list(MESH))):
        fits = [n for n, size in enumerate(fine) if size == MESH[axis] and not axes[n]]
        where = draw(st.sampled_from([*fits, "dim 1", "whole"]))
        if isinstance(where, int):
            axes[where] = (axis,)
        elif where == "dim 1":
            rows.append(axis)
    return Layout((tuple(map(Part, axes, fine)), (Part(tuple(rows)),))).canonical()


@given(factored(), factored())
@settings(max_examples=250, deadline=None)
def test_dims_of_several_factors(now: Layout, goal: Layout) -> None:
    check(now, goal)


def test_factors_that_depend_on_the_batch() -> None:
    B = affine(1, 0)
    merged = (Part((), 64 * B), Part(("c",), 2))
    apart = (Part(("a",), B), Part((), 64), Part(("c",), 2))
    assert [step.op for step in reshard(Layout((merged,)), Layout((apart,)), list(MESH))] == ["slice"]
    assert [step.op for step in reshard(Layout((apart,)), Layout((merged,)), list(MESH))] == ["all_gather"]
    with pytest.raises(ValueError, match="factor the dim differently"):
        _aligned((Part(("a",), 6), Part(("c",), 4)), (Part(("a",), 4), Part(("c",), 6)))


@pytest.mark.parametrize(
    ("now", "goal", "ops"),
    [
        (("", "", "a"), ("a", "", ""), ["reduce_scatter"]),
        (("", "", "a"), ("", "", ""), ["all_reduce"]),
        (("a", "", ""), ("", "a", ""), ["all_to_all"]),
        (("a", "", "b"), ("", "b", ""), ["reduce_scatter", "all_gather"]),
        (("", "", ""), ("a", "b", ""), ["slice", "slice"]),
        (("ab", "", ""), ("a", "b", ""), ["all_to_all"]),
        (("", "", "ab"), ("ba", "", ""), ["reduce_scatter", "reduce_scatter"]),
    ],
)
def test_the_cheapest_collectives_are_chosen(now, goal, ops) -> None:
    def layout(spec: tuple[str, str, str]) -> Layout:
        return Layout(((Part(tuple(spec[0])),), (Part(tuple(spec[1])),)), tuple(("sum", axis) for axis in spec[2]))

    assert check(layout(now), layout(goal)) == ops


def test_tensor_axes_are_the_fastest_that_fit() -> None:
    assert axes_of(2, {"a": 2, "b": 2}) == ("b",)
    assert axes_of(3, {"a": 3, "b": 2}) == ("a",)
    assert axes_of(1, MESH) == ()
    assert axes_of(prod(MESH.values()), MESH) == ("a", "b", "c")


def test_a_shard_takes_a_whole_dim_before_one_that_tensor_axes_split() -> None:
    tensor = Layout(((Part(("c",)),), (Part(),)))
    assert str(split_over_data((24, 36), tensor, ("a", "b"), MESH)) == "@[c, a*b]"
    assert str(split_over_data((24, 35), tensor, ("a", "b"), MESH)) == "@[c*a*b, _]"
    assert split_over_data((7, 35), Layout.replicated(2), ("a",), MESH) == Layout.replicated(2)
