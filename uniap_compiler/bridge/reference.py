"""What each `nn.*` op computes, in plain torch: exact in float64, on any device, never the fast path of a bundle.

contract(a, b, "b s k, n k -> b s n") == torch.einsum("bsk,nk->bsn", a, b)
"""

from __future__ import annotations

from functools import cache
from typing import Optional

import torch
from torch import Tensor

from .draws import bernoulli


@cache
def einsum_equation(equation: str) -> str:
    """Words to letters: `batch k, n k -> batch n` is `ab,cb->ac`."""
    letters: dict[str, str] = {}
    inputs, _, output = equation.partition("->")
    terms = []
    for term in (*inputs.split(","), output):
        terms.append("".join(letters.setdefault(w, chr(ord("a") + len(letters))) for w in term.split()))
    return ",".join(terms[:-1]) + "->" + terms[-1]


def contract(a: Tensor, b: Tensor, equation: str) -> Tensor:
    return torch.einsum(einsum_equation(equation), a, b)


def _grouped(q: Tensor, k: Tensor) -> Tensor:
    """k or v with each head repeated for the query heads that share it."""
    return k if q.shape[-3] == k.shape[-3] else k.repeat_interleave(q.shape[-3] // k.shape[-3], -3)


def _ungrouped(grad: Tensor, k: Tensor) -> Tensor:
    """The gradient of `_grouped`: summed over the query heads that share a head of k or v."""
    if grad.shape[-3] == k.shape[-3]:
        return grad
    return grad.unflatten(-3, (k.shape[-3], grad.shape[-3] // k.shape[-3])).sum(-3)


def _scores(q: Tensor, k: Tensor, mask: Optional[Tensor], causal: bool, scale: float) -> Tensor:
    scores = (q * scale) @ _grouped(q, k).transpose(-1, -2)
    if causal:
        keep = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~keep, float("-inf"))
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return scores


def _probabilities(scores: Tensor, lse: Tensor) -> Tensor:
    """exp(scores - lse); a row that may attend to nothing has lse = -inf and gives zeros."""
    p = (scores - lse.to(scores.dtype).unsqueeze(-1)).exp()
    return p.masked_fill(torch.isneginf(lse).unsqueeze(-1), 0.0)


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor], causal: bool, scale: float
) -> tuple[Tensor, Tensor]:
    scores = _scores(q, k, mask, causal, scale)
    lse = torch.logsumexp(scores, -1)
    out = _probabilities(scores, lse) @ _grouped(q, v)
    return out, lse if lse.dtype == torch.float64 else lse.float()


def attention_backward(
    g: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Optional[Tensor],
    out: Tensor,
    lse: Tensor,
    causal: bool,
    scale: float,
    mask_grad: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Optional[Tensor]]:
    p = _probabilities(_scores(q, k, mask, causal, scale), lse)
    dv = p.transpose(-1, -2) @ g
    dp = g @ _grouped(q, v).transpose(-1, -2)
    ds = p * (dp - (g * out).sum(-1, keepdim=True))
    dq = (ds @ _grouped(q, k)) * scale
    dk = (ds.transpose(-1, -2) @ q) * scale
    dmask = ds.sum_to_size(mask.shape).to(mask.dtype) if mask_grad and mask is not None else None
    return dq, _ungrouped(dk, k), _ungrouped(dv, v), dmask


def _kept(q: Tensor, k: Tensor, key: Tensor, dropout_p: float) -> Tensor:
    """What dropout multiplies the probabilities with: 0 or 1 / (1 - p)."""
    size = (*q.shape[:-1], k.shape[-2])
    return bernoulli(key, size, 1.0 - dropout_p).to(q.dtype) / (1.0 - dropout_p)


