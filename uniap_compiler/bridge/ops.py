"""The `nn.*` ops as torch ops `uniap::*`: kernels, shapes, and derivatives in terms of `nn.*` and `aten.*` ops.

    %y = nn.contract(%x, %w) {equation = "b s k, n k -> b s n"}
    y = torch.ops.uniap.contract(x, w, "b s k, n k -> b s n")

These few ops exist because torch's own ones hide what sharding needs: `linear` flattens batch and sequence,
attention differs from device to device, and the cross entropy of a split class dim needs its parts by name.
"""

from __future__ import annotations

from typing import Any, Optional

import torch
from torch import Tensor

from . import draws, experts, reference

_LIBRARY = torch.library.Library("uniap", "DEF")

_SCHEMAS = [
    "contract(Tensor a, Tensor b, str equation) -> Tensor",
    "attention(Tensor q, Tensor k, Tensor v, Tensor? mask, bool causal, float scale) -> (Tensor, Tensor)",
    "attention_backward(Tensor g, Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor out, Tensor lse, bool causal,"
    " float scale, bool mask_grad=False) -> (Tensor, Tensor, Tensor)",
    "attention_backward.mask(Tensor g, Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor out, Tensor lse, bool causal,"
    " float scale, bool mask_grad=False) -> (Tensor, Tensor, Tensor, Tensor)",
    "attention.dropout(Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor key, bool causal, float scale,"
    " float dropout_p) -> (Tensor, Tensor)",
    "attention_backward.dropout(Tensor g, Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor out, Tensor lse,"
    " Tensor key, bool causal, float scale, float dropout_p, bool mask_grad=False) -> (Tensor, Tensor, Tensor)",
    "attention_backward.dropout_mask(Tensor g, Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor out, Tensor lse,"
    " Tensor key, bool causal, float scale, float dropout_p, bool mask_grad=False)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    # while capturing: a key without a tensor to derive it from; scaled_dot_product_attention with such a key
    "random_site(int site) -> Tensor",
    "sdpa_dropout(Tensor q, Tensor k, Tensor v, Tensor? mask, Tensor key, float dropout_p, bool causal, float? scale)"
    " -> Tensor",
    "random_key(Tensor random, int site) -> Tensor",
    "bernoulli(Tensor key, SymInt[] size, float p) -> Tensor",
    "uniform(Tensor key, SymInt[] size, ScalarType dtype) -> Tensor",
    "normal(Tensor key, SymInt[] size, ScalarType dtype) -> Tensor",
    "sum_exp(Tensor logits, Tensor max) -> Tensor",
    "pick(Tensor logits, Tensor target, int ignore_index, int offset=0) -> Tensor",
    "pick_backward(Tensor g, Tensor target, SymInt num_classes, int ignore_index, int offset=0) -> Tensor",
    "cross_entropy(Tensor logits, Tensor target, int ignore_index) -> (Tensor, Tensor)",
    "cross_entropy_backward(Tensor g, Tensor logits, Tensor target, Tensor lse, int ignore_index, int offset=0)"
    " -> Tensor",
    "embedding(Tensor weight, Tensor indices, int padding_idx=-1, int offset=0) -> Tensor",
    "embedding_backward(Tensor g, Tensor indices, SymInt num_weights, int padding_idx=-1, int offset=0) -> Tensor",
    # value, whose gradient with respect to x is g * factor (capture/own_gradients.py)
    "replace_gradient(Tensor value, Tensor x, Tensor factor) -> Tensor",
    *experts.SCHEMAS,
]


def dims_of(equation: str) -> tuple[list[str], list[str], list[str]]:
    """The dims of the two operands and of the result of a contraction."""
    inputs, _, output = equation.partition("->")
    a, _, b = inputs.partition(",")
    return a.split(), b.split(), output.split()


def equation_of(a: list[str], b: list[str], out: list[str]) -> str:
    return f"{' '.join(a)}, {' '.join(b)} -> {' '.join(out)}"


# Shapes.


