"""Sharding rules: how the dims of an op's operands and results are tied, factor by factor.

    #rule<b s k, n k -> b s n | sum k | linear 0 | linear 1>

Each tensor operand and each result lists its dims; a dim is one factor, a group `(h d)` of factors (major to
minor), or `1` (a dim of size one that is tied to nothing).  `none` stands for an absent operand.  An op may run on
shards when ONE factor is split over an axis: operands and results that carry the factor are split in it, the
others are whole.  A result that does not carry a split factor is, by the clause that names the factor,
    sum F     pending sum (F is contracted)          max F    pending max
    copy F    whole and equal on every device
    keep F    F cannot be split at all
    offset F  F may be split, and the local op must know the offset of its slice (embedding tables, class indices)
    route R = F G   a choice of its own, R: F and G are split over the axis TOGETHER, each where it is, and the op
              itself exchanges between the devices what belongs together (tokens that are split, and experts that are)
`linear 0 2` says that the op is linear in operands 0 and 2 taken together: when exactly these are pending sums over
an axis, and the other operands are complete, every result is a pending sum too (`linear 0 | linear 1`: in either
one).  `size` gives the sizes of factors that stand in groups.  The search and the lowering see factors only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from .affine import Dim

Dims = tuple[tuple[str, ...], ...]
"""For each dim its factors, major to minor; () is a dim written `1`."""


@dataclass(frozen=True, slots=True)
class Rule:
    """operands: one Dims per flat tensor operand, None where absent.  reduce: factor -> "sum" | "max" | "copy"."""

    operands: tuple[Dims | None, ...]
    results: tuple[Dims, ...]
    reduce: tuple[tuple[str, str], ...] = ()
    keep: tuple[str, ...] = ()
    offset: tuple[str, ...] = ()
    linear: tuple[tuple[int, ...], ...] = ()
    sizes: tuple[tuple[str, Dim], ...] = field(default=())
    route: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def __post_init__(self) -> None:
        kinds = ("sum", "max", "copy")  # the order of the clauses in the text: one rule has one spelling
        object.__setattr__(self, "reduce", tuple(sorted(self.reduce, key=lambda pair: kinds.index(pair[1]))))

    def factors(self) -> tuple[str, ...]:
        """Every factor, in order of first appearance."""
        return tuple(dict.fromkeys(self._walk()))

    def split_by(self, choice: str) -> tuple[str, ...]:
        """The factors that a choice splits: the factor itself, or those of a route."""
        return next((factors for name, factors in self.route if name == choice), (choice,))

    def _walk(self) -> Iterator[str]:
        for dims in (*self.operands, *self.results):
            for group in dims or ():
                yield from group

    def __str__(self) -> str:
        def tensor(dims: Dims | None) -> str:
            if dims is None:
                return "none"
            if not dims:
                return "[]"
            return " ".join("1" if not g else g[0] if len(g) == 1 else "(" + " ".join(g) + ")" for g in dims)

        text = ", ".join(map(tensor, self.operands)) + " -> " + ", ".join(map(tensor, self.results))
        for kind in ("sum", "max", "copy"):
            names = [f for f, k in self.reduce if k == kind]
            if names:
                text += f" | {kind} " + " ".join(names)
        if self.keep:
            text += " | keep " + " ".join(self.keep)
        if self.offset:
            text += " | offset " + " ".join(self.offset)
        for name, factors in self.route:
            text += f" | route {name} = {' '.join(factors)}"
        for positions in self.linear:
            text += " | linear " + " ".join(map(str, positions))
        if self.sizes:
            text += " | size " + " ".join(f"{f}={size}" for f, size in self.sizes)
        return f"#rule<{text.strip()}>"
