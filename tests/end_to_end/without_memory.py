"""A decoder whose initial weights are not simple: tied, with a row of zeros, fused and drawn in parts, with a table."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniap_compiler import TrainingTask, on_meta


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        nn.init.orthogonal_(self.out.weight)
        nn.init.trunc_normal_(self.up.weight, std=0.1)
        with torch.no_grad():
            self.qkv.weight[: 2 * width].normal_(0, 0.2)
            self.qkv.bias[width:].zero_()
        angles = torch.arange(16)[:, None] / 100 ** (torch.arange(width // 8) / (width // 8))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.steps.add_(1.0)
        q, k, v = (y.view(*y.shape[:2], 4, -1).transpose(1, 2) for y in self.qkv(self.norm(x)).chunk(3, -1))
        cos, sin = self.cos.repeat(1, 2), self.sin.repeat(1, 2)
        q, k = (torch.cat([y * cos, y * sin], -1) for y in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(x)))


class Decoder(nn.Module):
    def __init__(self, width: int = 16, vocab: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, width, padding_idx=0)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.head = nn.Linear(width, vocab, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy(self.head(x).flatten(0, 1), tokens.roll(-1, 1).flatten())


def task(seed: int = 7) -> TrainingTask:
    torch.manual_seed(seed)
    tokens = torch.randint(24, (4, 16), generator=torch.Generator().manual_seed(0))
    return TrainingTask(on_meta(Decoder), {"tokens": tokens})


def on_device_meta() -> TrainingTask:
    """The same with torch's own words."""
    given = task()
    torch.manual_seed(7)
    with torch.device("meta"):
        given.model = Decoder()
    return given


def real() -> TrainingTask:
    given = task()
    given.model = Decoder()
    return given
