"""Random numbers as functions of a key: this rank's slices of nn.bernoulli, nn.uniform and nn.normal.

    key  = random_key(micro_batch_key(seed, step, micro_batch), site=3)
    mask = bernoulli(key, p=0.9, index=[(8, 4, 4), 128])       # rows 4..7 of 8, all 128 columns

Two modes, chosen by the lowest bit of the key.  `counter`: element i of the whole tensor is a hash of (key, i), so a
slice is the slice of what one device would draw, whatever the plan.  `fast`: a torch.Generator seeded with the key and
the start of the slice; ranks that hold the same slice draw the same numbers, other slices are independent.

index: for each dim its length n, or (size, start, count) for count places of size from start on, or a list of these,
major to minor, where the dim is a product of factors of which several are split.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Tensor = torch.Tensor
MODES = ("counter", "fast")

_WORD = 2**64 - 1
_GAMMA, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_DIGITS = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}
_CHUNK = {"cpu": 1 << 15, "cuda": 1 << 22}
"""Elements hashed at a time: the words of a chunk stay in a core's cache, or fill a GPU and no more."""


# -- keys -----------------------------------------------------------------------------------------------------------


def fold(*words: int) -> int:
    """One hash of several words, order included (SplitMix64's output function with Stafford's constants)."""
    x = 0
    for word in words:
        x = ((x ^ (word & _WORD)) + _GAMMA) & _WORD
        x = ((x ^ (x >> 30)) * _FIRST) & _WORD
        x = ((x ^ (x >> 27)) * _SECOND) & _WORD
        x ^= x >> 31
    return x


def micro_batch_key(seed: int, step: int, micro_batch: int, mode: str = "counter") -> Tensor:
    """The key that everything in one micro-batch of one step derives from; a scalar on the CPU, as every key."""
    return _scalar((fold(seed, step, micro_batch) & ~1) | MODES.index(mode))


@dataclass(frozen=True)
class Randomness:
    """Where the random numbers of a run come from; with the number of the step that is all there is to know."""

    seed: int = 0
    mode: str = "counter"

    def keys(self, step: int, micro_batches: int) -> list[Tensor]:
        """step: counted from 0 over the whole training, resumed or not."""
        return [micro_batch_key(self.seed, step, m, self.mode) for m in range(micro_batches)]


def random_key(random: Tensor, *, site: int) -> Tensor:
    """The key of one random op.  site: its number in the model's forward pass."""
    word = int(random) & _WORD
    return _scalar((fold(word >> 1, site) & ~1) | (word & 1))


def _scalar(word: int) -> Tensor:
    return torch.tensor(_signed(word), dtype=torch.int64)


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


# -- places ---------------------------------------------------------------------------------------------------------


def _parts(dim: Any) -> list[tuple[int, int, int]]:
    """A dim of an index as (size, start, count) per factor, major to minor."""
    parts = dim if isinstance(dim, list) else [dim]
    return [(p, 0, p) if isinstance(p, int) else tuple(p) for p in parts]


def _shape(index: Sequence[Any]) -> list[int]:
    return [math.prod(count for _, _, count in _parts(dim)) for dim in index]


