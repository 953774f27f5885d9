"""The IR itself: module > (op | func) > op.  Straight lines, SSA, flat result lists, no regions.

    func @f(%x: tensor<Bx64xf32> {role = "input"}) -> (tensor<Bx64xf32>) {
      %y = aten.relu(%x) : tensor<Bx64xf32> loc("mlp.py":9 in "up")
      return %y
    }

Plain classes: passes create, replace and delete objects directly.  Value.uses is not kept; a pass that needs users
asks `users(func)` once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Optional, Union

from .affine import Dim
from .attributes import Attrs
from .layouts import Layout


@dataclass(frozen=True, slots=True)
class Loc:
    """Where an op comes from: the user's file (relative to the task file), line, and module path."""

    file: str
    line: int
    module: str = ""


ITEM_BYTES = {"f64": 8, "i64": 8, "f32": 4, "i32": 4, "bf16": 2, "f16": 2, "i16": 2, "i8": 1, "u8": 1, "i1": 1}
"""Bytes of one element, for every dtype of a TensorType."""


@dataclass(frozen=True, slots=True)
class TensorType:
    """shape: ints and batch-dependent sizes, always GLOBAL up to level `planned`.

    dtype: f64 f32 bf16 f16 i64 i32 i16 i8 u8 i1.
    """

    shape: tuple[Dim, ...]
    dtype: str
    layout: Layout | None = None

    def with_layout(self, layout: Layout | None) -> TensorType:
        return replace(self, layout=layout)

    def __str__(self) -> str:
        text = f"tensor<{''.join(f'{d}x' for d in self.shape)}{self.dtype}>"
        return text if self.layout is None else f"{text} {self.layout}"


class Value:
    """An SSA value.  name is unique within its func (without the %); attrs only on func parameters."""

    __slots__ = ("name", "type", "attrs")

    def __init__(self, name: str, type: TensorType, attrs: Attrs | None = None) -> None:
        self.name, self.type = name, type
        self.attrs: Attrs = attrs if attrs is not None else {}

    def __repr__(self) -> str:
        return f"%{self.name}: {self.type}"


Operand = Union[Value, None, "list[Optional[Value]]"]


class Op:
    """name: `dialect.op[.overload]`.  symbol: the callee of plan.call, or the name of a module-level op."""

    __slots__ = ("name", "operands", "results", "attrs", "symbol", "loc")

    def __init__(
        self,
        name: str,
        operands: Iterable[Operand] = (),
        results: Iterable[Value] = (),
        attrs: Attrs | None = None,
        symbol: str | None = None,
        loc: Loc | None = None,
    ) -> None:
        self.name, self.symbol, self.loc = name, symbol, loc
        self.operands: list[Operand] = list(operands)
        self.results: list[Value] = list(results)
        self.attrs: Attrs = attrs if attrs is not None else {}

    def flat_operands(self) -> list[Value | None]:
        """All operands with lists flattened; None stays, so positions agree with the op's rule."""
        flat: list[Value | None] = []
        for operand in self.operands:
            if isinstance(operand, list):
                flat.extend(operand)
            else:
                flat.append(operand)
        return flat

    def replace_operands(self, f: Callable[[Value], Value | None]) -> None:
        """Map every operand that is a value; None results stand for an absent operand."""
        self.operands = [
            [f(v) if v is not None else None for v in o] if isinstance(o, list) else f(o) if o is not None else None
            for o in self.operands
        ]

    def __repr__(self) -> str:
        return f"<{self.name}{' @' + self.symbol if self.symbol else ''} -> {[r.name for r in self.results]}>"


class Func:
    """params: Values with attrs (role, of, ...).  returns: Values or None (a gradient that does not exist)."""

    __slots__ = ("name", "params", "ops", "returns", "attrs")

    def __init__(
        self,
        name: str,
        params: Iterable[Value] = (),
        ops: Iterable[Op] = (),
        returns: Iterable[Value | None] = (),
        attrs: Attrs | None = None,
    ) -> None:
        self.name = name
        self.params: list[Value] = list(params)
        self.ops: list[Op] = list(ops)
        self.returns: list[Value | None] = list(returns)
        self.attrs: Attrs = attrs if attrs is not None else {}

    def values(self) -> Iterator[Value]:
        yield from self.params
        for op in self.ops:
            yield from op.results

    def param(self, name: str) -> Value:
        for value in self.params:
            if value.name == name:
                return value
        raise KeyError(f"func @{self.name} has no parameter %{name}")

    def clone(self, name: str | None = None) -> Func:
        """A deep copy with fresh Values and Ops (attributes are shared: treat them as immutable)."""
        new: dict[Value, Value] = {v: Value(v.name, v.type, dict(v.attrs)) for v in self.values()}
        ops = []
        for op in self.ops:
            copy = Op(op.name, op.operands, [new[r] for r in op.results], dict(op.attrs), op.symbol, op.loc)
            copy.replace_operands(new.__getitem__)
            ops.append(copy)
        returns = [new[v] if v is not None else None for v in self.returns]
        return Func(name or self.name, [new[p] for p in self.params], ops, returns, dict(self.attrs))

    def __repr__(self) -> str:
        return f"<func @{self.name} {len(self.ops)} ops>"


class Module:
    """name, attrs (level and options of the compilation), module-level ops (in order) and funcs (in order, by name)."""

    __slots__ = ("name", "attrs", "ops", "funcs")

    def __init__(self, name: str, attrs: Attrs | None = None) -> None:
        self.name = name
        self.attrs: Attrs = attrs if attrs is not None else {}
        self.ops: list[Op] = []
        self.funcs: dict[str, Func] = {}

    def add(self, func: Func) -> Func:
        if func.name in self.funcs:
            raise ValueError(f"func @{func.name} is defined twice")
        self.funcs[func.name] = func
        return func

    def find(self, op_name: str, symbol: str | None = None) -> Op | None:
        """The first module-level op of that name (and symbol)."""
        for op in self.ops:
            if op.name == op_name and (symbol is None or op.symbol == symbol):
                return op
        return None


def users(func: Func) -> dict[Value, list[Op]]:
    """The ops that read each value, in order, one entry per op; a returned value without readers maps to []."""
    result: dict[Value, list[Op]] = {value: [] for value in func.values()}
    for op in func.ops:
        for value in dict.fromkeys(op.flat_operands()):
            if value is not None:
                result[value].append(op)
    return result


class Namer:
    """Unique names inside one func: keeps the wish when it is free, else appends _1, _2, ..."""

    __slots__ = ("taken", "_last")

    def __init__(self, func: Func | None = None) -> None:
        self.taken: set[str] = {v.name for v in func.values()} if func is not None else set()
        self._last: dict[str, int] = {}  # wish -> the number up to which its names are taken

    def __call__(self, wish: str) -> str:
        name, n = wish, self._last.get(wish, 0)
        while name in self.taken:
            n += 1
            name = f"{wish}_{n}"
        self._last[wish] = max(n - 1, 0)
        self.taken.add(name)
        return name
