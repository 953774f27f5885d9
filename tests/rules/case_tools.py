"""How a case is written: an op, its operands, its attributes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .validate import Case


def case(name: str, *operands: Any, **attrs: Any) -> Case:
    return Case(name, list(operands), attrs)


def f(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def pos(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64) + 0.5


def ints(high: int, *shape: int, low: int = 0) -> Tensor:
    return torch.randint(low, high, shape)


def bools(*shape: int) -> Tensor:
    return torch.rand(shape) > 0.5
