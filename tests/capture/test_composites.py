"""Losses with kinks and single ops out of simpler ones, against torch's kernels: values and gradients in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from uniap_compiler.capture import composites as c
from uniap_compiler.capture import functional, losses
from uniap_compiler.capture.recurrent import RECURRENT

from .test_decompositions import check, r

aten = torch.ops.aten
KINKS = torch.tensor([[-40.0, -1.0, -0.5, 0.0], [0.5, 1.0, 2.0, 50.0], [0.0, -2.0, 1.0, 0.3]]).double()
"""Where losses change their formula, and far out."""


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def same(ours: Callable[..., Any], theirs: Callable[..., Any], *tensors: Tensor, **options: Any) -> None:
    check(partial(ours, **options), partial(theirs, **options), *tensors)


@pytest.mark.parametrize("reduction", [0, 1, 2])
def test_losses_with_kinks(reduction: int) -> None:
    zero, sign = torch.zeros(3, 4).double(), torch.tensor([1.0, -1.0, 1.0, -1.0]).double()
    for beta in (0.5, 1.0):  # F.smooth_l1_loss itself calls l1_loss for 0
        same(losses.smooth_l1, aten.smooth_l1_loss, KINKS, zero, reduction=reduction, beta=beta)
    for delta in (0.5, 1.0):
        same(losses.huber, aten.huber_loss, KINKS, zero, reduction=reduction, delta=delta)
    args: tuple[Any, ...] = (sign, reduction)
    check(lambda x: losses.soft_margin(x, *args), lambda x: aten.soft_margin_loss(x, *args), KINKS)
    y = torch.rand(3, 4).double()
    theirs = partial(_then, aten.binary_cross_entropy_with_logits, (y, None, None, reduction))
    check(partial(_then, losses.bce_with_logits, (y, None, None, reduction)), theirs, KINKS)
    check(losses.log_sigmoid, F.logsigmoid, KINKS)
    probability = torch.tensor([[0.0, 1.0, 0.5, 1e-13]]).double()
    if reduction:
        rest = (y[:1], None, reduction)
        check(lambda x: losses.bce(x, *rest), lambda x: aten.binary_cross_entropy(x, *rest), probability)


@pytest.mark.parametrize("reduction", [0, 1, 2])
@pytest.mark.parametrize(("p", "margin", "weighted"), [(1, 1.0, False), (2, 0.5, True), (1, -0.5, False)])
def test_multi_margin(reduction: int, p: int, margin: float, weighted: bool) -> None:
    rest = (torch.tensor([3, 0, 2]), p, margin, r(4).exp() if weighted else None, reduction)
    check(lambda x: losses.multi_margin(x, *rest), lambda x: aten.multi_margin_loss(x, *rest), r(3, 4))


@pytest.mark.parametrize("p", [1, 1.5, 2, 3, math.inf])
@pytest.mark.parametrize("dim", [None, [0], [1], [0, 1]])
@pytest.mark.parametrize("keepdim", [False, True])
def test_norms(p: float, dim: Any, keepdim: bool) -> None:
    """A row of zeros, and zeros only: the gradient is zero there."""
    x = r(3, 4)
    for value in (x, x * torch.tensor([0.0, 1.0, 1.0]).double()[:, None], torch.zeros(3, 4).double()):
        rest = (p, dim, keepdim)
        check(partial(_then, c.vector_norm, rest), partial(_then, aten.linalg_vector_norm, rest), value)


def _then(f: Callable[..., Tensor], rest: tuple[Any, ...], x: Tensor) -> Tensor:
    return f(x, *rest)


def test_composites() -> None:
    same(c.glu, F.glu, r(3, 4, 6))
    same(c.glu, F.glu, r(3, 4, 6), dim=1)
    check(lambda v, g: c.weight_norm(v, g, 0)[0], lambda v, g: torch._weight_norm(v, g, 0), r(3, 4), r(3, 1))
    check(lambda v, g: c.weight_norm(v, g, 1)[0], lambda v, g: torch._weight_norm(v, g, 1), r(3, 4), r(1, 4))
    same(c.bilinear, F.bilinear, r(2, 3, 4), r(2, 3, 5), r(6, 4, 5), r(6))
    same(c.addbmm, torch.addbmm, r(3, 5), r(2, 3, 4), r(2, 4, 5), beta=0.5, alpha=2)
    same(c.addr, torch.addr, r(3, 5), r(3), r(5), beta=0.5)
    check(lambda x: c.pixel_shuffle(x, 2), lambda x: F.pixel_shuffle(x, 2), r(2, 8, 3, 2))
    check(lambda x: c.pixel_unshuffle(x, 2), lambda x: F.pixel_unshuffle(x, 2), r(2, 3, 4, 6))
    check(lambda x: c.channel_shuffle(x, 3), lambda x: F.channel_shuffle(x, 3), r(2, 6, 3, 2))
    for k in range(-1, 5):
        same(c.rot90, torch.rot90, r(2, 3, 4), k=k, dims=[1, 2])


@pytest.mark.parametrize("amounts", [[1, 0, 2, 1], [3, 3, 0, 0], [0, 1, 4, 1]])
def test_circular_padding(amounts: list[int]) -> None:
    check(lambda x: c.pad(x, amounts, "circular"), lambda x: F.pad(x, amounts, "circular"), r(2, 3, 4, 5))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 2, -1])
def test_embedding_bag(mode: str, padding: int | None) -> None:
    bags = torch.tensor([[0, 2, 2], [2, 2, 2], [4, 1, 0], [4, 4, 4]])
    ours = partial(functional.embedding_bag, bags, mode=mode, padding_idx=padding)
    theirs = partial(F.embedding_bag, bags, mode=mode, padding_idx=padding)
    check(ours, theirs, r(5, 3))
    if mode == "sum":
        check(
            lambda w, s: ours(w, per_sample_weights=s), lambda w, s: theirs(w, per_sample_weights=s), r(5, 3), r(4, 3)
        )  # fmt: skip


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("full", [False, True])
def test_gaussian_nll(reduction: str, full: bool) -> None:
    for var in (torch.tensor([[0.5, 1e-9, 2.0]]).double().expand(4, 3).clone(), r(4).exp()):
        same(functional.gaussian_nll_loss, F.gaussian_nll_loss, r(4, 3), r(4, 3), var, full=full, reduction=reduction)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN", "projected"])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("biases", [False, True])
def test_recurrent_layers(kind: str, both: bool, biases: bool) -> None:
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": both, "bias": biases}
    projection = {"proj_size": 2} if kind == "projected" else {}
    layer = getattr(torch.nn, "LSTM" if projection else kind)(3, 4, **options, **projection).double()
    op = getattr(aten, {"RNN": "rnn_tanh", "GRU": "gru"}.get(kind, "lstm")).input
    ways = 2 if both else 1
    states = [r(2 * ways, 5, 2 if projection else 4)] + [r(2 * ways, 5, 4)] * ("lstm" in str(op))
    rest = (biases, 2, 0.0, True, both, True)

    def run(f: Callable[..., Any], x: Tensor, *state: Tensor) -> Tensor:
        y, *last = f(x, list(state) if len(state) > 1 else state[0], layer._flat_weights, *rest)
        return torch.cat([y.flatten(), *(t.flatten() for t in last)])

    check(partial(run, RECURRENT[op]), partial(run, op), r(5, 6, 3), *states)
