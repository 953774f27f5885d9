"""The model that two_stages.mlir was written by hand for."""

import torch
from torch import nn

from uniap_compiler import TrainingTask


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.bias = nn.Parameter(torch.randn(6, 4) / 2), nn.Parameter(torch.randn(6))
        self.down = nn.Parameter(torch.randn(4, 6) / 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(nn.functional.linear(x, self.up, self.bias))
        return x + nn.functional.linear(h, self.down)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(4, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def task() -> TrainingTask:
    torch.manual_seed(0)
    return TrainingTask(Mlp(), {"x": torch.randn(8, 4)}, nn.functional.mse_loss, torch.randn(8, 2))
