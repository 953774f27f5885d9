"""How composite torch ops are taken apart at capture: into `nn.*` ops where torch would hide dims, plain
arithmetic where torch would hide a reduction over the batch, torch's own definition everywhere else.

    aten.linear(x, w, b)          ->  nn.contract(x, w) {equation = "b s k, n k -> b s n"}; aten.add.Tensor
    aten.mean.dim(x, [0])         ->  aten.sum.dim_IntList; aten.div.Scalar {other = B}
    aten.cross_entropy_loss(x, t) ->  nn.cross_entropy; aten.sum; aten.ne.Scalar; aten.sum; aten.div.Tensor

Each function is ordinary torch code; torch.export runs it in place of the op and records what it does.  Losses are in
losses.py, single ops that torch would leave as one kernel in composites.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Optional

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from uniap_compiler.bridge.ops import equation_of

from .complex_ops import is_complex
from .composites import COMPOSITES
from .losses import LOSSES
from .precision import total, wide
from .recurrent import RECURRENT

aten = torch.ops.aten
uniap = torch.ops.uniap
BATCH_DIMS = ["b", "s", "t", "u", "v", "w"]
HEAD_DIMS = ["b", "h", "i", "j", "p", "q"]


def linear(x: Tensor, w: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    outer = BATCH_DIMS[: x.dim() - 1]
    n = ["n"] if w.dim() == 2 else []
    y = uniap.contract(x, w, equation_of([*outer, "k"], [*n, "k"], [*outer, *n]))
    return y if bias is None else y + bias


def matmul(a: Tensor, b: Tensor) -> Tensor:
    m = ["m"] if a.dim() > 1 else []
    n = ["n"] if b.dim() > 1 else []
    outer_a, outer_b = max(a.dim() - 2, 0), max(b.dim() - 2, 0)
    names = HEAD_DIMS[: max(outer_a, outer_b)]
    dims_a, dims_b = names[len(names) - outer_a :], names[len(names) - outer_b :]
    for name in [d for d in dims_a if d in dims_b]:
        i, j = dims_a.index(name), dims_b.index(name)
        if a.shape[i] == 1 != b.shape[j]:
            a = a.squeeze(i)
            dims_a.remove(name)
        elif b.shape[j] == 1 != a.shape[i]:
            b = b.squeeze(j)
            dims_b.remove(name)
    return uniap.contract(a, b, equation_of([*dims_a, *m, "k"], [*dims_b, "k", *n], [*names, *m, *n]))


def addmm(bias: Tensor, a: Tensor, b: Tensor, beta: float = 1, alpha: float = 1) -> Tensor:
    y = matmul(a, b)
    y = y if alpha == 1 else y * alpha
    return y + (bias if beta == 1 else bias * beta)


def einsum(equation: str, tensors: list[Tensor], path: Any = None) -> Tensor:
    """Two operands at a time; a letter that nobody else needs is summed first."""
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if "..." in equation:
        terms, output = _expand_dots(terms, output, arrow, tensors)
    elif not arrow:
        letters = "".join(terms)
        output = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    pairs = _broadcast([_diagonal(list(term), t) for term, t in zip(terms, tensors, strict=True)])
    dims, value = pairs[0]
    for i, (other, tensor) in enumerate(pairs[1:], 1):
        later = set(output).union(*(set(d) for d, _ in pairs[i + 1 :]))
        dims, value = _reduce(dims, value, later | set(other))
        other, tensor = _reduce(other, tensor, later | set(dims))
        joined = [d for d in dict.fromkeys([*dims, *other]) if d in later]
        if i == len(pairs) - 1:
            joined = list(output)
        value = uniap.contract(value, tensor, equation_of(dims, other, joined))
        dims = joined
    dims, value = _reduce(dims, value, set(output))
    return value if dims == list(output) else value.permute([dims.index(d) for d in output])


def _broadcast(pairs: list[tuple[list[str], Tensor]]) -> list[tuple[list[str], Tensor]]:
    """Without the dims of size one that are longer in another operand."""
    longer = {name for dims, t in pairs for name, size in zip(dims, t.shape) if size != 1}
    found = []
    for dims, t in pairs:
        gone = [i for i, name in enumerate(dims) if t.shape[i] == 1 and name in longer]
        found.append(([d for i, d in enumerate(dims) if i not in gone], t.squeeze(gone) if gone else t))
    return found


def _expand_dots(terms: list[str], output: str, arrow: str, tensors: list[Tensor]) -> tuple[list[str], str]:
    counts = [t.dim() - len(term.replace("...", "")) if "..." in term else 0 for term, t in zip(terms, tensors)]
    spare = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in "".join(terms) + output][: max(counts)]
    full = "".join(spare)
    terms = [t.replace("...", full[len(full) - n :]) for t, n in zip(terms, counts)]
    if arrow:
        return terms, output.replace("...", full)
    letters = "".join(terms)
    return terms, full + "".join(sorted(c for c in set(letters) if letters.count(c) == 1 and c not in full))


def _diagonal(dims: list[str], value: Tensor) -> tuple[list[str], Tensor]:
    for name in list(dict.fromkeys(dims)):
        while dims.count(name) > 1:
            i = dims.index(name)
            j = dims.index(name, i + 1)
            value = value.diagonal(0, i, j)
            dims = [d for n, d in enumerate(dims) if n not in (i, j)] + [name]
    return dims, value


def _reduce(dims: list[str], value: Tensor, wanted: set[str]) -> tuple[list[str], Tensor]:
    gone = [i for i, d in enumerate(dims) if d not in wanted]
    return ([d for d in dims if d in wanted], value.sum(gone)) if gone else (dims, value)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Optional[Tensor] = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: Optional[float] = None,
    enable_gqa: bool = False,
    key: Optional[Tensor] = None,
) -> Tensor:
    """key: of the dropout; without one there is none (random_ops.py)."""
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    flat = q.dim() == 2 or k.shape[:-3] != q.shape[:-3]
    if flat:  # [s, d] without heads, or broadcast batches
        outer = torch.broadcast_shapes(q.shape[:-2], k.shape[:-2], v.shape[:-2])
        outer = outer or (1,)
        q, k, v = (t.expand(*outer, *t.shape[-2:]) for t in (q, k, v))
        y = _attention(q, k, v, attn_mask, is_causal, scale, key, dropout_p)
        return y.squeeze(0) if outer == (1,) else y
    return _attention(q, k, v, attn_mask, is_causal, scale, key, dropout_p)


def _attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor], causal: bool, scale: float, key: Optional[Tensor], p: float
) -> Tensor:
    if key is None:
        return uniap.attention(q, k, v, mask, causal, scale)[0]
    return uniap.attention.dropout(q, k, v, mask, key, causal, scale, p)[0]


def sdpa_dropout(
    q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor], key: Tensor, p: float, causal: bool, scale: Optional[float]
) -> Tensor:
    return attention(q, k, v, mask, p, causal, scale=scale, key=key)


def embedding(
    weight: Tensor, indices: Tensor, padding_idx: int = -1, scale_grad_by_freq: bool = False, sparse: bool = False
) -> Tensor:
    if scale_grad_by_freq or sparse:
        raise NotImplementedError("an embedding with sparse or frequency-scaled gradients is not supported")
    return uniap.embedding(weight, indices, padding_idx)


# Means are sums over a size, so that a split batch gives a pending sum and the size stays the whole batch's.


def mean(x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    x = x if dtype is None else x.to(dtype)
    if not x.is_floating_point():
        return aten.mean.dim(x, dim, keepdim)
    dims = [d % x.dim() for d in ([dim] if isinstance(dim, int) else dim)] if dim else list(range(x.dim()))
    return (total(x, dims, keepdim) / math.prod(x.shape[d] for d in dims)).to(x.dtype)


def mean_all(x: Tensor, *, dtype: Any = None) -> Tensor:
    x = x if dtype is None else x.to(dtype)
    return (total(x) / x.numel()).to(x.dtype)


def var(x: Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Tensor:
    return _variance(x, dim, correction, keepdim).to(x.dtype)


def _variance(x: Tensor, dim: Any, correction: Any, keepdim: bool) -> Tensor:
    x = wide(x)
    dims = [d % x.dim() for d in ([dim] if isinstance(dim, int) else dim)] if dim else list(range(x.dim()))
    n = math.prod(x.shape[d] for d in dims)
    centred = x - x.sum(dims, True) / n
    return (centred * centred).sum(dims, keepdim) / (n - (1 if correction is None else correction))


def std(x: Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Tensor:
    """Zero, with the gradient zero, where all entries are equal."""
    squares = _variance(x, dim, correction, keepdim)
    none = squares == 0
    return squares.masked_fill(none, 1.0).sqrt().masked_fill(none, 0.0).to(x.dtype)


def adaptive_avg_pool1d(x: Tensor, size: list[int]) -> Tensor:
    return adaptive_avg_pool2d(x.unsqueeze(-2), [1, *size]).squeeze(-2)


def adaptive_avg_pool2d(x: Tensor, size: list[int]) -> Tensor:
    """To one pixel it is a mean; torch's definition also restores strides, which has no derivative here."""
    return mean(x, [-2, -1], True) if list(size) == [1, 1] else aten._adaptive_avg_pool2d(x, size)


