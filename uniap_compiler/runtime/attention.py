"""nn.attention and its backward: softmax(q k^T * scale + mask) v, with as many query heads per key head as divide.

Flash kernels where they are legal (same head sizes, mask of the same dtype or none; on CUDA also half precision and no
mask), the plain formula everywhere else.  The same test decides for forward and backward, so their lse agree.
q [.., hq, s, d], k [.., hk, t, d], v [.., hk, t, e]; lse [.., hq, s].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from . import attention_dropout

aten = torch.ops.aten
Tensor = torch.Tensor


def _four(x: Tensor) -> Tensor:
    """All leading dims as one."""
    return x if x.dim() == 4 else x.reshape(-1, *x.shape[-3:])


def _kernel(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> str:
    square = q.shape[-2] == k.shape[-2]
    if q.shape[-1] != v.shape[-1] or min(q.numel(), k.numel()) == 0 or (causal and not square):
        return "math"
    if q.device.type == "cpu":
        if mask is not None and (causal or (mask.dim() > 2 and mask.dim() != q.dim())):
            return "math"
        return "cpu"
    if q.device.type == "cuda":
        half = q.dtype in (torch.float16, torch.bfloat16)
        if (
            half
            and mask is None
            and q.shape[-1] % 8 == 0
            and q.shape[-1] <= 256
            and torch.cuda.get_device_capability(q.device) >= (8, 0)
        ):
            return "cuda"
    return "math"


def _flash_mask(mask: Tensor | None, q: Tensor) -> Tensor | None:
    """The CPU kernel wants an additive mask of q's dtype, of rank 2 or 4."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(~mask, float("-inf"))
    mask = mask.to(q.dtype)
    if mask.dim() < 2:
        mask = mask.reshape((1,) * (2 - mask.dim()) + mask.shape)
    if mask.dim() > 4:
        mask = mask.expand(*q.shape[:-3], *mask.shape[-3:]).reshape(-1, *mask.shape[-3:])
    return mask


def _dense(x: Tensor) -> Tensor:
    """The flash kernels need unit stride in the last dim (and expanded gradients have stride 0)."""
    return x if x.stride(-1) == 1 and 0 not in x.stride() else x.contiguous()


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, key: Tensor | None = None,
    *, causal: bool, scale: float, dropout_p: float = 0.0, index: Sequence[Any] = (),
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """key, dropout_p, index: of dropout on the probabilities (attention_dropout.py)."""
    if key is not None:
        return attention_dropout.attention(q, k, v, mask, key, causal, scale, dropout_p, index)
    kernel = _kernel(q, k, v, mask, causal)
    if kernel == "math":
        return _math(q, k, v, mask, causal, scale)
    q4, k4, v4 = _dense(_four(q)), _dense(_four(k)), _dense(_four(v))
    if kernel == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(
            q4, k4, v4, 0.0, causal, attn_mask=_flash_mask(mask, q), scale=scale
        )
    else:
        out, lse = aten._scaled_dot_product_flash_attention(q4, k4, v4, 0.0, causal, False, scale=scale)[:2]
    return out.reshape(*q.shape[:-1], v.shape[-1]), lse.reshape(q.shape[:-1])


def attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, out: Tensor, lse: Tensor,
    key: Tensor | None = None,
    *, causal: bool, scale: float, mask_grad: bool = False, dropout_p: float = 0.0, index: Sequence[Any] = (),
) -> tuple[Tensor, ...]:  # fmt: skip
    if key is not None:
        return attention_dropout.attention_backward(
            grad, q, k, v, mask, out, lse, key, causal, scale, dropout_p, index, mask_grad
        )
    kernel = _kernel(q, k, v, mask, causal)
    if mask_grad or kernel == "math":
        return _math_backward(grad, q, k, v, mask, out, lse, causal, scale, mask_grad)
    g4, q4, k4, v4, o4 = (_dense(_four(x)) for x in (grad, q, k, v, out))
    l4 = lse.reshape(q4.shape[:-1])
    if kernel == "cpu":
        # The kernel reads lse as [b, s, h] in memory, which is how its forward leaves it.
        l4 = l4.transpose(1, 2).contiguous().transpose(1, 2)
        grads = aten._scaled_dot_product_flash_attention_for_cpu_backward(
            g4, q4, k4, v4, o4, l4, 0.0, causal, attn_mask=_flash_mask(mask, q), scale=scale
        )
    else:
        seed = torch.zeros((), dtype=torch.int64, device=q.device)
        grads = aten._scaled_dot_product_flash_attention_backward(
            g4,
            q4,
            k4,
            v4,
            o4,
            l4.contiguous(),
            None,
            None,
            q4.shape[-2],
            k4.shape[-2],
            0.0,
            causal,
            seed,
            seed,
            scale=scale,
        )
    return tuple(g.reshape(x.shape) for g, x in zip(grads, (q, k, v), strict=True))


def _scores(q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, scale: float) -> Tensor:
    """[.., hk, group, s, t] for q [.., hk, group, s, d]; in float32 or better."""
    scores = torch.matmul(q, k.transpose(-1, -2).unsqueeze(-3))
    scores = scores.to(_wide(scores.dtype)) * scale
    if causal:
        s, t = scores.shape[-2:]
        scores = scores.masked_fill(torch.ones(s, t, dtype=torch.bool, device=q.device).triu(1), float("-inf"))
    if mask is not None:
        mask = _grouped_mask(mask, k.shape[-3], q.shape[-3])
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return scores


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _grouped_mask(mask: Tensor, key_heads: int, group: int) -> Tensor:
    if mask.dim() < 3:
        return mask
    if mask.shape[-3] == 1:
        return mask.unsqueeze(-3)
    return mask.reshape(*mask.shape[:-3], key_heads, group, *mask.shape[-2:])


def _grouped(q: Tensor, key_heads: int) -> Tensor:
    return q.reshape(*q.shape[:-3], key_heads, q.shape[-3] // key_heads, *q.shape[-2:])


def _math(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    scores = _scores(_grouped(q, k.shape[-3]), k, mask, causal, scale)
    lse = scores.logsumexp(-1)
    weights = (scores - _finite(lse).unsqueeze(-1)).exp().to(v.dtype)
    out = torch.matmul(weights, v.unsqueeze(-3))
    return out.reshape(*q.shape[:-1], v.shape[-1]), lse.reshape(q.shape[:-1])


def _finite(lse: Tensor) -> Tensor:
    """A row without any key has lse -inf; its weights are all exp(-inf) = 0."""
    return lse.masked_fill(lse == float("-inf"), 0.0)


def _math_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, out: Tensor, lse: Tensor,
    causal: bool, scale: float, mask_grad: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    heads = k.shape[-3]
    qg, gg, og = (_grouped(x, heads) for x in (q, grad, out))
    scores = _scores(qg, k, mask, causal, scale)
    wide = scores.dtype
    lse = lse.reshape(scores.shape[:-1]).to(wide)
    weights = (scores - _finite(lse).unsqueeze(-1)).exp()
    dv = torch.matmul(weights.to(grad.dtype).transpose(-1, -2), gg).sum(-3)
    dweights = torch.matmul(gg, v.transpose(-1, -2).unsqueeze(-3)).to(wide)
    delta = (gg.to(wide) * og.to(wide)).sum(-1, keepdim=True)
    dscores = weights * (dweights - delta)
    scaled = (dscores * scale).to(q.dtype)
    dq = torch.matmul(scaled, k.unsqueeze(-3)).reshape(q.shape)
    dk = torch.matmul(scaled.transpose(-1, -2), qg).sum(-3)
    if not mask_grad:
        return dq, dk, dv
    assert mask is not None, "a gradient of no mask"
    full = dscores.reshape(*q.shape[:-1], k.shape[-2]).to(mask.dtype)
    return dq, dk, dv, full.sum_to_size(mask.shape)
