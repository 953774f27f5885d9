"""Losses inside a model, as blocks of tests/end_to_end/op_families.py: every kind with every reduction.

x is [b, 4, 8]: the prediction x[:, 0], the target x[:, 1], further inputs x[:, 2].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

CLASS_WEIGHT = torch.linspace(0.5, 1.5, 8)


def labels(x: Tensor, classes: int) -> Tensor:
    return (x.detach().abs() * 100).long() % classes


def positive(x: Tensor) -> Tensor:
    return x * x + 0.1


def probability(x: Tensor) -> Tensor:
    return torch.sigmoid(x)


def _reduced(f: Callable[..., Tensor], x: Tensor, reduction: str) -> Tensor:
    y = f(x, reduction)
    if reduction != "none":
        return x[:, 0] * 0.1 + y * (0.1 if reduction == "mean" else 0.01)
    return x[:, 0] * 0.1 + y.reshape(x.shape[0], -1).sum(1, keepdim=True)


def losses() -> dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor]]]:
    table: dict[str, Callable[[Tensor, str], Tensor]] = {
        "smooth_l1": lambda x, r: F.smooth_l1_loss(x[:, 0], x[:, 1], reduction=r, beta=0.5),
        "huber": lambda x, r: F.huber_loss(x[:, 0], x[:, 1], reduction=r, delta=0.3),
        "l1": lambda x, r: F.l1_loss(x[:, 0], x[:, 1], reduction=r),
        "mse": lambda x, r: F.mse_loss(x[:, 0], x[:, 1], reduction=r),
        "kl_div": lambda x, r: F.kl_div(x[:, 0].log_softmax(-1), x[:, 1].softmax(-1), reduction=r),
        "kl_div_log": lambda x, r: F.kl_div(
            x[:, 0].log_softmax(-1), x[:, 1].log_softmax(-1), reduction=r, log_target=True
        ),
        "bce": lambda x, r: F.binary_cross_entropy(probability(x[:, 0]), probability(x[:, 1]).detach(), reduction=r),
        "bce_weight": lambda x, r: F.binary_cross_entropy(
            probability(x[:, 0]), probability(x[:, 1]).detach(), weight=CLASS_WEIGHT.to(x.dtype), reduction=r
        ),
        "bce_logits": lambda x, r: F.binary_cross_entropy_with_logits(
            x[:, 0], probability(x[:, 1]), pos_weight=CLASS_WEIGHT.to(x.dtype), reduction=r
        ),
        "poisson_nll": lambda x, r: F.poisson_nll_loss(x[:, 0], positive(x[:, 1]), full=True, reduction=r),
        "gaussian_nll": lambda x, r: F.gaussian_nll_loss(x[:, 0], x[:, 1], positive(x[:, 2]), reduction=r),
        "margin_ranking": lambda x, r: F.margin_ranking_loss(
            x[:, 0], x[:, 1], torch.sign(x[:, 2].detach()), margin=0.2, reduction=r
        ),
        "hinge_embedding": lambda x, r: F.hinge_embedding_loss(x[:, 0], torch.sign(x[:, 2].detach()), reduction=r),
        "soft_margin": lambda x, r: F.soft_margin_loss(x[:, 0], torch.sign(x[:, 2].detach()), reduction=r),
        "triplet": lambda x, r: F.triplet_margin_loss(x[:, 0], x[:, 1], x[:, 2], reduction=r),
        "cosine_embedding": lambda x, r: F.cosine_embedding_loss(
            x[:, 0], x[:, 1], torch.sign(x[:, 2, 0].detach()), reduction=r
        ),
        "multi_margin": lambda x, r: F.multi_margin_loss(x[:, 0], labels(x[:, 1, 0], 8), reduction=r),
        "multilabel_soft_margin": lambda x, r: F.multilabel_soft_margin_loss(
            x[:, 0], (x[:, 1].detach() > 0).to(x.dtype), reduction=r
        ),
        "cross_entropy": lambda x, r: F.cross_entropy(x[:, 0], labels(x[:, 1, 0], 8), reduction=r),
        "cross_entropy_weight": lambda x, r: F.cross_entropy(
            x[:, 0], labels(x[:, 1, 0], 8), weight=CLASS_WEIGHT.to(x.dtype), ignore_index=2, reduction=r
        ),
        "cross_entropy_smooth": lambda x, r: F.cross_entropy(
            x[:, 0], labels(x[:, 1, 0], 8), label_smoothing=0.1, reduction=r
        ),
        "cross_entropy_weight_smooth": lambda x, r: F.cross_entropy(
            x.transpose(1, 2), labels(x[:, :, 0], 8), weight=CLASS_WEIGHT.to(x.dtype),
            label_smoothing=0.1, ignore_index=1, reduction=r,
        ),
        "cross_entropy_probability": lambda x, r: F.cross_entropy(
            x[:, 0], x[:, 1].softmax(-1), weight=CLASS_WEIGHT.to(x.dtype), label_smoothing=0.1, reduction=r
        ),
        "nll": lambda x, r: F.nll_loss(
            x[:, 0].log_softmax(-1), labels(x[:, 1, 0], 8), weight=CLASS_WEIGHT.to(x.dtype), reduction=r
        ),
    }  # fmt: skip
    return {
        f"{name} {r}": ((4, 8), (lambda x, f=f, r=r: _reduced(f, x, r)))
        for name, f in table.items()
        for r in ("mean", "sum", "none")
    }


