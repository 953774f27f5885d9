"""Small models for the rule tests, beside those of tests/models.py: what their parameters are cut into is asserted."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniap_compiler.capture import TrainingTask

EXAMPLES = Path(__file__).parents[2] / "examples"


def _example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def llama() -> TrainingTask:
    """The example with 4 query heads on 2 key/value heads of 6."""
    example = _example("tiny_llama")
    config = example.Config(vocab=12, dim=24, heads=4, kv_heads=2, hidden=36, layers=2, sequence=6)
    torch.manual_seed(0)
    tokens, targets = torch.randint(12, (4, 6)), torch.randint(12, (4, 6))
    return TrainingTask(example.TinyLlama(config), {"tokens": tokens}, loss=example.loss, targets=targets)


class Gpt(nn.Module):
    """Query, key and value in one projection, cut afterwards."""

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Embedding(11, width)
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.head = nn.Linear(width, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        b, t, c = x.shape
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in self.qkv(self.norm(x)).split(c, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, c)
        return self.head(x + self.out(y)).flatten(0, 1)


def gpt() -> TrainingTask:
    torch.manual_seed(0)
    tokens = torch.randint(11, (4, 6))
    return TrainingTask(Gpt(), (tokens,), loss=lambda o, t: F.cross_entropy(o, t.flatten()), targets=tokens.roll(-1, 1))


class Vit(nn.Module):
    """Patches by a convolution that tiles, a class token, torch's own encoder layer."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.place = nn.Parameter(torch.randn(1, 7, width))
        self.layer = nn.TransformerEncoderLayer(width, 4, 48, dropout=0.0, batch_first=True, activation="gelu")
        self.head = nn.Linear(width, 6)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.place
        return self.head(self.layer(x)[:, 0])


def vit() -> TrainingTask:
    torch.manual_seed(0)
    return TrainingTask(Vit(), (torch.randn(4, 3, 8, 12),), loss=F.cross_entropy, targets=torch.randint(6, (4,)))


class Bert(nn.Module):
    """Attention by hand with an additive mask out of 0/1 integers, a padded vocabulary, positions."""

    def __init__(self, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.words, self.places = nn.Embedding(12, width, padding_idx=0), nn.Embedding(8, width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 12)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(self.words(tokens) + self.places(torch.arange(tokens.shape[1])))
        b, t, c = x.shape

        def heads(y: Tensor) -> Tensor:
            return y.view(b, t, self.heads, -1).permute(0, 2, 1, 3)

        scores = heads(self.q(x)) @ heads(self.k(x)).transpose(-1, -2) / 2.4
        scores = scores + (1 - mask[:, None, None, :].to(x.dtype)) * -1e4
        y = (scores.softmax(-1) @ heads(self.v(x))).permute(0, 2, 1, 3).reshape(b, t, c)
        return self.head(self.norm(x + self.o(y))).transpose(1, 2)


def bert() -> TrainingTask:
    torch.manual_seed(0)
    tokens, mask = torch.randint(12, (4, 6)), torch.ones(4, 6, dtype=torch.long)
    mask[1, 4:] = 0
    targets = torch.randint(12, (4, 6))
    targets[1, 4:] = -100
    return TrainingTask(Bert(), (tokens, mask), loss=F.cross_entropy, targets=targets)


MODELS = {"llama": llama, "gpt": gpt, "vit": vit, "bert": bert}

# For each model, parameters (layer and name within it) and the factors of their dims.
FACTORS = {
    "llama": {"block.attention.wq.weight": ((2, 2, 6), (24,)), "block.attention.wk.weight": ((2, 6), (24,)),
              "block.attention.wo.weight": ((24,), (2, 2, 6)), "block.feed_forward.up.weight": ((36,), (24,))},
    "gpt": {"qkv.weight": ((3, 4, 6), (24,))},
    "vit": {"layer.self_attn.in_proj_weight": ((3, 4, 6), (24,)), "layer.self_attn.out_proj.weight": ((24,), (4, 6)),
            "patches.weight": ((24,), (3,), (4,), (4,))},
    "bert": {"q.weight": ((4, 6), (24,)), "o.weight": ((24,), (4, 6))},
}  # fmt: skip
