"""Models on the meta device: parameters with shapes and no memory, as fake CPU tensors.

    with torch.device("meta"):
        model = Llama(Config.of_7b())           # no weights are ever allocated

Capturing real meta tensors would silently drop parts of the programme; fake CPU tensors behave like real ones.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from .task import TrainingTask


def is_fake(tensor: Tensor) -> bool:
    """Has it no data?"""
    return isinstance(tensor, FakeTensor) or tensor.is_meta


def without_data(model: nn.Module) -> bool:
    return any(is_fake(t) for t in chain(model.parameters(), model.buffers()))


def faked(task: TrainingTask) -> tuple[TrainingTask, AbstractContextManager[Any]]:
    """The task itself; or, for a model on the meta device, a copy with fake tensors and the mode to capture it in."""
    if not any(t.is_meta for t in chain(task.model.parameters(), task.model.buffers())):
        return task, nullcontext()
    model = copy.deepcopy(task.model)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made: dict[int, Tensor] = {}  # a tied tensor stays one tensor
    with mode:
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, t in tensors.items():
                    if t is not None:
                        tensors[name] = made.setdefault(id(t), _like(t))  # type: ignore[assignment]
    return replace(task, model=model), mode


def _like(t: Tensor) -> Tensor:
    empty = torch.empty(t.shape, dtype=t.dtype, device="cpu")
    return nn.Parameter(empty, t.requires_grad) if isinstance(t, nn.Parameter) else empty
