"""Residual blocks of Linear, LayerNorm and GELU that learn to classify points by a fixed random network.

uniap compile examples/mlp.py:task --cluster laptop --global-batch 32 --out build/mlp
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from uniap_compiler import TrainingTask

FEATURES, CLASSES = 64, 16


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class Mlp(nn.Module):
    def __init__(self, width: int = 128, blocks: int = 6) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def batches(batch_size: int = 8, seed: int = 0) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    """(batch, targets) without end: points and the class that a fixed random network gives them."""
    teacher = torch.randn(FEATURES, CLASSES, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(seed)
    while True:
        x = torch.randn(batch_size, FEATURES, generator=generator)
        yield (x,), torch.tanh(x @ teacher).argmax(-1)


def task() -> TrainingTask:
    from uniap_compiler import TrainingTask  # here, so that `batches` needs torch only

    torch.manual_seed(0)
    batch, targets = next(batches(8))
    return TrainingTask(Mlp(), batch, loss=F.cross_entropy, targets=targets)
