"""Kinds of layers that differ in numbers only, such as the rates of Swin's drop paths.

    @layer_4.forward:  %d = aten.div.Tensor(%x) {other = 0.9914893617021276}
    @layer_6.forward:  %d = aten.div.Tensor(%x) {other = 0.9872340425531915}

No price and no sharding rule depends on a floating-point attribute.  So kinds that are alike share searches and costs,
and are one kind to the solver; a pattern of one becomes a pattern of another by writing the other's numbers into it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from uniap_compiler.ir import Attr, Func, Loc, Module, Op, Symbol

Pair = tuple[Func, Func | None]


def plain_pair(module: Module, kind: str) -> Pair:
    return module.funcs[f"{kind}.forward"], module.funcs.get(f"{kind}.backward")


def alike(module: Module, kinds: Iterable[str]) -> dict[str, str]:
    """kind -> the first of the kinds that are like it, itself where it is the first."""
    found: dict[str, str] = {}
    firsts: dict[Hashable, list[str]] = {}
    for kind in kinds:
        pair = plain_pair(module, kind)
        here = firsts.setdefault(_structure(pair), [])
        first = next((f for f in here if translation(plain_pair(module, f), pair) is not None), None)
        if first is None:
            here.append(kind)
        found[kind] = first or kind
    return found


@dataclass(frozen=True)
class Translation:
    """What to write for a number of the one kind's ops, by op and attribute, and for their places."""

    numbers: dict[tuple[str, str, float], float]
    places: dict[Loc | None, Loc | None]

    def apply(self, op: Op) -> None:
        op.loc = self.places.get(op.loc, op.loc)
        for key, value in op.attrs.items():
            if isinstance(value, float):
                op.attrs[key] = self.numbers.get((op.name, key, value), value)


def translation(of: Pair, to: Pair) -> Translation | None:
    """Between pairs of one structure; None where one number would have to become two."""
    numbers: dict[tuple[str, str, float], float] = {}
    places: dict[Loc | None, Loc | None] = {}
    for a, b in zip(_ops(of), _ops(to), strict=True):
        places.setdefault(a.loc, b.loc)
        for key, value in a.attrs.items():
            other = b.attrs[key]
            if isinstance(value, float) and isinstance(other, float):
                if numbers.setdefault((a.name, key, value), other) != other:
                    return None
    return Translation(numbers, places)


def translated(pattern: Pair, words: Translation, of: str, to: str) -> Pair:
    """A sharded pair of the kind `of` as one of the kind `to`."""
    made: list[Func] = []
    for func in pattern:
        if func is not None:
            made.append(func.clone(to + func.name.removeprefix(of)))
            for op in made[-1].ops:
                words.apply(op)
    forward, *rest = made
    for backward in rest:
        backward.attrs["of"] = Symbol(forward.name)
    return forward, rest[0] if rest else None


def _ops(pair: Pair) -> list[Op]:
    return [op for func in pair if func is not None for op in func.ops]


def _structure(pair: Pair) -> Hashable:
    return tuple(func and _signature(func) for func in pair)


def _signature(func: Func) -> Hashable:
    ops = tuple(
        (
            op.name,
            op.symbol,
            tuple(tuple(v and v.name for v in o) if isinstance(o, list) else o and o.name for o in op.operands),
            tuple((r.name, r.type) for r in op.results),
            _attrs(op.attrs),
        )
        for op in func.ops
    )
    params = tuple((p.name, p.type, _attrs(p.attrs)) for p in func.params)
    returns = tuple(v and v.name for v in func.returns)
    return params, ops, returns, _attrs({k: v for k, v in func.attrs.items() if k != "of"})


def _attrs(attrs: dict[str, Attr]) -> Hashable:
    return tuple((key, float if isinstance(value, float) else _hashable(value)) for key, value in attrs.items())


def _hashable(value: Attr) -> Hashable:
    """True is not 1."""
    return tuple(map(_hashable, value)) if isinstance(value, (list, tuple)) else (type(value), value)
