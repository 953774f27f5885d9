"""A small Llama-like language model over bytes, as a plain nn.Module, on the text of Python's own help topics.

    uniap compile examples/tiny_llama.py:task --cluster laptop --global-batch 16 --out build/tiny_llama

RMSNorm, rotary positions, grouped-query attention (8 heads, 4 key/value heads), SwiGLU; 6 layers, 4.7 million
parameters.  Nothing in here knows about parallel training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from uniap_compiler import TrainingTask


@dataclass(frozen=True)
class Config:
    vocab: int = 256
    dim: int = 256
    layers: int = 6
    heads: int = 8
    kv_heads: int = 4
    hidden: int = 768
    sequence: int = 128


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: [batch, heads, sequence, head_dim], the two halves of head_dim are the coordinates."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Attention(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.heads, self.kv_heads = config.heads, config.kv_heads
        self.head_dim = config.dim // config.heads
        self.wq = nn.Linear(config.dim, config.heads * self.head_dim, bias=False)
        self.wk = nn.Linear(config.dim, config.kv_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(config.dim, config.kv_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(config.heads * self.head_dim, config.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, sequence, _ = x.shape
        q = self.wq(x).view(batch, sequence, self.heads, self.head_dim).transpose(1, 2)
        k = self.wk(x).view(batch, sequence, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.wv(x).view(batch, sequence, self.kv_heads, self.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.wo(y.transpose(1, 2).reshape(batch, sequence, -1))


class FeedForward(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate = nn.Linear(config.dim, config.hidden, bias=False)
        self.up = nn.Linear(config.dim, config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim)
        self.attention = Attention(config)
        self.feed_forward_norm = RMSNorm(config.dim)
        self.feed_forward = FeedForward(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.feed_forward(self.feed_forward_norm(x))


class TinyLlama(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embed = nn.Embedding(config.vocab, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.dim)
        self.head = nn.Linear(config.dim, config.vocab, bias=False)
        half = config.dim // config.heads // 2
        angles = torch.outer(torch.arange(config.sequence), 10000.0 ** (-torch.arange(half) / half))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                scale = 0.02 / (2 * config.layers) ** 0.5 if name.endswith(("wo.weight", "down.weight")) else 0.02
                nn.init.normal_(parameter, std=scale)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        cos, sin = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.head(self.norm(x))


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))


def text() -> Tensor:
    """Some 700 kB of English that every Python installation carries, as bytes."""
    from pydoc_data import topics

    return torch.tensor(list("\n\n".join(topics.topics[k] for k in sorted(topics.topics)).encode()), dtype=torch.uint8)


def batches(
    batch_size: int = 8, sequence: int = Config.sequence, seed: int = 0
) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
    """(batch, targets) without end: random windows of the text, the targets one byte further on."""
    data = text()
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(data) - sequence - 1, (batch_size, 1), generator=generator)
        window = data[starts + torch.arange(sequence + 1)].long()
        yield {"tokens": window[:, :-1].contiguous()}, window[:, 1:].contiguous()


def task(config: Config = Config()) -> TrainingTask:
    from uniap_compiler import TrainingTask  # here, so that `batches` needs torch only

    torch.manual_seed(0)
    batch, targets = next(batches(8, config.sequence))
    return TrainingTask(TinyLlama(config), batch, loss=loss, targets=targets)


def small() -> TrainingTask:
    """The same modules, narrower: 4 layers, 8 heads and only 2 key/value heads; for tests."""
    return task(Config(dim=64, layers=4, kv_heads=2, hidden=192, sequence=32))
