"""Pooling and resampling: leading dims (batch, channels) are free, windows keep the spatial dims whole."""

from __future__ import annotations

from uniap_compiler.ir import Op, Rule

from .spell import spell
from .table import rule

FORWARD = (
    "aten.avg_pool2d", "aten._adaptive_avg_pool2d", "aten.upsample_nearest2d", "aten.upsample_bilinear2d",
    "aten.upsample_nearest2d_backward", "aten.upsample_bilinear2d_backward", "aten.reflection_pad2d",
)  # fmt: skip


@rule(*FORWARD)
def linear_pool(op: Op) -> Rule:
    return spell(op, "b* h w -> b* y x | keep h w y x | linear 0")


@rule("aten.max_pool2d_with_indices", "aten.adaptive_max_pool2d")
def max_pool(op: Op) -> Rule:
    """The indices count inside one channel, so they are the same on shards."""
    return spell(op, "b* h w -> " + ", ".join("b* y x" for _ in op.results) + " | keep h w y x")


@rule("aten.avg_pool2d_backward", "aten._adaptive_avg_pool2d_backward")
def avg_pool_backward(op: Op) -> Rule:
    return spell(op, "b* y x, b* h w -> b* h w | keep h w y x | linear 0")


@rule("aten.max_pool2d_with_indices_backward", "aten.adaptive_max_pool2d_backward")
def max_pool_backward(op: Op) -> Rule:
    """gradient, input, indices"""
    return spell(op, "b* y x, b* h w, b* y x -> b* h w | keep h w y x | linear 0")
