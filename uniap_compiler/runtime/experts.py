"""nn.experts and its backward: every token through the experts that were chosen for it, weighted and added up.

    y[t] = sum over c of weights[t, c] * down[j] act(gate_up[j] x[t] + bias[j]),   j = index[t, c]

x [.., h], index and weights [.., k], gate_up [e, u, h], down [e, o, i], bias [e, u]; y [.., o].  Tokens are taken
expert by expert; nothing of the size [tokens * k, u] is made.  `offset` is the number of the first expert that this
rank has: choices of other experts give zero.

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


@dataclass(frozen=True)
class Dispatched:
    """What a rank has received, and who is to get what is made of it.

    rows [m, h], index and weights [m, k]: tokens of all ranks of the group that have an expert here.  tokens: which
    of my own I have sent, rank by rank; sent, received: how many to and from each.
    """

    rows: Tensor
    index: Tensor
    weights: Tensor
    tokens: Tensor
    sent: list[int]
    received: list[int]


def _dispatch(
    comm: Any, group: str, parts: list[Tensor], index: Tensor, experts: int, offset: int, stride: int
) -> tuple[list[Tensor], Tensor, list[int], list[int]]:
    """Every token once to each rank that has one of its experts; parts: what is sent of a token, [n, ..] each."""
    size, mine = comm.group(group).size, comm.coordinate(group)
    first = torch.arange(size, device=index.device).sub_(mine).mul_(stride).add_(offset).view(-1, 1, 1)
    wanted = ((index >= first) & (index < first + experts)).any(-1)  # [size, n]
    _, tokens = wanted.nonzero(as_tuple=True)  # rank by rank
    counts = wanted.sum(1)
    sent, received = torch.stack([counts, comm.all_to_all(counts, group, split_dim=0, concat_dim=0)]).tolist()
    got = _send(comm, group, [part[tokens] for part in parts], sent, received)
    return got, tokens, sent, received


def _send(comm: Any, group: str, parts: list[Tensor], sent: list[int], received: list[int]) -> list[Tensor]:
    """Several tensors of the same rows, of any dtypes, in one message."""
    flat = [part.contiguous().view(part.shape[0], -1) for part in parts]
    raw = torch.cat([part.view(torch.uint8) for part in flat], 1)
    got = comm.exchange_rows(raw, group, sent, received)
    pieces = got.split([part.shape[1] * part.element_size() for part in flat], 1)
    return [piece.contiguous().view(part.dtype) for piece, part in zip(pieces, flat, strict=True)]


def _add_up(rows: Tensor, tokens: Tensor, sent: list[int], n: int, dtype: torch.dtype) -> Tensor:
    """What came back of my tokens, added up; rank by rank, in which a token stands once."""
    total = rows.new_zeros(n, rows.shape[1], dtype=dtype)
    for piece, which in zip(rows.split(sent), tokens.split(sent), strict=True):
        total.index_add_(0, which, piece.to(dtype))
    return total


def _exchanged(
    comm: Any, group: str, x: Tensor, index: Tensor, weights: Tensor, w: _Weights, stride: int
) -> tuple[Tensor, Dispatched]:
    parts = [x, weights, index.to(torch.int32)]
    (rows, shares, chosen), tokens, sent, received = _dispatch(
        comm, group, parts, index, w.gate_up.shape[0], w.offset, stride
    )
    there = Dispatched(rows, chosen.long(), shares, tokens, sent, received)
    made = _forward(rows, there.index, shares, w)
    (back,) = _send(comm, group, [made], received, sent)
    return _add_up(back, tokens, sent, x.shape[0], made.dtype), there


def _exchanged_backward(
    comm: Any, group: str, g: Tensor, x: Tensor | None, index: Tensor, weights: Tensor, there: Dispatched | None,
    w: _Weights, stride: int,
) -> tuple[Tensor, ...]:  # fmt: skip
    if there is None:
        assert x is not None, "tokens, or what forward has kept of them"
        parts = [g, x, weights, index.to(torch.int32)]
        (grads, rows, shares, chosen), tokens, sent, received = _dispatch(
            comm, group, parts, index, w.gate_up.shape[0], w.offset, stride
        )
        there = Dispatched(rows, chosen.long(), shares, tokens, sent, received)
    else:
        (grads,) = _send(comm, group, [g[there.tokens]], there.sent, there.received)
    dx, dweights, *rest = _backward(grads, there.rows, there.index, there.weights, w)
    dx, dweights = _send(comm, group, [dx, dweights], there.received, there.sent)
    n = index.shape[0]
    added = [_add_up(t, there.tokens, there.sent, n, t.dtype) for t in (dx, dweights)]
    return (*added, *rest)


def experts(
    x: Tensor, index: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, bias: Tensor | None = None,
    *, activation: str, interleaved: bool = False, offset: int = 0, comm: Any = None, group: str = "", stride: int = 0,
    keep: bool = False,
) -> Any:  # fmt: skip
    """y; with `keep` also what backward needs of the exchange."""
    w = _Weights(gate_up, down, bias, activation, interleaved, offset)
    k, shape = index.shape[-1], (*x.shape[:-1], down.shape[1])
    x, index, weights = x.reshape(-1, x.shape[-1]), index.reshape(-1, k), weights.reshape(-1, k)
    if not group:
        return _forward(x, index, weights, w).view(shape)
    out, there = _exchanged(comm, group, x, index, weights, w, stride)
    return (out.view(shape), there) if keep else out.view(shape)


def experts_backward(
    grad: Tensor, x: Tensor | None, index: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor,
    bias: Tensor | None = None, kept: Dispatched | None = None,
    *, activation: str, interleaved: bool = False, offset: int = 0, bias_grad: bool = False, comm: Any = None,
    group: str = "", stride: int = 0,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of x, weights, gate_up, down, and of the bias where there is one.  kept: in place of x."""
    w = _Weights(gate_up, down, bias, activation, interleaved, offset)
    lead, k = grad.shape[:-1], index.shape[-1]
    g, index, weights = grad.reshape(-1, grad.shape[-1]), index.reshape(-1, k), weights.reshape(-1, k)
    rows = x.reshape(-1, x.shape[-1]) if x is not None else None
    if group:
        dx, dweights, *rest = _exchanged_backward(comm, group, g, rows, index, weights, kept, w, stride)
    else:
        assert rows is not None
        dx, dweights, *rest = _backward(g, rows, index, weights, w)
    return dx.view(*lead, dx.shape[1]), dweights.view(*lead, k), *rest