# Normalisation.


def _moments(x: Tensor, dims: list[int]) -> tuple[Tensor, Tensor, Tensor, int]:
    x = wide(x)
    n = math.prod(x.shape[d] for d in dims)
    average = x.sum(dims, True) / n
    centred = x - average
    return average, centred, (centred * centred).sum(dims, True), n


def _affine(y: Tensor, weight: Optional[Tensor], bias: Optional[Tensor]) -> Tensor:
    shape = [-1] + [1] * (y.dim() - 2)
    y = y if weight is None else y * weight.view(shape)
    return y if bias is None else y + bias.view(shape)


def batch_norm_functional(
    x: Tensor,
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    running_mean: Tensor,
    running_var: Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, ...]:
    if not training:
        y, a, b = batch_norm_eval(x, weight, bias, running_mean, running_var, momentum, eps)
        return y, a, b, running_mean, running_var
    average, centred, squares, n = _moments(x, [0, *range(2, x.dim())])
    y = _affine(centred * torch.rsqrt(squares / n + eps), weight, bias).to(x.dtype)
    shape = running_mean.shape
    new_mean = (running_mean * (1 - momentum) + average.view(shape) * momentum).to(running_mean.dtype)
    new_var = (running_var * (1 - momentum) + squares.view(shape) / (n - 1) * momentum).to(running_var.dtype)
    return y, x.new_empty(0), x.new_empty(0), new_mean, new_var


