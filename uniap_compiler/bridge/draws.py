"""Random numbers as functions of a key, in plain torch: what `nn.bernoulli`, `nn.uniform` and `nn.normal` compute.

    key   = random_key(micro_batch_key(seed, step, micro_batch), site=3)
    draw  = bernoulli(key, [4, 128], 0.9)         # element i is a hash of (key, i): the same wherever it is computed

A key is 63 bits of hash; its lowest bit chooses generators in place of the hash, at run time only (docs/random.md).
`runtime/random.py` computes slices of the same numbers; neither file reads the other, so the tests compare them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_WORD = 2**64 - 1
_GAMMA, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
DIGITS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}


def finish(x: int) -> int:
    """SplitMix64's output function (Steele, Lea, Flood 2014; constants of Stafford's variant 13)."""
    x = ((x ^ (x >> 30)) * _FIRST) & _WORD
    x = ((x ^ (x >> 27)) * _SECOND) & _WORD
    return x ^ (x >> 31)


def fold(*words: int) -> int:
    """One hash of several words, order included."""
    state = 0
    for word in words:
        state = finish(((state ^ (word & _WORD)) + _GAMMA) & _WORD)
    return state


def micro_batch_key(seed: int, step: int, micro_batch: int) -> Tensor:
    """The key that everything in one micro-batch of one step derives from."""
    return _tensor(fold(seed, step, micro_batch) & ~1)


def random_key(random: Tensor, site: int) -> Tensor:
    """The key of one random op.  site: its number in the model's forward pass."""
    word = int(random) & _WORD
    return _tensor((fold(word >> 1, site) & ~1) | (word & 1))


def _tensor(word: int) -> Tensor:
    return torch.tensor(_signed(word), dtype=torch.int64)


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


def _hash(key: Tensor, size: Sequence[int], stream: int) -> Tensor:
    """For each element 64 bits, as int64: the element's place times an odd number, plus a start, both of the key."""
    word = (int(key) & _WORD) >> 1
    start, factor = fold(word, 2 * stream), fold(word, 2 * stream + 1) | 1
    x = torch.arange(math.prod(size), dtype=torch.int64) * _signed(factor) + _signed(start)
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _signed(_FIRST)
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _signed(_SECOND)
    return (x ^ ((x >> 31) & (2**33 - 1))).reshape(list(size))


def bernoulli(key: Tensor, size: Sequence[int], p: float) -> Tensor:
    """True with probability p."""
    if p <= 0 or p >= 1:
        return torch.full(list(size), p >= 1)
    return _hash(key, size, 0) < round(p * 2**64) - 2**63


def uniform(key: Tensor, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    """In [0, 1): a multiple of 2^-d with the d digits of the dtype."""
    return _fraction(key, size, dtype, 0)


def _fraction(key: Tensor, size: Sequence[int], dtype: torch.dtype, stream: int) -> Tensor:
    digits = DIGITS[dtype]
    return ((_hash(key, size, stream) >> (64 - digits)) & (2**digits - 1)).to(dtype) * 2.0**-digits


def normal(key: Tensor, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Mean 0, variance 1 (Box and Muller), computed in float32 at least."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    radius = (-2.0 * torch.log(1.0 - _fraction(key, size, wide, 0))).sqrt()
    return (radius * torch.cos(2.0 * math.pi * _fraction(key, size, wide, 1))).to(dtype)
