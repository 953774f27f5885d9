"""Attention with dropout on the probabilities: the plain formula, block by block, the mask a hash of its place.

    out = (softmax(q k^T * scale + mask) * kept / (1 - p)) v        kept[.., h, i, j] = hash(key, place of h, i, j)

Nothing of the size of the scores is kept for backward: probabilities come again from the log-sum-exp, the mask from
the key.  Forward and backward may lie differently over the ranks, so the hash is used in `fast` mode too.
index: of the scores [.., hq, s, t], as in random.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .random import Counter, threshold

Tensor = torch.Tensor
BLOCK = {"cpu": 1 << 18, "cuda": 1 << 23}
"""Scores at a time."""


@dataclass
class _Operands:
    """Everything with one batch dim and the query heads grouped by key head: q [b, h, g, s, d], k [b, h, t, d]."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    key: Tensor
    causal: bool
    scale: float
    p: float
    index: Sequence[Any]

    def __post_init__(self) -> None:
        q, k, v = self.q, self.k, self.v
        self.heads = k.shape[-3]
        batch = q.shape[:-3]
        if self.mask is not None:  # one batch dim, and five in all
            mask = self.mask.reshape((1,) * (q.dim() - self.mask.dim()) + self.mask.shape)
            if len(batch) != 1:
                mask = mask.expand(*batch, *mask.shape[-3:]).reshape(-1, *mask.shape[-3:])
            self.mask = mask.unsqueeze(1) if mask.shape[1] == 1 else mask.unflatten(1, (self.heads, -1))
        self.q = self.group(q)
        self.k, self.v = (x.reshape(-1, *x.shape[-3:]) for x in (k, v))
        self.wide = torch.float32 if q.dtype in (torch.float16, torch.bfloat16) else q.dtype
        counter = Counter(self.key, self.index, q.device)
        self.rows = counter.rows.reshape(self.q.shape[:-1])
        self.counter = counter
        self.factor = 0.0 if self.p >= 1 else 1.0 / (1.0 - self.p)

    def group(self, x: Tensor) -> Tensor:
        """[.., hq, s, d] as [b, h, g, s, d]"""
        return x.reshape(-1, self.heads, x.shape[-3] // self.heads, *x.shape[-2:])

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Ranges of the batch and of the key heads."""
        batch, heads, group, s = self.q.shape[:-1]
        one = max(1, group * s * self.k.shape[-2])
        many = max(1, BLOCK.get(self.q.device.type, 1 << 18) // one)
        rows, wide = max(1, many // heads), min(many, heads)
        for b in range(0, batch, rows):
            for h in range(0, heads, wide):
                yield slice(b, b + rows), slice(h, h + wide)

    def scores(self, at: tuple[slice, slice]) -> Tensor:
        scores = torch.matmul(self.q[at], self.k[at].transpose(-1, -2).unsqueeze(-3)).to(self.wide).mul_(self.scale)
        if self.causal:
            s, t = scores.shape[-2:]
            scores.masked_fill_(torch.ones(s, t, dtype=torch.bool, device=scores.device).triu(1), float("-inf"))
        if self.mask is not None:
            mask = self.mask[at_mask(self.mask, at)]
            scores = scores.masked_fill_(~mask, float("-inf")) if mask.dtype == torch.bool else scores.add_(mask)
        return scores

    def dropped(self, x: Tensor, at: tuple[slice, slice]) -> Tensor:
        """x * kept / (1 - p), in place."""
        if self.p >= 1:
            return x.zero_()
        if self.p > 0:
            rows = self.rows[at].reshape(-1)
            x.mul_((self.counter.words(rows) < threshold(1.0 - self.p)).view(x.shape)).mul_(self.factor)
        return x


def at_mask(mask: Tensor, at: tuple[slice, slice]) -> tuple[slice, slice]:
    """The block of a mask that may be broadcast over batch or heads."""
    batch, heads = (whole if size != 1 else slice(None) for whole, size in zip(at, mask.shape))
    return batch, heads


def _finite(lse: Tensor) -> Tensor:
    """A row without any key has lse -inf; its probabilities are all exp(-inf) = 0."""
    return lse.masked_fill(lse == float("-inf"), 0.0)


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, key: Tensor, causal: bool, scale: float, p: float,
    index: Sequence[Any],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    x = _Operands(q, k, v, mask, key, causal, scale, p, index)
    out = q.new_empty(*x.q.shape[:-1], v.shape[-1])
    lse = q.new_empty(x.q.shape[:-1], dtype=x.wide)
    for at in x.blocks():
        scores = x.scores(at)
        lse[at] = scores.logsumexp(-1)
        weights = x.dropped(scores.sub_(_finite(lse[at]).unsqueeze(-1)).exp_(), at)
        out[at] = torch.matmul(weights.to(v.dtype), x.v[at].unsqueeze(-3))
    return out.reshape(*q.shape[:-1], v.shape[-1]), lse.reshape(q.shape[:-1])


def attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, out: Tensor, lse: Tensor, key: Tensor,
    causal: bool, scale: float, p: float, index: Sequence[Any], mask_grad: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    x = _Operands(q, k, v, mask, key, causal, scale, p, index)
    g, o, lse = x.group(grad), x.group(out), lse.reshape(x.q.shape[:-1]).to(x.wide)
    dq, dk, dv = torch.empty_like(x.q), torch.empty_like(x.k), torch.empty_like(x.v)
    dmask = torch.zeros_like(x.mask) if mask_grad and x.mask is not None else None
    for at in x.blocks():
        weights = x.scores(at).sub_(_finite(lse[at]).unsqueeze(-1)).exp_()
        kept = x.dropped(torch.ones_like(weights), at)
        dv[at] = torch.matmul((weights * kept).to(grad.dtype).transpose(-1, -2), g[at]).sum(-3)
        slopes = torch.matmul(g[at], x.v[at].transpose(-1, -2).unsqueeze(-3)).to(x.wide).mul_(kept)
        del kept
        # The sum over keys of weights * slopes is grad * out, dropout or not.
        slopes = slopes.sub_((g[at].to(x.wide) * o[at].to(x.wide)).sum(-1, keepdim=True)).mul_(weights)
        if dmask is not None:
            part = dmask[at_mask(dmask, at)]
            part += slopes.sum_to_size(part.shape).to(part.dtype)
        scaled = slopes.mul_(scale).to(q.dtype)
        dq[at] = torch.matmul(scaled, x.k[at].unsqueeze(-3))
        dk[at] = torch.matmul(scaled.transpose(-1, -2), x.q[at]).sum(-3)
    grads = (dq.reshape(q.shape), dk.reshape(k.shape), dv.reshape(v.shape))
    if dmask is None:
        return grads
    assert mask is not None
    rank = q.dim() - 3  # batch dims that were made one are summed to what the mask had
    full = dmask.flatten(1, 2) if dmask.dim() == 5 else dmask
    if rank != 1:
        full = full.reshape(*q.shape[:-3], *full.shape[1:])
    return (*grads, full.sum_to_size(mask.shape))
