"""mylib::gate(x, scale) = x * sigmoid(scale * x), as a user would register it: torch and nothing else."""

import torch
from torch import Tensor


@torch.library.custom_op("mylib::gate", mutates_args=())
def gate(x: Tensor, scale: Tensor) -> Tensor:
    return x * torch.sigmoid(scale * x)


@gate.register_fake
def _(x: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("mylib::gate_backward", mutates_args=())
def gate_backward(gradient: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    s = torch.sigmoid(scale * x)
    slope = s * (1 - s)
    return gradient * (s + x * slope * scale), (gradient * x * x * slope).sum(list(range(x.dim() - 1)))


@gate_backward.register_fake
def _(gradient: Tensor, x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(scale)


def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[no-untyped-def]
    x, scale = ctx.saved_tensors
    return torch.ops.mylib.gate_backward(gradient, x, scale)


def setup(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


gate.register_autograd(backward, setup_context=setup)
