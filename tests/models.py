"""Small models that are awkward in one way each, as tasks.  Every task is deterministic and takes any batch size.

TASKS["albert"]() -> TrainingTask
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniap_compiler.capture import TrainingTask

ROWS = 4


def _classify(model: nn.Module, *inputs: Tensor, classes: int = 5) -> TrainingTask:
    return TrainingTask(model, inputs, loss=F.cross_entropy, targets=torch.randint(classes, (ROWS,)))


class Mixer(nn.Module):
    """An MLP-mixer whose blocks are ModuleDicts that nobody calls."""

    def __init__(self, patches: int = 16, width: int = 24, blocks: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(12, width)

        def mlp(n: int) -> nn.Module:
            return nn.Sequential(nn.Linear(n, 2 * n), nn.GELU(), nn.Linear(2 * n, n))

        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(width),
                    "tokens": mlp(patches),
                    "norm2": nn.LayerNorm(width),
                    "channels": mlp(width),
                }
            )
            for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = images.unfold(2, 2, 2).unfold(3, 2, 2).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
        x = self.embed(x)
        for block in self.blocks:
            x = x + block["tokens"](block["norm1"](x).transpose(1, 2)).transpose(1, 2)
            x = x + block["channels"](block["norm2"](x))
        return self.head(self.norm(x).mean(1))


class ConvNet(nn.Module):
    """Convolutions (one grouped), pooling, batch norm with its running statistics, group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2)
        )
        self.middle = nn.Sequential(
            nn.Conv2d(8, 16, 3, stride=2, padding=1, groups=2, bias=False), nn.GroupNorm(4, 16), nn.SiLU()
        )
        self.pool = nn.AvgPool2d(2)
        self.norm = nn.BatchNorm1d(16, affine=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.middle(self.stem(x)))
        return self.head(self.norm(F.adaptive_avg_pool2d(x, 1).flatten(1)))


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x)), approximate="tanh"))


class Albert(nn.Module):
    """One layer, called four times."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width, padding_idx=0)
        self.layer = Residual(width)
        self.head = nn.Linear(width, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for _ in range(4):
            x = self.layer(x)
        return self.head(x[:, 0])


class UNet(nn.Module):
    """Skip connections over several layers, by concatenation."""

    def __init__(self, c: int = 4) -> None:
        super().__init__()

        def block(i: int, o: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.GroupNorm(2, o), nn.ReLU())

        self.down1, self.down2, self.middle = block(1, c), block(c, 2 * c), block(2 * c, 2 * c)
        self.up2, self.up1 = block(4 * c, c), block(2 * c, c)
        self.out = nn.Conv2d(c, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        m = self.middle(F.max_pool2d(b, 2))
        u = self.up2(torch.cat([F.interpolate(m, scale_factor=2, mode="nearest"), b], 1))
        u = self.up1(torch.cat([F.interpolate(u, scale_factor=2, mode="nearest"), a], 1))
        return self.out(u)


class Tied(nn.Module):
    """Embedding and head share their weight; the loss is made inside, and ignores some targets."""

    def __init__(self, vocab: int = 13, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.blocks = nn.ModuleList(Residual(width) for _ in range(2))
        self.head = nn.Linear(width, vocab, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor, labels: Tensor) -> dict[str, Tensor]:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        logits = self.head(x)
        return {"logits": logits, "loss": F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-1)}


class Unused(nn.Module):
    """A parameter and a module that forward never uses, a frozen layer, a detached branch, a no_grad region."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.frozen = nn.Linear(width, width).requires_grad_(False)
        self.aside = nn.Linear(width, width)
        self.nobody = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.ones(3))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        x = x + self.frozen(x)
        with torch.no_grad():
            gate = self.aside(x).sigmoid()
        return self.head(x * gate + x.detach())


class Nested(nn.Module):
    """A batch of dicts and tuples; blocks that pass tuples on."""

    class Pair(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)

        def forward(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            x, y = pair
            return x + torch.relu(self.a(y)), y * torch.sigmoid(self.b(x))

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Nested.Pair(width) for _ in range(3))
        self.head = nn.Linear(2 * width, 3)

    def forward(self, features: dict[str, Any], mask: Tensor) -> dict[str, Tensor]:
        pair = (features["left"], features["right"][1])
        for block in self.blocks:
            pair = block(pair)
        x = torch.cat(pair, -1) * mask.unsqueeze(-1)
        return {"scores": self.head(x), "size": (x * x).mean()}


def _nested_loss(output: dict[str, Tensor], targets: tuple[Tensor, dict[str, Tensor]]) -> Tensor:
    return F.mse_loss(output["scores"], targets[0]) + 0.1 * output["size"] * targets[1]["weight"].mean()


