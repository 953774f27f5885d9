"""Slices, joins, selections and table look-ups along a dim.

A slice of a dim is legal on shards when the dim is a whole number of pieces of equal length: with `piece` =
gcd(start, end, size), the dim is (p piece) where p stays whole and `piece` may be split: a fused QKV projection
`[3*H]` is cut into q, k and v although the H of each is split.  Such a factor clashes with the factors of other ops
now and then, so these ops have a second rule that keeps the dim whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

from uniap_compiler.ir import Affine, Op, Rule

from ..factors import as_int
from .spell import Groups, make_rule, result_shape, shape_of, spell
from .table import opaque, rule


def axis(op: Op, rank: int, default: int = 0) -> int:
    dim = op.attrs.get("dim", default)
    assert isinstance(dim, int)
    return dim % rank


def bounds(op: Op, size: int) -> tuple[int, int]:
    """start and end of a slice as positions in 0..size, at B = PRIME."""

    def position(name: str, default: int) -> int:
        value = op.attrs.get(name)
        if value is None:
            return default
        assert isinstance(value, (int, Affine))
        n = as_int(value)
        return min(max(n + size if n < 0 else n, 0), size)

    return position("start", 0), position("end", size)


def pieces(op: Op, dim: int, piece: int, linear: Sequence[int]) -> list[Rule]:
    """Tensors of equal rank that differ along `dim` only, where each is a number of pieces."""

    def build(piece: int) -> Rule:
        sizes: dict[str, int] = {"piece": piece} if piece > 1 else {}
        keep: list[str] = []

        def groups(shape: list[int], position: str) -> Groups:
            out: Groups = [(f"d{i}",) for i in range(len(shape))]
            keep.append(position)
            sizes[position] = shape[dim] // piece
            out[dim] = (position, "piece") if piece > 1 else (position,)
            return out

        left = [groups(shape_of(op, i), f"x{i}") for i in range(len(op.flat_operands()))]
        right = [groups(result_shape(op, i), f"y{i}") for i in range(len(op.results))]
        return make_rule(op, left, right, sizes, keep=keep, linear=[linear])

    return [build(piece), build(1)] if piece > 1 else [build(1)]


def _whole(op: Op) -> Rule:
    """The dim is not cut at all: the op is the identity on it."""
    dims: Groups = [(f"d{i}",) for i in range(len(shape_of(op, 0)))]
    return make_rule(op, [dims], [dims], {}, linear=[(0,)])


@rule("aten.slice.Tensor")
def slice_(op: Op) -> Sequence[Rule]:
    shape = shape_of(op, 0)
    dim = axis(op, len(shape))
    if result_shape(op) == shape:
        return [_whole(op)]
    if op.attrs.get("step", 1) != 1:
        return pieces(op, dim, 1, (0,))
    start, end = bounds(op, shape[dim])
    return pieces(op, dim, gcd(start, end, shape[dim]), (0,))


@rule("aten.slice_backward")
def slice_backward(op: Op) -> Sequence[Rule]:
    shape = result_shape(op)
    dim = axis(op, len(shape))
    if shape_of(op, 0) == shape:
        return [_whole(op)]
    if op.attrs.get("step", 1) != 1:
        return pieces(op, dim, 1, (0,))
    start, end = bounds(op, shape[dim])
    return pieces(op, dim, gcd(start, end, shape[dim]), (0,))


@rule("aten.slice_scatter")
def slice_scatter(op: Op) -> Sequence[Rule]:
    shape = shape_of(op, 0)
    dim = axis(op, len(shape))
    start, end = bounds(op, shape[dim])
    piece = 1 if op.attrs.get("step", 1) != 1 else gcd(start, end, shape[dim])
    return pieces(op, dim, piece, (0, 1))


@rule("aten.split.Tensor", "aten.split_with_sizes", "aten.unsafe_split.Tensor", "aten.unsafe_split_with_sizes")
def split(op: Op) -> Sequence[Rule]:
    dim = axis(op, len(shape_of(op, 0)))
    piece = gcd(*(result_shape(op, i)[dim] for i in range(len(op.results))))
    if op.name.endswith("split.Tensor") and result_shape(op)[dim] != piece:
        piece = 1  # the attribute says the length of all results but the last
    if len(op.results) == 1:
        return [_whole(op)]
    return pieces(op, dim, piece, (0,))


@rule("aten.cat")
def cat(op: Op) -> Sequence[Rule]:
    flat = op.flat_operands()
    rank = len(result_shape(op))
    dim = axis(op, rank)
    shapes = [shape_of(op, i) for i in range(len(flat))]
    if len(flat) == 1:
        return [_whole(op)]
    if any(len(s) != rank for s in shapes):  # the legacy empty tensor
        return [opaque(op)]
    return pieces(op, dim, gcd(*(s[dim] for s in shapes)), tuple(range(len(flat))))


@rule("aten.constant_pad_nd")
def pad(op: Op) -> Rule:
    """Padded dims stay whole."""
    amounts = op.attrs["pad"]
    assert isinstance(amounts, (list, tuple))
    rank = len(shape_of(op, 0))
    padded = [rank - 1 - i // 2 for i, n in enumerate(amounts) if n != 0]
    left: Groups = [(f"x{i}",) if i in padded else (f"d{i}",) for i in range(rank)]
    right: Groups = [(f"y{i}",) if i in padded else (f"d{i}",) for i in range(rank)]
    keep = [f for g in (*left, *right) for f in g if f[0] in "xy"]
    return make_rule(op, [left], [right], {}, keep=keep, linear=[(0,)] if op.attrs.get("value", 0) == 0 else [])


@rule("aten.stack")
def stack(op: Op) -> Rule:
    rank = len(result_shape(op))
    out: Groups = [(f"d{i}",) for i in range(rank)]
    dim = axis(op, rank)
    part = [g for i, g in enumerate(out) if i != dim]
    count = len(op.flat_operands())
    return make_rule(op, [part] * count, [out], {}, keep=[f"d{dim}"], linear=[tuple(range(count))])


@rule("aten.select.int")
def select(op: Op) -> Rule:
    rank = len(shape_of(op, 0))
    whole: Groups = [(f"d{i}",) for i in range(rank)]
    dim = axis(op, rank)
    left = [g for i, g in enumerate(whole) if i != dim]
    return make_rule(op, [whole], [left for _ in op.results], {}, keep=[f"d{dim}"], linear=[(0,)])


rule("aten.unbind.int")(select)


@rule("aten.select_backward")
def select_backward(op: Op) -> Rule:
    rank = len(result_shape(op))
    whole: Groups = [(f"d{i}",) for i in range(rank)]
    dim = axis(op, rank)
    return make_rule(
        op, [[g for i, g in enumerate(whole) if i != dim]], [whole], {}, keep=[f"d{dim}"], linear=[(0,)]
    )


@rule("aten.select_scatter")
def select_scatter(op: Op) -> Rule:
    rank = len(result_shape(op))
    whole: Groups = [(f"d{i}",) for i in range(rank)]
    dim = axis(op, rank)
    part = [g for i, g in enumerate(whole) if i != dim]
    return make_rule(op, [whole, part], [whole], {}, keep=[f"d{dim}"], linear=[(0, 1)])


@rule("aten.index_select")
def index_select(op: Op) -> Rule:
    rank = len(shape_of(op, 0))
    dim = axis(op, rank)
    table: Groups = [("n",) if i == dim else (f"d{i}",) for i in range(rank)]
    out: Groups = [("i",) if i == dim else (f"d{i}",) for i in range(rank)]
    return make_rule(op, [table, [("i",)]], [out], {}, keep=["n"], linear=[(0,)])


@rule("aten.index_add", "aten.index_copy")
def index_add(op: Op) -> Rule:
    """self, index, source: rows of the source go to rows of self.  Rows that are added to zeros may come in parts."""
    rank = len(shape_of(op, 0))
    dim = axis(op, rank)
    table: Groups = [("n",) if i == dim else (f"d{i}",) for i in range(rank)]
    source: Groups = [("i",) if i == dim else (f"d{i}",) for i in range(rank)]
    zeros = bool(op.attrs.get("onto_zeros")) and op.name == "aten.index_add"
    return make_rule(
        op, [table, [("i",)], source], [table], {}, {"i": "sum"} if zeros else {}, ["n"] if zeros else ["n", "i"],
        linear=[(0, 2), (2,)] if zeros else [(0, 2)],
    )  # fmt: skip


@rule("aten.index_fill")
def index_fill(op: Op) -> Rule:
    """self, index[, value]"""
    rank = len(shape_of(op, 0))
    dim = axis(op, rank)
    table: Groups = [("n",) if i == dim else (f"d{i}",) for i in range(rank)]
    value: list[Groups | None] = [[]] if len(op.flat_operands()) == 3 else []
    linear = [(0, 2)] if value else [(0,)] if op.attrs.get("value") == 0 else []
    return make_rule(op, [table, [("i",)], *value], [table], {}, keep=["n", "i"], linear=linear)


@rule("aten.bucketize", "aten.isin")
def look_up(op: Op) -> Rule:
    """Every element against a list; a bucket's number counts the boundaries below, so parts of the list add up."""
    if len(op.flat_operands()) == 2:
        return spell(op, "b*, n* -> b* | " + ("sum n*" if op.name == "aten.bucketize.Tensor" else "keep n*"))
    return opaque(op) if "element" in op.attrs or "self" in op.attrs else spell(op, "b* -> b*")