def batch_norm_no_stats(
    x: Tensor, weight: Optional[Tensor], bias: Optional[Tensor], training: bool, momentum: float, eps: float
) -> tuple[Tensor, ...]:
    _, centred, squares, n = _moments(x, [0, *range(2, x.dim())])
    y = _affine(centred * torch.rsqrt(squares / n + eps), weight, bias).to(x.dtype)
    return y, x.new_empty(0), x.new_empty(0)


def batch_norm_eval(
    x: Tensor,
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> tuple[Tensor, ...]:
    shape = [-1] + [1] * (x.dim() - 2)
    y = (wide(x) - running_mean.view(shape)) * torch.rsqrt(wide(running_var) + eps).view(shape)
    return _affine(y, weight, bias).to(x.dtype), x.new_empty(0), x.new_empty(0)


def group_norm(
    x: Tensor,
    groups: int,
    weight: Optional[Tensor] = None,
    bias: Optional[Tensor] = None,
    eps: float = 1e-5,
    cudnn: bool = True,
) -> Tensor:
    y = x.view(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])
    _, centred, squares, n = _moments(y, list(range(2, y.dim())))
    return _affine((centred * torch.rsqrt(squares / n + eps)).view(x.shape), weight, bias).to(x.dtype)


def instance_norm(
    x: Tensor,
    weight: Optional[Tensor],
    bias: Optional[Tensor],
    running_mean: Optional[Tensor],
    running_var: Optional[Tensor],
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn: bool,
) -> Tensor:
    if running_mean is not None or not use_input_stats:
        raise NotImplementedError("an instance norm with running statistics is not supported")
    _, centred, squares, n = _moments(x, list(range(2, x.dim())))
    return _affine(centred * torch.rsqrt(squares / n + eps), weight, bias).to(x.dtype)


