"""Captured, layered and differentiated programmes compute what the user's module does, at another batch size.

The batch differs from both that were exported, so a size that is wrongly constant or wrongly scaled shows.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.models import TASKS
from uniap_compiler.capture import TrainingTask, capture, load_task
from uniap_compiler.ir import Module, parse_module, print_module

from .reference import captured, difference, eager, interpret, promoted, transform

EXAMPLES = Path(__file__).parents[2] / "examples"
LAYERS = "canonicalize,outline-layers"
STEP = f"{LAYERS},differentiate,canonicalize"


def make(name: str) -> TrainingTask:
    return TASKS[name]() if name in TASKS else load_task(f"{EXAMPLES / name}.py:task")


def reparsed(module: Module) -> Module:
    """The module from its own text: nothing that a later pass needs may live outside it."""
    text = print_module(module)
    again = parse_module(text)
    assert print_module(again) == text
    return again


@pytest.mark.parametrize("name", ["mlp", "tiny_llama", *TASKS])
def test_step_equals_eager(name: str) -> None:
    module, task, constants = captured(make(name))
    with promoted(torch.float64):
        theirs = eager(task)
    assert difference(interpret(module, "main", task, constants), theirs) < 1e-12, "captured"

    module = transform(reparsed(module), LAYERS)
    assert {op.name for op in module.funcs["main"].ops} == {"plan.call"}
    assert difference(interpret(module, "main", task, constants), theirs) < 1e-12, "layered"

    module = transform(reparsed(module), "differentiate,canonicalize")
    ours = interpret(module, "step", task, constants)
    assert set(ours.gradients) == {n for n, p in task.model.named_parameters() if p.requires_grad}
    assert set(ours.buffers) == {n for n, b in task.model.named_buffers() if not torch.equal(b, theirs.buffers[n])}
    assert difference(ours, theirs) < 1e-10, "step"

    module = transform(reparsed(module), "decompose-losses")
    assert not any(op.name == "nn.cross_entropy" for f in module.funcs.values() for op in f.ops)
    assert difference(interpret(reparsed(module), "step", task, constants), theirs) < 1e-10, "decomposed losses"


@pytest.mark.parametrize("name", ["mlp", "convnet", "decoder"])
def test_own_dtype_is_bit_near(name: str) -> None:
    """In float32, without promotion: the loss is that of eager."""
    from uniap_compiler.ir import ConstantStore

    task, constants = make(name), ConstantStore()
    module = capture(task, constants=constants)
    theirs = eager(task)
    ours = interpret(module, "main", task, constants)
    assert ours.loss.dtype == torch.float32
    assert abs(float(ours.loss) - float(theirs.loss)) < 1e-6


def test_a_wrong_gradient_shows() -> None:
    """The comparison itself: one op of one backward changed."""
    module, task, constants = captured(make("mlp"), STEP)
    with promoted(torch.float64):
        theirs = eager(task)
    op = next(op for op in module.funcs["block.backward"].ops if op.name == "aten.gelu_backward")
    op.attrs["approximate"] = "tanh"
    assert difference(interpret(module, "step", task, constants), theirs) > 1e-6