@rule("aten.gather")
def gather(op: Op) -> Rule:
    """Dims other than `dim` are tied where the index covers them fully (gather may read a corner of the table)."""
    table, index = shape_of(op, 0), shape_of(op, 1)
    rank = len(table)
    if not rank:
        return spell(op, ", -> ")
    dim = axis(op, rank)
    out: Groups = [("i",) if i == dim else (f"d{i}",) for i in range(rank)]
    left: Groups = [(f"n{i}",) if i == dim or table[i] != index[i] else (f"d{i}",) for i in range(rank)]
    # Where the table has more rows than are read, neither side can be split without knowing which rows.
    keep = [f for g in left for f in g if f[0] == "n"] + [f"d{i}" for i in range(rank) if table[i] != index[i]]
    return make_rule(op, [left, out], [out], {}, keep=keep, linear=[(0,)])


@rule("aten.scatter.value", "aten.scatter.src", "aten.scatter_add", "aten.scatter")
def scatter(op: Op) -> Rule:
    """self, index[, src] -> like self.  Several indices may hit one place: `dim` stays whole on both sides."""
    table, index = shape_of(op, 0), shape_of(op, 1)
    rank = len(table)
    count = len(op.flat_operands())
    dim = axis(op, rank) if rank else 0
    out: Groups = [(f"n{i}",) if i == dim or table[i] != index[i] else (f"d{i}",) for i in range(rank)]
    place: Groups = [(f"i{i}",) if out[i][0][0] == "n" else out[i] for i in range(rank)]
    source: Groups = [] if count < 3 else [
        (f"s{i}",) if shape_of(op, 2)[i] != index[i] else place[i] for i in range(rank)
    ]
    keep = [f for g in (*out, *place, *source) for f in g if f[0] in "nis"]
    linear = [(0, 2)] if count == 3 else [(0,)] if op.attrs.get("value") == 0 else []
    return make_rule(op, [out, place, *([source] if count == 3 else [])], [out], {}, keep=keep, linear=linear)