def _contract_shape(a: Tensor, b: Tensor, equation: str) -> Tensor:
    left, right, out = dims_of(equation)
    if len(left) != a.dim() or len(right) != b.dim():
        raise ValueError(f"nn.contract {equation!r} does not fit operands of {a.dim()} and {b.dim()} dims")
    sizes = dict(zip(left, a.shape))
    for name, size in zip(right, b.shape):
        if sizes.setdefault(name, size) != size:
            raise ValueError(f"nn.contract {equation!r}: dim {name!r} is {sizes[name]} and {size}")
    return a.new_empty([sizes[name] for name in out], dtype=torch.result_type(a, b))


def _attention_shape(
    q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor], *_: Any
) -> tuple[Tensor, Tensor]:
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty((*q.shape[:-1], v.shape[-1])), q.new_empty(q.shape[:-1], dtype=lse_dtype)


def _attention_backward_shape(g: Tensor, q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _attention_backward_mask_shape(g: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *_: Any) -> Any:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), mask.new_empty(mask.shape)


def _key_shape(*_: Any) -> Tensor:
    """Keys are read by the host: they live on the CPU whatever the device."""
    return torch.empty((), dtype=torch.int64)


_SHAPES: dict[str, Any] = {
    "contract": _contract_shape,
    "attention": _attention_shape,
    "attention_backward": _attention_backward_shape,
    "attention_backward.mask": _attention_backward_mask_shape,
    "attention.dropout": _attention_shape,
    "attention_backward.dropout": _attention_backward_shape,
    "attention_backward.dropout_mask": _attention_backward_mask_shape,
    "random_site": _key_shape,
    "sdpa_dropout": lambda q, k, v, *_: q.new_empty(
        (*torch.broadcast_shapes(q.shape[:-2], k.shape[:-2] if q.dim() < 3 else (*k.shape[:-3], 1)),
         q.shape[-2], v.shape[-1])
    ),
    "random_key": _key_shape,
    "bernoulli": lambda key, size, p: torch.empty(size, dtype=torch.bool),
    "uniform": lambda key, size, dtype: torch.empty(size, dtype=dtype),
    "normal": lambda key, size, dtype: torch.empty(size, dtype=dtype),
    "sum_exp": lambda logits, max: logits.new_empty(logits.shape[:-1]),
    "pick": lambda logits, target, ignore_index, offset=0: logits.new_empty(target.shape),
    "pick_backward": lambda g, target, num_classes, ignore_index, offset=0: g.new_empty((*target.shape, num_classes)),
    "cross_entropy": lambda logits, target, ignore_index: (
        logits.new_empty(target.shape),
        logits.new_empty(target.shape),
    ),
    "cross_entropy_backward": lambda g, logits, *_, **__: logits.new_empty(logits.shape),
    "embedding": lambda weight, indices, *_, **__: weight.new_empty((*indices.shape, weight.shape[1])),
    "embedding_backward": lambda g, indices, num_weights, *_, **__: g.new_empty((num_weights, g.shape[-1])),
    "replace_gradient": lambda value, x, factor: value.new_empty(value.shape),
    **experts.SHAPES,
}


def _contiguous(function: Any) -> Any:
    """Results as contiguous tensors that share no memory with an operand, as the shapes above promise."""

    def run(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if isinstance(result, tuple):
            return tuple(r.contiguous() for r in result)
        return result.contiguous()

    return run


def _only_captured(name: str) -> Any:
    raise RuntimeError(f"uniap::{name} stands in graphs that are being captured, and is never run")


_KERNELS: dict[str, Any] = {
    name: getattr(reference, name) for name in _SHAPES if hasattr(reference, name) and name != "attention_backward"
}
_KERNELS["attention_backward"] = lambda *a, **k: reference.attention_backward(*a, **k)[:3]
_KERNELS["attention_backward.mask"] = reference.attention_backward
_KERNELS["attention.dropout"] = reference.attention_dropout
_KERNELS["attention_backward.dropout"] = lambda *a, **k: reference.attention_dropout_backward(*a, **k)[:3]
_KERNELS["attention_backward.dropout_mask"] = reference.attention_dropout_backward
_KERNELS.update({name: getattr(draws, name) for name in ("random_key", "bernoulli", "uniform", "normal")})
_KERNELS.update(experts.KERNELS)
_KERNELS["sdpa_dropout"] = lambda *a: _only_captured("sdpa_dropout")
_KERNELS["random_site"] = lambda site: _only_captured("random_site")


# Derivatives: setup(ctx, inputs, output) and backward(ctx, *gradients of the outputs).


def _contract_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    a, b, ctx.equation = inputs
    ctx.save_for_backward(a if ctx.needs_input_grad[1] else None, b if ctx.needs_input_grad[0] else None)


def _contract_backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    a, b = ctx.saved_tensors
    left, right, out = dims_of(ctx.equation)
    da = torch.ops.uniap.contract(g, b, equation_of(out, right, left)) if ctx.needs_input_grad[0] else None
    db = torch.ops.uniap.contract(g, a, equation_of(out, left, right)) if ctx.needs_input_grad[1] else None
    return da, db, None


def _attention_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, mask, ctx.causal, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, mask, *output)