class Counter:
    """The hash of one key at the places of an index, seen as rows of the last dim.  stream: numbers of one key that
    have nothing to do with each other."""

    def __init__(self, key: Tensor, index: Sequence[Any], device: torch.device, stream: int = 0) -> None:
        word = (int(key) & _WORD) >> 1
        start, factor = fold(word, 2 * stream), fold(word, 2 * stream + 1) | 1
        stride = 1
        places = []  # per dim, from the last: the place in the whole tensor that each of its entries adds
        for dim in reversed(index):
            place = torch.zeros(1, dtype=torch.int64, device=device)
            size = 1
            for whole, first, count in _parts(dim):
                here = torch.arange(first, first + count, device=device)
                place = (place.unsqueeze(1) * whole + here).reshape(-1)
                size *= whole
            places.append(place * stride)
            stride *= size
        columns = places[0] if places else torch.zeros(1, dtype=torch.int64, device=device)
        rows = torch.zeros(1, dtype=torch.int64, device=device)
        for place in reversed(places[1:]):
            rows = (rows.unsqueeze(1) + place).reshape(-1)
        self.rows = rows * _signed(factor) + _signed(start)
        self.columns = columns * _signed(factor)

    def words(self, rows: Tensor) -> Tensor:
        """64 bits per element, as int64 [rows, columns]; rows: some of self.rows."""
        x = rows.unsqueeze(1) + self.columns
        x.bitwise_xor_((x >> 30).bitwise_and_(2**34 - 1)).mul_(_signed(_FIRST))
        x.bitwise_xor_((x >> 27).bitwise_and_(2**37 - 1)).mul_(_signed(_SECOND))
        return x.bitwise_xor_((x >> 31).bitwise_and_(2**33 - 1))

    def chunks(self) -> Iterator[tuple[slice, Tensor]]:
        """All rows, a chunk at a time."""
        step = max(1, _CHUNK.get(self.rows.device.type, 1 << 20) // max(1, len(self.columns)))
        for first in range(0, len(self.rows), step):
            some = slice(first, first + step)
            yield some, self.words(self.rows[some])


def threshold(p: float) -> int:
    """A word, as a signed number, is below this with probability p, 0 < p < 1."""
    return round(p * 2**64) - 2**63


def _counted(
    key: Tensor, index: Sequence[Any], dtype: torch.dtype, device: torch.device, stream: int,
    value: Callable[[Tensor], Tensor],
) -> Tensor:  # fmt: skip
    counter = Counter(key, index, device, stream)
    result = torch.empty(len(counter.rows), len(counter.columns), dtype=dtype, device=device)
    for rows, words in counter.chunks():
        result[rows] = value(words)
    return result.reshape(_shape(index))


def _generator(key: Tensor, index: Sequence[Any], device: torch.device) -> torch.Generator | None:
    """None in counter mode."""
    word = int(key) & _WORD
    if not word & 1:
        return None
    starts = [first for dim in index for _, first, _ in _parts(dim)]
    return torch.Generator(device).manual_seed(fold(word >> 1, *starts) >> 1)


# -- the ops --------------------------------------------------------------------------------------------------------


def bernoulli(key: Tensor, *, p: float, index: Sequence[Any], device: torch.device | str = "cpu") -> Tensor:
    """Bools, True with probability p."""
    device = torch.device(device)
    if p <= 0 or p >= 1:
        return torch.full(_shape(index), p >= 1, device=device)
    generator = _generator(key, index, device)
    if generator is not None:
        return torch.empty(_shape(index), dtype=torch.bool, device=device).bernoulli_(p, generator=generator)
    below = threshold(p)
    return _counted(key, index, torch.bool, device, 0, lambda words: words < below)


def uniform(
    key: Tensor, *, index: Sequence[Any], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Tensor:
    """In [0, 1)."""
    device = torch.device(device)
    generator = _generator(key, index, device)
    if generator is not None:
        return torch.rand(_shape(index), dtype=dtype, device=device, generator=generator)
    return _fraction(key, index, dtype, device, 0)


def _fraction(key: Tensor, index: Sequence[Any], dtype: torch.dtype, device: torch.device, stream: int) -> Tensor:
    """A multiple of 2^-d, of which the dtype holds each exactly."""
    digits = _DIGITS[dtype]

    def value(words: Tensor) -> Tensor:
        return (words >> (64 - digits)).bitwise_and_(2**digits - 1).to(dtype).mul_(2.0**-digits)

    return _counted(key, index, dtype, device, stream, value)


def normal(
    key: Tensor, *, index: Sequence[Any], dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Tensor:
    """Mean 0, variance 1."""
    device = torch.device(device)
    generator = _generator(key, index, device)
    if generator is not None:
        return torch.randn(_shape(index), dtype=dtype, device=device, generator=generator)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    radius = (1.0 - _fraction(key, index, wide, device, 0)).log_().mul_(-2.0).sqrt_()  # Box and Muller
    return radius.mul_(_fraction(key, index, wide, device, 1).mul_(2.0 * math.pi).cos_()).to(dtype)
