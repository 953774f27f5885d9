"""Eager autograd and the IR's interpreter on the same task, for comparison."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from uniap_compiler.bridge.interpret import run
from uniap_compiler.capture import TrainingTask, capture
from uniap_compiler.capture.batch import leaves, rows
from uniap_compiler.capture.capture import converted
from uniap_compiler.capture.export import Step
from uniap_compiler.capture.precision import promoted
from uniap_compiler.ir import ConstantStore, Module
from uniap_compiler.passes.manager import Session, run_passes
from uniap_compiler.passes.pipelines import parse_pipeline

BATCH = 3  # neither of the two batch sizes of the capture


@dataclass
class Result:
    loss: Tensor
    gradients: dict[str, Tensor | None] = field(default_factory=dict)
    buffers: dict[str, Tensor] = field(default_factory=dict)


def inputs_of(task: TrainingTask, batch: int = BATCH) -> dict[str, Tensor]:
    """The batch by path, rows permuted so that they are not simply repeated."""
    torch.manual_seed(1)
    found = {}
    for path, t in [*leaves(task.batch, "batch"), *leaves(task.targets, "targets")]:
        value = rows(t, batch)
        found[path] = value + 0.1 * torch.randn_like(value) if t.is_floating_point() else value.roll(1, -1)
    return found


def eager(task: TrainingTask, batch: int = BATCH) -> Result:
    """Loss, gradients (None where autograd gives none) and buffers afterwards, by the user's own module."""
    before = {n: b.clone() for n, b in task.model.named_buffers()}
    task.model.zero_grad()
    loss = Step(task)(*inputs_of(task, batch).values())
    loss.backward()
    result = Result(
        loss.detach(),
        {n: p.grad for n, p in task.model.named_parameters()},
        {n: b.clone() for n, b in task.model.named_buffers()},
    )
    for n, b in task.model.named_buffers():
        b.copy_(before[n])
    return result


def arguments(
    module: Module, func: str, task: TrainingTask, constants: ConstantStore, batch: int = BATCH
) -> list[Tensor]:
    inputs = inputs_of(task, batch)
    state = {**dict(task.model.named_parameters()), **dict(task.model.named_buffers())}
    values = []
    for p in module.funcs[func].params:
        role, path = p.attrs["role"], str(p.attrs.get("path"))
        if role == "constant":
            values.append(torch.from_numpy(constants[p.name].array.copy()))
        else:
            values.append((inputs if role == "input" else state)[path].detach())
    return values


def interpret(module: Module, func: str, task: TrainingTask, constants: ConstantStore, batch: int = BATCH) -> Result:
    """The same by the IR."""
    outputs = run(module.funcs[func], arguments(module, func, task, constants, batch), batch=batch, module=module)
    result = Result(torch.empty(0))
    for kind, value in zip(module.funcs[func].attrs["results"], outputs, strict=True):  # type: ignore[arg-type]
        what, _, name = str(kind).partition(":")
        if what == "loss":
            assert value is not None
            result.loss = value
        elif what == "buffer":
            assert value is not None
            result.buffers[name] = value
        else:
            result.gradients[name] = value
    return result


def captured(task: TrainingTask, pipeline: str = "") -> tuple[Module, TrainingTask, ConstantStore]:
    """The task in float64: its module after the pipeline, the converted task, the constants."""
    constants = ConstantStore()
    module = capture(task, dtype="float64", constants=constants)
    return transform(module, pipeline), converted(task, torch.float64), constants


def transform(module: Module, pipeline: str) -> Module:
    return run_passes(module, parse_pipeline(pipeline), Session()) if pipeline else module


def difference(ours: Result, theirs: Result) -> float:
    """The largest error of loss, gradients and buffers; a gradient that only one side has is an assertion."""
    assert ours.loss.shape == ()
    worst = _error(ours.loss, theirs.loss)
    largest = max((float(g.abs().max()) for g in theirs.gradients.values() if g is not None), default=0.0)
    for name, ours_g in ours.gradients.items():
        theirs_g = theirs.gradients[name]
        assert (ours_g is None) == (theirs_g is None), f"{name}: {ours_g is None} {theirs_g is None}"
        if ours_g is not None and theirs_g is not None:
            assert ours_g.shape == theirs_g.shape and ours_g.dtype == theirs_g.dtype, name
            scale = max(float(theirs_g.abs().max()), 1e-3 * largest)
            worst = max(worst, _error(ours_g, theirs_g) / scale)
    for name, value in ours.buffers.items():
        worst = max(worst, _error(value, theirs.buffers[name]))
    return worst


def _error(a: Tensor, b: Tensor) -> float:
    """The largest difference; NaN is infinitely far from everything."""
    return float((a - b).abs().nan_to_num(torch.inf, torch.inf).max())


__all__ = ["BATCH", "Result", "captured", "difference", "eager", "interpret", "promoted", "transform"]
