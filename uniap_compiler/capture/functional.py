"""Python functions of torch that look at values where arithmetic would do, replaced while a model is captured.

    F.gaussian_nll_loss     raises for a negative variance: `if torch.any(var < 0)`, which an exported graph cannot
    F.embedding_bag         a matrix of indices is flattened to one long bag with offsets that are data
    nn.Transformer          looks whether a mask is the causal one, a hint that the mask itself makes superfluous
    nn.LSTM, nn.GRU, nn.RNN with dropout between layers: one op that hides how often it draws
    assertions on values    assertions.py

All compute what torch computes; a negative variance is no longer refused.
"""

from __future__ import annotations

import math
from typing import Any, Optional

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules import transformer
from torch.overrides import TorchFunctionMode

from . import assertions
from .state import refuse_hook


class Capturable(TorchFunctionMode):
    """Inside, the functions above are ordinary arithmetic."""

    def __enter__(self) -> Any:
        self._is_causal = transformer._detect_is_causal_mask
        transformer._detect_is_causal_mask = lambda mask, is_causal=None, size=None: is_causal is True
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        transformer._detect_is_causal_mask = self._is_causal
        super().__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        ours = _REPLACED.get(func)
        result = NotImplemented if ours is None else ours(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if result is NotImplemented else result


def gaussian_nll_loss(
    x: Tensor, target: Tensor, var: Tensor | float, full: bool = False, eps: float = 1e-6, reduction: str = "mean"
) -> Tensor:
    """The variance counts as at least eps; its gradient is that of the variance itself."""
    if not isinstance(var, Tensor):
        var = torch.full_like(x, var)
    if var.shape != x.shape and x.shape[:-1] == var.shape:
        var = var.unsqueeze(-1)
    var = var + (var.clamp(min=eps) - var).detach()
    loss = 0.5 * (var.log() + (x - target) ** 2 / var) + (0.5 * math.log(2 * math.pi) if full else 0.0)
    return loss.mean() if reduction == "mean" else loss.sum() if reduction == "sum" else loss


def embedding_bag(
    indices: Tensor,
    weight: Tensor,
    offsets: Optional[Tensor] = None,
    max_norm: Optional[float] = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Optional[Tensor] = None,
    include_last_offset: bool = False,
    padding_idx: Optional[int] = None,
) -> Tensor:
    """indices [bags, length] -> [bags, width]; entries equal to padding_idx are left out, an empty bag is zero."""
    if indices.dim() != 2 or offsets is not None or max_norm is not None or scale_grad_by_freq or sparse:
        return NotImplemented
    rows = F.embedding(indices, weight)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(-1)
    if padding_idx is None:
        return rows.max(1).values if mode == "max" else rows.mean(1) if mode == "mean" else rows.sum(1)
    absent = (indices == padding_idx % weight.shape[0]).unsqueeze(-1)
    if mode == "max":
        return rows.masked_fill(absent, -math.inf).max(1).values.masked_fill(absent.all(1), 0.0)
    total = rows.masked_fill(absent, 0.0).sum(1)
    return total if mode == "sum" else total / (~absent).sum(1).clamp(min=1).to(total.dtype)


def _recurrent(kernel: Any) -> Any:
    """Layer by layer, with dropout on what one gives to the next, [time, batch, width] as torch's kernel has it."""

    def run(x: Tensor, first: Any, weights: Any, *options: Any) -> Any:
        if not isinstance(weights, (list, tuple)):
            return NotImplemented  # a packed sequence: its second argument is not the state
        biases, layers, dropout, train, both, batch_first = options
        if layers == 1 or not dropout or not train:
            return NotImplemented
        states = first if isinstance(first, (list, tuple)) else [first]
        each, ways = len(weights) // layers, 2 if both else 1
        x = x.transpose(0, 1) if batch_first else x
        ends = []
        for n in range(layers):
            state = [s[n * ways : (n + 1) * ways] for s in states]
            own = weights[n * each : (n + 1) * each]
            given = state if isinstance(first, (list, tuple)) else state[0]
            x, *last = kernel(x, given, own, biases, 1, 0.0, train, both, False)
            x = F.dropout(x, dropout) if n + 1 < layers else x
            ends.append(last)
        return (x.transpose(0, 1) if batch_first else x, *(torch.cat(parts) for parts in zip(*ends)))

    return run


_REPLACED = {
    **{kernel: _recurrent(kernel) for kernel in (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)},
    F.gaussian_nll_loss: gaussian_nll_loss,
    F.embedding_bag: embedding_bag,
    Tensor.register_hook: refuse_hook,
    Tensor.item: assertions.item,
    Tensor.__bool__: assertions.truth,
}
