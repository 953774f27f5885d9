"""Values of the step that could be called alike: what a layer gives and what it keeps for its backward."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from uniap_compiler import TrainingTask

from .plans import Workshop, check


class Source(nn.Module):
    """Two results; `memory` is the second product, and its derivative needs the first one."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(6, 16)
        self.first, self.second = nn.Parameter(torch.randn(16)), nn.Parameter(torch.randn(16))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.up(x)
        return h.tanh(), h * self.first * self.second


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.own, self.memory = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        return x + torch.sigmoid(self.own(x)) * self.memory(memory)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.source = Source()
        self.readers = nn.ModuleList(Reader() for _ in range(3))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x, memory = self.source(x)
        for reader in self.readers:
            x = reader(x, memory)
        return self.head(x)


def pair() -> TrainingTask:
    torch.manual_seed(0)
    return TrainingTask(Pair(), torch.randn(8, 6), loss=nn.functional.cross_entropy, targets=torch.arange(8) % 5)


def test_a_result_and_a_value_inside(workshop: Workshop, out: Path) -> None:
    bundle = workshop.compile(pair(), 2, "pp=1,dp=2,micro_batches=2", out, name="pair", global_batch=8)
    text = "".join(p.read_text() for p in (bundle / "stages").iterdir())
    assert '"saved:source.mul"' in text and '"saved:source.mul.result"' in text
    check(bundle, task=pair())
