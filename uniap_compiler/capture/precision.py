"""Runs torch code in another floating-point precision, casts and constants included.

    with promoted(torch.float64):
        (x.float() * torch.tensor(0.1)).dtype       # torch.float64

A model in float64 still computes parts in float32 where its code says `.float()` or `dtype=torch.float32`; for
comparisons to 1e-10 those must follow.  The same context serves the programme and the reference.  Nothing is ever made
less precise than the code asks for: a model in bfloat16 is `model.to(torch.bfloat16)`, with its float32 parts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

LOW = (torch.float32, torch.bfloat16, torch.float16)


def wide(x: Tensor) -> Tensor:
    """What sums and squares are made of: at least float32, as in torch's kernels."""
    return x.float() if x.dtype in LOW[1:] else x


def total(x: Tensor, dims: Sequence[int] | None = None, keepdim: bool = False) -> Tensor:
    """The sum over some dims, or all, in the dtype of `wide`: in float16 a thousand numbers are soon infinite."""
    dtype = torch.float32 if x.dtype in LOW[1:] else None
    return x.sum(dtype=dtype) if dims is None else x.sum(tuple(dims), keepdim, dtype=dtype)


class _Promote(TorchFunctionMode):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in ("float", "half", "bfloat16") and args and isinstance(args[0], torch.Tensor):
            return args[0].to(self.dtype)
        if name == "empty_strided":  # torch's own, for the fake twin of a tensor: it must keep the dtype
            return func(*args, **kwargs)
        if name == "__get__" or name.endswith("_"):  # a property, or an op that changes its operand in place
            args = tuple(self.dtype if _is_low(a) else a for a in args)
        else:
            args = tuple(self._promote(a) for a in args)
        kwargs = {k: self._promote(v) for k, v in kwargs.items()}
        return func(*args, **kwargs)

    def _promote(self, value: Any) -> Any:
        """dtypes, and tensors that belong to no module (an attribute, a global); the others are converted already."""
        if _is_low(value):
            return self.dtype
        if isinstance(value, torch.Tensor) and value.dtype in LOW:
            return value.to(self.dtype)
        if isinstance(value, (list, tuple)) and any(isinstance(v, torch.Tensor) for v in value):
            return type(value)(self._promote(v) for v in value) if type(value) in (list, tuple) else value
        return value


def _is_low(value: Any) -> bool:
    return isinstance(value, torch.dtype) and value in LOW


@contextmanager
def promoted(dtype: torch.dtype | None) -> Iterator[None]:
    """Inside, every lower float dtype that code asks for is `dtype`; None and what is below float32 change nothing."""
    if dtype is None or dtype in LOW[1:]:
        yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with _Promote(dtype):
            yield
    finally:
        torch.set_default_dtype(before)
