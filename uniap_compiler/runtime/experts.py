"""nn.experts and its backward: every token through the experts that were chosen for it, weighted and added up.

    y[t] = sum over c of weights[t, c] * down[j] act(gate_up[j] x[t] + bias[j]),   j = index[t, c]

x [.., h], index and weights [.., k], gate_up [e, u, h], down [e, o, i], bias [e, u]; y [.., o].  Tokens are taken
expert by expert; nothing of the size [tokens * k, u] is made.  `offset` is the number of the first expert that this rank has:
choices of other experts give zero.

With a `group` the ranks of the group hold different tokens AND different experts (`stride` apart from rank to rank): a
token is sent to every rank that has one of its experts, once, and what the rank's experts make of it comes back as one
row.  One exchange there, one back.  Forward leaves `Dispatched` for its backward, which sends gradients the same way.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

Tensor = torch.Tensor

FUNCTIONS: dict[str, Callable[..., Tensor]] = {
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


def activate(text: str, u: Tensor, interleaved: bool = False) -> Tensor:
    """The activation: an expression in `u`, or in `gate` and `up`, the halves of u (interleaved: its even and odd)."""
    names: dict[str, Any] = {"__builtins__": {}, **FUNCTIONS, "u": u}
    code = _code(text)
    if "gate" in code.co_names or "up" in code.co_names:
        names["gate"], names["up"] = (u[..., ::2], u[..., 1::2]) if interleaved else u.chunk(2, -1)
    result: Tensor = eval(code, names)  # only arithmetic and the functions above: see _code
    return result


@dataclass(frozen=True)
class _Weights:
    """The experts of this rank.  offset: the number of the first."""

    gate_up: Tensor
    down: Tensor
    bias: Tensor | None
    activation: str
    interleaved: bool
    offset: int

    def up(self, j: int, x: Tensor) -> Tensor:
        return F.linear(x, self.gate_up[j], self.bias[j] if self.bias is not None else None)

    def activate(self, u: Tensor) -> Tensor:
        return activate(self.activation, u, self.interleaved)


def _choices(index: Tensor, experts: int, offset: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """For every expert that somebody chose: its number here, the tokens, and the positions of these choices."""
    local = index.reshape(-1) - offset
    local = local.masked_fill((local < 0) | (local >= experts), experts)
    order = local.argsort(stable=True)
    counts = torch.bincount(local, minlength=experts + 1)[:experts].tolist()
    for j, choices in enumerate(order[: sum(counts)].split(counts)):
        if counts[j]:
            yield j, choices // index.shape[-1], choices


def _forward(x: Tensor, index: Tensor, weights: Tensor, w: _Weights) -> Tensor:
    """Of tokens [n, h]."""
    dtype = torch.promote_types(x.dtype, weights.dtype)
    out = x.new_zeros(x.shape[0], w.down.shape[1], dtype=dtype)
    flat = weights.reshape(-1, 1)
    for j, tokens, choices in _choices(index, w.gate_up.shape[0], w.offset):
        y = F.linear(w.activate(w.up(j, x[tokens])), w.down[j])
        out.index_add_(0, tokens, (y * flat[choices]).to(dtype))
    return out


def _backward(g: Tensor, x: Tensor, index: Tensor, weights: Tensor, w: _Weights) -> tuple[Tensor, ...]:
    """Gradients of x, weights, gate_up, down (and bias); g [n, o]."""
    dx, dweights = torch.zeros_like(x), torch.zeros_like(weights).reshape(-1)
    dgate_up, ddown = (torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (w.gate_up, w.down))
    dbias = torch.zeros_like(w.bias) if w.bias is not None else None
    flat = weights.reshape(-1, 1)
    for j, tokens, choices in _choices(index, w.gate_up.shape[0], w.offset):
        rows, grads, factors = x[tokens], g[tokens], flat[choices]
        with torch.enable_grad():
            u = w.up(j, rows).detach().requires_grad_()
            a = w.activate(u)
        # y = down a: <g, y> is <down' g, a>, so y itself is not needed again
        da = grads.to(a.dtype) @ w.down[j]
        dweights[choices] = (da * a.detach()).sum(-1, dtype=dweights.dtype)
        dy = (grads * factors).to(a.dtype)
        (du,) = torch.autograd.grad(a, u, (da * factors).to(a.dtype))
        ddown[j] = dy.t() @ a.detach()
        dgate_up[j] = du.t() @ rows
        dx.index_add_(0, tokens, du @ w.gate_up[j])
        if dbias is not None:
            dbias[j] = du.sum(0)
    grads_of = (dx, dweights.view(weights.shape), dgate_up, ddown)
    return grads_of if dbias is None else (*grads_of, dbias)


def experts(
    x: Tensor, index: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, bias: Tensor | None = None,
    *, activation: str, interleaved: bool = False, offset: int = 0,
) -> Tensor:  # fmt: skip
    w = _Weights(gate_up, down, bias, activation, interleaved, offset)
    k = index.shape[-1]
    out = _forward(x.reshape(-1, x.shape[-1]), index.reshape(-1, k), weights.reshape(-1, k), w)
    return out.view(*x.shape[:-1], down.shape[1])


def experts_backward(
    grad: Tensor, x: Tensor, index: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, bias: Tensor | None = None,
    *, activation: str, interleaved: bool = False, offset: int = 0, bias_grad: bool = False,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x, weights, gate_up, down, and of the bias where there is one."""
    w = _Weights(gate_up, down, bias, activation, interleaved, offset)
    k = index.shape[-1]
    dx, dweights, *rest = _backward(
        grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1]), index.reshape(-1, k), weights.reshape(-1, k), w
    )
    return dx.view(x.shape), dweights.view(weights.shape), *rest