def _attention_backward(ctx: Any, g: Tensor, _: Any) -> tuple[Any, ...]:
    q, k, v, mask, out, lse = ctx.saved_tensors
    if ctx.needs_input_grad[3]:
        return (
            *torch.ops.uniap.attention_backward.mask(g, q, k, v, mask, out, lse, ctx.causal, ctx.scale, True),
            None,
            None,
        )
    grads = torch.ops.uniap.attention_backward.default(g, q, k, v, mask, out, lse, ctx.causal, ctx.scale)
    return (*grads, None, None, None)


def _attention_dropout_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, mask, key, ctx.causal, ctx.scale, ctx.dropout_p = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, mask, *output, key)


def _attention_dropout_backward(ctx: Any, g: Tensor, _: Any) -> tuple[Any, ...]:
    ops, settings = torch.ops.uniap.attention_backward, (ctx.causal, ctx.scale, ctx.dropout_p)
    if ctx.needs_input_grad[3]:
        return (*ops.dropout_mask(g, *ctx.saved_tensors, *settings, True), None, None, None, None)
    return (*ops.dropout(g, *ctx.saved_tensors, *settings), None, None, None, None, None)


def _cross_entropy_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, target, ctx.ignore_index = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(logits, target, output[1])


def _cross_entropy_backward(ctx: Any, g: Tensor, _: Any) -> tuple[Any, ...]:
    logits, target, lse = ctx.saved_tensors
    return torch.ops.uniap.cross_entropy_backward(g, logits, target, lse, ctx.ignore_index), None, None


def _pick_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, target, ctx.ignore_index = inputs[:3]
    ctx.num_classes = logits.shape[-1]
    ctx.save_for_backward(target)


def _pick_backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    (target,) = ctx.saved_tensors
    return torch.ops.uniap.pick_backward(g, target, ctx.num_classes, ctx.ignore_index), None, None, None


def _embedding_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weight, indices = inputs[:2]
    ctx.padding_idx = inputs[2] if len(inputs) > 2 else -1
    ctx.num_weights = weight.shape[0]
    ctx.save_for_backward(indices)


def _embedding_backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    (indices,) = ctx.saved_tensors
    return torch.ops.uniap.embedding_backward(g, indices, ctx.num_weights, ctx.padding_idx), None, None, None


def _replace_gradient_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, x, factor = inputs
    ctx.dtype = x.dtype
    ctx.save_for_backward(factor)


def _replace_gradient_backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    (factor,) = ctx.saved_tensors
    return g, (g * factor).to(ctx.dtype), None


_DERIVATIVES: dict[str, tuple[Any, Any]] = {
    "contract": (_contract_setup, _contract_backward),
    "attention": (_attention_setup, _attention_backward),
    "attention.dropout": (_attention_dropout_setup, _attention_dropout_backward),
    "cross_entropy": (_cross_entropy_setup, _cross_entropy_backward),
    "pick": (_pick_setup, _pick_backward),
    "embedding": (_embedding_setup, _embedding_backward),
    "replace_gradient": (_replace_gradient_setup, _replace_gradient_backward),
    **experts.DERIVATIVES,
}


def _register() -> None:
    for schema in _SCHEMAS:
        _LIBRARY.define(schema)
        name = schema.partition("(")[0]
        _LIBRARY.impl(name, _contiguous(_KERNELS[name]), "CompositeExplicitAutograd")
        torch.library.register_fake(f"uniap::{name}", _SHAPES[name], lib=_LIBRARY)
    for name, (setup, backward) in _DERIVATIVES.items():
        torch.library.register_autograd(f"uniap::{name}", backward, setup_context=setup, lib=_LIBRARY)


_register()
