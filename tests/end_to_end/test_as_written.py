"""Models with what people write around the layers: detached twins, losses with parameters, closures, checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from uniap_compiler.capture import TrainingTask

from .plans import Workshop, check

ROWS = 4


def mlp(out: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, out))


class Net(nn.Module):
    """Parts, and a function of them and the input."""

    def __init__(self, body: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.body = body
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


class Twins(nn.Module):
    """A value and the same value detached, both results of a layer, one of them its input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = self.linear(x)
        return z.relu() + x, x.detach(), z


def twins(m: Any, x: Tensor) -> Tensor:
    h, total = m.first(x), x.new_zeros(())
    for layer in m.layers:
        h, before, z = layer(h)
        total = total + (before * z.tanh()).mean()
    gate = m.last(h.detach()).sigmoid()
    return (h * gate).mean() + total


def chosen(m: Any, x: Tensor) -> Tensor:
    """Vector quantisation: one layer reads the codes without a gradient, another one with it."""
    z = m.encoder(x)
    codes = m.codes(torch.cdist(z, m.codes.weight).argmin(-1))
    kept = F.mse_loss(z, codes.detach()) + F.mse_loss(codes, z.detach())
    m.steps += 1
    return F.mse_loss(m.decoder(z + (codes - z).detach()), x) + kept


def averaged(m: Any, x: Tensor) -> Tensor:
    h = m.encoder(x)
    m.ema = 0.9 * m.ema + 0.1 * h.mean(0)
    return (m.decoder(h) - m.ema).pow(2).mean() + m.ema.sum()


def checkpointed(m: Any, x: Tensor) -> Tensor:
    for reentrant in (True, False):
        x = x + checkpoint(m.encoder, x, use_reentrant=reentrant)
    return m.decoder(x).pow(2).mean()


def in_place(m: Any, x: Tensor) -> Tensor:
    x += 1
    h = m.encoder(x).tanh() * 1.0
    h[h < 0.3] = 0.0
    return m.decoder(h).pow(2).mean()


class Sign(torch.autograd.Function):
    """A straight-through estimator that stops where the activation is large."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return g * (x.abs() <= 1).to(g.dtype)


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, strength: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.strength = inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * g, None


def own_gradients(m: Any, x: Tensor) -> Tensor:
    h = m.encoder(x)
    return m.decoder(Sign.apply(h)).pow(2).mean() + m.other(Reversed.apply(h, 0.3)).pow(2).mean()


class Closed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = parts = nn.ModuleDict({"a": mlp(), "b": mlp()})
        self.run = lambda x: x + parts["b"](parts["a"](x))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


class Weighted(nn.Module):
    """A loss of several parts, weighed by parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(2))
        self.register_buffer("weight", torch.tensor([0.1, 1.0, 2.0, 0.5]))

    def forward(self, out: dict[str, Tensor], target: dict[str, Tensor]) -> Tensor:
        kind = F.cross_entropy(out["class"], target["class"], weight=self.weight)
        parts = torch.stack([kind, F.huber_loss(out["size"], target["size"])])
        return (parts * torch.exp(-self.scale) + self.scale).sum()


def weighted() -> TrainingTask:
    model = Net(lambda m, x: {"class": m.head(h := m.encoder(x)), "size": m.size(h).squeeze(-1)},
                encoder=mlp(), head=nn.Linear(8, 4), size=nn.Linear(8, 1))  # fmt: skip
    targets = {"class": torch.randint(0, 4, (ROWS,)), "size": torch.randn(ROWS)}
    return TrainingTask(model, (torch.randn(ROWS, 8),), loss=Weighted(), targets=targets)


