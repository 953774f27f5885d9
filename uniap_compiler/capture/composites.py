"""Single ops out of simpler ones that have a sharding rule already.

    aten.glu(x)                  ->  aten.slice twice, aten.sigmoid, aten.mul
    aten.linalg_vector_norm(x)   ->  aten.mul, aten.sum, aten.where, aten.sqrt
    aten.pixel_shuffle(x)        ->  aten.view, aten.permute, aten.view

A function may answer NotImplemented: the kernel then stays.  Derivatives are those of torch, also at zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Optional

import torch
from torch import Tensor

from .precision import total, wide

aten = torch.ops.aten


def glu(x: Tensor, dim: int = -1) -> Tensor:
    a, b = x.chunk(2, dim)
    return a * b.sigmoid()


def vector_norm(x: Tensor, p: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """Zero, with the gradient zero, where all entries are zero."""
    x = x if dtype is None else x.to(dtype)
    dims = list(range(x.dim())) if dim is None or dim == [] else [dim] if isinstance(dim, int) else list(dim)
    if not x.is_floating_point() or isinstance(p, complex) or not dims or p < 1:
        return NotImplemented
    if p == 1:
        return total(x.abs(), dims, keepdim).to(x.dtype)
    if p == math.inf:
        return x.abs().amax(dims, keepdim)
    y = wide(x)
    powers = (y * y if p == 2 else y.abs().pow(p)).sum(dims, keepdim)
    none = powers == 0
    safe = powers.masked_fill(none, 1.0)
    return (safe.sqrt() if p == 2 else safe.pow(1.0 / p)).masked_fill(none, 0.0).to(x.dtype)


def norm(x: Tensor, p: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    return vector_norm(x, 2 if p is None else p, dim, keepdim, dtype=dtype)


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    """v scaled to the lengths g of its slices along `dim`."""
    length = vector_norm(v, 2, [d for d in range(v.dim()) if d != dim % v.dim()], True)
    return v * (g / length), length


def bilinear(a: Tensor, b: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    y = torch.einsum("...oj,...j->...o", torch.einsum("...i,oij->...oj", a, weight), b)
    return y if bias is None else y + bias


def index_put(x: Tensor, indices: Sequence[Optional[Tensor]], values: Tensor, accumulate: bool = False) -> Tensor:
    """x[mask] = number: a choice per element, which says nothing about how many there are."""
    mask = indices[0] if len(indices) == 1 else None
    if mask is None or mask.dtype != torch.bool or values.numel() != 1 or accumulate:
        return NotImplemented
    mask = mask.view(*mask.shape, *[1] * (x.dim() - mask.dim()))
    return torch.where(mask, values.view(()).to(x.dtype), x)


def affine_grid(theta: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """[b, 2, 3] or [b, 3, 4] -> the places [b, (depth), height, width, 2 or 3] that every output element reads."""
    axes = []
    for n in size[2:]:
        axis = (2 * torch.arange(n, device=theta.device, dtype=theta.dtype) + (1 - n)) / max(n - 1, 1)
        axes.append(axis if align_corners else axis * ((n - 1) / n))
    places = torch.meshgrid(*axes, indexing="ij")[::-1]
    grid = torch.stack([*places, torch.ones_like(places[0])], -1).view(-1, len(axes) + 1)
    return torch.einsum("bij,pj->bpi", theta, grid).view(size[0], *size[2:], len(axes))


def addbmm(x: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    y = torch.einsum("bmk,bkn->mn", a, b)
    return x * beta + y * alpha


def addr(x: Tensor, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    return x * beta + a.unsqueeze(-1) * b * alpha


def pixel_shuffle(x: Tensor, r: int) -> Tensor:
    *outer, c, h, w = x.shape
    n = len(outer)
    y = x.view(*outer, c // (r * r), r, r, h, w)
    return y.permute(*range(n), n, n + 3, n + 1, n + 4, n + 2).reshape(*outer, c // (r * r), h * r, w * r)


def pixel_unshuffle(x: Tensor, r: int) -> Tensor:
    *outer, c, h, w = x.shape
    n = len(outer)
    y = x.view(*outer, c, h // r, r, w // r, r)
    return y.permute(*range(n), n, n + 2, n + 4, n + 1, n + 3).reshape(*outer, c * r * r, h // r, w // r)


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    n, c, *spatial = x.shape
    return x.view(n, groups, c // groups, *spatial).transpose(1, 2).reshape(x.shape)


def rot90(x: Tensor, k: int = 1, dims: Sequence[int] = (0, 1)) -> Tensor:
    a, b = dims
    if k % 4 == 2:
        return x.flip([a, b])
    if k % 4 == 0:
        return x.clone()
    return x.flip([b]).transpose(a, b) if k % 4 == 1 else x.transpose(a, b).flip([b])


def pad(x: Tensor, amounts: Sequence[int], mode: str = "constant", value: Optional[float] = None) -> Tensor:
    """Around the corner: the end comes before the beginning.  Other modes are kernels."""
    if mode != "circular" or min(amounts) < 0:
        return NotImplemented
    for i in range(len(amounts) // 2):
        dim, before, after = x.dim() - 1 - i, amounts[2 * i], amounts[2 * i + 1]
        size = x.shape[dim]
        parts = [x.narrow(dim, size - before, before)] * (before > 0) + [x] + [x.narrow(dim, 0, after)] * (after > 0)
        x = torch.cat(parts, dim) if len(parts) > 1 else x
    return x


COMPOSITES: dict[Any, Callable[..., Any]] = {
    aten.glu.default: glu,
    aten.linalg_vector_norm.default: vector_norm,
    aten.norm.Scalar: norm,
    aten.norm.ScalarOpt_dim: norm,
    aten.norm.ScalarOpt_dim_dtype: norm,
    aten._weight_norm_interface.default: weight_norm,
    aten.bilinear.default: bilinear,
    aten.addbmm.default: addbmm,
    aten.addr.default: addr,
    aten.index_put.default: index_put,
    aten.affine_grid_generator.default: affine_grid,
    aten.pixel_shuffle.default: pixel_shuffle,
    aten.pixel_unshuffle.default: pixel_unshuffle,
    aten.channel_shuffle.default: channel_shuffle,
    aten.rot90.default: rot90,
    aten.pad.default: pad,
}
