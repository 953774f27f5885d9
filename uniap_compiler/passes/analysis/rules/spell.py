"""Rules written as text: `spell(op, "b* v, b* -> b* | sum v | offset v | linear 0")`.

The text is that of a rule (ir/rules.py), with three conveniences:
    b*       any number of dims, named b0 b1 ...; every tensor with one star says how many
    sizes    come from the op's types; the factors of a group `(h g)` get theirs from other places or from `sizes`
    none     operands and results that are absent, and dims of size one, need no mention: they become none and `1`
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from uniap_compiler.ir import Op, Rule

from ..factors import as_dim, as_int

Groups = list[tuple[str, ...]]
_GROUP = re.compile(r"\(([^)]*)\)|(\S+)")


def shape_of(op: Op, position: int) -> list[int]:
    """The shape of a flat operand at B = PRIME."""
    value = op.flat_operands()[position]
    assert value is not None
    return [as_int(d) for d in value.type.shape]


def result_shape(op: Op, position: int = 0) -> list[int]:
    return [as_int(d) for d in op.results[position].type.shape]


def spell(op: Op, text: str, **sizes: int) -> Rule:
    """The rule that the text describes, for this op's shapes."""
    signature, *clauses = (part.strip() for part in text.split("|"))
    left, right = signature.split("->")
    flat = op.flat_operands()
    terms = [t.strip() for t in left.split(",")] if left.strip() else []
    shapes = [[as_int(d) for d in v.type.shape] if v is not None else None for v in flat]
    results = [t.strip() for t in right.split(",")]
    operand_groups = _expand(terms, shapes, sizes)
    result_groups = [g or [] for g in _expand(results, [result_shape(op, i) for i in range(len(op.results))], sizes)]
    reduce: dict[str, str] = {}
    keep: list[str] = []
    offset: list[str] = []
    linear: list[tuple[int, ...]] = []
    route: list[tuple[str, tuple[str, ...]]] = []
    names = dict.fromkeys(f for g in (*operand_groups, *result_groups) for dim in g or () for f in dim)
    for clause in clauses:
        kind, *words = clause.split()
        if kind == "linear":
            linear.append(tuple(int(w) for w in words))
            continue
        if kind == "route":  # `route r = t* e`: one for each t
            name, _, first, *rest = words
            stars = [f for f in names if re.fullmatch(first[:-1] + r"\d+", f)] if first.endswith("*") else [first]
            route += [(f"{name}{n}" if len(stars) > 1 else name, (f, *rest)) for n, f in enumerate(stars)]
            continue
        wanted = [f for w in words for f in names if f == w or (w.endswith("*") and re.fullmatch(w[:-1] + r"\d+", f))]
        if kind == "keep":
            keep += wanted
        elif kind == "offset":
            offset += wanted
        else:
            reduce.update(dict.fromkeys(wanted, kind))
    return make_rule(op, operand_groups, result_groups, sizes, reduce, keep, offset, linear, route)


def make_rule(
    op: Op,
    operands: Sequence[Groups | None],
    results: Sequence[Groups],
    sizes: Mapping[str, int],
    reduce: Mapping[str, str] | None = None,
    keep: Sequence[str] = (),
    offset: Sequence[str] = (),
    linear: Sequence[Sequence[int]] = (),
    route: Sequence[tuple[str, tuple[str, ...]]] = (),
) -> Rule:
    """A rule out of lists of factors (sizes at B = PRIME); factors of size one disappear, dims of size one are `1`."""
    known = dict(sizes)
    flat = op.flat_operands()
    shapes = [[as_int(d) for d in v.type.shape] if v is not None else None for v in flat]
    tensors = [(g, s) for g, s in zip(operands, shapes) if g is not None and s is not None]
    tensors += [(g, result_shape(op, i)) for i, g in enumerate(results)]
    _solve_sizes(tensors, known)

    def tidy(groups: Groups | None, shape: list[int] | None) -> tuple[tuple[str, ...], ...] | None:
        if groups is None or shape is None:
            return None
        return tuple(tuple(f for f in g if known[f] != 1) if n != 1 else () for g, n in zip(groups, shape, strict=True))

    operand_dims = tuple(tidy(g, s) for g, s in zip(operands, shapes, strict=True))
    result_dims = tuple(tidy(g, result_shape(op, i)) or () for i, g in enumerate(results))
    present = dict.fromkeys(f for t in (*operand_dims, *result_dims) for g in t or () for f in g)
    clauses = []
    for positions in linear:
        given = tuple(p for p in positions if p < len(flat) and flat[p] is not None)
        if given and given not in clauses:
            clauses.append(given)
    lost = {f for f in present if any(f not in {x for g in r for x in g} for r in result_dims)}
    kept = tuple(f for f in present if f in set(keep))
    return Rule(
        operands=operand_dims,
        results=result_dims,
        reduce=tuple((f, k) for f, k in (reduce or {}).items() if f in lost and f not in kept),
        keep=kept,
        offset=tuple(f for f in present if f in set(offset) and f not in kept),
        linear=tuple(clauses),
        sizes=tuple((f, as_dim(known[f])) for f in present),
        route=tuple((name, fs) for name, fs in route if all(f in present and f not in kept for f in fs)),
    )


def _expand(terms: Sequence[str], shapes: Sequence[list[int] | None], sizes: dict[str, int]) -> list[Groups | None]:
    """Terms as lists of groups, with the stars written out.  `sizes` also carries the lengths of stars, as "b*"."""
    parsed = [[tuple((m[1] if m[1] is not None else m[2]).split()) for m in _GROUP.finditer(t)] for t in terms]
    for _ in terms:
        for groups, shape in zip(parsed, shapes):
            if shape is None:
                continue
            unknown = [g[0] for g in groups if g and g[0].endswith("*") and g[0] not in sizes]
            if len(unknown) == 1:
                rest = sum(sizes[g[0]] if g and g[0] in sizes and g[0].endswith("*") else 1 for g in groups) - 1
                sizes[unknown[0]] = len(shape) - rest
    result: list[Groups | None] = []
    for position, shape in enumerate(shapes):
        if shape is None or position >= len(parsed):
            result.append(None)
            continue
        out: Groups = []
        for g in parsed[position]:
            if g and g[0].endswith("*"):
                out += [(f"{g[0][:-1]}{i}",) for i in range(sizes[g[0]])]
            else:
                out.append(() if g == ("1",) else g)
        if len(out) != len(shape):
            raise ValueError(f"the rule spells {len(out)} dims for a tensor of {len(shape)}: {terms[position]!r}")
        result.append(out)
    return result


def _solve_sizes(tensors: Sequence[tuple[Groups, list[int]]], known: dict[str, int]) -> None:
    """Sizes of factors from the shapes: a group with one unknown factor gives it."""
    changed = True
    while changed:
        changed = False
        for groups, shape in tensors:
            for group, size in zip(groups, shape):
                unknown = [f for f in group if f not in known]
                if len(unknown) != 1 or (size == 1 and len(group) == 1):
                    continue
                for f in group:
                    if f in known and size % known[f] == 0:
                        size //= known[f]
                known[unknown[0]] = size
                changed = True
    for groups, _ in tensors:
        for group in groups:
            for f in group:
                known.setdefault(f, 1)
