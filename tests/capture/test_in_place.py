"""In-place ops on tensors that forward makes become ops on values, without a second trace of the graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.capture.reference import captured, difference, eager, interpret
from uniap_compiler import TrainingTask


def whole(x: Tensor) -> Tensor:
    y = x * 2
    y += 1
    y.mul_(0.5).relu_()
    return y * y


def into_slices(x: Tensor) -> Tensor:
    shifted = x.new_zeros(x.shape)
    shifted[:, 1:] = x[:, :-1].clone()
    shifted[:, 0] = 3.0
    shifted[:, 1:4:2].mul_(x[:, :2])
    return shifted.masked_fill_(shifted > 2.5, -1.0)


def slice_of_slice(x: Tensor) -> Tensor:
    y = x * 2
    part = y[:, 1:]
    row = part[:, 2]
    row += 1
    return y + part.sum() + row.mean()


def chosen(x: Tensor) -> Tensor:
    top, index = x.topk(2, -1)
    top /= top.sum(-1, keepdim=True) + 10
    return top.unsqueeze(-1) * x.unsqueeze(-2)


def other_view(x: Tensor) -> Tensor:
    y = x * 2
    seen = y.view(-1, 2)
    y += 1
    return seen * 3


def permuted(x: Tensor) -> Tensor:
    y = x * 2
    y.t()[0] += 1
    return y * 3


def later_view(x: Tensor) -> Tensor:
    y = x * 2
    y += 1
    seen = y[:, :2]
    y.mul_(3)
    return seen * 5


def task_of(forward: Callable[[Tensor], Tensor]) -> TrainingTask:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Linear(6, 8)

        def forward(self, x: Tensor) -> Tensor:
            return forward(self.up(x))

    torch.manual_seed(0)
    return TrainingTask(Model().double(), torch.randn(4, 6, dtype=torch.float64), lambda y, _: y.square().mean(), None)


def check(forward: Callable[[Tensor], Tensor]) -> None:
    module, task, constants = captured(task_of(forward), "canonicalize,outline-layers,differentiate")
    assert difference(interpret(module, "step", task, constants), eager(task)) < 1e-12


SIMPLE = [whole, into_slices, slice_of_slice, chosen]


@pytest.mark.parametrize("forward", SIMPLE, ids=lambda f: f.__name__)
def test_simple_cases_are_not_traced_again(
    forward: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("run_decompositions")

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", refuse)
    check(forward)


@pytest.mark.parametrize("forward", [other_view, permuted, later_view], ids=lambda f: f.__name__)
def test_memory_that_is_seen_otherwise_is_left_to_torch(
    forward: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    traced = []
    torchs = torch.export.ExportedProgram.run_decompositions

    def count(program: torch.export.ExportedProgram, *rest: object) -> object:
        traced.append(1)
        return torchs(program, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", count)
    check(forward)
    assert traced