class Turned(nn.Module):
    """Rotary positions as complex factors, and mixing over the sequence by a Fourier transform."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)
        angles = torch.outer(torch.arange(4.0), torch.tensor([1.0, 0.1]))
        self.register_buffer("turns", torch.polar(torch.ones_like(angles), angles), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        z = torch.view_as_complex(y.float().reshape(*y.shape[:2], 4, 2, 2))
        z = torch.view_as_real(z * self.turns[: y.shape[1], None]).flatten(2).type_as(y)
        return self.down(torch.fft.fft(z, dim=1).real + y).pow(2).mean()


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.core = kind(8, 4, 2, dropout=0.3, **options)
        self.head = nn.Linear(4 * (1 + self.core.bidirectional), 8)

    def forward(self, x: Tensor) -> Tensor:
        batch_first = self.core.batch_first
        y, last = self.core(x if batch_first else x.transpose(0, 1))
        y = y if batch_first else y.transpose(0, 1)
        state = last[1] if isinstance(last, tuple) else last
        return self.head(y).pow(2).mean() + state.sum(-1).pow(2).mean()


class Translator(nn.Module):
    """torch's own encoder and decoder, given masks without saying that they are causal."""

    def __init__(self) -> None:
        super().__init__()
        self.core = nn.Transformer(8, 2, 1, 1, 16, batch_first=True)

    def forward(self, x: Tensor, y: Tensor, absent: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(y.shape[1])
        return self.core(x, y, tgt_mask=mask, src_key_padding_mask=absent, memory_key_padding_mask=absent).pow(4).mean()


def _translator() -> TrainingTask:
    absent = torch.tensor([[False, False, True]]).expand(ROWS, 3)
    return TrainingTask(Translator(), (torch.randn(ROWS, 3, 8), torch.randn(ROWS, 5, 8), absent))


def _net(body: Callable[..., Any], **parts: Any) -> TrainingTask:
    return TrainingTask(Net(body, **parts), {"x": torch.randn(ROWS, 8)})


def _plain(model: nn.Module, *shape: int) -> TrainingTask:
    return TrainingTask(model, (torch.randn(ROWS, *shape),))


TASKS: dict[str, Callable[[], TrainingTask]] = {
    "detached twins": lambda: _net(
        twins, first=nn.Linear(8, 8), layers=nn.ModuleList(Twins() for _ in range(2)), last=nn.Linear(8, 8)
    ),
    "codes": lambda: _net(
        chosen, encoder=mlp(), codes=nn.Embedding(12, 8), decoder=nn.Linear(8, 8), steps=torch.zeros(())
    ),
    "assigned buffer": lambda: _net(averaged, encoder=mlp(), decoder=nn.Linear(8, 8), ema=torch.zeros(8)),
    "checkpoints": lambda: _net(checkpointed, encoder=mlp(), decoder=nn.Linear(8, 8)),
    "own gradients": lambda: _net(own_gradients, encoder=mlp(), decoder=nn.Linear(8, 8), other=nn.Linear(8, 8)),
    "in place": lambda: _net(in_place, encoder=mlp(), decoder=nn.Linear(8, 8)),
    "closures": lambda: _net(lambda m, x: m.tail(m.body_(x)).pow(2).mean(), body_=Closed(), tail=mlp()),
    "a loss with parameters": weighted,
    "complex numbers": lambda: _plain(Turned(), 4, 8),
    "lstm with dropout": lambda: _plain(Recurrent(nn.LSTM, batch_first=True), 2, 8),
    "gru with dropout, both ways": lambda: _plain(Recurrent(nn.GRU, bidirectional=True), 2, 8),
    "torch's transformer": _translator,
}
SLOW = ("lstm with dropout", "gru with dropout, both ways", "torch's transformer", "codes")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else []) for n in TASKS])
def test_as_written(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    task = TASKS[name]()
    bundle = Workshop(tmp_path).compile(task, 4, "pp=1,dp=2,tp=2", tmp_path / "bundle", name=name, global_batch=8)
    report = check(bundle, task=task)
    compared = {row.name for row in report.rows if row.what == "gradient"}
    assert {n for n, p in task.model.named_parameters() if p.requires_grad} <= compared
    if isinstance(task.loss, nn.Module):
        assert {f"loss.{n}" for n, _ in task.loss.named_parameters()} <= compared
