"""Assertions on values do not stop a capture; other questions about values do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from uniap_compiler.capture import TrainingTask, capture
from uniap_compiler.ir import Diagnostic


class Net(nn.Module):
    def __init__(self, check: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.a, self.check = nn.Linear(8, 8), check

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        return self.a(x).square().mean()


def said(x: Tensor) -> None:
    assert torch.isfinite(x).all(), "not finite"
    assert torch.all(x < 1e9).item() and x.isfinite().all()
    assert not x.isnan().any()
    assert x.shape[0] * 1e9 >= x.abs().max().item(), (
        "large"
    )  # fmt: skip
    assert (
        x.min() >= -1e9
        and x.max().item() != 1e9
    )  # fmt: skip


def branches(x: Tensor) -> None:
    if x.max() > 0:
        x.relu()


def both_ways(x: Tensor) -> None:
    assert x.isfinite().all() and not x.isnan().any()


def keeps(x: Tensor) -> None:
    assert (largest := x.max().item()) < 1e9
    if largest > 0:
        x.relu()


def body(check: Callable[[Tensor], None]) -> list[str]:
    module = capture(TrainingTask(Net(check), {"x": torch.randn(4, 8)}))
    return [op.name for op in module.funcs["main"].ops]


def test_assertions_pass_and_leave_nothing() -> None:
    assert body(said) == body(lambda x: None)


@pytest.mark.parametrize("check", [branches, both_ways, keeps])
def test_what_is_not_understood_is_refused(check: Callable[[Tensor], None]) -> None:
    with pytest.raises(Diagnostic, match="cannot capture the model") as error:
        body(check)
    assert "branches on a tensor's value" in error.value.render()


class Cached(nn.Linear):
    """Keys and values of earlier steps, of which there are none."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.tensor([]), super().forward(x)], -1).square().mean()


def test_an_empty_cache_is_nothing() -> None:
    module = capture(TrainingTask(Cached(8, 8), (torch.randn(4, 8),)))
    assert "aten.cat" not in {op.name for op in module.funcs["main"].ops}
