"""Short spellings for IR written by hand in the rule tests."""

from __future__ import annotations

from typing import Any

from uniap_compiler.ir import Affine, Func, Op, TensorType, Value

B = Affine(1)


def tensor(name: str, *shape: Any, dtype: str = "f64", **attrs: Any) -> Value:
    return Value(name, TensorType(tuple(shape), dtype), attrs)


def op(name: str, operands: list[Any], results: Value | list[Value], **attrs: Any) -> Op:
    return Op(name, operands, results if isinstance(results, list) else [results], attrs)


def func(name: str, params: list[Value], ops: list[Op], returns: list[Value | None], **attrs: Any) -> Func:
    return Func(name, params, ops, returns, attrs)
