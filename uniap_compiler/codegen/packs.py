"""Values that only travel together get one name: what a layer saves for its backward.

A decoder block saves some thirty values.  Its forward returns them behind its output, the stage hands them to the
schedule, and the stage's backward gives them to the block's backward, which alone looks at them:

    h1, *saved_layers_0 = block_forward(comm, h0, ...)         return (h1, *saved_layers_0)
    saved_layers_0 = args[9:40]                                block_backward(comm, ..., saved_layers_0, grad_h1)

The callee takes such a list, unpacks and clears it, so that the values die at their last use in the callee and not
when the caller's names go out of scope.  Gradients of a layer's parameters travel the same way.  The parameters
themselves are handed on with a star: `block_forward(comm, h0, *weights_layers_0)`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from ..ir import Func, Op, Value

Run = tuple[int, int]
"""Half-open range of positions."""

SMALLEST = 3
"""Fewer values than this keep their own names."""


@dataclass
class Packs:
    """params: callee -> the runs of its params that arrive as lists.  of: caller -> the packs that live in it."""

    params: dict[str, list[Run]] = field(default_factory=dict)
    of: dict[str, list[tuple[Value, ...]]] = field(default_factory=dict)


def find_packs(callers: list[Func], callees: dict[str, Func]) -> Packs:
    """callers: stage functions, whose ops are mostly plan.call of `callees`."""
    packs = Packs()
    joined: dict[str, list[bool]] = {}
    for func in callers:
        origin = _origins(func)
        for op in _calls(func, callees):
            here = [_adjacent(origin.get(a), origin.get(b)) for a, b in zip(op.operands, op.operands[1:], strict=False)]
            assert op.symbol is not None
            before = joined.setdefault(op.symbol, here)
            joined[op.symbol] = [a and b for a, b in zip(before, here, strict=True)]
    packs.params = {name: runs for name, join in joined.items() if (runs := _runs(join))}
    for func in callers:
        packs.of[func.name] = _packs_of(func, callees, packs)
    return packs


def _calls(func: Func, callees: dict[str, Func]) -> list[Op]:
    return [op for op in func.ops if op.name == "plan.call" and op.symbol in callees]


def _origins(func: Func) -> dict[object, tuple[int, int]]:
    """Where a value that is used exactly once comes from: (-1, param), only what was saved, or (op, result)."""
    found: dict[object, tuple[int, int]] = dict(_params(func, "saved:"))
    uses = _uses(func)
    for k, op in enumerate(func.ops):
        if op.name == "plan.call":
            found.update({v: (k, i) for i, v in enumerate(op.results)})
    return {v: place for v, place in found.items() if uses[v] == 1}


def _params(func: Func, prefix: str) -> dict[object, tuple[int, int]]:
    """Params of a role that are used exactly once."""
    roles, uses = func.attrs.get("args"), _uses(func)
    assert isinstance(roles, list)
    return {
        v: (-1, i)
        for i, (v, role) in enumerate(zip(func.params, roles, strict=True))
        if str(role).startswith(prefix) and uses[v] == 1
    }


def _uses(func: Func) -> Counter[object]:
    uses: Counter[object] = Counter(v for op in func.ops for v in op.flat_operands() if v is not None)
    uses.update(v for v in func.returns if v is not None)
    return uses


def _adjacent(a: tuple[int, int] | None, b: tuple[int, int] | None) -> bool:
    return a is not None and b is not None and a[0] == b[0] and a[1] + 1 == b[1]


def _runs(joined: list[bool]) -> list[Run]:
    """Maximal stretches of neighbours that are joined, as ranges of positions."""
    runs, start = [], 0
    for i in range(len(joined) + 1):
        if i == len(joined) or not joined[i]:
            if i + 1 - start >= SMALLEST:
                runs.append((start, i + 1))
            start = i + 1
    return runs


def _packs_of(func: Func, callees: dict[str, Func], packs: Packs) -> list[tuple[Value, ...]]:
    """Packs that have a sink here (a call that takes a list, or the returns), at most one out of each call."""
    origin = _origins(func)
    wanted: list[list[Value]] = []
    for op in _calls(func, callees):
        for start, stop in packs.params.get(op.symbol or "", []):
            wanted.append([v for v in op.operands[start:stop] if isinstance(v, Value)])
    sources = [origin.get(v) for v in func.returns]
    join = [_adjacent(a, b) and a[0] >= 0 for a, b in zip(sources, sources[1:], strict=False)]  # type: ignore[index]
    wanted += [[v for v in func.returns[start:stop] if v is not None] for start, stop in _runs(join)]
    best: dict[int, list[Value]] = {}
    result = []
    for values in wanted:
        places = [origin.get(v) for v in values]
        if not all(_adjacent(a, b) for a, b in zip(places, places[1:], strict=False)) or places[0] is None:
            continue
        source = places[0][0]
        if source < 0:
            result.append(tuple(values))
        elif len(values) > len(best.get(source, [])):
            best[source] = values
    return result + [tuple(values) for values in best.values()] + _weights(func, callees)


def _weights(func: Func, callees: dict[str, Func]) -> list[tuple[Value, ...]]:
    """Parameters that one call takes as they lie in the arguments."""
    origin = _params(func, "param:")
    packs = []
    for op in _calls(func, callees):
        places = [origin.get(v) if isinstance(v, Value) else None for v in op.operands]
        join = [_adjacent(a, b) for a, b in zip(places, places[1:], strict=False)]
        packs += [tuple(v for v in op.operands[a:b] if isinstance(v, Value)) for a, b in _runs(join)]
    return packs