def attention_dropout(
    q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor], key: Tensor, causal: bool, scale: float, dropout_p: float
) -> tuple[Tensor, Tensor]:
    scores = _scores(q, k, mask, causal, scale)
    lse = torch.logsumexp(scores, -1)
    out = (_probabilities(scores, lse) * _kept(q, k, key, dropout_p)) @ _grouped(q, v)
    return out, lse if lse.dtype == torch.float64 else lse.float()


def attention_dropout_backward(
    g: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Optional[Tensor],
    out: Tensor,
    lse: Tensor,
    key: Tensor,
    causal: bool,
    scale: float,
    dropout_p: float,
    mask_grad: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Optional[Tensor]]:
    """The same, with m = kept / (1 - p): out = (p m) v, and the sum over keys of p (m (g v')) is still g out."""
    p, m = _probabilities(_scores(q, k, mask, causal, scale), lse), _kept(q, k, key, dropout_p)
    dv = (p * m).transpose(-1, -2) @ g
    dp = (g @ _grouped(q, v).transpose(-1, -2)) * m
    ds = p * (dp - (g * out).sum(-1, keepdim=True))
    dq = (ds @ _grouped(q, k)) * scale
    dk = (ds.transpose(-1, -2) @ q) * scale
    dmask = ds.sum_to_size(mask.shape).to(mask.dtype) if mask_grad and mask is not None else None
    return dq, _ungrouped(dk, k), _ungrouped(dv, v), dmask


def sum_exp(logits: Tensor, maximum: Tensor) -> Tensor:
    return (logits - maximum.unsqueeze(-1)).exp().sum(-1)


def _inside(target: Tensor, size: int, ignore_index: int, offset: int) -> tuple[Tensor, Tensor]:
    """The index into the local slice, and where it is one."""
    index = target - offset
    valid = (target != ignore_index) & (index >= 0) & (index < size)
    return torch.where(valid, index, torch.zeros_like(index)), valid


def pick(logits: Tensor, target: Tensor, ignore_index: int, offset: int = 0) -> Tensor:
    index, valid = _inside(target, logits.shape[-1], ignore_index, offset)
    return logits.gather(-1, index.unsqueeze(-1)).squeeze(-1).masked_fill(~valid, 0.0)


def pick_backward(g: Tensor, target: Tensor, num_classes: int, ignore_index: int, offset: int = 0) -> Tensor:
    index, valid = _inside(target, num_classes, ignore_index, offset)
    zeros = g.new_zeros((*target.shape, num_classes))
    return zeros.scatter(-1, index.unsqueeze(-1), g.masked_fill(~valid, 0.0).unsqueeze(-1))


def cross_entropy(logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    lse = torch.logsumexp(logits, -1)
    loss = lse - pick(logits, target, ignore_index)
    return loss.masked_fill(target == ignore_index, 0.0), lse


def cross_entropy_backward(
    g: Tensor, logits: Tensor, target: Tensor, lse: Tensor, ignore_index: int, offset: int = 0
) -> Tensor:
    g = g.masked_fill(target == ignore_index, 0.0)
    softmax = (logits - lse.unsqueeze(-1)).exp()
    return softmax * g.unsqueeze(-1) - pick_backward(g, target, logits.shape[-1], ignore_index, offset)


def embedding(weight: Tensor, indices: Tensor, padding_idx: int = -1, offset: int = 0) -> Tensor:
    index, valid = _inside(indices, weight.shape[0], -(1 << 62), offset)
    return weight[index].masked_fill(~valid.unsqueeze(-1), 0.0)


def replace_gradient(value: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    return value.clone()


def embedding_backward(g: Tensor, indices: Tensor, num_weights: int, padding_idx: int = -1, offset: int = 0) -> Tensor:
    index, valid = _inside(indices, num_weights, padding_idx, offset)
    rows = g.masked_fill(~valid.unsqueeze(-1), 0.0).reshape(-1, g.shape[-1])
    return g.new_zeros((num_weights, g.shape[-1])).index_add(0, index.reshape(-1), rows)
