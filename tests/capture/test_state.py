"""What an exported graph would silently leave out is refused, at the line; what does no harm is not."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniap_compiler.capture import TrainingTask, capture
from uniap_compiler.capture.copies import copied
from uniap_compiler.ir import Diagnostic


class Net(nn.Module):
    def __init__(self, body: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.body = body
        self.count, self.tau, self.rows = 0, 1.0, 0
        self.centre, self.aux = torch.zeros(8), torch.zeros(())
        self.hidden = [nn.Linear(8, 8)]
        self.register_buffer("ema", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x).pow(2).mean()


def task(body: Callable[[Any, Tensor], Tensor]) -> TrainingTask:
    torch.manual_seed(0)
    return TrainingTask(Net(body), {"x": torch.randn(4, 8)})


class Clipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g.clamp(-100.0, 100.0)


def counts(m: Net, x: Tensor) -> Tensor:
    m.count += 1
    return m.a(x) * min(1.0, m.count / 10)


def decays(m: Net, x: Tensor) -> Tensor:
    m.tau *= 0.99
    return m.a(x) * m.tau


def centres(m: Net, x: Tensor) -> Tensor:
    m.centre = 0.9 * m.centre + 0.1 * m.a(x).detach().mean(0)
    return m.a(x) - m.centre


def moves(m: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        m.centre[2:].mul_(0.9).add_(m.a(x).mean(0)[2:])
    return m.a(x) - m.centre


def penalises(m: Net, x: Tensor) -> Tensor:
    (g,) = torch.autograd.grad(m.a(x.requires_grad_()).sum(), x, create_graph=True)
    return g


def hooks(m: Net, x: Tensor) -> Tensor:
    h = m.a(x)
    h.register_hook(lambda g: g * 0.1)
    return h


REFUSED = {
    "changes count every time": counts,
    "changes tau every time": decays,
    "reads the tensor centre and replaces it": centres,
    "changes the tensor centre in place": moves,
    "cannot capture": penalises,
    "Python's random": lambda m, x: m.a(x).roll(random.choice([1, 2]), 1),
    "an autograd Function, Clipped": lambda m, x: m.b(Clipped.apply(m.a(x))),
    "a hook for a gradient": hooks,
    "a parameter of shape \\[8, 8\\] that the model does not have": lambda m, x: m.hidden[0](m.a(x)),
    "a parameter of shape \\[8\\] that the model does not have": lambda m, x: F.layer_norm(
        m.a(x), [8], weight=m.hidden[0].bias
    ),
    "a parameter of shape \\[8, 8\\] that": lambda m, x: m.a(x) @ torch.stack([m.hidden[0].weight])[0],
    "depends on values": lambda m, x: m.a(x)[x.sum(-1) > 0],
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused(message: str) -> None:
    with pytest.raises(Diagnostic, match=message):
        capture(task(REFUSED[message]))


def test_hooks_for_gradients_are_refused() -> None:
    hooked = task(lambda m, x: m.a(x))
    hooked.model.a.weight.register_hook(lambda g: g * 0.1)
    with pytest.raises(Diagnostic, match=r"the parameter a\.weight has a hook"):
        capture(hooked, dtype="float64")


def remembers(m: Net, x: Tensor) -> Tensor:
    """Attributes that are only written, or written before they are read."""
    m.rows, m.last = x.shape[0], m.a(x)
    m.aux = m.last.mean()
    return m.b(m.last) + m.aux


def test_what_is_only_remembered_does_no_harm() -> None:
    remembering = task(remembers)
    capture(remembering)
    assert remembering.model.rows == 0
    assert torch.equal(remembering.model.aux, torch.zeros(()))


def averages(m: Net, x: Tensor) -> Tensor:
    m.ema = 0.9 * m.ema + 0.1 * m.a(x).mean(0)
    return m.a(x) - m.ema


def test_an_assigned_buffer_is_a_changed_one() -> None:
    averaging = task(averages)
    before = averaging.model.ema
    module = capture(averaging)
    assert module.funcs["main"].attrs["results"] == ["loss", "buffer:ema"]
    assert averaging.model.ema is before


def test_a_buffer_keeps_its_shape() -> None:
    def grows(m: Net, x: Tensor) -> Tensor:
        m.ema = torch.cat([m.ema, m.ema])
        return m.a(x)

    with pytest.raises(Diagnostic, match=r"changes the buffer ema from \[8\] of torch.float32 to \[16\]"):
        capture(task(grows))


def test_a_copy_calls_its_own_layers() -> None:
    class Closed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers = nn.ModuleDict({"up": nn.Linear(4, 8), "down": nn.Linear(8, 4)})
            self.mlp = lambda x: layers["down"](layers["up"](x).relu())

        def forward(self, x: Tensor) -> Tensor:
            return self.mlp(x)

    model = nn.Sequential(Closed(), nn.utils.weight_norm(nn.Linear(4, 4)))
    double = copied(model).double()
    double(torch.randn(2, 4, dtype=torch.float64)).sum().backward()
    assert double[0].layers["up"].weight.grad is not None
    assert model[0].layers["up"].weight.grad is None
    assert double[1].weight_g.grad is not None
