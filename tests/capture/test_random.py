"""Captured random ops draw what the eager module draws under the same key: the same number of the op, the same mask."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniap_compiler.bridge import draws
from uniap_compiler.bridge.interpret import run
from uniap_compiler.capture import TrainingTask, capture
from uniap_compiler.capture.random_ops import EagerDraws, without_checkpointing
from uniap_compiler.ir import Module

ROWS = 6
KEY = draws.micro_batch_key(3, 1, 4)


def attend(x: Tensor, p: float, **more: object) -> Tensor:
    q = x.view(x.shape[0], 2, 4, 3)
    return F.scaled_dot_product_attention(q, q * 2, q + 1, dropout_p=p, **more).flatten(1)  # type: ignore[arg-type]


def drop_path_timm(x: Tensor) -> Tensor:
    mask = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(0.7)
    mask.div_(0.7)
    return x * mask


def drop_path_floor(x: Tensor) -> Tensor:
    keep = 0.7 + torch.rand((x.shape[0], 1), dtype=x.dtype, device=x.device)
    keep.floor_()
    return x.div(0.7) * keep


def unused(x: Tensor) -> Tensor:
    F.dropout(x, 0.5)
    torch.rand(3)
    return F.dropout(x, 0.5)


def without_gradient(x: Tensor) -> Tensor:
    y = F.dropout(x, 0.3)
    with torch.no_grad():
        z = F.dropout(x, 0.3)
    return y + z + F.dropout(x, 0.3)


def checkpointed(x: Tensor, use_reentrant: bool) -> Tensor:
    def part(y: Tensor) -> Tensor:
        return F.dropout(torch.sigmoid(y), 0.4) * y

    y = torch.utils.checkpoint.checkpoint(part, x, use_reentrant=use_reentrant)
    return F.dropout(y, 0.4)


SITES: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "dropout": (lambda x: F.dropout(x, 0.1), 1),
    "in place": (lambda x: F.dropout(x * 2, 0.1, inplace=True), 1),
    "eval": (lambda x: F.dropout(x, 0.5, training=False), 0),
    "p=0": (lambda x: F.dropout(x, 0.0), 0),
    "p=1": (lambda x: F.dropout(x, 1.0) + x, 0),
    "in place p=1": (lambda x: F.dropout(x * 2, 1.0, inplace=True) + x, 0),
    "attention p=1": (lambda x: attend(x, 1.0) + x, 0),
    "dropout1d": (lambda x: F.dropout1d(x.view(-1, 4, 6), 0.4).flatten(1), 1),
    "dropout2d": (lambda x: F.dropout2d(x.view(-1, 4, 3, 2), 0.4).flatten(1), 1),
    "dropout3d": (lambda x: F.dropout3d(x.view(-1, 4, 3, 2, 1), 0.4, inplace=False).flatten(1), 1),
    "alpha": (lambda x: F.alpha_dropout(x, 0.3, training=True), 1),
    "feature alpha": (lambda x: F.feature_alpha_dropout(x.view(-1, 4, 6), 0.3, training=True).flatten(1), 1),
    "attention": (lambda x: attend(x, 0.3), 1),
    "causal attention": (lambda x: attend(x, 0.3, is_causal=True), 1),
    "masked attention": (lambda x: attend(x, 0.3, attn_mask=torch.ones(4, 4).tril().bool()), 1),
    "grouped attention": (
        lambda x: F.scaled_dot_product_attention(
            x.view(-1, 4, 2, 3), x.view(-1, 2, 4, 3), x.view(-1, 2, 4, 3), dropout_p=0.5, enable_gqa=True
        ).flatten(1), 1
    ),
    "softmax": (lambda x: F.dropout(F.softmax(x.view(-1, 4, 6), -1), 0.2).flatten(1), 1),
    "timm": (drop_path_timm, 1),
    "floor": (drop_path_floor, 1),
    "rand": (lambda x: x + torch.rand(24), 1),
    "rand_like": (lambda x: x * torch.rand_like(x), 1),
    "randn": (lambda x: x * torch.randn(x.shape[0], 1), 1),
    "randn_like": (lambda x: x + torch.randn_like(x), 1),
    "normal": (lambda x: x + torch.normal(1.0, 2.0, (24,)), 1),
    "normal of tensors": (lambda x: torch.normal(x, torch.full((24,), 0.5)), 1),
    "normal_": (lambda x: x + torch.empty_like(x).normal_(1.0, 0.5), 1),
    "uniform_": (lambda x: x + torch.empty_like(x).uniform_(-2.0, 3.0), 1),
    "exponential_": (lambda x: x + torch.empty_like(x).exponential_(2.0), 1),
    "gumbel": (lambda x: F.gumbel_softmax(x, tau=0.7), 1),
    "bernoulli of a tensor": (lambda x: x * torch.bernoulli(torch.sigmoid(x.detach())), 1),
    "bernoulli p": (lambda x: x * torch.bernoulli(x.detach(), 0.3), 1),
    "bernoulli_ of a tensor": (lambda x: x * torch.empty_like(x).bernoulli_(torch.full((24,), 0.25)), 1),
    "randint": (lambda x: x * torch.randint(-3, 9, (24,)), 1),
    "randint_like": (lambda x: x * torch.randint_like(x, 5), 1),
    "two": (lambda x: F.dropout(F.dropout(x, 0.2) * torch.rand_like(x), 0.3), 3),
    "unused": (unused, 3),
    "no_grad": (without_gradient, 3),
    "checkpoint": (lambda x: checkpointed(x, False), 2),
    "reentrant checkpoint": (lambda x: checkpointed(x, True), 2),
}


class Net(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.up = nn.Linear(5, 24, dtype=torch.float64)
        self.weight = nn.Parameter(torch.randn(24, dtype=torch.float64))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return (self.function(self.up(x)) * self.weight).square().mean()


def arguments(module: Module, net: nn.Module, x: Tensor) -> list[Tensor]:
    tensors = dict(net.named_parameters())
    found = {"input": lambda p: x, "random": lambda p: KEY, "param": lambda p: tensors[p.attrs["path"]]}
    params = module.funcs["main"].params
    assert {p.attrs["role"] for p in params} <= {*found, "constant"}
    return [found[str(p.attrs["role"])](p) for p in params]


@pytest.mark.parametrize("name", SITES)
def test_equals_eager(name: str) -> None:
    function, sites = SITES[name]
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        net, x = Net(function), torch.randn(ROWS, 5)
        module = capture(TrainingTask(net, x))
        with without_checkpointing(), EagerDraws(KEY) as eager:
            wanted = net(x)
        (found,) = run(module.funcs["main"], arguments(module, net, x), batch=ROWS)
    finally:
        torch.set_default_dtype(before)
    assert eager.sites == sites == module.attrs.get("random_sites", 0)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert any(op.name == "nn.random_key" for op in module.funcs["main"].ops) == (sites > 0)


def test_without_random_ops_nothing_is_left() -> None:
    module = capture(TrainingTask(Net(torch.sigmoid), torch.randn(ROWS, 5, dtype=torch.float64)))
    assert "random_sites" not in module.attrs and all(p.name != "random" for p in module.funcs["main"].params)


def test_checkpoints_are_as_before_afterwards() -> None:
    with without_checkpointing():
        pass
    x = torch.randn(3, requires_grad=True)
    calls: list[int] = []

    def part(y: Tensor) -> Tensor:
        calls.append(1)
        return y.sigmoid()

    torch.utils.checkpoint.checkpoint(part, x, use_reentrant=False).sum().backward()
    assert len(calls) == 2
