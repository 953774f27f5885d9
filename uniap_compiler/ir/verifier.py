"""Is a module well formed, and is it what its level promises?

    verify(module)         raises the first Diagnostic

Four parts: SSA and arity (this file), layouts over devices (layout_checks.py), the table of the module's level
(levels.py), and how the funcs of the stages fit together (segment_checks.py).
"""

from __future__ import annotations

import re

from .core import Func, Module, Op, TensorType, Value
from .diagnostics import Diagnostic
from .layout_checks import check_layouts
from .levels import LEVELS, TABLES
from .ops import arity_mistake
from .rule_checks import rule_mistake
from .rules import Rule
from .segment_checks import check_segments
from .text import DTYPES

__all__ = ["LEVELS", "verify"]

_OPNAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_]+)+").fullmatch


def verify(module: Module) -> None:
    """Raises Diagnostic for the first thing that is wrong.  A module without a level is checked for form only."""
    level = module.attrs.get("level")
    if level is not None and level not in LEVELS:
        raise Diagnostic(f"there is no level {level}", notes=[f"the levels are, in order: {', '.join(LEVELS)}"])
    for op in module.ops:
        _check_name(op, None)
        if op.results or op.operands:
            raise Diagnostic(f"{op.name} stands in the module, where ops have no operands and no results", op=op)
    for func in module.funcs.values():
        _check_order(func)
        _check_ops(module, func)
        check_layouts(module, func)
    if level is not None:
        _check_level(module, str(level))
        if level in ("staged", "local"):
            check_segments(module, str(level))


def _check_order(func: Func) -> None:
    """Every value is defined once and before it is used."""
    defined: set[Value] = set()
    names: set[str] = set()

    def define(value: Value, op: Op | None) -> None:
        if value.name in names:
            raise Diagnostic(f"%{value.name} is defined twice", op=op, func=func)
        _check_type(value, op, func)
        names.add(value.name)
        defined.add(value)

    for param in func.params:
        define(param, None)
    for op in func.ops:
        for value in op.flat_operands():
            if value is not None and value not in defined:
                later = any(value in other.results for other in func.ops)
                where = "before it is defined" if later else f"and @{func.name} does not define it"
                raise Diagnostic(f"%{value.name} is used {where}", op=op, func=func)
        for result in op.results:
            define(result, op)
    for value in func.returns:
        if value is not None and value not in defined:
            raise Diagnostic(f"@{func.name} returns %{value.name}, which it does not define", func=func)


def _check_type(value: Value, op: Op | None, func: Func) -> None:
    type = value.type
    if type.dtype not in DTYPES:
        raise Diagnostic(
            f"%{value.name} has the dtype {type.dtype}, which is none of {' '.join(DTYPES)}", op=op, func=func
        )
    if type.layout is not None:
        if len(type.layout.dims) != len(type.shape):
            raise Diagnostic(f"the layout of %{value.name}: {type} has another number of dims", op=op, func=func)
        axes = type.layout.split_axes() + type.layout.pending_axes()
        if len(set(axes)) < len(axes):
            raise Diagnostic(f"the layout of %{value.name}: {type} uses an axis twice", op=op, func=func)


def _check_name(op: Op, func: Func | None) -> None:
    if not _OPNAME(op.name):
        raise Diagnostic(f"{op.name!r} is not an op name: two or more words joined by dots", func=func)


def _check_ops(module: Module, func: Func) -> None:
    for op in func.ops:
        _check_name(op, func)
        mistake = _call_mistake(module, op) if op.name == "plan.call" else arity_mistake(op)
        rule = op.attrs.get("rule")
        if mistake is None and rule is not None:
            mistake = (
                rule_mistake(op, rule) if isinstance(rule, Rule) else f"the attribute rule of {op.name} is no #rule"
            )
        if mistake is not None:
            raise Diagnostic(mistake, op=op, func=func)


def _call_mistake(module: Module, op: Op) -> str | None:
    """A call's operands and results have the types of its func's parameters and returns."""
    callee = module.funcs.get(op.symbol or "")
    if callee is None:
        return f"plan.call names @{op.symbol}, and the module has no such func"
    operands = op.flat_operands()
    returns = [v for v in callee.returns if v is not None]
    for what, given, wanted in (("operands", operands, callee.params), ("results", op.results, returns)):
        if len(given) != len(wanted):
            return f"the call has {len(given)} {what}, and @{callee.name} has {len(wanted)}"
        for value, other in zip(given, wanted):
            if value is not None and not _same(value.type, other.type):
                return f"the call has %{value.name}: {value.type} where @{callee.name} has %{other.name}: {other.type}"
    return None


def _same(a: TensorType, b: TensorType) -> bool:
    """Equal types; a side without a layout fits every layout (the step is written before layouts are chosen)."""
    return a.shape == b.shape and a.dtype == b.dtype and (a.layout is None or b.layout is None or a.layout == b.layout)


def _check_level(module: Module, level: str) -> None:
    for row in TABLES[level]:
        for place in row.places(module):
            if row.select(place) and not row.holds(place):
                raise Diagnostic(
                    row.sentence.format(func=_name(place.func), op=place.op and place.op.name),
                    op=place.op,
                    func=place.func,
                    notes=[f"this is a promise of the level {level}"],
                )


def _name(func: Func | None) -> str:
    return f"@{func.name}" if func is not None else ""
