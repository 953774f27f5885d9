"""Copies of modules, with what `copy.deepcopy` leaves behind.

    self.mlp = lambda x: m.c_proj(m.act(m.c_fc(x)))      the copy's lambda calls the copy's layers, not the original's
    torch.nn.utils.weight_norm(layer)                    its `weight` is computed from others: deepcopy refuses it

A function that still called the original would compute with weights that nobody trains, and in another precision.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor, nn

Some = TypeVar("Some", bound=nn.Module)


def copied(module: Some) -> Some:
    """A deep copy.  Functions in attributes and hooks that close over modules or tensors close over the copies."""
    memo: dict[int, Any] = {}
    for m in module.modules():
        for value in vars(m).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach()
    with _closures():
        return copy.deepcopy(module, memo)


@contextmanager
def _closures() -> Iterator[None]:
    table: dict[type, Any] = copy._deepcopy_dispatch  # type: ignore[attr-defined]
    before = table[types.FunctionType]
    table[types.FunctionType] = _function
    try:
        yield
    finally:
        table[types.FunctionType] = before


def _function(function: types.FunctionType, memo: dict[int, Any]) -> types.FunctionType:
    cells = function.__closure__ or ()
    if not any(_of_a_model(content, set()) for content in map(_content, cells)):
        return function
    new = tuple(types.CellType() for _ in cells)
    result = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, new
    )
    memo[id(function)] = result  # it may close over itself
    result.__kwdefaults__, result.__dict__ = function.__kwdefaults__, dict(function.__dict__)
    for cell, old in zip(new, cells):
        content = _content(old)
        if content is not _EMPTY:
            cell.cell_contents = copy.deepcopy(content, memo) if _of_a_model(content, set()) else content
    return result


_EMPTY = object()


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return _EMPTY


def _of_a_model(value: Any, seen: set[int]) -> bool:
    """Whether a module or a tensor is reached through lists, dicts, methods and other functions."""
    if isinstance(value, (nn.Module, Tensor)):
        return True
    if id(value) in seen:
        return False
    seen.add(id(value))
    if isinstance(value, (list, tuple, set)):
        return any(_of_a_model(v, seen) for v in value)
    if isinstance(value, dict):
        return any(_of_a_model(v, seen) for v in value.values())
    if isinstance(value, types.MethodType):
        return _of_a_model(value.__self__, seen)
    if isinstance(value, types.FunctionType):
        return any(_of_a_model(_content(c), seen) for c in value.__closure__ or ())
    return False
