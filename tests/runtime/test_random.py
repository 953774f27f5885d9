"""Random numbers of the runtime: slices of the reference's, the right distribution, nothing to do with each other."""

from __future__ import annotations

import math

import pytest
import torch

from uniap_compiler.bridge import draws
from uniap_compiler.bridge import ops as _ops  # noqa: F401  (registers the nn.* ops)
from uniap_compiler.runtime import attention_dropout, kernels, random

KEY = random.random_key(random.micro_batch_key(5, 7, 1), site=3)
FAST = random.random_key(random.micro_batch_key(5, 7, 1, "fast"), site=3)
OPS = {
    "bernoulli": {"p": 0.3},
    "uniform": {"dtype": torch.float64},
    "normal": {"dtype": torch.float32},
}
MANY = 200_000


def test_hash_of_known_words() -> None:
    """The numbers are part of the format of a run: a change here changes every training that is resumed."""
    assert random.fold(1, 2, 3) == draws.fold(1, 2, 3) == 0xD0734750FDE362B3
    assert int(KEY) == int(draws.random_key(draws.micro_batch_key(5, 7, 1), 3))
    assert random.fold(1, 2) != random.fold(2, 1)
    # element 5 of a draw, in Python's own integers
    word = (int(KEY) & (2**64 - 1)) >> 1
    x = 5 * (draws.fold(word, 1) | 1) + draws.fold(word, 0)
    expected = draws.finish(x % 2**64) >> 11
    assert random.uniform(KEY, index=[6], dtype=torch.float64)[5].item() == expected * 2.0**-53


@pytest.mark.parametrize("mode", random.MODES)
def test_every_micro_batch_of_every_step_has_a_key_of_its_own(mode: str) -> None:
    """verify cannot see it: the unsharded model takes its keys from here."""
    runs = [random.Randomness(seed, mode).keys(step, 4) for seed in range(3) for step in range(5)]
    assert len({int(key) for keys in runs for key in keys}) == 3 * 5 * 4
    wanted = [random.micro_batch_key(2, 4, m, mode) for m in range(4)]
    assert [int(key) for key in runs[-1]] == [int(key) for key in wanted]


@pytest.mark.parametrize("name", OPS)
def test_slices_of_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(random._CHUNK, "cpu", 24)
    op, whole = getattr(kernels, name), getattr(draws, name)(KEY, [4, 6, 10], **OPS[name])
    assert torch.equal(op(KEY, index=[4, 6, 10], **OPS[name]), whole)
    assert torch.equal(op(KEY, index=[(4, 2, 2), 6, (10, 5, 5)], **OPS[name]), whole[2:4, :, 5:])
    nested = whole.view(4, 2, 3, 10)[:, :, 1:2].reshape(4, 2, 10)
    assert torch.equal(op(KEY, index=[4, [2, (3, 1, 1)], 10], **OPS[name]), nested)
    twice = whole.view(4, 2, 3, 10)[:, 1:, 2:].reshape(4, 1, 10)
    assert torch.equal(op(KEY, index=[4, [(2, 1, 1), (3, 2, 1)], 10], **OPS[name]), twice)
    assert torch.equal(op(KEY, index=[], **OPS[name]), getattr(draws, name)(KEY, [], **OPS[name]))
    assert op(KEY, index=[0, 3], **OPS[name]).shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_uniform_numbers(dtype: torch.dtype) -> None:
    x = random.uniform(KEY, index=[MANY], dtype=dtype)
    assert x.dtype == dtype and 0 <= x.min() and x.max() < 1
    counts = torch.histc(x.double(), 64, 0, 1)
    chi = ((counts - MANY / 64) ** 2 / (MANY / 64)).sum().item()
    assert chi < 63 + 5 * math.sqrt(2 * 63)
    for lag in (1, 2, 64, 1000):
        correlation = torch.corrcoef(torch.stack([x[:-lag], x[lag:]]).double())[0, 1].item()
        assert abs(correlation) < 5 / math.sqrt(MANY)


def test_normal_numbers() -> None:
    x = random.normal(KEY, index=[MANY], dtype=torch.float64)
    for power, moment, spread in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        assert abs((x**power).mean().item() - moment) < 5 * math.sqrt(spread / MANY)


@pytest.mark.parametrize("key", [KEY, FAST], ids=["counter", "fast"])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 1.0, 1e-4])
def test_masks_have_their_probability(key: torch.Tensor, p: float) -> None:
    mask = random.bernoulli(key, p=p, index=[MANY])
    assert mask.dtype == torch.bool
    assert abs(mask.double().mean().item() - p) <= 5 * math.sqrt(p * (1 - p) / MANY)


