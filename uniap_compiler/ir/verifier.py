"""Is a module well formed, and is it what its level promises?

    verify(module)         raises the first Diagnostic
"""

from __future__ import annotations

from .core import Func, Module, Op, Value
from .diagnostics import Diagnostic

LEVELS = ("captured", "layered", "differentiated", "annotated", "planned", "sharded", "staged", "local")


def verify(module: Module) -> None:
    for func in module.funcs.values():
        _check_order(func)


def _check_order(func: Func) -> None:
    defined: set[Value] = set(func.params)
    names = {v.name for v in func.params}
    if len(names) < len(func.params):
        raise Diagnostic(f"two parameters of func @{func.name} have one name", func=func)
    for op in func.ops:
        for value in op.flat_operands():
            if value is not None and value not in defined:
                raise Diagnostic(f"%{value.name} is used before it is defined", op=op, func=func)
        for result in op.results:
            if result.name in names:
                raise Diagnostic(f"%{result.name} is defined twice", op=op, func=func)
            names.add(result.name)
            defined.add(result)
    for value in func.returns:
        if value is not None and value not in defined:
            raise Diagnostic(f"func @{func.name} returns %{value.name}, which it does not define", func=func)


def check_op(module: Module, func: Func | None, op: Op) -> None:
    """Placeholder for the tables of the levels."""
