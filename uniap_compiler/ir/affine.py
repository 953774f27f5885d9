"""Integers that may depend on the batch: `coef * B + offset`.

A func is written for a symbolic batch B (the micro-batch that it is finally evaluated at).  Sizes that do not
depend on it are plain ints; `affine` never returns an Affine with coefficient zero, so `isinstance(d, Affine)`
asks "does this depend on the batch?".  Text: `B`, `2*B`, `2*B+1`, `B-1`; a float literal that falls with the
batch (the 1/(B*S) of a mean's gradient) is an inverse, text `1/(64*B)`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Union


@dataclass(frozen=True, slots=True)
class Affine:
    """`coef * B + offset`; with `inverse`, the float `1 / (coef * B + offset)`."""

    coef: int
    offset: int = 0
    inverse: bool = False

    def at(self, batch: int) -> int | float:
        value = self.coef * batch + self.offset
        return 1.0 / value if self.inverse else value

    def __mul__(self, other: object) -> Dim:
        if not isinstance(other, int) or self.inverse:
            return NotImplemented
        return affine(self.coef * other, self.offset * other)

    __rmul__ = __mul__

    def __str__(self) -> str:
        text = "B" if self.coef == 1 else f"{self.coef}*B"
        if self.offset:
            text += f"{self.offset:+d}"
        return f"1/({text})" if self.inverse else text


Dim = Union[int, Affine]

_PATTERN = re.compile(r"^(?:(-?\d+)\*)?B([+-]\d+)?$")


def affine(coef: int, offset: int = 0) -> Dim:
    """`coef * B + offset`, a plain int when it does not depend on B."""
    return Affine(coef, offset) if coef else offset


def parse_dim(text: str) -> Dim:
    """The inverse of str(): "512", "B", "2*B+1", "1/(64*B)".  Raises ValueError."""
    if text.startswith("1/(") and text.endswith(")"):
        inner = parse_dim(text[3:-1])
        if not isinstance(inner, Affine):
            raise ValueError(f"not an inverse of the batch: {text!r}")
        return Affine(inner.coef, inner.offset, inverse=True)
    match = _PATTERN.match(text)
    if match is None:
        return int(text)
    return affine(int(match[1] or 1), int(match[2] or 0))


def at(dim: Dim, batch: int) -> int:
    """The size for one batch."""
    return dim.coef * batch + dim.offset if isinstance(dim, Affine) else dim


def divide(dim: Dim, parts: int) -> Dim:
    """One of `parts` equal parts.  Raises ValueError when the size does not divide (`B` alone always may)."""
    if isinstance(dim, Affine):
        raise ValueError(f"the batch-dependent size {dim} is divided by evaluating it at the local batch")
    if dim % parts:
        raise ValueError(f"{dim} does not divide into {parts} parts")
    return dim // parts
