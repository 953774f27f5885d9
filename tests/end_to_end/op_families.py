"""One model per family of ops: a chain of residual blocks, each around one op as people write it.

FAMILIES["activations"] -> {"prelu": Block args, ...};  task("activations") -> TrainingTask

A block is  x + down(op(up(x)))  where `up` makes the shape that the op wants; the block's parameters before and after
the op show whether values and gradients come through.  Batch first, every other dim a multiple of four where a split
could be legal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniap_compiler.capture import TrainingTask

from .op_losses import labels, losses, positive

WIDTH = 8
ROWS = 8
Function = Callable[[Tensor], Tensor]
Entry = tuple[tuple[int, ...], nn.Module | Function]


class Block(nn.Module):
    def __init__(self, shape: tuple[int, ...], op: nn.Module | Function) -> None:
        super().__init__()
        self.shape = shape
        self.up = nn.Linear(WIDTH, math.prod(shape))
        self.op = op
        with torch.no_grad():
            self.down = nn.Linear(op(torch.rand(2, *shape)).flatten(1).shape[1], WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.op(self.up(x).view(x.shape[0], *self.shape))
        return x + self.down(torch.tanh(y.flatten(1)))


class Recurrent(nn.Module):
    """The cell step by step, or the whole sequence; the output only."""

    def __init__(self, kind: type[nn.Module], **options: Any) -> None:
        super().__init__()
        self.core = kind(8, 4, **options)
        self.cell = isinstance(self.core, nn.RNNCellBase)

    def forward(self, x: Tensor) -> Tensor:
        if not self.cell:
            y, last = self.core(x)
            return y + 0.1 * (last[0] if isinstance(last, tuple) else last).sum(0).unsqueeze(1).repeat(
                1, 1, y.shape[-1] // 4
            )
        state = None
        for t in range(x.shape[1]):
            state = self.core(x[:, t], state)
        return state[0] if isinstance(state, tuple) else state


class TrilinearWindow(nn.Module):
    """A relative-position bias, as window attention looks it up: a table indexed by a constant matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(9, 4))
        self.register_buffer("index", (torch.arange(4)[:, None] - torch.arange(4)[None, :] + 4))

    def forward(self, x: Tensor) -> Tensor:  # [b, 4 heads, 4, 4]
        bias = self.table[self.index.view(-1)].view(4, 4, 4).permute(2, 0, 1)
        return (x + bias.unsqueeze(0)).softmax(-1)


