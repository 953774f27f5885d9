"""A model on the meta device is captured as the same programme, without memory for its weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models import TASKS
from uniap_compiler.capture import TrainingTask, capture
from uniap_compiler.ir import print_module

from .reference import transform
from .test_equals_eager import STEP


def on_meta(name: str) -> TrainingTask:
    real = TASKS[name]()
    with torch.device("meta"):
        model = TASKS[name]().model
    return TrainingTask(model, real.batch, real.loss, real.targets)


def programme(task: TrainingTask, dtype: Any = None) -> str:
    return print_module(transform(capture(task, dtype=dtype), STEP))


@pytest.mark.parametrize("name", ["tied", "convnet", "unused"])
def test_the_same_programme(name: str) -> None:
    assert programme(on_meta(name)) == programme(TASKS[name]())


def test_another_dtype() -> None:
    assert programme(on_meta("tied"), "float64") == programme(TASKS["tied"](), "float64")


def test_the_model_is_left_alone() -> None:
    task = on_meta("tied")
    capture(task)
    assert all(p.is_meta for p in task.model.parameters())
    assert task.model.head.weight is task.model.embed.weight
    assert isinstance(task.batch["tokens"], torch.Tensor)
