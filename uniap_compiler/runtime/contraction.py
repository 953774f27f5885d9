"""nn.contract: an einsum of two tensors, turned into the one matmul call that moves no data.

    contract(x, w, equation="b s k, n k -> b s n")         F.linear
    contract(g, w, equation="b s n, n k -> b s k")         one GEMM
    contract(g, x, equation="b s n, b s k -> n k")         one GEMM over b*s
    contract(q, k, equation="b h s d, b h t d -> b h s t") bmm

Names are separated by blanks and may be words.  The plan of an equation is made once; calling it only views,
multiplies and views back, with a copy where the strides leave no other way.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import prod

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class _Operand:
    """How one operand becomes [batch, rows, contracted] or, with `swapped`, [batch, contracted, rows]."""

    summed: tuple[int, ...]  # dims that only this operand has and the result lacks
    order: tuple[int, ...] | None  # permutation of the remaining dims to (batch, two groups); None: as they are
    batch: int  # how many dims are batch dims
    first: int  # how many dims the first of the two groups has
    swapped: bool


@dataclass(frozen=True)
class _Plan:
    a: _Operand
    b: _Operand
    linear: bool  # both operands and the result are exactly F.linear's
    b_first: bool  # the result is [batch, rows of b, rows of a]
    order: tuple[int, ...] | None  # permutation from the result's natural order to the wanted one


@cache
def plan(equation: str) -> _Plan:
    try:
        left, right = equation.split("->")
        a, b = (tuple(term.split()) for term in left.split(","))
        out = tuple(right.split())
    except ValueError:
        raise ValueError(f"not an equation of two terms: {equation!r}") from None
    for term in (a, b, out):
        if len(set(term)) != len(term):
            raise ValueError(f"a name is repeated inside a term of {equation!r}")
    if not set(out) <= set(a) | set(b):
        raise ValueError(f"the result of {equation!r} has a name that no operand has")
    batch = tuple(n for n in out if n in a and n in b)
    rows_a = tuple(n for n in out if n in a and n not in b)
    rows_b = tuple(n for n in out if n in b and n not in a)
    kept_a, kept_b = (tuple(n for n in term if n in out or (n in a and n in b)) for term in (a, b))
    inner = tuple(n for n in kept_a if n in kept_b and n not in out)
    if set(kept_b) - set(batch) - set(inner) == set(rows_b):
        theirs = tuple(n for n in kept_b if n in inner)
        if theirs != inner and len(kept_b) < len(kept_a):
            pass  # the order of the larger operand wins: the smaller one is copied
        elif theirs != inner and len(kept_b) > len(kept_a):
            inner = theirs
    operand_a, operand_b = (_operand(term, batch, rows, inner) for term, rows in ((a, rows_a), (b, rows_b)))
    b_first = bool(rows_b) and out[len(batch) : len(batch) + len(rows_b)] == rows_b and bool(rows_a)
    natural = batch + (rows_b + rows_a if b_first else rows_a + rows_b)
    order = None if natural == out else tuple(natural.index(n) for n in out)
    linear = (
        not batch and a == kept_a == rows_a + inner and b == kept_b == rows_b + inner
        and len(rows_a) > 0 and len(inner) == 1 and len(rows_b) == 1 and order is None and not b_first
    )  # fmt: skip
    return _Plan(operand_a, operand_b, linear, b_first, order)


def _operand(term: tuple[str, ...], batch: tuple[str, ...], rows: tuple[str, ...], inner: tuple[str, ...]) -> _Operand:
    summed = tuple(i for i, n in enumerate(term) if n not in batch + rows + inner)
    kept = tuple(n for n in term if n in batch + rows + inner)
    swapped = bool(inner) and bool(rows) and kept == batch + inner + rows
    wanted = batch + (inner + rows if swapped else rows + inner)
    order = None if kept == wanted else tuple(kept.index(n) for n in wanted)
    return _Operand(summed, order, len(batch), len(inner) if swapped else len(rows), swapped)


def _matrix(x: torch.Tensor, how: _Operand) -> tuple[torch.Tensor, tuple[int, ...], tuple[int, ...]]:
    """x as [batch, rows, contracted] (batch only when there is one), the batch sizes and the sizes of its rows."""
    if how.summed:
        x = x.sum(how.summed)
    if how.order is not None:
        x = x.permute(how.order)
    batch = tuple(x.shape[: how.batch])
    first = tuple(x.shape[how.batch : how.batch + how.first])
    second = tuple(x.shape[how.batch + how.first :])
    shape = ([prod(batch)] if how.batch else []) + [prod(first), prod(second)]
    x = x.reshape(shape)
    return (x.transpose(-1, -2), batch, second) if how.swapped else (x, batch, first)


def contract(a: torch.Tensor, b: torch.Tensor, *, equation: str) -> torch.Tensor:
    how = plan(equation)
    if how.linear:
        return F.linear(a, b)
    left, batch, rows_a = _matrix(a, how.a)
    right, _, rows_b = _matrix(b, how.b)
    if how.b_first:
        left, right, rows_a, rows_b = right, left, rows_b, rows_a
    result = torch.matmul(left, right.transpose(-1, -2))
    result = result.reshape(batch + rows_a + rows_b)
    return result if how.order is None else result.permute(how.order)
