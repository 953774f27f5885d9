"""Views: the same elements in another shape.  A reshape ties the two shapes by their common factors.

    [B, S, 512] -> [B, S, 8, 64]      b s (h d) -> b s h d
    [B*S, 512]  -> [B, S, 512]        (b s) h -> b s h
"""

from __future__ import annotations

from collections.abc import Sequence

from uniap_compiler.ir import Op, Rule

from ..factors import common_cuts
from .spell import Groups, make_rule, result_shape, shape_of, spell
from .table import opaque, rule


@rule("aten.view", "aten._unsafe_view", "aten.reshape")
def reshape(op: Op) -> Sequence[Rule]:
    if op.name == "aten.view.dtype":
        return [opaque(op)]
    source, target = shape_of(op, 0), result_shape(op)
    return [_reshape(op, source, target, fine=True), _reshape(op, source, target, fine=False)]


def _reshape(op: Op, source: list[int], target: list[int], fine: bool) -> Rule:
    """fine: cut dims where the other shape does.  Otherwise only dims that are equal on both sides are tied."""
    left: Groups = [() for _ in source]
    right: Groups = [() for _ in target]
    sizes: dict[str, int] = {}
    keep: list[str] = []

    def new(size: int, whole: bool = False) -> str:
        name = f"{'k' if whole else 'd'}{len(sizes)}"
        sizes[name] = size
        if whole:
            keep.append(name)
        return name

    for a, b in _runs(source, target):
        x, y = [source[i] for i in a], [target[j] for j in b]
        if fine or len(a) == len(b) == 1:
            cuts = common_cuts(x, y)
            shared = {(low, high): new(high // low) for low, high, same in cuts if same}
        else:
            cuts, shared = [], {}
        for groups, shape, dims in ((left, source, a), (right, target, b)):
            low = 1
            for i in reversed(dims):
                top = low * shape[i]
                inside = {p for cut in cuts for p in cut[:2] if low < p < top}
                ends = [low, *sorted(inside), top]
                names = [shared.get((p, q)) or new(q // p, whole=True) for p, q in zip(ends, ends[1:])]
                groups[i] = tuple(reversed(names))
                low = top
    return make_rule(op, [left], [right], sizes, keep=keep, linear=[(0,)])


def _runs(source: list[int], target: list[int]) -> list[tuple[list[int], list[int]]]:
    """The shortest runs of dims (without those of size one) that hold the same elements on both sides."""
    a = [i for i, n in enumerate(source) if n != 1]
    b = [j for j, n in enumerate(target) if n != 1]
    runs = []
    while a and b:
        x, y = [a.pop(0)], [b.pop(0)]
        p, q = source[x[0]], target[y[0]]
        while p != q:
            if p < q:
                x.append(a.pop(0))
                p *= source[x[-1]]
            else:
                y.append(b.pop(0))
                q *= target[y[-1]]
        runs.append((x, y))
    return runs


@rule("aten.permute")
def permute(op: Op) -> Rule:
    order = op.attrs["dims"]
    assert isinstance(order, (list, tuple))
    rank = len(order)
    return _moved(op, [int(d) % rank for d in order])


@rule("aten.transpose.int")
def transpose(op: Op) -> Rule:
    rank = len(shape_of(op, 0))
    order = list(range(rank))
    a, b = int(op.attrs["dim0"]) % rank, int(op.attrs["dim1"]) % rank  # type: ignore[arg-type]
    order[a], order[b] = b, a
    return _moved(op, order)


@rule("aten.t")
def t(op: Op) -> Rule:
    return _moved(op, list(range(len(shape_of(op, 0))))[::-1])


def _moved(op: Op, order: Sequence[int]) -> Rule:
    dims: Groups = [(f"d{i}",) for i in range(len(order))]
    return make_rule(op, [dims], [[dims[i] for i in order]], {}, linear=[(0,)])


@rule("aten.unsqueeze", "aten.squeeze")
def unsqueeze(op: Op) -> Rule:
    """Only dims of size one come and go: the others are the same, in order."""
    names = iter(range(len(shape_of(op, 0))))
    left: Groups = [() if n == 1 else (f"d{next(names)}",) for n in shape_of(op, 0)]
    rest = iter([g for g in left if g])
    right: Groups = [() if n == 1 else next(rest) for n in result_shape(op)]
    return make_rule(op, [left], [right], {}, linear=[(0,)])


@rule("aten.expand")
def expand(op: Op) -> Rule:
    """New or stretched dims are factors of the result only: each device makes its part of the copies."""
    out: Groups = [(f"d{i}",) for i in range(len(result_shape(op)))]
    sizes = {f"d{i}": n for i, n in enumerate(result_shape(op))}
    return make_rule(op, [out[len(out) - len(shape_of(op, 0)) :]], [out], sizes, linear=[(0,)])


@rule("aten.repeat")
def repeat(op: Op) -> Rule:
    """A repeated dim is (repeats, dim)."""
    source, target = shape_of(op, 0), result_shape(op)
    extra = len(target) - len(source)
    left: Groups = [(f"d{i + extra}",) for i in range(len(source))]
    right: Groups = [(f"r{i}", f"d{i}") if i >= extra else (f"r{i}",) for i in range(len(target))]
    sizes = {f"d{i + extra}": n for i, n in enumerate(source)}
    sizes |= {f"r{i}": n // (source[i - extra] if i >= extra else 1) for i, n in enumerate(target)}
    return make_rule(op, [left], [right], sizes, linear=[(0,)])


@rule("aten.repeat_interleave.self_int")
def repeat_interleave(op: Op) -> Rule:
    """repeat_interleave along a dim is (dim, repeats)."""
    source = shape_of(op, 0)
    dim = op.attrs.get("dim")
    if dim is None:
        return opaque(op)
    at = int(dim) % len(source)  # type: ignore[arg-type]
    left: Groups = [(f"d{i}",) for i in range(len(source))]
    right: Groups = [(f"d{i}", "r") if i == at else (f"d{i}",) for i in range(len(source))]
    return make_rule(op, [left], [right], {"r": result_shape(op)[at] // source[at]}, linear=[(0,)])


@rule("aten.pixel_shuffle")
def pixel_shuffle(op: Op) -> Rule:
    r = int(op.attrs["upscale_factor"])  # type: ignore[arg-type]
    return spell(op, "b* (c p q) h w -> b* c (h p) (w q) | keep p q | linear 0", p=r, q=r)
