"""Autograd Functions whose backward is a factor per element: straight-through estimators, gradient reversal, clipping.

    y = F.apply(x)      ->      y = nn.replace_gradient(F.forward(x).detach(), x, F.backward(1))

An op that gives the first operand, and the gradient g * F.backward(1) to the second.  Ops of torch alone, as in
y + (x - x.detach()) * factor, would make NaN of masks and whatever else is infinite in x or in the factor.

Whether backward is such a factor is tried, on random numbers outside of the graph: backward(g) must be g * backward(1)
for every g.  Integers may be masks, which switch everything off where they are zero, so they are tried as zeros, ones
and both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from uniap_compiler.bridge import ops as _ops  # noqa: F401  (registers nn.replace_gradient)


class _Context:
    """What forward leaves for backward."""

    def __init__(self, count: int) -> None:
        self.needs_input_grad = (True,) * count
        self.saved_tensors: tuple[Any, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors

    def set_materialize_grads(self, value: bool) -> None:
        pass


def elementwise(function: Any, args: tuple[Any, ...]) -> Tensor | None:
    """The result, with the Function's gradients; None where they are no factors of the result's."""
    tensors = [a for a in args if isinstance(a, Tensor)]
    if not tensors or not _is_factor(function, args):
        return None
    found = _run(function, args)
    if found is None:
        return None
    result, backward = found
    factors = backward(torch.ones_like(result))
    result = result.detach()
    for x, factor in zip(args, factors, strict=True):
        if isinstance(x, Tensor) and x.is_floating_point() and factor is not None:
            result = torch.ops.uniap.replace_gradient(result, x, factor.detach())
    return result


def _run(function: Any, args: tuple[Any, ...]) -> tuple[Tensor, Any] | None:
    """forward's result, and backward as a function of its gradient."""
    context = _Context(len(args))
    with torch.no_grad():
        if function.setup_context is torch.autograd.Function.setup_context:
            result = function.forward(context, *args)
        else:
            result = function.forward(*args)
            function.setup_context(context, args, result)

    def backward(g: Tensor) -> tuple[Any, ...]:
        with torch.no_grad():
            gradients = function.backward(context, g)
        return gradients if isinstance(gradients, tuple) else (gradients,)

    return (result, backward) if isinstance(result, Tensor) and result.is_floating_point() else None


def _is_factor(function: Any, args: tuple[Any, ...]) -> bool:
    """Tried on real tensors of the same shapes, outside of whatever is recording."""
    with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        integers = any(isinstance(a, Tensor) and not a.is_floating_point() for a in args)
        tries = [_try(function, args, range_) for range_ in ([(0, 1), (1, 2), (0, 2)] if integers else [(0, 1)])]
    # Where not all can be tried (an index of 1 may be out of range), one must show more than zeros.
    return "different" not in tries and ("impossible" not in tries or "equal" in tries)


def _try(function: Any, args: tuple[Any, ...], range_: tuple[int, int]) -> str:
    """Of integers in that range: whether gradients are "different" from factors, "equal", "zero", or "impossible"."""
    real = tuple(_random(a, range_) if isinstance(a, Tensor) else a for a in args)
    some = False
    try:
        found = _run(function, real)
        if found is None:
            return "different"
        result, backward = found
        ones = backward(torch.ones_like(result))
        for scale in (1e-6, 10.0, 1e6):  # one that clips shows it
            g = torch.randn_like(result) * scale
            for x, factor, gradient in zip(real, ones, backward(g), strict=True):
                if factor is None and gradient is None:
                    continue
                if x.shape != result.shape or not _close(gradient, factor * g) or not gradient.isfinite().any():
                    return "different"
                some = some or bool(gradient.any())
    except Exception:  # whatever the user's code does with numbers of ours
        return "impossible"
    return "equal" if some else "zero"


def _close(a: Tensor, b: Tensor) -> bool:
    """Up to rounding: of two orders of multiplication, where the dtype is a coarse one."""
    return torch.allclose(a, b, rtol=max(1e-5, 2 * torch.finfo(a.dtype).eps), atol=0.0, equal_nan=True)


def _random(x: Tensor, range_: tuple[int, int]) -> Tensor:
    if not x.is_floating_point():
        return torch.randint(*range_, tuple(x.shape)).to(x.dtype)
    return torch.rand(tuple(x.shape), dtype=torch.float64).to(x.dtype) * 2 - 0.5