def _indexed(op: Op, rank: int, first: int, count: int) -> tuple[list[Groups | None], Groups, Groups]:
    """Advanced indexing: the groups of the indices, of the table, and of the table after look-up."""
    indices = op.flat_operands()[first : first + count]
    used = [i for i, v in enumerate(indices) if v is not None]
    wide = max(len(shape_of(op, first + i)) for i in used)
    look: Groups = [(f"i{j}",) for j in range(wide)]
    groups: list[Groups | None] = [
        None if v is None else look[wide - len(v.type.shape) :] for v in indices
    ]
    table: Groups = [(f"n{i}",) if i in used else (f"d{i}",) for i in range(rank)]
    rest = [g for i, g in enumerate(table) if i not in used]
    adjacent = used == list(range(used[0], used[-1] + 1))
    at = used[0] if adjacent else 0
    return groups, table, [*rest[:at], *look, *rest[at:]]


@rule("aten.index.Tensor", "aten._unsafe_index.Tensor")
def index(op: Op) -> Rule:
    """table[indices]: the dims of the indices are free, the dims that they look up stay whole."""
    count = len(op.flat_operands()) - 1
    if any(v is not None and v.type.dtype in ("i1", "u8") for v in op.flat_operands()[1:]):
        return opaque(op)
    groups, table, out = _indexed(op, len(shape_of(op, 0)), 1, count)
    return make_rule(op, [table, *groups], [out], {}, keep=_names(table, "n"), linear=[(0,)])


