"""Cutting tensors into pieces and putting them together.

A dim that is split over n ranks with `outer` blocks is seen as [outer, n, rest]: rank i has [:, i, :].
`slices` of a parameter are per dim a list of parts [size, start, stop], major to minor (docs/bundle.md):
    [[8, 0, 8], [512, 0, 256]]      of a dim of 4096 = 8 * 512 the first half of each of the 8 runs
"""

from __future__ import annotations

from math import prod

import torch

Slices = list[list[list[int]]]


def normalize(dim: int, rank: int) -> int:
    if not -rank <= dim < rank:
        raise ValueError(f"dim {dim} of a tensor with {rank} dims")
    return dim % rank


def split(x: torch.Tensor, parts: int, dim: int, outer: int = 1) -> torch.Tensor:
    """[parts, *local shape]: piece i is what rank i holds.  A view where strides allow it."""
    dim = normalize(dim, x.dim())
    size = x.shape[dim]
    if size % (outer * parts):
        raise ValueError(f"dim {dim} of {list(x.shape)} does not divide into {outer} x {parts} parts")
    before, after = x.shape[:dim], x.shape[dim + 1 :]
    pieces = x.reshape(*before, outer, parts, size // (outer * parts), *after).movedim(dim + 1, 0)
    return pieces.reshape(parts, *before, size // parts, *after)


def join(pieces: torch.Tensor, dim: int, outer: int = 1) -> torch.Tensor:
    """The inverse of split."""
    parts, local = pieces.shape[0], pieces.shape[1:]
    dim = normalize(dim, len(local))
    if local[dim] % outer:
        raise ValueError(f"dim {dim} of {list(local)} does not divide into {outer} blocks")
    before, after = local[:dim], local[dim + 1 :]
    stacked = pieces.reshape(parts, *before, outer, local[dim] // outer, *after).movedim(0, dim + 1)
    return stacked.reshape(*before, parts * local[dim], *after)


def take(x: torch.Tensor, parts: int, index: int, dim: int, outer: int = 1) -> torch.Tensor:
    """Piece `index` alone, contiguous only if it must be copied."""
    dim = normalize(dim, x.dim())
    size = x.shape[dim]
    if size % (outer * parts):
        raise ValueError(f"dim {dim} of {list(x.shape)} does not divide into {outer} x {parts} parts")
    step = size // (outer * parts)
    if outer == 1:
        return x.narrow(dim, index * step, step)
    before, after = x.shape[:dim], x.shape[dim + 1 :]
    blocks = x.reshape(*before, outer, parts * step, *after).narrow(dim + 1, index * step, step)
    return blocks.reshape(*before, outer * step, *after)


def full_shape(slices: Slices) -> list[int]:
    return [prod(size for size, _, _ in dim) for dim in slices]


def local_shape(slices: Slices) -> list[int]:
    return [prod(stop - start for _, start, stop in dim) for dim in slices]


def region(full: torch.Tensor, slices: Slices) -> torch.Tensor:
    """A view of `full` (contiguous) with one dim per part: the piece that the slices describe."""
    if list(full.shape) != full_shape(slices):
        raise ValueError(f"slices of a tensor {full_shape(slices)} used on one of shape {list(full.shape)}")
    parts = [part for dim in slices for part in dim]
    view = full.view([size for size, _, _ in parts])
    return view[tuple(slice(start, stop) for _, start, stop in parts)]


def read(full: torch.Tensor, slices: Slices) -> torch.Tensor:
    """A fresh contiguous tensor with the piece."""
    return region(full, slices).reshape(local_shape(slices)).clone(memory_format=torch.contiguous_format)


def extents(slices: Slices) -> list[int]:
    """The shape of `region`."""
    return [stop - start for dim in slices for _, start, stop in dim]


def without_padding(slices: Slices, shape: list[int]) -> Slices:
    """The part of the piece that lies within `shape`; a dim that is padded is split in one part at most."""
    result: Slices = []
    for dim, size in zip(slices, shape, strict=True):
        if full_shape([dim]) == [size]:
            result.append(dim)
            continue
        ((_, start, stop),) = dim
        result.append([[size, min(start, size), min(stop, size)]])
    return result
