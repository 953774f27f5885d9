"""Whether every value of a func has the shape that its type claims, at one batch size.

Two recordings fit a line through any two numbers, so a size like B*B or B//2 unifies to nonsense; running the unified
func on fake tensors at a third batch size finds it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from uniap_compiler.ir import Func, Op, Value, at

from .interpret import operand_values, run_op
from .schema import TORCH_DTYPES, type_of


class WrongShape(Exception):
    """`op` gives another shape than its type says."""

    def __init__(self, message: str, op: Op) -> None:
        super().__init__(message)
        self.op = op


def check_shapes(func: Func, batch: int) -> None:
    """Raises WrongShape."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        env: dict[Value, Any] = {
            p: torch.empty([at(d, batch) for d in p.type.shape], dtype=TORCH_DTYPES[p.type.dtype]) for p in func.params
        }
        for op in func.ops:
            try:
                results = run_op(op, operand_values(op, env), batch=batch)
            except (RuntimeError, ValueError) as error:
                raise WrongShape(f"{op.name} fails at a batch of {batch}: {str(error).splitlines()[0]}", op) from error
            for value, result in zip(op.results, results, strict=True):
                wanted = tuple(at(d, batch) for d in value.type.shape)
                got = type_of(result)
                if got.shape != wanted or got.dtype != value.type.dtype:
                    raise WrongShape(f"%{value.name} is {got} at a batch of {batch}, not {value.type}", op)
                env[value] = result
