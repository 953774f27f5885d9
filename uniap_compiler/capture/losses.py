"""Losses as arithmetic over items, then a sum or a mean: a split batch gives pending sums that are reduced once.

    aten.cross_entropy_loss(x, t) ->  nn.cross_entropy; aten.sum; aten.ne.Scalar; aten.sum; aten.div.Tensor
    aten.huber_loss(x, y)         ->  aten.sub, abs, where, ...; aten.sum; aten.div.Scalar {other = 8*B}

Values and derivatives are those of torch's kernels, also where a loss has a kink or saturates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Optional

import torch
from torch import Tensor

from uniap_compiler.bridge import ops as _ops  # noqa: F401  (registers the nn.* ops)

from .precision import total

aten = torch.ops.aten
uniap = torch.ops.uniap


def cross_entropy(
    x: Tensor,
    target: Tensor,
    weight: Optional[Tensor] = None,
    reduction: int = 1,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Tensor:
    class_dim = 0 if x.dim() == 1 else 1
    if target.is_floating_point():
        loss = -(torch.log_softmax(x, class_dim) * _smoothed(target, x.shape[class_dim], label_smoothing))
        loss = loss if weight is None else loss * weight.view([-1] + [1] * (x.dim() - 1 - class_dim))
        if reduction == 0:
            return loss.sum(class_dim)
        return (total(loss) / (x.numel() // x.shape[class_dim] if reduction == 1 else 1)).to(x.dtype)
    x = _class_last(x)
    loss = uniap.cross_entropy(x, target, ignore_index)[0]
    factors = None if weight is None else _factors(target, weight, ignore_index)
    item = loss if factors is None else loss * factors
    if label_smoothing:
        lse = loss + uniap.pick(x, target, ignore_index)
        classes = x.shape[-1]
        # sum over the classes c of  w[c] (lse - x[c]):  what an even distribution would cost
        spread = lse * classes - x.sum(-1) if weight is None else lse * weight.sum() - (x * weight).sum(-1)
        spread = spread.masked_fill(target == ignore_index, 0.0)
        item = item * (1.0 - label_smoothing) + spread * (label_smoothing / classes)
    return _average(item, target, factors, reduction, ignore_index)


def _smoothed(target: Tensor, classes: int, label_smoothing: float) -> Tensor:
    return target * (1.0 - label_smoothing) + label_smoothing / classes if label_smoothing else target


def _class_last(x: Tensor) -> Tensor:
    return x.movedim(1, -1) if x.dim() > 2 else x


def _factors(target: Tensor, weight: Tensor, ignore_index: int) -> Tensor:
    """The weight of each item's class, 0 where it is ignored."""
    valid = target != ignore_index
    return weight[torch.where(valid, target, 0)].masked_fill(~valid, 0.0)


def _average(item: Tensor, target: Tensor, factors: Optional[Tensor], reduction: int, ignore_index: int) -> Tensor:
    """Items that are weighted already; a mean divides by the sum of the weights, or of the items that count."""
    if reduction != 1:
        return item if reduction == 0 else item.sum()
    cost = total(item)
    count = (target != ignore_index).sum().to(cost.dtype) if factors is None else total(factors)
    return (cost / count).to(item.dtype)


def nll_loss(
    x: Tensor, target: Tensor, weight: Optional[Tensor] = None, reduction: int = 1, ignore_index: int = -100
) -> Tensor:
    item = -uniap.pick(_class_last(x), target, ignore_index)
    factors = None if weight is None else _factors(target, weight, ignore_index)
    return _average(item if factors is None else item * factors, target, factors, reduction, ignore_index)


def mse_loss(x: Tensor, y: Tensor, reduction: int = 1) -> Tensor:
    d = x - y
    return _reduced(d * d, reduction)


def l1_loss(x: Tensor, y: Tensor, reduction: int = 1) -> Tensor:
    return _reduced((x - y).abs(), reduction)


def _reduced(loss: Tensor, reduction: int) -> Tensor:
    if reduction != 1:
        return loss if reduction == 0 else loss.sum()
    return (total(loss) / loss.numel()).to(loss.dtype)


def smooth_l1(x: Tensor, y: Tensor, reduction: int = 1, beta: float = 1.0) -> Tensor:
    z = (x - y).abs()
    return _reduced(torch.where(z < beta, z * z * (0.5 / beta), z - 0.5 * beta) if beta else z, reduction)


def huber(x: Tensor, y: Tensor, reduction: int = 1, delta: float = 1.0) -> Tensor:
    z = (x - y).abs()
    return _reduced(torch.where(z <= delta, z * z * 0.5, (z - 0.5 * delta) * delta), reduction)


def soft_margin(x: Tensor, y: Tensor, reduction: int = 1) -> Tensor:
    return _reduced((-x * y).exp().log1p(), reduction)


def log_sigmoid(x: Tensor) -> Tensor:
    """The threshold is where log1p(exp(-x)) rounds to -x even in float64; torch's own kernel has a second result."""
    return -aten.softplus(-x, 1, 40)


def bce_with_logits(
    x: Tensor, y: Tensor, weight: Optional[Tensor] = None, pos_weight: Optional[Tensor] = None, reduction: int = 1
) -> Tensor:
    cost = -log_sigmoid(x)
    loss = (1 - y) * x + (cost if pos_weight is None else cost * (1 + (pos_weight - 1) * y))
    return _reduced(loss if weight is None else loss * weight, reduction)


def bce(x: Tensor, y: Tensor, weight: Optional[Tensor] = None, reduction: int = 1) -> Tensor:
    """The kernel bounds its logarithms in a way of its own: it stays, item by item."""
    if reduction == 0:
        return NotImplemented
    return _reduced(aten.binary_cross_entropy(x, y, weight, 0), reduction)


def multi_margin(
    x: Tensor, target: Tensor, p: Any = 1, margin: Any = 1, weight: Optional[Tensor] = None, reduction: int = 1
) -> Tensor:
    """sum over c != target of relu(margin - x[target] + x[c]) ** p / classes; c == target adds a constant."""
    cost = (x - uniap.pick(x, target, _NEVER).unsqueeze(-1) + margin).relu()
    item = (cost if p == 1 else cost * cost).sum(-1) - max(margin, 0) ** p
    item = item if weight is None else item * weight[target]
    return _reduced(item / x.shape[-1], reduction)


def multilabel_margin(x: Tensor, target: Tensor, reduction: int = 1) -> tuple[Tensor, Tensor]:
    if reduction == 0:
        return NotImplemented
    item, known = aten.multilabel_margin_loss_forward(x, target, 0)
    return _reduced(item, reduction), known


_NEVER = -(2**62)
"""No class has this number: nothing is ignored."""

LOSSES: dict[Any, Callable[..., Any]] = {
    aten.cross_entropy_loss.default: cross_entropy,
    aten.nll_loss_nd.default: nll_loss,
    aten.nll_loss.default: nll_loss,
    aten.nll_loss2d.default: nll_loss,
    aten.mse_loss.default: mse_loss,
    aten.l1_loss.default: l1_loss,
    aten.smooth_l1_loss.default: smooth_l1,
    aten.huber_loss.default: huber,
    aten.soft_margin_loss.default: soft_margin,
    aten.log_sigmoid.default: log_sigmoid,
    aten.binary_cross_entropy.default: bce,
    aten.binary_cross_entropy_with_logits.default: bce_with_logits,
    aten.multi_margin_loss.default: multi_margin,
    aten.multilabel_margin_loss_forward.default: multilabel_margin,
}
