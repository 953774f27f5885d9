"""Mixtures of experts, written as people write them, become one op that computes the same; look-alikes do not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniap_compiler.capture import TrainingTask
from uniap_compiler.ir import Op

from .reference import captured, difference, eager, interpret, promoted, transform

H, I, E, K = 8, 6, 4, 2


class Mixture(nn.Module):
    """combine(self, tokens [.., h], choice [.., k], weights [.., k]) -> [.., h]."""

    def __init__(self, combine: Callable[[Mixture, Tensor, Tensor, Tensor], Tensor], wide: int = 2 * I) -> None:
        super().__init__()
        self.combine = combine
        self.router = nn.Linear(H, E)
        self.up = nn.Parameter(torch.randn(E, wide, H))
        self.down = nn.Parameter(torch.randn(E, H, I))
        self.up_bias = nn.Parameter(torch.randn(E, wide))
        self.down_bias = nn.Parameter(torch.randn(E, H))
        self.head = nn.Linear(H, 3)

    def forward(self, x: Tensor) -> Tensor:
        weights, choice = torch.topk(self.router(x).softmax(-1), K)
        return self.head(x + self.combine(self, x, choice, weights)).mean(1)


def flat(m: Mixture, x: Tensor, choice: Tensor, weights: Tensor) -> Tensor:
    """Tokens in one dim, repeated for their choices; batched matrix products."""
    rows = x.reshape(-1, H).repeat_interleave(K, dim=0)
    choice = choice.reshape(-1)
    u = torch.bmm(m.up[choice], rows.unsqueeze(-1)).squeeze(-1)
    gate, up = u.chunk(2, dim=-1)
    y = torch.bmm(m.down[choice], (F.silu(gate) * up).unsqueeze(-1)).squeeze(-1)
    return (y * weights.reshape(-1, 1)).view(-1, K, H).sum(1).view(x.shape)


def einsums(m: Mixture, x: Tensor, choice: Tensor, weights: Tensor) -> Tensor:
    u = torch.einsum("bsi,bskoi->bsko", x, m.up[choice])
    y = torch.einsum("bsko,bskio->bski", F.gelu(u[..., I:]) * u[..., :I], m.down[choice])
    return torch.einsum("bski,bsk->bsi", y, weights)


def biased(m: Mixture, x: Tensor, choice: Tensor, weights: Tensor) -> Tensor:
    """Biases, interleaved halves, matrices the other way round, weights ahead of the products."""
    rows = x.reshape(-1, 1, H).expand(-1, K, H).reshape(-1, 1, H)
    choice = choice.flatten()
    u = torch.bmm(rows, m.up.transpose(1, 2)[choice]).squeeze(1) + m.up_bias[choice]
    gate, up = u[..., ::2].clamp(max=1.0), u[..., 1::2].clamp(min=-1.0, max=1.0)
    a = (up + 1) * gate * torch.sigmoid(1.7 * gate)
    y = m.down_bias[choice] + torch.bmm(a.unsqueeze(1), m.down.transpose(1, 2)[choice]).squeeze(1)
    return (weights.reshape(-1, 1) * y).view(*x.shape[:-1], K, H).sum(-2)


def plain(m: Mixture, x: Tensor, choice: Tensor, weights: Tensor) -> Tensor:
    """No gate."""
    u = torch.einsum("bsi,bskoi->bsko", x, m.up[choice])
    return (torch.einsum("bsko,bskio->bski", F.relu(u) ** 2, m.down[choice]) * weights.unsqueeze(-1)).sum(-2)


def other_experts(m: Mixture, x: Tensor, choice: Tensor, weights: Tensor) -> Tensor:
    """The second product takes the next expert."""
    u = torch.einsum("bsi,bskoi->bsko", x, m.up[choice])
    y = torch.einsum("bsko,bskio->bski", F.silu(u[..., :I]) * u[..., I:], m.down[(choice + 1) % E])
    return torch.einsum("bski,bsk->bsi", y, weights)


def not_pointwise(m: Mixture, x: Tensor, choice: Tensor, weights: Tensor) -> Tensor:
    u = torch.einsum("bsi,bskoi->bsko", x, m.up[choice])
    y = torch.einsum("bsko,bskio->bski", F.softmax(u[..., :I], -1) * u[..., I:], m.down[choice])
    return torch.einsum("bski,bsk->bsi", y, weights)


def over_tokens(m: Mixture, x: Tensor, choice: Tensor, weights: Tensor) -> Tensor:
    """The sum is over the tokens of a row."""
    u = torch.einsum("bsi,bskoi->bsko", x, m.up[choice])
    y = torch.einsum("bsko,bskio->bski", F.silu(u[..., :I]) * u[..., I:], m.down[choice])
    return (y * weights.unsqueeze(-1)).sum(1).sum(1, keepdim=True)


def one_half(m: Mixture, x: Tensor, choice: Tensor, weights: Tensor) -> Tensor:
    """Shifted halves."""
    u = torch.einsum("bsi,bskoi->bsko", x, m.up[choice])
    y = torch.einsum("bsko,bskio->bski", F.silu(u[..., 1 : I + 1]) * u[..., I:], m.down[choice])
    return torch.einsum("bski,bsk->bsi", y, weights)


def task(combine: Callable[..., Tensor]) -> TrainingTask:
    torch.manual_seed(0)
    model = Mixture(combine, I if combine is plain else 2 * I)
    if combine is not biased:
        model.up_bias.requires_grad_(False)
        model.down_bias.requires_grad_(False)
    return TrainingTask(model, torch.randn(4, 5, H), loss=F.cross_entropy, targets=torch.arange(4) % 3)


def compiled(combine: Callable[..., Tensor]) -> tuple[list[Op], float]:
    """The forward ops, and the error of the whole step against eager."""
    module, converted, constants = captured(task(combine), "canonicalize,outline-layers,differentiate,canonicalize")
    with promoted(torch.float64):
        error = difference(interpret(module, "step", converted, constants), eager(converted))
    return [op for f in module.funcs.values() if f.attrs.get("kind") == "forward" for op in f.ops], error


@pytest.mark.parametrize(
    ("combine", "activation"),
    [
        (flat, "silu(gate) * up"),
        (einsums, "gelu(up) * gate"),
        (biased, "((clamp(up, -1.0, 1.0) + 1) * clamp(gate, None, 1.0)) * sigmoid((clamp(gate, None, 1.0) * 1.7))"),
        (plain, "relu(u) ** 2"),
    ],
)
def test_one_op(combine: Callable[..., Tensor], activation: str) -> None:
    ops, error = compiled(combine)
    (found,) = [op for op in ops if op.name == "nn.experts"]
    assert found.attrs["activation"] == activation
    assert error < 1e-12
    assert not any(op.name == "aten.index.Tensor" for op in ops)
    largest = max(len(v.type.shape) for op in ops for v in op.results)
    assert largest <= 4, "nothing has tokens, choices and both dims of a matrix"


@pytest.mark.parametrize("combine", [other_experts, not_pointwise, over_tokens, one_half])
def test_look_alikes(combine: Callable[..., Tensor]) -> None:
    ops, error = compiled(combine)
    assert not any(op.name == "nn.experts" for op in ops)
    assert error < 1e-12


def test_again() -> None:
    """A second time nothing is left to do."""
    module, _, _ = captured(task(flat), "canonicalize")
    names = [op.name for op in module.funcs["main"].ops]
    assert [op.name for op in transform(module, "canonicalize").funcs["main"].ops] == names
