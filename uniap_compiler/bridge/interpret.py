"""Runs a func of the IR with torch, op by op, or turns it into an fx graph.

    run(module.funcs["main"], inputs, batch=4, module=module) -> [loss, ...]

This is what the tests compare everything with, so it is as plain as possible.  `plan.call` runs the called func.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor

from uniap_compiler.ir import Func, Module, Op, Value

from . import ops as _ops  # noqa: F401  (registers the nn.* ops)
from .schema import join_arguments


def run(
    func: Func, inputs: Sequence[Optional[Tensor]], *, batch: int | None = None, module: Module | None = None
) -> list[Optional[Tensor]]:
    """The func's results for these inputs; `batch` evaluates the sizes that depend on the batch."""
    if len(inputs) != len(func.params):
        raise ValueError(f"@{func.name} takes {len(func.params)} inputs, {len(inputs)} were given")
    env: dict[Value, Any] = dict(zip(func.params, inputs))
    for op in func.ops:
        results = run_op(op, operand_values(op, env), batch=batch, module=module)
        for value, result in zip(op.results, results, strict=True):
            env[value] = result
    return [env[v] if v is not None else None for v in func.returns]


def run_op(op: Op, operands: list[Any], *, batch: int | None = None, module: Module | None = None) -> list[Any]:
    """The results of one op as a list."""
    if op.name == "plan.call":
        if module is None or op.symbol is None:
            raise ValueError(f"a module is needed to call @{op.symbol}")
        return run(module.funcs[op.symbol], operands, batch=batch, module=module)
    overload, args, kwargs = join_arguments(op.name, operands, op.attrs, batch)
    if overload is torch.ops.aten.view.default:  # types have no strides: a view of any operand is meant
        overload = torch.ops.aten.reshape.default
    result = overload(*args, **kwargs)
    return list(result) if isinstance(result, (tuple, list)) else [result]


def operand_values(op: Op, env: dict[Value, Any]) -> list[Any]:
    """The op's operands in this environment; absent ones are None."""

    def look(v: Value | None) -> Any:
        return env[v] if v is not None else None

    return [[look(v) for v in o] if isinstance(o, list) else look(o) for o in op.operands]


def to_graph_module(func: Func, batch: int | None = None, module: Module | None = None) -> torch.fx.GraphModule:
    """The func as a torch.fx.GraphModule; called funcs are inlined."""
    graph = torch.fx.Graph()
    nodes: list[Any] = [graph.placeholder(_identifier(p.name)) for p in func.params]
    graph.output(tuple(_emit(graph, func, nodes, batch, module)))
    return torch.fx.GraphModule(torch.nn.Module(), graph)


def _emit(graph: torch.fx.Graph, func: Func, inputs: list[Any], batch: int | None, module: Module | None) -> list[Any]:
    env: dict[Value, Any] = dict(zip(func.params, inputs))
    for op in func.ops:
        operands = operand_values(op, env)
        if op.name == "plan.call":
            if module is None or op.symbol is None:
                raise ValueError(f"a module is needed to call @{op.symbol}")
            results = _emit(graph, module.funcs[op.symbol], operands, batch, module)
        else:
            overload, args, kwargs = join_arguments(op.name, operands, op.attrs, batch)
            node = graph.call_function(overload, tuple(args), kwargs)
            several = len(overload._schema.returns) != 1 or "[]" in str(overload._schema.returns[0].type)
            results = (
                [graph.call_function(_getitem, (node, i)) for i in range(len(op.results))]
                if several or len(op.results) != 1
                else [node]
            )
        env.update(zip(op.results, results, strict=True))
    return [env[v] if v is not None else None for v in func.returns]


def _getitem(values: Any, index: int) -> Any:
    return values[index]


def _identifier(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)