class Encoder(nn.Module):
    """BERT-like, written with torch's own layers: packed projections, a padding mask, post-norm."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.positions = nn.Parameter(torch.randn(6, width) * 0.1)
        layer = nn.TransformerEncoderLayer(width, 4, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.pooler = nn.Linear(width, width)
        self.head = nn.Linear(width, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.positions[: tokens.shape[1]]
        x = self.encoder(x, src_key_padding_mask=tokens == 0)
        return self.head(torch.tanh(self.pooler(x[:, 0])))


class Decoder(nn.Module):
    """T5-like: an encoder whose output all decoder layers read, and a trained attention bias."""

    class Attention(nn.Module):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.heads = heads
            self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
            self.o = nn.Linear(width, width, bias=False)

        def forward(self, x: Tensor, y: Tensor, bias: Tensor | None) -> Tensor:
            def split(t: Tensor) -> Tensor:
                return t.unflatten(-1, (self.heads, -1)).transpose(1, 2)

            z = F.scaled_dot_product_attention(split(self.q(x)), split(self.k(y)), split(self.v(y)), attn_mask=bias)
            return self.o(z.transpose(1, 2).flatten(2))

    class Layer(nn.Module):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.own, self.cross = Decoder.Attention(width, heads), Decoder.Attention(width, heads)
            self.norm1, self.norm2, self.norm3 = (nn.RMSNorm(width) for _ in range(3))
            self.mlp = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, width))

        def forward(self, x: Tensor, memory: Tensor, bias: Tensor) -> Tensor:
            h = self.norm1(x)
            x = x + self.own(h, h, bias)
            x = x + self.cross(self.norm2(x), memory, None)
            return x + self.mlp(self.norm3(x))

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.encoder = nn.ModuleList(Residual(width) for _ in range(2))
        self.layers = nn.ModuleList(Decoder.Layer(width, heads) for _ in range(2))
        self.bias = nn.Embedding(16, heads)
        self.head = nn.Linear(width, 11)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory = self.embed(source)
        for block in self.encoder:
            memory = block(memory)
        n = target.shape[1]
        steps = torch.arange(n, device=target.device)
        distance = (steps[:, None] - steps[None, :]).clamp(min=0)
        bias = self.bias(distance).permute(2, 0, 1).unsqueeze(0)
        bias = bias.masked_fill(torch.ones(n, n, dtype=torch.bool, device=target.device).triu(1), float("-inf"))
        x = self.embed(target)
        for layer in self.layers:
            x = layer(x, memory, bias)
        return self.head(x)


def _token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), label_smoothing=0.1)


class Einsum(nn.Module):
    """Contractions in all their spellings, and an in-place slice."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(width, 2, 4) * 0.3)
        self.b = nn.Parameter(torch.randn(2, 4, 4) * 0.3)
        self.c = nn.Parameter(torch.randn(4) * 0.3)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.einsum("bsd,dhe->bhse", x, self.a)
        h = h @ self.b
        scores = torch.matmul(h, h.transpose(-1, -2)).softmax(-1)
        h = torch.einsum("...st,...te->...se", scores, h)
        h = h.clone()
        h[..., 0] *= 2.0
        weights = h @ self.c
        pooled = torch.einsum("bhs,bsd->bd", weights, x)
        return self.head(torch.baddbmm(pooled.unsqueeze(1), x, x.transpose(1, 2) @ x).sum(1))