@rule("aten.index_put", "aten._unsafe_index_put")
def index_put(op: Op) -> Rule:
    """self with values written (or added) at the indices; only dims that are not indexed may be split.

    Values that are added to zeros may come in parts: the gradient of a table whose rows are looked up.
    """
    flat = op.flat_operands()
    count = len(flat) - 2
    if any(v is not None and v.type.dtype in ("i1", "u8") for v in flat[1:-1]):
        return opaque(op)
    groups, table, out = _indexed(op, len(shape_of(op, 0)), 1, count)
    values = out[len(out) - len(shape_of(op, len(flat) - 1)) :]
    last = len(flat) - 1
    if op.attrs.get("onto_zeros") and op.attrs.get("accumulate"):
        parts = dict.fromkeys(_names(out, "i"), "sum")
        return make_rule(
            op, [table, *groups, values], [table], {}, parts, _names(table, "n"), linear=[(0, last), (last,)]
        )
    keep = _names(table, "n") + _names(out, "i")
    return make_rule(op, [table, *groups, values], [table], {}, keep=keep, linear=[(0, last)])


def _names(groups: Groups, letter: str) -> list[str]:
    return [f for g in groups for f in g if f[0] == letter]


@rule("aten.tril", "aten.triu")
def triangle(op: Op) -> Rule:
    return spell(op, "b* m n -> b* m n | keep m n | linear 0")


@rule("aten.flip", "aten.roll")
def flip(op: Op) -> Rule:
    rank = len(shape_of(op, 0))
    dims = op.attrs.get("dims") or list(range(rank))
    assert isinstance(dims, (list, tuple))
    out: Groups = [(f"d{i}",) for i in range(rank)]
    if op.name == "aten.roll" and not op.attrs.get("dims"):
        keep = [f"d{i}" for i in range(rank)]
    else:
        keep = [f"d{int(i) % rank}" for i in dims]
    return make_rule(op, [out], [out], {}, keep=keep, linear=[(0,)])


def _diagonals(op: Op, rank: int, first: int, second: int) -> tuple[Groups, Groups, list[str]]:
    """A tensor, its diagonals along two dims (last dim of the result), and the factors that stay whole."""
    a, b = (int(op.attrs.get(n, d)) % rank for n, d in (("dim1", first), ("dim2", second)))  # type: ignore[arg-type]
    whole: Groups = [(f"d{i}",) for i in range(rank)]
    rest = [g for i, g in enumerate(whole) if i not in (a, b)]
    return whole, [*rest, ("k",)], [f"d{a}", f"d{b}", "k"]


@rule("aten.diagonal")
def diagonal(op: Op) -> Rule:
    whole, part, keep = _diagonals(op, len(shape_of(op, 0)), 0, 1)
    return make_rule(op, [whole], [part], {}, keep=keep, linear=[(0,)])


@rule("aten.diagonal_backward")
def diagonal_backward(op: Op) -> Rule:
    whole, part, keep = _diagonals(op, len(result_shape(op)), 0, 1)
    return make_rule(op, [part], [whole], {}, keep=keep, linear=[(0,)])


@rule("aten.diag_embed")
def diag_embed(op: Op) -> Rule:
    whole, part, keep = _diagonals(op, len(result_shape(op)), -2, -1)
    return make_rule(op, [part], [whole], {}, keep=keep, linear=[(0,)])


@rule("aten.diagonal_scatter")
def diagonal_scatter(op: Op) -> Rule:
    whole, part, keep = _diagonals(op, len(shape_of(op, 0)), 0, 1)
    return make_rule(op, [whole, part], [whole], {}, keep=keep, linear=[(0, 1)])


def _windows(rank: int, dim: int) -> tuple[Groups, Groups]:
    """A tensor, and its windows along `dim`: their number in its place, their length last."""
    whole: Groups = [("x",) if i == dim else (f"d{i}",) for i in range(rank)]
    return whole, [*(("y",) if i == dim else g for i, g in enumerate(whole)), ("w",)]


@rule("aten.unfold")
def unfold(op: Op) -> Rule:
    rank = len(shape_of(op, 0))
    whole, out = _windows(rank, int(op.attrs["dimension"]) % rank)  # type: ignore[arg-type]
    return make_rule(op, [whole], [out], {}, keep=["x", "y", "w"], linear=[(0,)])


@rule("aten.unfold_backward")
def unfold_backward(op: Op) -> Rule:
    rank = len(result_shape(op))
    whole, out = _windows(rank, int(op.attrs["dim"]) % rank)  # type: ignore[arg-type]
    return make_rule(op, [out], [whole], {}, keep=["x", "y", "w"], linear=[(0,)])


@rule("aten.one_hot")
def one_hot(op: Op) -> Rule:
    return spell(op, "b* -> b* v | keep v")
