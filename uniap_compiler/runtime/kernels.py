"""The nn.* ops on local tensors, as generated code calls them: tensors positional, attributes by name.

    h = nn.contract(x, w, equation="b s k, n k -> b s n")
    y = nn.pick(logits, target, ignore_index=-100, offset=4096)     # this rank holds classes 4096, 4097, ...

`offset` is where the local slice of a split class or vocabulary dim begins; what lies outside gives 0.  Without one the
dim is whole, and a class out of range is an error of the data.
REPLACED: aten ops that generated code calls through this module because torch's own is wrong for some strides.
"""

from __future__ import annotations

import torch

from .attention import attention, attention_backward
from .contraction import contract
from .experts import experts, experts_backward
from .random import bernoulli, normal, random_key, uniform

__all__ = [
    "REPLACED", "attention", "attention_backward", "bernoulli", "contract", "cross_entropy", "cross_entropy_backward",
    "embedding", "embedding_backward", "experts", "experts_backward", "native_group_norm_backward",
    "native_layer_norm_backward", "normal", "pick", "pick_backward", "random_key", "replace_gradient",
    "sum_exp", "uniform",
]  # fmt: skip

aten = torch.ops.aten
Tensor = torch.Tensor


def sum_exp(logits: Tensor, maximum: Tensor) -> Tensor:
    """The sum over the last dim of exp(logits - max)."""
    return (logits - maximum.unsqueeze(-1)).exp_().sum(-1)


def _local(target: Tensor, classes: int, ignore_index: int | None, offset: int | None) -> tuple[Tensor, Tensor]:
    """The target within the local slice (0 where outside), and whether it is inside and counts."""
    inside = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    if offset is not None:
        target = target - offset
        inside &= (target >= 0) & (target < classes)
    return target.masked_fill(~inside, 0), inside


def pick(logits: Tensor, target: Tensor, *, ignore_index: int | None = None, offset: int | None = None) -> Tensor:
    """logits[target - offset] along the last dim; 0 where the target is ignored or outside the local slice."""
    local, inside = _local(target, logits.shape[-1], ignore_index, offset)
    return logits.gather(-1, local.unsqueeze(-1)).squeeze(-1).masked_fill(~inside, 0.0)


def pick_backward(
    grad: Tensor, target: Tensor, *, num_classes: int, ignore_index: int | None = None, offset: int | None = None
) -> Tensor:
    local, inside = _local(target, num_classes, ignore_index, offset)
    result = grad.new_zeros((*target.shape, num_classes))
    return result.scatter_(-1, local.unsqueeze(-1), grad.masked_fill(~inside, 0.0).unsqueeze(-1))


def cross_entropy(logits: Tensor, target: Tensor, *, ignore_index: int | None = None) -> tuple[Tensor, Tensor]:
    """Per item: the loss (0 where ignored) and the logsumexp over the classes."""
    lse = logits.logsumexp(-1)
    loss = lse - pick(logits, target, ignore_index=ignore_index)
    return (loss if ignore_index is None else loss.masked_fill(target == ignore_index, 0.0)), lse


def cross_entropy_backward(
    grad: Tensor, logits: Tensor, target: Tensor, lse: Tensor, *, ignore_index: int | None = None,
    offset: int | None = None,
) -> Tensor:  # fmt: skip
    """(softmax - onehot) * grad: grad is that of the loss per item, ignored items give 0."""
    if ignore_index is not None:
        grad = grad.masked_fill(target == ignore_index, 0.0)
    local, inside = _local(target, logits.shape[-1], ignore_index, offset)
    result = (logits - lse.unsqueeze(-1)).exp_().mul_(grad.unsqueeze(-1))
    return result.scatter_add_(
        -1, local.unsqueeze(-1), grad.masked_fill(~inside, 0.0).neg().to(result.dtype).unsqueeze(-1)
    )


def embedding(weight: Tensor, indices: Tensor, *, padding_idx: int = -1, offset: int | None = None) -> Tensor:
    """weight[indices].  (padding_idx matters in backward only.)"""
    if offset is None:
        result: Tensor = aten.embedding.default(weight, indices)
        return result
    local = indices - offset
    inside = (local >= 0) & (local < weight.shape[0])
    rows: Tensor = aten.embedding.default(weight, local.masked_fill(~inside, 0))
    return rows.masked_fill_(~inside.unsqueeze(-1), 0.0)


def embedding_backward(
    grad: Tensor, indices: Tensor, *, num_weights: int, padding_idx: int = -1, offset: int = 0
) -> Tensor:
    """The gradient of the local rows; indices outside them, and the padding row, are dropped."""
    local = indices - offset if offset else indices
    inside = (local >= 0) & (local < num_weights)
    if padding_idx >= 0:
        inside &= indices != padding_idx
    # A spare last row takes what is dropped: cheaper than masking the gradient.
    result = grad.new_zeros(num_weights + 1, grad.shape[-1])
    result.index_add_(0, local.masked_fill(~inside, num_weights).reshape(-1), grad.reshape(-1, grad.shape[-1]))
    return result[:num_weights]


def replace_gradient(value: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """value: the derivative, which is factor with respect to x, stands in backward already."""
    return value


def native_layer_norm_backward(
    grad: Tensor, x: Tensor, normalized_shape: list[int], mean: Tensor, rstd: Tensor, weight: Tensor | None,
    bias: Tensor | None, output_mask: list[bool],
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """aten's CPU kernel reads mean and rstd as if they were contiguous."""
    result: tuple[Tensor | None, ...] = aten.native_layer_norm_backward.default(
        grad.contiguous(),
        x.contiguous(),
        normalized_shape,
        mean.contiguous(),
        rstd.contiguous(),
        weight,
        bias,
        output_mask,
    )
    return result


def native_group_norm_backward(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    N: int,
    C: int,
    HxW: int,
    group: int,
    output_mask: list[bool],
) -> tuple[Tensor | None, ...]:
    """The same care for group norm."""
    result: tuple[Tensor | None, ...] = aten.native_group_norm_backward.default(
        grad.contiguous(), x.contiguous(), mean.contiguous(), rstd.contiguous(), weight, N, C, HxW, group, output_mask
    )
    return result


REPLACED = {
    "aten.native_layer_norm_backward": native_layer_norm_backward,
    "aten.native_group_norm_backward": native_group_norm_backward,
}
