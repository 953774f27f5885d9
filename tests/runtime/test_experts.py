"""nn.experts as a bundle runs it: against autograd through a loop over tokens and choices."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from uniap_compiler.runtime import kernels as nn

TOKENS, H, O, I, E, K = 9, 6, 5, 4, 6, 2


def rand(*shape):
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def by_hand(x, index, weights, gate_up, down, bias, activation):
    """One token and one choice at a time."""
    rows = []
    for token, chosen, shares in zip(x, index, weights):
        total = torch.zeros(O, dtype=torch.float64)
        for j, share in zip(chosen.tolist(), shares):
            u = gate_up[j] @ token + (bias[j] if bias is not None else 0)
            total = total + share * (down[j] @ activation(u))
        rows.append(total)
    return torch.stack(rows)


def swiglu(u):
    gate, up = u.chunk(2)
    return F.silu(gate) * up


def pairs(u):
    return (u[1::2] + 1) * torch.clamp(u[::2], None, 0.5)


KINDS = {
    "halves": (swiglu, {"activation": "silu(gate) * up"}, 2 * I),
    "pairs": (pairs, {"activation": "(up + 1) * clamp(gate, None, 0.5)", "interleaved": True}, 2 * I),
    "no gate": (lambda u: F.gelu(u, approximate="tanh"), {"activation": "gelu_tanh(u)"}, I),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("biased", [False, True])
def test_equals_a_loop_over_tokens(kind, biased):
    torch.manual_seed(0)
    activation, attrs, wide = KINDS[kind]
    index = torch.stack([torch.randperm(E - 1)[:K] for _ in range(TOKENS)])  # nobody chooses the last expert
    given = [rand(TOKENS, H), rand(TOKENS, K), rand(E, wide, H), rand(E, O, I)] + ([rand(E, wide)] if biased else [])
    x, weights, gate_up, down, *bias = given
    wanted = by_hand(x, index, weights, gate_up, down, bias[0] if biased else None, activation)
    grad = torch.randn_like(wanted)
    gradients = torch.autograd.grad(wanted, given, grad)
    with torch.no_grad():
        operands = (x, index, weights, gate_up, down, bias[0] if biased else None)
        assert torch.allclose(nn.experts(*operands, **attrs), wanted, 1e-12, 1e-12)
        found = nn.experts_backward(grad, *operands, **attrs)
        for a, b in zip(found, gradients, strict=True):
            assert torch.allclose(a, b, 1e-12, 1e-12)
        # in two parts that have three experts each
        total = 0
        for first in (0, 3):
            part = [t[first : first + 3] if t is not None else None for t in operands[3:]]
            total = total + nn.experts(x, index, weights, *part, **attrs, offset=first)
        assert torch.allclose(total, wanted, 1e-12, 1e-12)


def test_the_same_expert_twice_and_no_token_at_all():
    x, gate_up, down = (t.detach() for t in (rand(3, H), rand(E, I, H), rand(E, O, I)))
    index, weights = torch.zeros(3, 2, dtype=torch.int64), torch.ones(3, 2, dtype=torch.float64)
    once = nn.experts(x, index[:, :1], weights[:, :1], gate_up, down, activation="relu(u)")
    assert torch.allclose(nn.experts(x, index, weights, gate_up, down, activation="relu(u)"), 2 * once)
    none = nn.experts(x[:0], index[:0], weights[:0], gate_up, down, activation="relu(u)")
    assert none.shape == (0, O)


@pytest.mark.parametrize("text", ["__import__('os')", "u.numpy()", "[u for u in gate]", "lambda: u"])
def test_an_activation_is_arithmetic(text):
    x, gate_up, down = torch.ones(1, H), torch.ones(E, I, H), torch.ones(E, O, I)
    with pytest.raises((ValueError, NameError)):
        nn.experts(x, torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1), gate_up, down, activation=text)