def rms_norm(
    x: Tensor, normalized_shape: list[int], weight: Optional[Tensor] = None, eps: Optional[float] = None
) -> Tensor:
    dims = list(range(x.dim() - len(normalized_shape), x.dim()))
    z = wide(x)
    squares = (z * z).sum(dims, True) / math.prod(normalized_shape)
    y = z * torch.rsqrt(squares + (torch.finfo(z.dtype).eps if eps is None else eps))
    return (y if weight is None else y * weight).to(x.dtype)


def copy(x: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """What an assignment to a slice becomes; torch has no derivative for the op itself."""
    return source.to(x.dtype).expand(x.shape)


def dropout(x: Tensor, p: float, train: bool) -> Tensor:
    """Without effect; one with an effect has become arithmetic before (random_ops.py)."""
    return aten.alias(x)


OWN: dict[Any, Callable[..., Any]] = {
    aten.linear.default: linear,
    aten.matmul.default: matmul,
    aten.mm.default: matmul,
    aten.bmm.default: matmul,
    aten.mv.default: matmul,
    aten.dot.default: matmul,
    aten.addmm.default: addmm,
    aten.baddbmm.default: addmm,
    aten.addmv.default: addmm,
    aten.einsum.default: einsum,
    aten.scaled_dot_product_attention.default: attention,
    uniap.sdpa_dropout.default: sdpa_dropout,
    aten.embedding.default: embedding,
    aten.mean.dim: mean,
    aten.mean.default: mean_all,
    aten.var.correction: var,
    aten.std.correction: std,
    aten._native_batch_norm_legit_functional.default: batch_norm_functional,
    aten._native_batch_norm_legit.no_stats: batch_norm_no_stats,
    aten._native_batch_norm_legit_no_training.default: batch_norm_eval,
    aten.group_norm.default: group_norm,
    aten.instance_norm.default: instance_norm,
    aten.rms_norm.default: rms_norm,
    aten.adaptive_avg_pool1d.default: adaptive_avg_pool1d,
    aten.adaptive_avg_pool2d.default: adaptive_avg_pool2d,
    aten.copy.default: copy,
    aten.dropout.default: dropout,
    aten.feature_dropout.default: dropout,
    aten.alpha_dropout.default: dropout,
    aten.feature_alpha_dropout.default: dropout,
    **LOSSES,
    **COMPOSITES,
    **RECURRENT,
}


def table() -> dict[Any, Callable[..., Any]]:
    """Every composite op by its definition in torch, and ours in their place."""
    composite = torch._C.DispatchKey.CompositeImplicitAutograd
    rows = {
        op: f for op, f in torch.export.default_decompositions().items() if op.has_kernel_for_dispatch_key(composite)
    }
    rows.update((op, _of_reals(f)) for op, f in OWN.items())
    return rows


def _of_reals(function: Callable[..., Any]) -> Callable[..., Any]:
    """Ops of complex numbers are left to complex_ops.py."""

    def run(*args: Any, **kwargs: Any) -> Any:
        return NotImplemented if any(map(is_complex, tree_leaves((args, kwargs)))) else function(*args, **kwargs)

    return run
