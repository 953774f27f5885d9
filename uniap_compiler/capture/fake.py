"""Models on the meta device: parameters with shapes and no memory, as fake CPU tensors.

    with torch.device("meta"):
        model = Llama(Config.of_7b())           # no weights are ever allocated

Capturing real meta tensors would silently drop parts of the programme; fake CPU tensors behave like real ones.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from uniap_compiler.ir import Diagnostic

from .copies import copied
from .task import TrainingTask


def is_fake(tensor: Tensor) -> bool:
    """Has it no data?"""
    return isinstance(tensor, FakeTensor) or tensor.is_meta


def without_data(model: nn.Module) -> bool:
    return any(is_fake(t) for t in chain(model.parameters(), model.buffers()))


def faked(task: TrainingTask) -> tuple[TrainingTask, AbstractContextManager[Any]]:
    """The task itself; or, for a model on the meta device, a copy with fake tensors and the mode to capture it in.

    Tensors that are real stay so: tables in buffers are constants of the programme.
    """
    if not any(t.is_meta for t in chain(task.model.parameters(), task.model.buffers())):
        return task, nullcontext()
    model = copied(task.model)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        _replace_meta(model, lambda t: torch.empty(t.shape, dtype=t.dtype, device="cpu"))
    return replace(task, model=model), mode


def with_memory(model: nn.Module) -> nn.Module:
    """A copy with zeros in memory for parameters on the meta device.  Raises Diagnostic for a buffer without values."""
    for name, t in model.named_buffers():
        if t.is_meta:
            raise Diagnostic(f"the buffer {name} has no values", help="build the model with uniap_compiler.on_meta")
    model = copied(model)
    _replace_meta(model, lambda t: torch.zeros(t.shape, dtype=t.dtype, device="cpu"))
    return model


def _replace_meta(model: nn.Module, make: Callable[[Tensor], Tensor]) -> None:
    made: dict[int, Tensor] = {}  # a tied tensor stays one tensor
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, t in tensors.items():
                if t is None or not t.is_meta:
                    continue
                if id(t) not in made:
                    value = make(t)
                    made[id(t)] = nn.Parameter(value, t.requires_grad) if isinstance(t, nn.Parameter) else value
                tensors[name] = made[id(t)]  # type: ignore[assignment]