class Choose(nn.Module):
    """Mixes a table row in, chosen per row by the largest of the features: argmax, one_hot, index_select, gather."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(8, 4))

    def forward(self, x: Tensor) -> Tensor:  # [b, 8, 4]
        best = x.sum(-1).argmax(-1)
        hot = F.one_hot(best, 8).to(x.dtype)
        a = hot @ self.table
        b = self.table[best]
        c = self.table.index_select(0, best)
        d = x.gather(1, best[:, None, None].expand(-1, 1, 4)).squeeze(1)
        return a + b * c + d


class Written(nn.Module):
    """Assignments to slices, rows and masked places of a fresh tensor."""

    def forward(self, x: Tensor) -> Tensor:  # [b, 4, 8]
        y = torch.zeros_like(x)
        y[:, :, 2:6] = x[:, :, :4] * 2
        y[:, 1] = x[:, 2]
        z = torch.slice_scatter(x, x[:, 1:3] * 3, 1, 0, 2)
        w = torch.select_scatter(x, x[:, 0], 1, 3)
        v = x.clone()
        v[:, torch.tensor([0, 2])] = x[:, torch.tensor([1, 3])]
        u = torch.zeros_like(x).scatter(2, torch.arange(8).flip(0).expand(x.shape[0], 4, 8), x)
        t = torch.zeros_like(x).scatter_add(1, torch.zeros_like(x, dtype=torch.long), x)
        s = torch.zeros_like(x).index_add(1, torch.tensor([3, 1, 1, 0]), x)
        r = x.index_copy(2, torch.tensor([1, 5]), x[:, :, 2:4])
        q = x.index_fill(1, torch.tensor([2]), 0.5)
        return torch.stack([y, z, w, v, u, t, s, r, q], 1)


class Bagged(nn.Module):
    """Sums and means of table rows."""

    def __init__(self) -> None:
        super().__init__()
        self.sum = nn.EmbeddingBag(12, 8, mode="sum")
        self.mean = nn.EmbeddingBag(12, 8, mode="mean", padding_idx=0)

    def forward(self, x: Tensor) -> Tensor:  # [b, 4]
        ids = (x.detach().abs() * 50).long() % 12
        return torch.cat([self.sum(ids), self.mean(ids), self.sum(ids, per_sample_weights=x)], -1)


class Several(tuple[Function, ...]):
    """Functions of one input."""


def many(*functions: Function) -> Several:
    return Several(functions)


def _blocks(name: str, shape: tuple[int, ...], op: nn.Module | Function | Several) -> dict[str, Entry]:
    """Several functions become blocks of two, side by side; of one where they cut and join."""
    if not isinstance(op, Several):
        return {name: (shape, op)}
    step = 1 if name in ("splits", "copies") else 2
    groups = [op[i : i + step] for i in range(0, len(op), step)]
    return {f"{name} {i}": (shape, _beside(group)) for i, group in enumerate(groups)}


def _beside(functions: tuple[Function, ...]) -> Function:
    return lambda x: torch.cat([f(x).flatten(1) for f in functions], 1)


SQUARE, IMAGE = (4, 8), (4, 8, 8)


def families() -> dict[str, dict[str, Entry]]:
    return {
        family: {n: e for name, entry in entries.items() for n, e in _blocks(name, *entry).items()}
        for family, entries in _families().items()
    }


def _families() -> dict[str, dict[str, Any]]:
    torch.manual_seed(0)
    return {
        "activations": {
            "prelu": (SQUARE, nn.PReLU(4)),
            "prelu one": (SQUARE, nn.PReLU()),
            "smooth": (SQUARE, many(F.softplus, F.mish, F.silu, F.selu, F.elu, F.celu, F.gelu, F.logsigmoid)),
            "gelu tanh": (SQUARE, lambda x: F.gelu(x, approximate="tanh")),
            "pieces": (SQUARE, many(F.hardswish, F.hardsigmoid, F.hardtanh, F.relu6, F.leaky_relu, F.softsign)),
            "shrink": (SQUARE, many(F.hardshrink, F.softshrink, F.tanhshrink, lambda x: F.threshold(x, 0.1, 0.2))),
            "glu": (SQUARE, many(lambda x: F.glu(x, 1), lambda x: F.glu(x, -1))),
            "softmin": (SQUARE, many(lambda x: F.softmin(x, 1), lambda x: F.log_softmax(x, -1))),
        },
        "pointwise": {
            "clamp": (SQUARE, many(
                lambda x: x.clamp(-0.5, 0.5), lambda x: x.clamp_min(0.1), lambda x: torch.minimum(x, x.flip(2)),
                lambda x: torch.maximum(x, x.sum(1, True)), lambda x: torch.clamp(x, x.mean(1, True), x.amax(1, True)),
            )),
            "where": (SQUARE, many(
                lambda x: torch.where(x > 0, x, x * 0.1), lambda x: x.masked_fill(x < 0, 2.0),
                lambda x: torch.where(x.sum(2, True) > 0, x, 0.0),
            )),
            "fused": (SQUARE, many(
                lambda x: torch.addcmul(x, x.sin(), x.cos(), value=0.5),
                lambda x: torch.addcdiv(x, x.sin(), positive(x), value=2.0),
                lambda x: torch.lerp(x, x.cos(), 0.3), lambda x: torch.lerp(x, x.cos(), x.sin()),
                lambda x: torch.atan2(x, positive(x)), lambda x: torch.hypot(x, positive(x)),
            )),
            "functions": (SQUARE, many(
                lambda x: positive(x).log2(), lambda x: positive(x).pow(1.5), lambda x: torch.erf(x), torch.expm1,
                lambda x: torch.sinc(x), lambda x: torch.frac(x), lambda x: torch.fmod(x, 0.7), lambda x: x % 0.7,
                lambda x: torch.logaddexp(x, x.cos()), lambda x: torch.nan_to_num(x), lambda x: x.abs().sqrt(),
                lambda x: torch.xlogy(x, positive(x)), lambda x: torch.floor(x) + torch.round(x) + torch.sign(x),
            )),
            "triangle": ((4, 4, 4), many(torch.tril, lambda x: torch.triu(x, 1))),
        },
        "reductions": {
            "logsumexp": (SQUARE, many(lambda x: x.logsumexp(1), lambda x: x.logsumexp(2, True))),
            "norms": (SQUARE, many(
                lambda x: x.norm(dim=1), lambda x: torch.linalg.vector_norm(x, 1, 2), lambda x: x.norm(3, dim=2),
                lambda x: torch.linalg.vector_norm(x, math.inf, 1), lambda x: F.normalize(x, dim=2),
                lambda x: F.normalize(x, p=1.0, dim=1),
            )),
            "moments": (SQUARE, many(
                lambda x: x.var(1), lambda x: x.std(2, correction=0), lambda x: x.mean((1, 2), True).expand(-1, 4, 8),
                lambda x: torch.var_mean(x, 1)[1], lambda x: x.prod(1),
            )),
            "extremes": (SQUARE, many(
                lambda x: x.max(1).values, lambda x: x.min(2)[0], lambda x: x.amax(1), lambda x: x.amin((1, 2), True),
                lambda x: x.median(2).values, lambda x: torch.aminmax(x, dim=1)[0],
            )),
            "scans": (SQUARE, many(
                lambda x: x.cumsum(1), lambda x: positive(x).cumprod(2), lambda x: x.logcumsumexp(2),
                lambda x: x.cummax(1).values, lambda x: x.diff(dim=2), lambda x: torch.trapezoid(x, dim=1),
            )),
            "sorts": (SQUARE, many(
                lambda x: x.sort(1).values, lambda x: x.topk(2, -1).values, lambda x: x.kthvalue(2, 1).values,
                lambda x: torch.sort(x, dim=2, descending=True, stable=True)[0],
            )),
            "matrices": ((4, 4, 4), many(
                lambda x: torch.diagonal(x, dim1=1, dim2=2), lambda x: torch.einsum("bcii->bc", x),
                lambda x: torch.diag_embed(x.sum(1)), lambda x: torch.baddbmm(x[:, 0], x[:, 1], x[:, 2], alpha=2.0),
                lambda x: torch.addbmm(x.sum((0, 1)), x[:, 1], x[:, 2])[None] * x[:, 3],
                lambda x: torch.tensordot(x, torch.eye(4, dtype=x.dtype), 1),
                lambda x: x[:, 0] @ x[:, 1],
            )),
            "distances": ((4, 4, 4), many(
                lambda x: torch.cdist(x[:, 0], x[:, 1]), lambda x: torch.cdist(x, x + 1, p=1.0),
                lambda x: F.pairwise_distance(x[:, 0], x[:, 1]), lambda x: F.cosine_similarity(x[:, 0], x[:, 2], -1),
            )),
        },
        "shapes": {
            "splits": (SQUARE, many(
                lambda x: torch.cat([a * (i + 1) for i, a in enumerate(x.split(2, 1))], 1),
                lambda x: torch.cat([a * (i + 1) for i, a in enumerate(x.split([1, 5, 2], 2))], 1 + 1),
                lambda x: torch.stack([a.cos() for a in x.chunk(4, 2)], 1),
                lambda x: torch.stack(list(x.unbind(1))[::-1], 2), lambda x: torch.unsafe_split(x, 4, 2)[1].sin(),
                lambda x: torch.unsafe_chunk(x, 2, 1)[0], lambda x: torch.tensor_split(x, 3, 2)[2],
                lambda x: torch.hsplit(x, 2)[1], lambda x: x.narrow(2, 1, 4),
            )),
            "joins": (SQUARE, many(
                lambda x: torch.hstack([x, x.cos()]), lambda x: torch.dstack([x, x.sin()]),
                lambda x: torch.cat([x, x[:, :, :2], x[:, :, 3:4]], -1),
                lambda x: torch.column_stack([x[:, 0], x[:, 1]]),
            )),
            "copies": (SQUARE, many(
                lambda x: x.repeat(1, 2, 3), lambda x: x.repeat_interleave(2, 1), lambda x: x.tile(1, 2),
                lambda x: x.flip(1, 2), lambda x: x.fliplr(), lambda x: x.rot90(1, [1, 2]),
                lambda x: x.roll(1, 1), lambda x: x.roll((1, -2), (1, 2)),
                lambda x: x.expand(3, *x.shape).transpose(0, 1), lambda x: x.broadcast_to(2, *x.shape).movedim(0, 2),
            )),
            "pads": (IMAGE, many(
                lambda x: F.pad(x, (1, 2)), lambda x: F.pad(x, (1, 1, 2, 0), value=0.5), lambda x: F.pad(x, (-1, 1)),
                lambda x: F.pad(x, (1, 2, 3, 1), mode="reflect"), lambda x: F.pad(x, (1, 2, 0, 1), mode="replicate"),
                lambda x: F.pad(x, (2, 1, 1, 0), mode="circular"), lambda x: F.pad(x[:, 0], (2, 1), mode="reflect"),
                lambda x: F.pad(x[:, 0], (2, 1), mode="replicate"), lambda x: F.pad(x, (0, 0, 1, 1)),
            )),
            "folds": (IMAGE, many(
                lambda x: F.unfold(x, 3, padding=1, stride=2), lambda x: F.unfold(x, 2, stride=2),
                lambda x: F.fold(F.unfold(x, 3, padding=1), 8, 3, padding=1), lambda x: x.unfold(2, 4, 2),
            )),
            "pixel shuffle": ((8, 4, 4), lambda x: F.pixel_shuffle(x, 2)),
            "pixel unshuffle": ((4, 4, 4), lambda x: F.pixel_unshuffle(x, 2)),
            "channel shuffle": ((8, 4), lambda x: F.channel_shuffle(x, 4)),
            "grids": (SQUARE, many(
                lambda x: torch.meshgrid(torch.arange(4.0), torch.arange(8.0), indexing="ij")[0].to(x.dtype) * x,
                lambda x: x * torch.linspace(0, 1, 8, dtype=x.dtype), lambda x: x + torch.eye(8, dtype=x.dtype)[:4],
                lambda x: torch.outer(torch.arange(4.0), torch.arange(8.0)).to(x.dtype) * x,
                lambda x: x.new_ones(4, 8) * x,
                lambda x: torch.full_like(x, 0.3) * x + torch.arange(8, dtype=x.dtype),
            )),
        },
        "indexing": {
            "bias table": ((4, 4, 4), TrilinearWindow()),
            "choose": ((8, 4), Choose()),
            "written": (SQUARE, Written()),
            "take": (SQUARE, many(
                lambda x: x[:, torch.tensor([0, 3, 1])], lambda x: x[:, :, torch.tensor([0, 3, 1])],
                lambda x: x[:, torch.tensor([0, 3, 1]), torch.tensor([0, 7, 2])],
                lambda x: x[:, torch.tensor([[0], [3]]), torch.tensor([[0, 7, 2]])],
                lambda x: x.index_select(2, torch.tensor([1, 1, 5])), lambda x: x[:, ::2, 1::3], lambda x: x[:, -1],
                lambda x: x.take_along_dim(x.argsort(2), 2), lambda x: x[:, :, None, -3:],
                lambda x: x[torch.arange(x.shape[0]), labels(x[:, 0, 0], 4)],
            )),
            "bag": ((4,), Bagged()),
        },
        "convolutions": {
            "1d": ((4, 8), nn.Sequential(nn.Conv1d(4, 8, 3, padding=1), nn.Conv1d(8, 4, 2, stride=2, groups=2))),
            "1d same": ((4, 8), nn.Conv1d(4, 4, 3, padding="same", padding_mode="circular")),
            "1d depthwise": ((4, 8), nn.Conv1d(4, 4, 3, padding=2, groups=4, dilation=2)),
            "1d transposed": ((4, 8), nn.ConvTranspose1d(4, 8, 4, stride=2, padding=1)),
            "2d": ((4, 4, 4), nn.Conv2d(4, 8, 3, padding=1, stride=2, bias=False)),
            "2d patches": ((4, 4, 4), nn.Conv2d(4, 8, 2, stride=2)),
            "2d depthwise": ((4, 4, 4), nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, groups=4), nn.Conv2d(8, 4, 1))),
            "2d transposed": ((4, 4, 4), nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1)),
            "2d transposed groups": ((4, 4, 4), nn.ConvTranspose2d(4, 8, 2, stride=2, groups=2, bias=False)),
            "2d reflect": ((4, 4, 4), nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")),
            "3d": ((4, 4, 4, 2), nn.Conv3d(4, 8, (3, 3, 1), padding=(1, 1, 0))),
            "3d transposed": ((4, 2, 2, 2), nn.ConvTranspose3d(4, 4, 2, stride=2)),
        },
        "pooling": {
            "1d": ((4, 8), many(
                nn.AvgPool1d(2), nn.MaxPool1d(2), nn.AdaptiveAvgPool1d(4), nn.AdaptiveMaxPool1d(4), nn.LPPool1d(2, 2),
            )),
            "2d": (IMAGE, many(
                nn.AvgPool2d(3, 2, 1), nn.MaxPool2d(3, 2, 1), nn.AdaptiveAvgPool2d((4, 2)), nn.AdaptiveMaxPool2d(3),
                nn.AdaptiveAvgPool2d(1), nn.LPPool2d(2, 2), nn.MaxPool2d(2, ceil_mode=True), nn.AdaptiveAvgPool2d(3),
            )),
            "3d": ((4, 4, 4, 4), many(
                nn.AvgPool3d(2), nn.MaxPool3d(2), nn.AdaptiveAvgPool3d(2), nn.AdaptiveMaxPool3d(2),
                nn.AdaptiveAvgPool3d(1),
            )),
            "resize 1d": ((4, 8), many(
                lambda x: F.interpolate(x, 16, mode="nearest"),
                lambda x: F.interpolate(x, scale_factor=2, mode="linear"),
            )),
            "resize 2d": (IMAGE, many(
                lambda x: F.interpolate(x, scale_factor=2), lambda x: F.interpolate(x, (4, 4), mode="nearest-exact"),
                lambda x: F.interpolate(x, (12, 16), mode="bilinear", align_corners=False),
                lambda x: F.interpolate(x, (12, 16), mode="bilinear", align_corners=True),
                lambda x: F.interpolate(x, (16, 16), mode="bicubic"), lambda x: F.interpolate(x, (4, 4), mode="area"),
                lambda x: F.interpolate(x, (5, 5), mode="bilinear", antialias=True),
            )),
            "resize 3d": ((4, 2, 2, 2), many(
                lambda x: F.interpolate(x, scale_factor=2), lambda x: F.interpolate(x, (4, 4, 4), mode="trilinear"),
            )),
            "grid": (IMAGE, lambda x: F.grid_sample(x, torch.tanh(x[:, :2].permute(0, 2, 3, 1)), align_corners=False)),
        },
        "norms": {
            "layer": (SQUARE, nn.Sequential(nn.LayerNorm(8), nn.LayerNorm([4, 8], elementwise_affine=False))),
            "rms": (SQUARE, nn.RMSNorm(8)),
            "group": ((8, 4, 4), nn.Sequential(nn.GroupNorm(4, 8), nn.GroupNorm(1, 8, affine=False))),
            "instance": ((4, 8), nn.InstanceNorm1d(4, affine=True)),
            "batch 1d": ((4, 8), nn.BatchNorm1d(4)),
            "batch 2d": ((4, 4, 4), nn.BatchNorm2d(4, affine=False)),
            "batch no statistics": ((4, 8), nn.BatchNorm1d(4, track_running_stats=False)),
            "local response": ((4, 4, 4), nn.LocalResponseNorm(2)),
            "spectral": (SQUARE, torch.nn.utils.parametrizations.weight_norm(nn.Linear(8, 4))),
        },
        "recurrent": {
            "lstm cell": ((2, 8), Recurrent(nn.LSTMCell)),
            "gru cell": ((2, 8), Recurrent(nn.GRUCell)),
            "rnn cell": ((2, 8), Recurrent(nn.RNNCell, nonlinearity="relu")),
            "lstm": ((3, 8), Recurrent(nn.LSTM, batch_first=True)),
            "lstm two ways": ((3, 8), Recurrent(nn.LSTM, batch_first=True, bidirectional=True, num_layers=2)),
            "gru": ((3, 8), Recurrent(nn.GRU, batch_first=True, bias=False)),
            "rnn": ((3, 8), Recurrent(nn.RNN, batch_first=True)),
        },
        "attention": {
            "encoder layer": (SQUARE, nn.TransformerEncoderLayer(8, 4, 16, dropout=0.0, batch_first=True)),
            "multihead": (SQUARE, Attended()),
            "bilinear": (SQUARE, Bilinear()),
        },
        "losses": losses(),
    }  # fmt: skip


class Attended(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.core = nn.MultiheadAttention(8, 4, batch_first=True, dropout=0.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.core(x, x, x, need_weights=True)[0]


class Bilinear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.core = nn.Bilinear(8, 8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.core(x, x.cos())


def chain(entries: list[Entry]) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(*(Block(shape, op) for shape, op in entries), nn.Linear(WIDTH, 4))


def task(entries: list[Entry]) -> TrainingTask:
    model = chain(entries)
    torch.manual_seed(2)
    x, y = torch.randn(ROWS, WIDTH), torch.randn(ROWS, 4)
    return TrainingTask(model, x, loss=lambda out, t: ((out - t) ** 2).mean(), targets=y, optimizer="sgd")
