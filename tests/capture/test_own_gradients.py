"""Autograd Functions that are a factor per element: values and gradients are eager's, with infinities and casts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from uniap_compiler.capture import TrainingTask, capture
from uniap_compiler.ir import Diagnostic

from .reference import captured, difference, eager, interpret, promoted

STEP = "canonicalize,outline-layers,differentiate,canonicalize"


class Hard(torch.autograd.Function):
    """Zero or one, with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x > 0.1).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g


class Root(torch.autograd.Function):
    """Its factor is infinite where x is not positive."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(root := x.relu().sqrt())
        return root

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * (0.5 / ctx.saved_tensors[0])


class Narrow(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.to(torch.bfloat16)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g.float() * 0.5


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * -0.3


class Blend(torch.autograd.Function):
    """Two tensors, each with a factor of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, share: float) -> Tensor:
        ctx.save_for_backward(x, y)
        return share * x + (1 - share) * y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None]:
        x, y = ctx.saved_tensors
        return g * y.cos(), g * x.sin(), None


class Kernel(torch.autograd.Function):
    """Attention over channels with a backward of its own; where the mask is zero, nothing has a gradient."""

    @staticmethod
    def forward(ctx: Any, mask: Tensor, q: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(weights := (q.mT @ q).sigmoid() * mask, q, v)
        return v @ weights

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, Tensor, Tensor]:
        weights, q, v = ctx.saved_tensors
        return None, q @ ((v.mT @ g) * weights), g @ weights.mT


class Spread(torch.autograd.Function):
    """Every element has the whole gradient; one number below zero makes it NaN."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(root := x.sqrt())
        return root

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return (g / ctx.saved_tensors[0]).sum().expand_as(g)


class Picked(torch.autograd.Function):
    """An index that can only be zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(factor := torch.tensor([0.25])[index])
        return x * factor

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return g * ctx.saved_tensors[0], None


class Blocked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        return x * mask

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return torch.zeros_like(g), None


class Net(nn.Module):
    def __init__(self, body: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("mask", torch.full((8, 8), -torch.inf).triu(1))
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x).pow(2).mean()


def task(body: Callable[[Any, Tensor], Tensor]) -> TrainingTask:
    torch.manual_seed(0)
    return TrainingTask(Net(body), {"x": torch.randn(4, 8)})


def masked(m: Any, x: Tensor) -> Tensor:
    """Scores of -inf, whose gradient still reaches what the mask was added to."""
    return m.b(Hard.apply(m.a(x).unsqueeze(1) + m.mask))


BODIES: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "masked": masked,
    "reversed": lambda m, x: m.b(Reversed.apply(m.a(x))),
    "two tensors": lambda m, x: Blend.apply(m.a(x), m.b(x), 0.3),
    "an index": lambda m, x: m.b(Picked.apply(m.a(x), torch.zeros(8, dtype=torch.long))),
    "no gradient": lambda m, x: m.b(x) + Blocked.apply(m.a(x), torch.ones(8, dtype=torch.bool)),
}


@pytest.mark.parametrize("name", BODIES)
def test_equals_eager(name: str) -> None:
    module, converted, constants = captured(task(BODIES[name]), STEP)
    with promoted(torch.float64):
        theirs = eager(converted)
    assert bool(theirs.loss.isfinite())
    assert difference(interpret(module, "step", converted, constants), theirs) < 1e-12


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: Kernel.apply(torch.ones(8, dtype=torch.long), m.a(x), m.b(x)),
        lambda m, x: Spread.apply(m.a(x).abs()),
    ],
    ids=["kernel", "spread"],
)
def test_others_are_refused(body: Callable[[Any, Tensor], Tensor]) -> None:
    with pytest.raises(Diagnostic, match="its backward would be lost"):
        capture(task(body))


def test_an_infinite_factor_leaves_the_value() -> None:
    module, converted, constants = captured(task(lambda m, x: m.b(Root.apply(m.a(x)))))
    with promoted(torch.float64):
        wanted = eager(converted).loss
    assert bool(wanted.isfinite())
    torch.testing.assert_close(interpret(module, "main", converted, constants).loss, wanted, rtol=1e-12, atol=0.0)


def test_the_result_keeps_the_dtype_of_forward() -> None:
    module = capture(task(lambda m, x: m.b(Narrow.apply(m.a(x)).to(x.dtype))))
    (op,) = (op for op in module.funcs["main"].ops if op.name == "nn.replace_gradient")
    assert op.results[0].type.dtype == "bf16"


def test_rounding_in_a_coarse_dtype_does_not_refuse_a_factor() -> None:
    capture(task(lambda m, x: m.b(Reversed.apply(m.a(x)))), dtype="bfloat16")
