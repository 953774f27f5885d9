"""Batches are nests of dicts, lists and tuples of tensors: their leaves by path, and as many rows as are asked for.

{"tokens": t, "extra": (a, b)}  ->  batch.tokens, batch.extra.0, batch.extra.1
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from uniap_compiler.ir import Diagnostic


def leaves(nest: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    """(path, tensor) for every tensor, in order.  Anything else (numbers, None, strings) is part of the programme."""
    if isinstance(nest, Tensor):
        yield path, nest
    elif isinstance(nest, dict):
        for key, value in nest.items():
            yield from leaves(value, f"{path}.{key}")
    elif isinstance(nest, (list, tuple)):
        for i, value in enumerate(nest):
            yield from leaves(value, f"{path}.{i}")


def rebuild(nest: Any, replace: Callable[[Tensor], Any]) -> Any:
    """The same nest with every tensor replaced, in the order of `leaves`."""
    if isinstance(nest, Tensor):
        return replace(nest)
    if isinstance(nest, dict):
        return {key: rebuild(value, replace) for key, value in nest.items()}
    if isinstance(nest, tuple) and hasattr(nest, "_fields"):
        return type(nest)(*(rebuild(v, replace) for v in nest))
    if isinstance(nest, (list, tuple)):
        return type(nest)(rebuild(v, replace) for v in nest)
    return nest


def rows(tensor: Tensor, batch: int) -> Tensor:
    """The example's rows, repeated or cut to `batch`, as a new tensor."""
    index = torch.arange(batch) % tensor.shape[0]
    return tensor[index].clone()


def resize(nest: Any, batch: int) -> Any:
    """The nest with `batch` rows everywhere."""
    return rebuild(nest, lambda t: rows(t, batch))


def example_rows(items: list[tuple[str, Tensor]]) -> int:
    """The batch size of the example.  Raises Diagnostic when the tensors do not agree on one."""
    if not items:
        raise Diagnostic("the task's batch holds no tensor", help="give TrainingTask(model, batch) at least one tensor")
    for path, tensor in items:
        if tensor.dim() == 0 or tensor.shape[0] == 0:
            raise Diagnostic(f"the task's {path} has shape {list(tensor.shape)}; its first dim must be the batch")
    sizes = {path: tensor.shape[0] for path, tensor in items}
    if len(set(sizes.values())) > 1:
        raise Diagnostic(
            "the tensors of the batch have different first dims; each must be the batch",
            notes=[f"{path} has {size} rows" for path, size in sizes.items()],
        )
    return next(iter(sizes.values()))
