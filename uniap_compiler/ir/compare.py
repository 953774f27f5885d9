"""Structural equality of modules: what a round trip through text must keep, nan and the order of attributes too."""

from __future__ import annotations

import math
from typing import Any

from .core import Func, Module, Op, Value


def equal(a: Module, b: Module) -> bool:
    return difference(a, b) is None


def difference(a: Module, b: Module) -> str | None:
    """The first difference as a sentence, or None.  Lists and tuples are the same; 1, 1.0 and true are not."""
    if a.name != b.name or not same_attr(a.attrs, b.attrs):
        return f"module @{a.name} {a.attrs} is @{b.name} {b.attrs}"
    if len(a.ops) != len(b.ops) or list(a.funcs) != list(b.funcs):
        return f"module @{a.name}: {len(a.ops)} ops and funcs {list(a.funcs)} are {len(b.ops)} and {list(b.funcs)}"
    for op, other in zip(a.ops, b.ops):
        if found := _op_difference(op, other, {}):
            return found
    for func in a.funcs.values():
        if found := _func_difference(func, b.funcs[func.name]):
            return found
    return None


def _func_difference(a: Func, b: Func) -> str | None:
    if a.name != b.name or not same_attr(a.attrs, b.attrs):
        return f"func @{a.name} {a.attrs} is @{b.name} {b.attrs}"
    if len(a.params) != len(b.params) or len(a.ops) != len(b.ops) or len(a.returns) != len(b.returns):
        return f"func @{a.name} has other numbers of parameters, ops or returns"
    twin: dict[Value | None, Value | None] = {None: None}
    for p, q in zip(a.params, b.params):
        if (p.name, p.type) != (q.name, q.type) or not same_attr(p.attrs, q.attrs):
            return f"func @{a.name}: parameter {p} {p.attrs} is {q} {q.attrs}"
        twin[p] = q
    for op, other in zip(a.ops, b.ops):
        twin.update(zip(op.results, other.results))
    for op, other in zip(a.ops, b.ops):
        if found := _op_difference(op, other, twin):
            return f"func @{a.name}: {found}"
    if [twin.get(v, v) for v in a.returns] != b.returns:
        return f"func @{a.name} returns {a.returns}, the other {b.returns}"
    return None


def _op_difference(a: Op, b: Op, twin: dict[Value | None, Value | None]) -> str | None:
    if (a.name, a.symbol, a.loc) != (b.name, b.symbol, b.loc) or not same_attr(a.attrs, b.attrs):
        return f"{a} {a.attrs} {a.loc} is {b} {b.attrs} {b.loc}"
    if [(r.name, r.type) for r in a.results] != [(r.name, r.type) for r in b.results]:
        return f"{a}: results {a.results} are {b.results}"
    mapped = [[twin.get(v, v) for v in o] if isinstance(o, list) else twin.get(o, o) for o in a.operands]
    return None if mapped == b.operands else f"{a}: operands {a.operands} are {b.operands}"


def same_attr(a: Any, b: Any) -> bool:
    """Equality of attribute values and dictionaries; two nans are the same, types matter."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same_attr, a, b))
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same_attr(a[k], b[k]) for k in a)
    if isinstance(a, float):
        return a == b and math.copysign(1, a) == math.copysign(1, b) or a != a and b != b
    if hasattr(a, "fields"):  # a Struct
        return bool(a.name == b.name) and same_attr([list(f) for f in a.fields], [list(f) for f in b.fields])
    return bool(a == b)
