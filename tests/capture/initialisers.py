"""Modules that initialise themselves in the ways that people write, one per way."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


class Defaults(nn.Module):
    """torch's own layers, tied weights, statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8, padding_idx=2)
        self.linear = nn.Linear(8, 6)
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.LayerNorm(6)
        self.batch = nn.BatchNorm1d(6)
        self.attention = nn.MultiheadAttention(8, 2)
        self.head = nn.Linear(8, 10, bias=False)
        self.head.weight = self.embed.weight


class ByHand(nn.Module):
    """Draws and arithmetic, on parts of tensors, too."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(1e-6 * torch.ones(8))
        self.token = nn.Parameter(torch.randn(1, 1, 8) * 0.02)
        self.noise = nn.Parameter((torch.rand(4, 4) - 0.5) / 2 + 1)
        self.qkv = nn.Linear(8, 24)
        self.empty = nn.Parameter(torch.empty(6, 4))
        self.filters = nn.Parameter(torch.empty(4, 2, 3, 3))
        self.copied = nn.Parameter(torch.empty(24, 8))
        with torch.no_grad():
            self.qkv.weight[:8].normal_(0, 1)
            self.qkv.weight[8:16].zero_()
            self.qkv.weight[16:, ::2].mul_(3)
            self.qkv.bias[8:] = 3.0
            self.empty[:2].fill_(1)
            self.empty[2:].uniform_(2, 3)
            self.filters.normal_().clamp_(-1, 0.5)
            self.filters[:, 1].neg_()
            self.copied.copy_(self.qkv.weight)
            self.qkv.weight.div_(2)


class Truncated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.usual = nn.Parameter(torch.empty(30, 20))
        self.narrow = nn.Parameter(torch.empty(30, 20))
        nn.init.trunc_normal_(self.usual, std=0.02)
        nn.init.trunc_normal_(self.narrow, mean=1.0, std=0.5, a=0.2, b=1.1)


class Computed(nn.Module):
    """What only whole tensors give: orthogonal matrices, tables, functions of what was drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        nn.init.orthogonal_(self.linear.weight)
        self.decay = nn.Parameter(torch.log(torch.arange(1, 9).float()))
        self.step = nn.Parameter(torch.exp(torch.rand(8)))
        self.permuted = nn.Parameter(torch.randn(3, 4).t())
        self.joined = nn.Parameter(torch.cat([self.linear.weight.detach()[:2], torch.zeros(1, 8)]))
        self.rows = nn.Parameter(torch.empty(3, 4))
        self.part = nn.Parameter(torch.zeros(3, 4))
        self.across = nn.Parameter(torch.zeros(5, 4))
        with torch.no_grad():
            self.rows.copy_(torch.randn(4))
            self.part[:1].copy_(torch.randn(1, 4))
            self.across.view(-1)[2:11].normal_()
        self.register_buffer("inverse", 1 / 10000 ** (torch.arange(0, 8, 2).float() / 8), persistent=False)
        self.register_buffer("mask", torch.ones(4, 4).tril().bool())
        self.register_buffer("literal", torch.tensor([0.5, 2.0]) * 3)
        self.register_buffer("drawn", torch.randn(5))


class Looks(nn.Module):
    """Code that reads small tables while it builds."""

    def __init__(self) -> None:
        super().__init__()
        rates = [x.item() for x in torch.linspace(0, 0.5, 3)]
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in rates)
        for block, rate in zip(self.blocks, rates, strict=True):
            with torch.no_grad():
                block.weight.mul_(1 - rate)
        self.gain = nn.Parameter(torch.full((3,), float(torch.ones(2).sum())))


class Copies(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        first = nn.Linear(6, 6)
        self.layers = nn.ModuleList(copy.deepcopy(first) for _ in range(2))
        self.shadow = nn.Linear(6, 6)
        self.shadow.load_state_dict(self.layers[0].state_dict())


ALL: tuple[Any, ...] = (Defaults, ByHand, Truncated, Computed, Looks, Copies)


def values(initial: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor, whatever the initial value is."""
    return initial if isinstance(initial, Tensor) else initial.values(dtype)
