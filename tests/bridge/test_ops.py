"""The nn.* ops: equal to torch's own, differentiable, with the shapes that they promise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from uniap_compiler.bridge import ops as _ops  # noqa: F401

uniap = torch.ops.uniap


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, requires_grad=True)


def check(function: Any, reference: Any, leaves: list[Tensor]) -> None:
    """Values and all gradients agree in float64."""
    ours, theirs = function(*leaves), reference(*leaves)
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    tangent = torch.randn_like(theirs)
    mine = torch.autograd.grad(ours, leaves, tangent)
    right = torch.autograd.grad(theirs, leaves, tangent)
    for a, b in zip(mine, right):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "equation, plain, left, right",
    [
        ("b s k, n k -> b s n", "bsk,nk->bsn", (2, 3, 4), (5, 4)),
        ("b h m k, b h k n -> b h m n", "bhmk,bhkn->bhmn", (2, 3, 4, 5), (2, 3, 5, 6)),
        ("s d, d -> s", "sd,d->s", (3, 4), (4,)),
        ("k, k ->", "k,k->", (4,), (4,)),
        ("batch long, other long -> other batch", "ab,cb->ca", (2, 3), (4, 3)),
        ("a, b -> a b", "a,b->ab", (2,), (3,)),
    ],
)
def test_contract(equation: str, plain: str, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    check(
        lambda a, b: uniap.contract(a, b, equation), lambda a, b: torch.einsum(plain, a, b), [leaf(*left), leaf(*right)]
    )


@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("kind", ["none", "causal", "bool", "additive", "trained", "mask per head"])
def test_attention(heads: int, kv_heads: int, kind: str) -> None:
    q, k, v = leaf(2, heads, 5, 8), leaf(2, kv_heads, 5, 8), leaf(2, kv_heads, 5, 3)
    mask = {
        "bool": torch.rand(2, 1, 1, 5) > 0.3,
        "additive": torch.randn(5, 5, dtype=torch.float64),
        "trained": leaf(1, heads, 5, 5),
        "mask per head": torch.randn(2, heads, 5, 5, dtype=torch.float64),
    }.get(kind)
    if mask is not None and mask.dtype == torch.bool:
        mask[..., 0] = True
    causal = kind == "causal"
    leaves = [q, k, v] + ([mask] if kind == "trained" and mask is not None else [])

    def ours(q: Tensor, k: Tensor, v: Tensor, m: Tensor | None = mask) -> Tensor:
        return uniap.attention(q, k, v, m, causal, 0.3)[0]

    def theirs(q: Tensor, k: Tensor, v: Tensor, m: Tensor | None = mask) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, m, is_causal=causal, scale=0.3, enable_gqa=True)

    check(ours, theirs, leaves)


def test_attention_of_a_row_that_sees_nothing_is_zero() -> None:
    mask = torch.ones(3, 3, dtype=torch.bool)
    mask[1] = False
    q = leaf(1, 1, 3, 4)
    out, lse = uniap.attention(q, leaf(1, 1, 3, 4), leaf(1, 1, 3, 4), mask, False, 0.5)
    assert torch.isneginf(lse[0, 0, 1]) and bool((out[0, 0, 1] == 0).all())
    (grad,) = torch.autograd.grad(out.sum(), q)
    assert not grad.isnan().any()


@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_cross_entropy(shape: tuple[int, ...]) -> None:
    target = torch.randint(5, shape)
    target[..., 0] = -100

    def theirs(x: Tensor) -> Tensor:
        return F.cross_entropy(x.reshape(-1, 5), target.reshape(-1), reduction="none").view(shape)

    check(lambda x: uniap.cross_entropy(x, target, -100)[0], theirs, [leaf(*shape, 5)])
    x = leaf(*shape, 5)
    torch.testing.assert_close(uniap.cross_entropy(x, target, -100)[1], x.logsumexp(-1))


def test_cross_entropy_in_parts_over_a_split_class_dim() -> None:
    """max, sum and pick over two halves of the classes give the whole; so does the derivative."""
    x, target = leaf(7, 10).detach(), torch.randint(10, (7,))
    target[2] = -1
    halves = [(x[:, :5], 0), (x[:, 5:], 5)]
    largest = torch.stack([h.amax(-1) for h, _ in halves]).amax(0)
    lse = sum(uniap.sum_exp(h, largest) for h, _ in halves).log() + largest  # type: ignore[union-attr]
    picked = sum(uniap.pick(h, target, -1, o) for h, o in halves)
    loss, whole_lse = uniap.cross_entropy(x, target, -1)
    torch.testing.assert_close((lse - picked).masked_fill(target == -1, 0.0), loss)
    g = torch.randn(7, dtype=torch.float64)
    parts = torch.cat([uniap.cross_entropy_backward(g, h, target, whole_lse, -1, o) for h, o in halves], -1)
    torch.testing.assert_close(parts, uniap.cross_entropy_backward(g, x, target, whole_lse, -1))


def test_embedding() -> None:
    indices = torch.tensor([[0, 3, 3], [2, 0, 1]])
    check(lambda w: uniap.embedding(w, indices, 3), lambda w: F.embedding(indices, w, padding_idx=3), [leaf(5, 4)])
    weight = leaf(6, 4).detach()
    parts = uniap.embedding(weight[:2], indices) + uniap.embedding(weight[2:], indices, -1, 2)
    torch.testing.assert_close(parts, F.embedding(indices, weight))
    g = torch.randn(2, 3, 4, dtype=torch.float64)
    whole = uniap.embedding_backward(g, indices, 6, 3)
    parts = torch.cat([uniap.embedding_backward(g, indices, 2, 3), uniap.embedding_backward(g, indices, 4, 3, 2)])
    torch.testing.assert_close(parts, whole)


CALLS = {
    "contract": (lambda: (leaf(2, 3), leaf(4, 3), "b k, n k -> n b")),
    "attention": (
        lambda: (leaf(2, 4, 5, 8), leaf(2, 2, 6, 8), leaf(2, 2, 6, 3), torch.randn(5, 6).double(), False, 0.3)
    ),
    "sum_exp": (lambda: (leaf(2, 3), leaf(2))),
    "pick": (lambda: (leaf(2, 3), torch.tensor([0, 2]), -100)),
    "pick_backward": (lambda: (leaf(2), torch.tensor([0, 2]), 3, -100)),
    "cross_entropy": (lambda: (leaf(2, 3), torch.tensor([0, 2]), -100)),
    "cross_entropy_backward": (lambda: (leaf(2), leaf(2, 3), torch.tensor([0, 2]), leaf(2), -100)),
    "embedding": (lambda: (leaf(5, 3), torch.tensor([[0, 4]]), -1)),
    "replace_gradient": (lambda: (leaf(2, 3), leaf(2, 3), leaf(2, 3))),
    "embedding_backward": (lambda: (leaf(1, 2, 3), torch.tensor([[0, 4]]), 5)),
}


@pytest.mark.parametrize("name", CALLS)
def test_fake_shapes(name: str) -> None:
    """Shapes, dtypes and strides on fake tensors are those of the kernels."""
    args = [a.detach() if isinstance(a, Tensor) else a for a in CALLS[name]()]
    real = getattr(uniap, name)(*args)
    with FakeTensorMode() as mode:
        fake = getattr(uniap, name)(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args))
    for r, f in zip(real if isinstance(real, tuple) else [real], fake if isinstance(fake, tuple) else [fake]):
        assert (r.shape, r.dtype, r.stride()) == (f.shape, f.dtype, f.stride())


def test_contract_says_what_does_not_fit() -> None:
    with FakeTensorMode() as mode:
        a, b = (mode.from_tensor(torch.randn(2, n)) for n in (3, 4))
        with pytest.raises(ValueError, match="dim 'k' is 3 and 4"):
            uniap.contract(a, b, "b k, n k -> b n")
