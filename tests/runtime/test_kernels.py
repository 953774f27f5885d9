"""The nn.* ops against plain torch and autograd in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from uniap_compiler.runtime import attention as attention_module
from uniap_compiler.runtime import kernels as nn
from uniap_compiler.runtime.contraction import plan

D = torch.float64
SIZES = {"b": 2, "s": 3, "k": 4, "n": 5, "h": 2, "d": 3, "t": 4, "batch": 2, "e": 3}


def rand(*shape, grad=False):
    return torch.randn(*shape, dtype=D).requires_grad_(grad)


def reference(equation, a, b):
    words = dict.fromkeys(w for w in equation.replace(",", " ").replace("->", " ").split())
    letters = {w: chr(ord("A") + i) for i, w in enumerate(words)}
    left, right = equation.split("->")
    terms = ["".join(letters[w] for w in term.split()) for term in (*left.split(","), right)]
    return torch.einsum(f"{terms[0]},{terms[1]}->{terms[2]}", a, b)


EQUATIONS = [
    "b s k, n k -> b s n",  # linear
    "b s n, n k -> b s k",  # its input gradient
    "b s n, b s k -> n k",  # its weight gradient
    "b s k, h d k -> b s h d",  # heads kept apart
    "b s h d, n h d -> b s n",
    "b s h d, b s k -> h d k",
    "b h s d, b h t d -> b h s t",  # attention scores
    "b h s t, b h t d -> b h s d",
    "b h s d, b h t d -> b s h t",
    "s b k, n k -> b s n",
    "n k, b s k -> b s n",  # the weight first
    "n k, b s k -> n b s",
    "b s k, n k -> n b s",
    "b s k, n k -> b n s",
    "s b n, b s k -> k n",
    "b s, n k -> b s n k",  # outer product
    "b s k, b s k -> b s",
    "b s k, b s k ->",
    "b s k, n -> b n",  # names that are summed in one operand alone
    "b s k, s n t -> k n",
    "k n, k -> n",
    "batch k, n k -> batch n",
    "d e k h, h d k t -> e t",  # contracted names in different orders
]


@pytest.mark.parametrize("equation", EQUATIONS)
@pytest.mark.parametrize("strided", [False, True])
def test_contract(equation, strided):
    left, right = equation.split("->")[0].split(",")
    a, b = (rand(*(SIZES[w] for w in term.split())) for term in (left, right))
    if strided:
        a, b = (torch.stack([x, x], -1)[..., 0] for x in (a, b))
    expected = reference(equation, a, b)
    found = nn.contract(a, b, equation=equation)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-12, rtol=1e-12)


class Calls(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("equation", "product"),
    [
        ("b s k, n k -> b s n", "mm"), ("b s n, n k -> b s k", "mm"), ("b s n, b s k -> n k", "mm"),
        ("b s k, h d k -> b s h d", "mm"), ("b s h d, n h d -> b s n", "mm"), ("b s h d, b s k -> h d k", "mm"),
        ("b h s d, b h t d -> b h s t", "bmm"), ("b h s t, b h t d -> b h s d", "bmm"),
    ],
)  # fmt: skip
def test_one_product_and_no_copies(equation, product):
    left, right = equation.split("->")[0].split(",")
    a, b = (rand(*(SIZES[w] for w in term.split())) for term in (left, right))
    with Calls() as calls:
        nn.contract(a, b, equation=equation)
    work = [
        n
        for n in calls.names
        if n not in ("view", "t", "transpose", "permute", "_unsafe_view", "reshape", "unsqueeze", "expand")
    ]
    assert work == [product] or work == ["linear"]


@pytest.mark.parametrize("bad", ["b s -> s", "b b, k -> b", "a b, b c -> a d", "a, b, c -> a"])
def test_bad_equations_are_refused(bad):
    with pytest.raises(ValueError):
        plan(bad)


def masks(s, t):
    return {
        "none": None,
        "additive": rand(s, t),
        "additive4": rand(1, 4, s, t),
        "per_batch": rand(2, 1, 1, t),
        "rank3": rand(4, s, t),
        "bool": torch.rand(2, 1, s, t) > 0.3,
    }


@pytest.mark.parametrize("force_math", [False, True])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["none", "additive", "additive4", "per_batch", "rank3", "bool"])
@pytest.mark.parametrize(("t", "e"), [(5, 8), (7, 8), (5, 6)])
def test_attention(monkeypatch, force_math, kv_heads, causal, kind, t, e):
    if force_math:
        monkeypatch.setattr(attention_module, "_kernel", lambda *a: "math")
    torch.manual_seed(0)
    s, scale = 5, 0.3
    # Heads as they come out of a projection: [b, s, h, d] transposed.
    q = rand(2, s, 4, 8).transpose(1, 2).requires_grad_()
    k, v = (rand(2, t, kv_heads, w).transpose(1, 2).requires_grad_() for w in (8, e))
    mask = masks(s, t)[kind]
    additive = mask is not None and mask.dtype != torch.bool
    if mask is not None and not additive:
        mask[..., 0] = True
    if additive:
        mask.requires_grad_()
    keys, values = (x.repeat_interleave(4 // kv_heads, 1) for x in (k, v))
    scores = q @ keys.transpose(-1, -2) * scale
    if causal:
        scores = scores.masked_fill(~torch.ones(s, t, dtype=torch.bool).tril(), -math.inf)
    if mask is not None:
        scores = scores + mask if additive else scores.masked_fill(~mask, -math.inf)
    expected = scores.softmax(-1) @ values
    with torch.no_grad():
        out, lse = nn.attention(q, k, v, mask, causal=causal, scale=scale)
    assert torch.allclose(out, expected, atol=1e-12)
    assert lse.shape == q.shape[:-1]
    assert torch.allclose(lse, scores.logsumexp(-1), atol=1e-12)

    g = rand(*expected.shape[:1], s, 4, e).transpose(1, 2)
    wanted = torch.autograd.grad(expected, [q, k, v] + ([mask] if additive else []), g)
    with torch.no_grad():
        found = nn.attention_backward(g, q, k, v, mask, out, lse, causal=causal, scale=scale, mask_grad=additive)
        plain = nn.attention_backward(g, q, k, v, mask, out, lse, causal=causal, scale=scale)
    assert len(plain) == 3 and len(found) == len(wanted)
    for x, y in zip((*found, *plain), (*wanted, *wanted[:3]), strict=True):
        assert x.shape == y.shape
        assert torch.allclose(x, y, atol=1e-12)


def test_attention_uses_the_flash_kernel_and_other_ranks():
    q, k, v = rand(3, 4, 5, 8), rand(3, 2, 5, 8), rand(3, 2, 5, 8)
    with Calls() as calls:
        out, lse = nn.attention(q, k, v, None, causal=True, scale=0.3)
        nn.attention_backward(torch.ones_like(out), q, k, v, None, out, lse, causal=True, scale=0.3)
    assert sum("flash" in n for n in calls.names) == 2
    # An expanded gradient, contiguous statistics, and more or fewer leading dims give the same.
    grads = nn.attention_backward(
        torch.ones(()).double().expand_as(out), q, k, v, None, out, lse.contiguous(), causal=True, scale=0.3
    )
    dense = nn.attention_backward(torch.ones_like(out), q, k, v, None, out, lse, causal=True, scale=0.3)
    for x, y in zip(grads, dense, strict=True):
        assert torch.allclose(x, y, atol=1e-12)
    one, _ = nn.attention(q[0], k[0], v[0], None, causal=True, scale=0.3)
    five, lse5 = nn.attention(q[None], k[None], v[None], None, causal=True, scale=0.3)
    assert torch.allclose(one, out[0]) and torch.allclose(five[0], out) and lse5.shape == (1, 3, 4, 5)


def test_a_row_without_keys_gives_zeros():
    q, k, v = rand(1, 1, 2, 8), rand(1, 1, 3, 8), rand(1, 1, 3, 8)
    mask = torch.tensor([[True, False, True], [False, False, False]])
    for e in (8, 6):
        out, lse = nn.attention(q, k, v[..., :e], mask, causal=False, scale=1.0)
        assert out[0, 0, 1].abs().max() == 0
        grads = nn.attention_backward(torch.ones_like(out), q, k, v[..., :e], mask, out, lse, causal=False, scale=1.0)
        assert all(x.isfinite().all() for x in grads)


@pytest.mark.parametrize("wrong", [6, -1])
@pytest.mark.parametrize("ignore", [None, -100])
def test_a_class_that_does_not_exist_is_an_error(wrong, ignore):
    logits, target = torch.randn(3, 6), torch.tensor([0, wrong, 5])
    for kernel in (nn.pick, nn.cross_entropy):
        with pytest.raises((IndexError, RuntimeError), match="out of (bounds|range)"):
            kernel(logits, target, ignore_index=ignore)
    with pytest.raises((IndexError, RuntimeError), match="out of (bounds|range)"):
        nn.embedding(logits.t(), target)


@pytest.mark.parametrize("ignore", [-100, 2])
@pytest.mark.parametrize("shape", [(7,), (2, 3)])
def test_cross_entropy_of_split_classes(ignore, shape):
    torch.manual_seed(0)
    logits = rand(*shape, 6, grad=True)
    target = torch.randint(0, 6, shape)
    target.view(-1)[0] = ignore
    loss = F.cross_entropy(logits.reshape(-1, 6), target.reshape(-1), ignore_index=ignore, reduction="none").reshape(
        shape
    )
    g = rand(*shape)
    (wanted,) = torch.autograd.grad(loss, logits, g)
    with torch.no_grad():
        found, lse = nn.cross_entropy(logits, target, ignore_index=ignore)
        assert torch.allclose(found, loss)
        assert torch.allclose(nn.cross_entropy_backward(g, logits, target, lse, ignore_index=ignore), wanted)
        # The same in two halves.
        halves = logits.chunk(2, -1)
        maximum = torch.maximum(*(x.amax(-1) for x in halves))
        total = sum(nn.sum_exp(x, maximum) for x in halves)
        picked = sum(nn.pick(x, target, ignore_index=ignore, offset=3 * i) for i, x in enumerate(halves))
        split_lse = total.log() + maximum
        assert torch.allclose((split_lse - picked).masked_fill(target == ignore, 0.0), loss)
        parts = [
            nn.cross_entropy_backward(g, x, target, split_lse, ignore_index=ignore, offset=3 * i)
            for i, x in enumerate(halves)
        ]
        assert torch.allclose(torch.cat(parts, -1), wanted)
        onehot = [nn.pick_backward(g, target, num_classes=3, ignore_index=ignore, offset=3 * i) for i in range(2)]
        logits2 = logits.detach().requires_grad_()
    (wanted,) = torch.autograd.grad(nn.pick(logits2, target, ignore_index=ignore), logits2, g)
    assert torch.allclose(torch.cat(onehot, -1), wanted)


@pytest.mark.parametrize("padding", [-1, 3])
def test_embedding_of_split_rows(padding):
    weight = rand(6, 4, grad=True)
    indices = torch.tensor([[0, 3, 5], [3, 2, 2]])
    expected = F.embedding(indices, weight, padding if padding >= 0 else None)
    g = rand(2, 3, 4)
    (wanted,) = torch.autograd.grad(expected, weight, g)
    with torch.no_grad():
        assert torch.equal(nn.embedding(weight, indices, padding_idx=padding), expected)
        assert torch.allclose(nn.embedding_backward(g, indices, num_weights=6, padding_idx=padding), wanted)
        parts = [nn.embedding(w, indices, padding_idx=padding, offset=3 * i) for i, w in enumerate(weight.chunk(2))]
        assert torch.equal(parts[0] + parts[1], expected)
        grads = [nn.embedding_backward(g, indices, num_weights=3, padding_idx=padding, offset=3 * i) for i in range(2)]
        assert torch.allclose(torch.cat(grads), wanted)
        with pytest.raises(IndexError):
            nn.embedding(weight, torch.tensor([6]), padding_idx=padding)


def test_layer_norm_backward_with_strided_statistics():
    x, weight, bias, g = rand(3, 4, 8, grad=True), rand(8, grad=True), rand(8, grad=True), rand(3, 4, 8)
    out, mean, rstd = torch.native_layer_norm(x, [8], weight, bias, 1e-5)
    wanted = torch.autograd.grad(out, [x, weight, bias], g)
    strided = [torch.stack([s, torch.zeros_like(s)], -1)[..., 0] for s in (mean.detach(), rstd.detach())]
    assert not strided[0].is_contiguous()
    with torch.no_grad():
        found = nn.native_layer_norm_backward(g, x, [8], *strided, weight, bias, [True, True, True])
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a, b)


def test_group_norm_backward_with_strided_statistics():
    x, weight, g = rand(3, 4, 5, grad=True), rand(4, grad=True), rand(3, 4, 5)
    out, mean, rstd = torch.native_group_norm(x, weight, None, 3, 4, 5, 2, 1e-5)
    wanted = torch.autograd.grad(out, [x, weight], g)
    strided = [torch.stack([s, torch.zeros_like(s)], -1)[..., 0] for s in (mean.detach(), rstd.detach())]
    with torch.no_grad():
        found = nn.native_group_norm_backward(g, x, *strided, weight, 3, 4, 5, 2, [True, True, False])
    for a, b in zip(found, wanted):
        assert torch.allclose(a, b)
