"""Captured, layered and differentiated programmes compute what the user's module does, at another batch size.

The batch differs from both that were exported, so a size that is wrongly constant or wrongly scaled shows.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.models import TASKS
from uniap_compiler.capture import TrainingTask, load_task
from uniap_compiler.ir import parse_module, print_module

from .reference import captured, difference, eager, interpret, promoted

EXAMPLES = Path(__file__).parents[2] / "examples"
LAYERS = "canonicalize,outline-layers"
STEP = f"{LAYERS},differentiate,canonicalize"


def make(name: str) -> TrainingTask:
    return TASKS[name]() if name in TASKS else load_task(f"{EXAMPLES / name}.py:task")


@pytest.mark.parametrize("name", ["mlp", "tiny_llama", *TASKS])
def test_step_equals_eager(name: str) -> None:
    module, task, constants = captured(make(name))
    with promoted(torch.float64):
        theirs = eager(task)
    ours = interpret(module, "main", task, constants)
    assert difference(ours, theirs) < 1e-12, "captured"

    module, task, constants = captured(make(name), LAYERS)
    assert {op.name for op in module.funcs["main"].ops} == {"plan.call"}
    assert difference(interpret(module, "main", task, constants), theirs) < 1e-12, "layered"

    module, task, constants = captured(make(name), STEP)
    ours = interpret(module, "step", task, constants)
    trained = {n for n, p in task.model.named_parameters() if p.requires_grad}
    assert set(ours.gradients) == trained
    assert difference(ours, theirs) < 1e-10, "step"

    module, task, constants = captured(make(name), f"{STEP},decompose-losses")
    assert not any(op.name == "nn.cross_entropy" for f in module.funcs.values() for op in f.ops)
    assert difference(interpret(module, "step", task, constants), theirs) < 1e-10, "decomposed losses"
    text = print_module(module)
    assert print_module(parse_module(text)) == text
