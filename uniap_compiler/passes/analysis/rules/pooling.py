"""Pooling, resampling and padding: leading dims (batch, channels) are free, windows keep the spatial dims whole.

The names of these ops end in the number of spatial dims: `aten.max_pool2d_with_indices`, `aten.upsample_linear1d`.
"""

from __future__ import annotations

import re
from math import inf

from uniap_compiler.ir import Op, Rule

from .norm import results
from .spell import spell
from .table import rule

POOLS = ("aten.avg_pool2d", "aten.avg_pool3d", "aten._adaptive_avg_pool2d", "aten._adaptive_avg_pool3d")
MAX_POOLS = (
    "aten.max_pool2d_with_indices", "aten.max_pool3d_with_indices", "aten.adaptive_max_pool2d",
    "aten.adaptive_max_pool3d",
)  # fmt: skip
PADS = tuple(f"aten.{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3))
UPSAMPLES = (
    *(f"aten.{kind}{n}d" for kind in ("upsample_nearest", "_upsample_nearest_exact") for n in (1, 2, 3)),
    "aten.upsample_linear1d", "aten.upsample_bilinear2d", "aten.upsample_bicubic2d", "aten.upsample_trilinear3d",
    "aten._upsample_bilinear2d_aa", "aten._upsample_bicubic2d_aa",
)  # fmt: skip
UPSAMPLES_BACKWARD = tuple(f"{name}_backward" for name in UPSAMPLES)


def _spatial(op: Op) -> tuple[str, str]:
    """The terms of the spatial dims, larger and smaller: `h0 h1`, `y0 y1`."""
    found = re.search(r"(\d)d", op.name)
    assert found is not None
    count = int(found[1])
    return " ".join(f"h{i}" for i in range(count)), " ".join(f"y{i}" for i in range(count))


@rule(*POOLS, *PADS, *UPSAMPLES, *UPSAMPLES_BACKWARD)
def linear_pool(op: Op) -> Rule:
    before, after = _spatial(op)
    return spell(op, f"b* {before} -> b* {after} | keep h* y* | linear 0")


@rule(*MAX_POOLS)
def max_pool(op: Op) -> Rule:
    """The indices count inside one channel, so they are the same on shards."""
    before, after = _spatial(op)
    return spell(op, f"b* {before} -> " + ", ".join(f"b* {after}" for _ in op.results) + " | keep h* y*")


@rule(*(f"{name}_backward" for name in (*POOLS, *PADS)))
def pool_backward(op: Op) -> Rule:
    """gradient, input"""
    before, after = _spatial(op)
    return spell(op, f"b* {after}, b* {before} -> b* {before} | keep h* y* | linear 0")


@rule(*(f"{name}_backward" for name in MAX_POOLS))
def max_pool_backward(op: Op) -> Rule:
    """gradient, input, indices"""
    before, after = _spatial(op)
    return spell(op, f"b* {after}, b* {before}, b* {after} -> b* {before} | keep h* y* | linear 0")


@rule("aten.grid_sampler_2d", "aten.grid_sampler_3d")
def grid_sampler(op: Op) -> Rule:
    """input, grid of places: every place reads the whole input."""
    before, after = _spatial_of_grid(op)
    return spell(op, f"b c {before}, b {after} t -> b c {after} | keep h* t | linear 0")


@rule("aten.grid_sampler_2d_backward", "aten.grid_sampler_3d_backward")
def grid_sampler_backward(op: Op) -> Rule:
    """gradient, input, grid -> dinput, dgrid"""
    before, after = _spatial_of_grid(op)
    grads = results(op, [f"b c {before}", f"b {after} t"])
    mask = op.attrs["output_mask"]
    assert isinstance(mask, (list, tuple))
    linear = "linear 0" if mask[0] else "linear 0 | linear 1"  # dgrid is linear in the input too
    absent = "" if all(mask) else " | copy b"  # of the empty tensor
    return spell(op, f"b c {after}, b c {before}, b {after} t -> {grads} | sum c y* | keep h* t z* | {linear}{absent}")


def _spatial_of_grid(op: Op) -> tuple[str, str]:
    count = 2 if "_2d" in op.name else 3
    return " ".join(f"h{i}" for i in range(count)), " ".join(f"y{i}" for i in range(count))


@rule("aten.im2col")
def im2col(op: Op) -> Rule:
    """[.., c, h, w] -> [.., c * kernel, places]: channels are free."""
    size = op.attrs["kernel_size"]
    assert isinstance(size, (list, tuple))
    kernel = int(size[0]) * int(size[-1])
    return spell(op, "b* c h w -> b* (c k) p | keep h w k p | linear 0", k=kernel, **_leading(op))


@rule("aten.col2im")
def col2im(op: Op) -> Rule:
    size = op.attrs["kernel_size"]
    assert isinstance(size, (list, tuple))
    kernel = int(size[0]) * int(size[-1])
    return spell(op, "b* (c k) p -> b* c h w | keep h w k p | linear 0", k=kernel, **_leading(op))


def _leading(op: Op) -> dict[str, int]:
    """How many dims come before the channels."""
    return {"b*": min(len(op.results[0].type.shape), len(_input(op))) - 2}


def _input(op: Op) -> tuple[object, ...]:
    value = op.flat_operands()[0]
    assert value is not None
    return value.type.shape


@rule("aten._cdist_forward")
def cdist(op: Op) -> Rule:
    kind = {1.0: "sum", inf: "max"}.get(float(op.attrs["p"]), "keep")  # type: ignore[arg-type]
    return spell(op, f"b* m d, b* n d -> b* m n | {kind} d")


@rule("aten._cdist_backward")
def cdist_backward(op: Op) -> Rule:
    """gradient, rows, other rows, distances -> gradient of the rows"""
    linear = "linear 0 | linear 1 2" if op.attrs["p"] == 2 else "linear 0"
    return spell(op, f"b* m n, b* m d, b* n d, b* m n -> b* m d | sum n | {linear}")
