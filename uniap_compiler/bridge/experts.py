"""nn.experts as a torch op: shapes, kernels in plain torch, derivative.

    y = sum over c of weights[.., c] * down[j] act(gate_up[j] x + bias[j]),   j = index[.., c]

x [.., h], index and weights [.., k], gate_up [e, u, h], down [e, o, i], bias [e, u].  The activation is an expression
in `u`, or in `gate` and `up`, the halves of u (`interleaved`: its even and its odd elements); then u is twice i.
"""

from __future__ import annotations

import ast
from functools import cache
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

SCHEMAS = [
    "experts(Tensor x, Tensor index, Tensor weights, Tensor gate_up, Tensor down, Tensor? bias, str activation,"
    " bool interleaved=False, int offset=0) -> Tensor",
    "experts_backward(Tensor g, Tensor x, Tensor index, Tensor weights, Tensor gate_up, Tensor down, Tensor? bias,"
    " str activation, bool interleaved=False, int offset=0, bool bias_grad=False)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    "experts_backward.bias(Tensor g, Tensor x, Tensor index, Tensor weights, Tensor gate_up, Tensor down, Tensor? bias,"
    " str activation, bool interleaved=False, int offset=0, bool bias_grad=False)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
]

FUNCTIONS = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "clamp": torch.clamp,
}
_NODES = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Call, ast.Name, ast.Load, ast.Constant,
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.USub,
)  # fmt: skip


@cache
def _code(text: str) -> Any:
    tree = ast.parse(text, mode="eval")
    if not all(isinstance(node, _NODES) for node in ast.walk(tree)):
        raise ValueError(f"{text!r} is not an activation")
    return compile(tree, "<activation>", "eval")


def activate(text: str, u: Tensor, interleaved: bool) -> Tensor:
    code = _code(text)
    names: dict[str, Any] = {"__builtins__": {}, **FUNCTIONS, "u": u}
    if {"gate", "up"} & set(code.co_names):
        names["gate"], names["up"] = (u[..., ::2], u[..., 1::2]) if interleaved else u.chunk(2, -1)
    result: Tensor = eval(code, names)  # arithmetic and the functions above only
    return result


def experts(
    x: Tensor,
    index: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    down: Tensor,
    bias: Optional[Tensor],
    activation: str,
    interleaved: bool = False,
    offset: int = 0,
) -> Tensor:
    """Every expert on every token, times the weights that chose it: slow, and nothing to get wrong."""
    out = x.new_zeros((*x.shape[:-1], down.shape[1]), dtype=torch.result_type(x, weights))
    for j in range(gate_up.shape[0]):
        share = (weights * (index == j + offset)).sum(-1, keepdim=True)
        u = F.linear(x, gate_up[j], bias[j] if bias is not None else None)
        out = out + F.linear(activate(activation, u, interleaved), down[j]) * share
    return out


def experts_backward(
    g: Tensor,
    x: Tensor,
    index: Tensor,
    weights: Tensor,
    gate_up: Tensor,
    down: Tensor,
    bias: Optional[Tensor],
    activation: str,
    interleaved: bool = False,
    offset: int = 0,
    bias_grad: bool = False,
) -> tuple[Tensor, ...]:
    """By torch's autograd, through the formula above."""
    given = [x, weights, gate_up, down] + ([bias] if bias is not None else [])
    with torch.enable_grad():
        x, weights, gate_up, down, *rest = (t.detach().requires_grad_() for t in given)
        b = rest[0] if rest else None
        y = experts(x, index, weights, gate_up, down, b, activation, interleaved, offset)
        return torch.autograd.grad(y, [x, weights, gate_up, down, *rest], g.to(y.dtype), materialize_grads=True)


def _shape(x: Tensor, index: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, *_: Any, **__: Any) -> Tensor:
    if gate_up.shape[-1] != x.shape[-1] or index.shape != weights.shape or index.shape[:-1] != x.shape[:-1]:
        raise ValueError("nn.experts: tokens, choices and weights do not fit each other")
    return x.new_empty((*x.shape[:-1], down.shape[1]), dtype=torch.result_type(x, weights))


def _backward_shape(
    g: Tensor, x: Tensor, index: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, bias: Optional[Tensor], *_: Any
) -> tuple[Tensor, ...]:
    tensors = (x, weights, gate_up, down) if bias is None else (x, weights, gate_up, down, bias)
    return tuple(t.new_empty(t.shape) for t in tensors)


SHAPES: dict[str, Any] = {
    "experts": _shape,
    "experts_backward": _backward_shape,
    "experts_backward.bias": _backward_shape,
}
KERNELS: dict[str, Any] = {
    "experts": experts,
    "experts_backward": experts_backward,
    "experts_backward.bias": experts_backward,
}


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, index, weights, gate_up, down, bias, ctx.activation = inputs[:7]
    ctx.interleaved = inputs[7] if len(inputs) > 7 else False
    ctx.save_for_backward(x, index, weights, gate_up, down, bias)


def _backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    x, index, weights, gate_up, down, bias = ctx.saved_tensors
    ops = torch.ops.uniap.experts_backward
    given = (g, x, index, weights, gate_up, down, bias, ctx.activation, ctx.interleaved)
    if bias is None:
        dx, dweights, dgate_up, ddown = ops.default(*given)
        return dx, None, dweights, dgate_up, ddown, None, None, None, None
    dx, dweights, dgate_up, ddown, dbias = ops.bias(*given, bias_grad=True)
    return dx, None, dweights, dgate_up, ddown, dbias, None, None, None


DERIVATIVES = {"experts": (_setup, _backward)}