@pytest.mark.parametrize("mode", random.MODES)
def test_seeds_steps_micro_batches_and_sites_are_independent(mode: str) -> None:
    def mask(seed: int, step: int, micro_batch: int, site: int) -> torch.Tensor:
        key = random.random_key(random.micro_batch_key(seed, step, micro_batch, mode), site=site)
        return random.bernoulli(key, p=0.5, index=[4096])

    places = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (2**40, 0, 0, 0), (0, 1, 1, 1)]
    masks = torch.stack([mask(*place) for place in places]).double()
    correlations = torch.corrcoef(masks) - torch.eye(len(masks))
    assert correlations.abs().max() < 5 / math.sqrt(4096)
    assert torch.equal(mask(3, 4, 5, 6), mask(3, 4, 5, 6))


@pytest.mark.parametrize("name", OPS)
def test_fast_slices(name: str) -> None:
    """Who holds the same slice draws the same; other slices have nothing to do with each other."""
    op = getattr(kernels, name)
    first = op(FAST, index=[(8, 0, 4), 1024], **OPS[name])
    assert torch.equal(first, op(FAST, index=[(8, 0, 4), 1024], **OPS[name]))
    second = op(FAST, index=[(8, 4, 4), 1024], **OPS[name])
    both = torch.stack([first.double().flatten(), second.double().flatten()])
    assert abs(torch.corrcoef(both)[0, 1].item()) < 5 / math.sqrt(4096)
    assert not torch.equal(first, op(KEY, index=[(8, 0, 4), 1024], **OPS[name]))


ATTENTION = (
    ((2, 6, 4, 2), (2, 3, 6, 2), None, False),
    ((2, 6, 4, 2), (2, 6, 4, 2), None, True),
    ((4, 6, 2), (2, 6, 2), None, False),
    ((2, 6, 4, 2), (2, 3, 6, 2), (6, 4, 6), False),
    ((2, 6, 4, 2), (2, 3, 6, 2), (2, 1, 4, 6), False),
    ((2, 6, 4, 2), (2, 2, 6, 2), (4, 6), False),
    ((3, 2, 6, 4, 2), (3, 2, 3, 6, 2), (2, 1, 4, 6), False),
    ((3, 2, 6, 4, 2), (3, 2, 3, 6, 2), (3, 1, 6, 4, 6), False),
    ((6, 4, 2), (3, 6, 2), (6, 4, 6), False),
)


@pytest.mark.parametrize("block", [1, 60, 1 << 18])
@pytest.mark.parametrize("key", [KEY, FAST], ids=["counter", "fast"])
def test_attention(key: torch.Tensor, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks change nothing, and the mask is the hash in both modes: forward and backward may lie differently."""
    monkeypatch.setitem(attention_dropout.BLOCK, "cpu", block)
    torch.manual_seed(0)
    counted = torch.ops.uniap
    for q_shape, k_shape, mask_shape, causal in ATTENTION:
        q, k, v, mask = (
            torch.randn(s, dtype=torch.float64) if s else None
            for s in (q_shape, k_shape, (*k_shape[:-1], 3), mask_shape)
        )
        index = [*q_shape[:-1], k_shape[-2]]
        wanted = counted.attention.dropout(q, k, v, mask, key, causal, 0.5, 0.3)
        given = {"causal": causal, "scale": 0.5, "dropout_p": 0.3, "index": index}
        found = kernels.attention(q, k, v, mask, key, **given)
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)
        g = torch.randn_like(wanted[0])
        backward = counted.attention_backward.dropout_mask if mask_shape else counted.attention_backward.dropout
        slopes = backward(g, q, k, v, mask, *wanted, key, causal, 0.5, 0.3, bool(mask_shape))
        found = kernels.attention_backward(g, q, k, v, mask, *found, key, mask_grad=bool(mask_shape), **given)
        torch.testing.assert_close(found, tuple(slopes), rtol=1e-10, atol=1e-10)


def test_attention_derivative() -> None:
    torch.manual_seed(0)
    q, k, v, mask = (
        torch.randn(s, dtype=torch.float64, requires_grad=True)
        for s in ((2, 4, 3, 2), (2, 2, 5, 2), (2, 2, 5, 3), (4, 3, 5))
    )
    assert torch.autograd.gradcheck(
        lambda *x: torch.ops.uniap.attention.dropout(*x, KEY, False, 0.5, 0.3)[0], (q, k, v, mask)
    )
