"""How a tensor is spread over the axes of a mesh: `@[a*b, _, c; sum d]`.

Per dim the axes that split it (major to minor); after `;` the axes over which the value is pending, that is, the
true value is the sum (or max) of what the devices along the axis hold.  Axes that are not named hold equal copies.

A dim made of several factors may be split inside: `(_:8 c:512)` is a dim of 8*512 elements whose minor factor is
split over c, so each device holds 8 runs.  `canonical` spells every layout in one way only; `(a:8 _:512)` is `a`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .affine import Affine, Dim, at

Axes = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """One factor of a dim: its size (None when it is the whole dim) and the axes that split it."""

    axes: Axes = ()
    size: Dim | None = None

    def __str__(self) -> str:
        axes = "*".join(self.axes) or "_"
        return axes if self.size is None else f"{axes}:{self.size}"


DimLayout = tuple[Part, ...]
WHOLE: DimLayout = (Part(),)


def split_by(*axes: str) -> DimLayout:
    """A dim split contiguously over `axes`, major to minor."""
    return (Part(axes),)


def canonical_dim(parts: Iterable[Part]) -> DimLayout:
    """Merge parts that are not split into their more major neighbour; a split of the major part only is contiguous."""
    merged: list[Part] = []
    for part in parts:
        if part.size == 1 and not part.axes:
            continue
        if merged and not part.axes and not merged[-1].axes:
            merged[-1] = Part((), _times(merged[-1].size, part.size))
        else:
            merged.append(part)
    if len(merged) == 2 and not merged[1].axes:
        merged.pop()
    if len(merged) <= 1:
        return (Part(merged[0].axes),) if merged else WHOLE
    return tuple(merged)


def _times(a: Dim | None, b: Dim | None) -> Dim:
    assert a is not None and b is not None, "a part of several needs a size"
    if isinstance(a, Affine) and isinstance(b, Affine):
        raise ValueError("a dim has two factors that depend on the batch")
    return a * b if isinstance(a, Affine) else b * a


@dataclass(frozen=True, slots=True)
class Layout:
    """dims: one DimLayout per dim.  pending: (kind, axis) pairs, kind "sum" or "max", in mesh order."""

    dims: tuple[DimLayout, ...]
    pending: tuple[tuple[str, str], ...] = field(default=())

    @classmethod
    def replicated(cls, rank: int) -> Layout:
        return cls((WHOLE,) * rank)

    def split_axes(self) -> Axes:
        """Every axis that splits some dim."""
        return tuple(axis for dim in self.dims for part in dim for axis in part.axes)

    def pending_axes(self) -> Axes:
        return tuple(axis for _, axis in self.pending)

    def canonical(self) -> Layout:
        return Layout(tuple(canonical_dim(dim) for dim in self.dims), self.pending)

    def renamed(self, names: Mapping[str, str]) -> Layout:
        """The same layout over other axis names."""
        dims = tuple(tuple(Part(tuple(names.get(a, a) for a in p.axes), p.size) for p in dim) for dim in self.dims)
        return Layout(dims, tuple((kind, names.get(a, a)) for kind, a in self.pending))

    def local_shape(self, shape: tuple[Dim, ...], mesh: Mapping[str, int], batch: int) -> tuple[int, ...]:
        """The shape that one device holds.  mesh: axis -> size.  Raises ValueError where a split does not divide."""
        result = []
        for size, dim in zip(shape, self.dims, strict=True):
            length = at(size, batch)
            for part in dim:
                whole = length if part.size is None else at(part.size, batch)
                parts = 1
                for axis in part.axes:
                    parts *= mesh[axis]
                if whole % parts:
                    raise ValueError(f"a size of {whole} does not divide over {'*'.join(part.axes)} ({parts} devices)")
                length //= parts
            result.append(length)
        return tuple(result)

    def __str__(self) -> str:
        def show(dim: DimLayout) -> str:
            return str(dim[0]) if len(dim) == 1 else "(" + " ".join(map(str, dim)) + ")"

        text = ", ".join(map(show, self.dims))
        if self.pending:
            text += ("; " if text else ";") + ", ".join(f"{kind} {axis}" for kind, axis in self.pending)
        return f"@[{text}]"
