"""What one op may do on the tensor axes, read off its sharding rule.

On each axis an op splits one factor, runs on pending operands (`linear`), or runs whole.  Usually all axes do the same:

    #rule<b s k, n k -> b s n | sum k | linear 0 | linear 1>     on 4 = 2 x 2 devices:
    whole | split s | split k | split n | linear 0 | linear 1

Only where a factor does not divide by the number of devices are the axes told apart: 2 key-value heads on 4 devices
go over the major axis, and something else (the queries' groups, a pending operand, nothing) over the minor one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from math import gcd, prod
from typing import Union

from uniap_compiler.ir import Atom, Dim, Rule, Struct

WHOLE, SUM, MAX = "whole", "sum", "max"

AxisState = Union[str, int]
"""On one axis: WHOLE (equal copies), SUM or MAX (pending), or the index of the atom that is split."""

State = tuple[AxisState, ...]
"""A value's layout on the tensor axes, major to minor; atoms are counted over all its dims, major to minor."""

Pick = Union[None, str, tuple[int, ...]]
"""What an op does on one axis: None (whole), a factor that is split, or the operands that are pending."""

Choice = tuple[Pick, ...]
"""One Pick per axis."""


@lru_cache(maxsize=4096)
def choice_table(
    rule: Rule, sizes: tuple[tuple[str, Dim], ...], mesh: tuple[int, ...], mixed: bool
) -> tuple[list[Choice], list[list[State]], list[list[State]]]:
    """The choices, and by choice the layouts of every operand and every result; ops of one rule share it."""
    choices = enumerate_choices(rule, dict(sizes), mesh, mixed)
    operands = [
        [operand_state(rule, i, c) for c in choices] if dims is not None else [] for i, dims in enumerate(rule.operands)
    ]
    return choices, operands, [[result_state(rule, i, c) for c in choices] for i in range(len(rule.results))]


def enumerate_choices(
    rule: Rule | None, sizes: Mapping[str, Dim], mesh: tuple[int, ...], mixed: bool = True
) -> list[Choice]:
    """All choices, whole first.  sizes: of every factor; factors that depend on the batch belong to other axes.

    mixed: axes that a factor cannot take may take another one or a pending operand; else they do nothing.
    """
    whole: Choice = (None,) * len(mesh)
    if rule is None:
        return [whole]
    devices = prod(mesh)
    splittable = {f: n for f in rule.factors() if f not in rule.keep and isinstance(n := sizes[f], int) and n > 1}
    for name, factors in rule.route:  # it divides where all of them do
        if all(f in splittable for f in factors):
            splittable[name] = gcd(*(splittable[f] for f in factors))
    picks: list[Pick] = [f for f, size in splittable.items() if size % devices == 0]
    picks += rule.linear
    choices: list[Choice] = [whole] + [(pick,) * len(mesh) for pick in picks]
    for cut in range(1, len(mesh)):
        others = (list(rule.linear), _neighbours(rule)) if mixed else ([], set())
        choices += _mixed(splittable, *others, mesh, cut)
    return list(dict.fromkeys(choices))


def _neighbours(rule: Rule) -> set[tuple[str, str]]:
    """(f, g) where g is minor to f in a dim: `(kv group)` gives (kv, group)."""
    groups = {group for dims in (*rule.operands, *rule.results) for group in dims or ()}
    return {(f, g) for group in groups for i, f in enumerate(group) for g in group[i + 1 :]}


def _mixed(
    sizes: dict[str, int],
    linear: list[tuple[int, ...]],
    neighbours: set[tuple[str, str]],
    mesh: tuple[int, ...],
    cut: int,
) -> Iterator[Choice]:
    """Axes before `cut` do one thing, the others another; one of them must be a factor that cannot take all axes.

    Two factors go on with the split of one dim: the minor axes take a factor that is minor to the other's.
    """
    head, tail = prod(mesh[:cut]), prod(mesh[cut:])
    rest: list[Pick] = [None, *linear]
    for factor, size in sizes.items():
        if size % (head * tail) == 0:
            continue
        if size % head == 0 and size % (head * mesh[cut]):
            tails = rest + [f for f, n in sizes.items() if n % tail == 0 and (factor, f) in neighbours]
            yield from ((factor,) * cut + (t,) * (len(mesh) - cut) for t in tails)
        elif size % tail == 0 and size % (mesh[cut - 1] * tail) and size % mesh[0]:
            heads = rest + [f for f, n in sizes.items() if n % head == 0 and (f, factor) in neighbours]
            yield from ((h,) * cut + (factor,) * (len(mesh) - cut) for h in heads)


def operand_state(rule: Rule, position: int, choice: Choice) -> State:
    """The layout in which the choice wants the flat operand at `position`."""
    dims = rule.operands[position]
    atoms = [f for group in dims or () for f in group]

    def on_axis(pick: Pick) -> AxisState:
        if isinstance(pick, tuple):
            return SUM if position in pick else WHOLE
        split = [f for f in rule.split_by(pick) if f in atoms] if pick is not None else []
        return atoms.index(split[0]) if split else WHOLE

    return tuple(on_axis(pick) for pick in choice)


def result_state(rule: Rule, position: int, choice: Choice) -> State:
    """The layout in which the choice leaves the result at `position`."""
    atoms = [f for group in rule.results[position] for f in group]
    reduce = dict(rule.reduce)

    def on_axis(pick: Pick) -> AxisState:
        if pick is None:
            return WHOLE
        if isinstance(pick, tuple):
            return SUM
        split = [f for f in rule.split_by(pick) if f in atoms]
        if split:
            return atoms.index(split[0])
        if pick not in reduce:
            raise ValueError(f"{rule}: factor {pick} is missing in result {position} and in sum, max, copy and keep")
        return {"sum": SUM, "max": MAX, "copy": WHOLE}[reduce[pick]]

    return tuple(on_axis(pick) for pick in choice)


def factor_sizes(rule: Rule, shapes: list[tuple[Dim, ...] | None]) -> dict[str, Dim]:
    """The size of every factor: the rule's own `size`s, else the dim of which it is the only factor."""
    sizes = dict(rule.sizes)
    for dims, shape in zip((*rule.operands, *rule.results), shapes, strict=True):
        for group, size in zip(dims or (), shape or (), strict=True):
            if len(group) == 1:
                sizes.setdefault(group[0], size)
    missing = [f for f in rule.factors() if f not in sizes]
    if missing:
        raise ValueError(f"{rule} does not give the size of {', '.join(missing)}")
    return sizes


def split_attr(choice: Choice) -> Struct:
    """The attribute `split` of an op that does this: `#split<t0 = k>`."""
    return Struct("split", tuple((f"t{i}", Atom(pick)) for i, pick in enumerate(choice) if isinstance(pick, str)))