class VectorLoss(nn.Module):
    """Regression against several targets with a loss that is a module."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1)


class ConvNext(nn.Module):
    """Two stages of blocks, each a Sequential around a skip connection; a downsampling layer between them."""

    class Block(nn.Module):
        def __init__(self, c: int) -> None:
            super().__init__()
            self.depthwise = nn.Conv2d(c, c, 3, padding=1, groups=c)
            self.mlp = nn.Sequential(nn.LayerNorm(c), nn.Linear(c, 4 * c), nn.GELU(), nn.Linear(4 * c, c))
            self.scale = nn.Parameter(torch.full((c,), 0.5))

        def forward(self, x: Tensor) -> Tensor:
            y = self.mlp(self.depthwise(x).permute(0, 2, 3, 1)) * self.scale
            return x + y.permute(0, 3, 1, 2)

    def __init__(self, c: int = 6) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, c, 2, stride=2),
            nn.Sequential(ConvNext.Block(c), ConvNext.Block(c)),
            nn.Sequential(nn.GroupNorm(1, c), nn.Conv2d(c, 2 * c, 2, stride=2)),
            nn.Sequential(ConvNext.Block(2 * c), ConvNext.Block(2 * c), ConvNext.Block(2 * c)),
        )
        self.head = nn.Sequential(nn.LayerNorm(2 * c), nn.Linear(2 * c, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean([-2, -1]))


class Swin(nn.Module):
    """Windows of attention; every second block shifts them and masks what does not belong together."""

    class Block(nn.Module):
        def __init__(self, width: int, size: int, window: int, shift: int) -> None:
            super().__init__()
            self.window, self.shift, self.size = window, shift, size
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
            self.bias = nn.Parameter(torch.randn(2, window * window, window * window) * 0.1)
            regions = torch.zeros(size, size)
            if shift:
                regions[-shift:, :] += 1
                regions[:, -shift:] += 2
            parts = self.split(regions[None, :, :, None]).squeeze(-1)
            self.register_buffer("mask", (parts[:, None] != parts[:, :, None]).float() * -100.0, persistent=False)

        def split(self, x: Tensor) -> Tensor:
            n, w = self.size // self.window, self.window
            return x.view(-1, n, w, n, w, x.shape[-1]).permute(0, 1, 3, 2, 4, 5).reshape(-1, w * w, x.shape[-1])

        def forward(self, x: Tensor) -> Tensor:
            n, w, batch = self.size // self.window, self.window, x.shape[0]
            h = self.norm1(x)
            if self.shift:
                h = torch.roll(h, (-self.shift, -self.shift), (1, 2))
            q, k, v = self.qkv(self.split(h)).view(-1, w * w, 3, 2, x.shape[-1] // 2).permute(2, 0, 3, 1, 4).unbind(0)
            bias = self.bias + self.mask.repeat(batch, 1, 1).unsqueeze(1)
            h = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
            h = self.out(h).view(batch, n, n, w, w, -1).permute(0, 1, 3, 2, 4, 5).reshape(x.shape)
            if self.shift:
                h = torch.roll(h, (self.shift, self.shift), (1, 2))
            x = x + h
            return x + self.down(F.gelu(self.up(self.norm2(x))))

    def __init__(self, width: int = 8, size: int = 8) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, 2, stride=2)
        self.blocks = nn.ModuleList(Swin.Block(width, size // 2, 2, i % 2) for i in range(4))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((1, 2)))


class Statistics(nn.Module):
    """One batch norm called twice, and a running average that is read after it has been changed."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)
        self.register_buffer("average", torch.zeros(width))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.first(x)))
        with torch.no_grad():
            self.average.mul_(0.9).add_(x.mean(0), alpha=0.1)
        x = torch.relu(self.norm(self.second(x)))
        return self.head(x - self.average)


def _tokens(length: int, vocab: int = 11) -> Tensor:
    return torch.randint(vocab, (ROWS, length))


def _labels() -> Tensor:
    labels = torch.randint(13, (ROWS, 7))
    labels[1, 3:] = -1
    return labels


_MAKERS: dict[str, Callable[[], TrainingTask]] = {
    "mixer": lambda: _classify(Mixer(), torch.randn(ROWS, 3, 8, 8)),
    "convnet": lambda: _classify(ConvNet(), torch.randn(ROWS, 3, 12, 12)),
    "convnet_eval": lambda: _classify(ConvNet().eval(), torch.randn(ROWS, 3, 12, 12)),
    "albert": lambda: _classify(Albert(), _tokens(6)),
    "unet": lambda: TrainingTask(UNet(), (torch.randn(ROWS, 1, 8, 8),), F.mse_loss, torch.randn(ROWS, 1, 8, 8)),
    "tied": lambda: TrainingTask(Tied(), {"tokens": torch.randint(13, (ROWS, 7)), "labels": _labels()}),
    "unused": lambda: _classify(Unused(), torch.randn(ROWS, 8)),
    "nested": lambda: TrainingTask(
        Nested(),
        {
            "features": {"left": torch.randn(ROWS, 5, 8), "right": (torch.randn(ROWS, 2), torch.randn(ROWS, 5, 8))},
            "mask": torch.rand(ROWS, 5),
        },
        _nested_loss,
        (torch.randn(ROWS, 5, 3), {"weight": torch.rand(ROWS)}),
    ),
    "encoder": lambda: _classify(Encoder(), _tokens(6)),
    "decoder": lambda: TrainingTask(Decoder(), (_tokens(5), _tokens(6)), _token_loss, _tokens(6)),
    "convnext": lambda: _classify(ConvNext(), torch.randn(ROWS, 3, 8, 8)),
    "swin": lambda: _classify(Swin(), torch.randn(ROWS, 3, 8, 8)),
    "statistics": lambda: _classify(Statistics(), torch.randn(ROWS, 8)),
    "einsum": lambda: _classify(Einsum(), torch.randn(ROWS, 6, 8)),
    "vector_loss": lambda: TrainingTask(VectorLoss(), torch.randn(ROWS, 6), nn.BCEWithLogitsLoss(), torch.rand(ROWS)),
}


def _seeded(make: Callable[[], TrainingTask]) -> Callable[[], TrainingTask]:
    def task() -> TrainingTask:
        torch.manual_seed(0)
        return make()

    return task


TASKS: dict[str, Callable[[], TrainingTask]] = {name: _seeded(make) for name, make in _MAKERS.items()}
