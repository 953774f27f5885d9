"""One list of factors per dim: common refinement of the ways in which ops look at the same dim.

A view of `[64, 512]` as `[64, 8, 64]` looks at the second dim as 8 x 64; every other op that reads or writes this
dim, or a dim tied to it, must then spell it `(8 64)` too, so that a split of the 8 means the same everywhere.

Every dim of every value and every factor of every op's rule is a NODE.  A node's POINTS are the places where it is
cut: cumulative products from the minor side, `(8 64)` has the point 64.  A tie says that a dim is the product of
some factors; points travel along ties until nothing changes.  The points of a node must form a chain (each divides
the next), otherwise the tie that brought the last one is refused (`Conflict`) and everything is as before it.

Sizes that depend on the batch take part at B = PRIME, so the arithmetic is that of ints; `as_dim` goes back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import gcd, lcm

from uniap_compiler.ir import Dim, affine, at

PRIME = 2**61 - 1


class Conflict(Exception):
    """The points of one node do not divide each other."""


def as_int(dim: Dim) -> int:
    """The size at B = PRIME."""
    return at(dim, PRIME)


def as_dim(size: int) -> Dim:
    """The inverse of `as_int`, for coefficients and offsets far below PRIME."""
    coef = (size + PRIME // 2) // PRIME
    return affine(coef, size - coef * PRIME)


def chain(points: Iterable[int], size: int) -> tuple[int, ...]:
    """The points between 1 and `size`, in order.  Raises Conflict unless each divides the next."""
    result = tuple(sorted({p for p in points if 1 < p < size}))
    for low, high in zip(result, (*result[1:], size)):
        if high % low:
            raise Conflict(f"{low} does not divide {high}")
    return result


def common_cuts(left: Sequence[int], right: Sequence[int]) -> list[tuple[int, int, bool]]:
    """Where two shapes of the same elements (major to minor, equal products) are cut, from the minor side.

    Each entry (low, high, shared) is the factor high / low between two cumulative products.  Shared factors mean the
    same in both shapes; the others are cut in ways that do not agree.
    [64, 512] and [64, 8, 64]: (1, 64, True), (64, 512, True), (512, 32768, True).
    [B, 4, 6] and [B, 6, 4]:   (1, 2, True), (2, 12, False), (12, 24, True), (24, 24*B, True).
    """
    cuts = []
    for sizes in (left, right):
        product, points = 1, {1}
        for size in reversed(sizes):
            product *= size
            points.add(product)
        cuts.append(points)
    both = sorted(cuts[0] & cuts[1])
    result = []
    for low, high in zip(both, both[1:]):
        inner = [p for p in cuts[0] | cuts[1] if low < p < high]
        try:
            chain([p // low for p in inner], high // low)
            ends = [low, *sorted(inner), high]
            result += [(a, b, True) for a, b in zip(ends, ends[1:])]
        except Conflict:
            # Both sides still agree on what lies below the greatest common divisor of the places that do not match,
            # and above their least common multiple.
            under, over = gcd(*inner), lcm(*inner)
            over = over if high % over == 0 else high
            ends = [low, under, over, high]
            result += [(a, b, (a, b) != (under, over)) for a, b in zip(ends, ends[1:]) if a < b]
    return result


class Refinement:
    """Nodes, their points, and the ties between dims and factors."""

    __slots__ = ("sizes", "points", "_links", "_journal", "_queue")

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.points: list[tuple[int, ...]] = []
        self._links: list[list[tuple[int, int, bool]]] = []  # (other node, scale, the other node is a factor of this)
        self._journal: list[tuple[int, tuple[int, ...]]] = []
        self._queue: list[int] = []

    def node(self, size: int) -> int:
        self.sizes.append(size)
        self.points.append(())
        self._links.append([])
        return len(self.sizes) - 1

    def tie(self, ties: Iterable[tuple[int, Sequence[int]]]) -> None:
        """Each dim is the product of factors, major to minor.  All ties or, with Conflict, none."""
        linked: list[int] = []
        self._journal.clear()
        try:
            for dim, factors in ties:
                scale = 1
                for factor in reversed(factors):
                    self._links[dim].append((factor, scale, True))
                    self._links[factor].append((dim, scale, False))
                    linked += [dim, factor]
                    if scale > 1:
                        self._add(dim, (scale,))
                    scale *= self.sizes[factor]
                self._queue += [dim, *factors]
            self._run()
        except Conflict:
            self._queue.clear()
            for node in reversed(linked):
                self._links[node].pop()
            for node, points in reversed(self._journal):
                self.points[node] = points
            raise

    def atoms(self, node: int) -> list[int]:
        """The sizes into which a node is cut, major to minor; none for a size of one."""
        if self.sizes[node] == 1:
            return []
        cuts = (1, *self.points[node], self.sizes[node])
        return [high // low for low, high in zip(cuts, cuts[1:])][::-1]

    def equal(self, starts: Iterable[int], groups: Iterable[set[int]] = ()) -> set[int]:
        """Every node that is tied, directly or not, to one of `starts` as a whole, not as a part of a product.

        The nodes of each of `groups` count as tied to each other.
        """
        joined: dict[int, set[int]] = {}
        for group in groups:
            for node in group:
                joined.setdefault(node, set()).update(group)
        found = set(starts)
        stack = list(found)
        while stack:
            node = stack.pop()
            same = {other for other, _, _ in self._links[node] if self.sizes[other] == self.sizes[node]}
            for other in same | joined.get(node, set()):
                if other not in found:
                    found.add(other)
                    stack.append(other)
        return found

    def _add(self, node: int, points: Iterable[int]) -> None:
        old = self.points[node]
        new = chain((*old, *points), self.sizes[node])
        if new != old:
            self._journal.append((node, old))
            self.points[node] = new
            self._queue.append(node)

    def _run(self) -> None:
        while self._queue:
            node = self._queue.pop()
            for other, scale, down in list(self._links[node]):
                if down:
                    top = scale * self.sizes[other]
                    self._add(other, [p // scale for p in self.points[node] if scale < p < top])
                else:
                    self._add(other, [p * scale for p in self.points[node]])
