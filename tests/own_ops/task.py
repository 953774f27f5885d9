"""A model with an op of its own, with a rule (task) and without one (unruled)."""

from __future__ import annotations

import gate_ops  # noqa: F401  (registers mylib::gate; it lies beside this file)
import torch
from torch import Tensor, nn

from uniap_compiler import TrainingTask, add_rule

add_rule("mylib::gate", "b* d, d -> b* d")
add_rule("mylib::gate_backward", "b* d, b* d, d -> b* d, d | sum b* | linear 0")


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 32))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.ops.mylib.gate(self.up(x), self.scale))


def task() -> TrainingTask:
    torch.manual_seed(0)
    model = nn.Sequential(Gated(), Gated(), nn.Linear(8, 4))
    return TrainingTask(
        model, torch.randn(8, 6, 8), loss=lambda y, t: ((y - t) ** 2).mean(), targets=torch.randn(8, 6, 4),
        ops=["gate_ops.py"],
    )  # fmt: skip
