"""The mesh of one stage: its devices as axes of prime size, and what communication along them costs.

    mesh = Mesh.of(cluster, stages=2, stage=0)      # 16 devices, 8 to a node: 8 in the stage
    mesh.axes                                       # {"a": 2, "b": 2, "c": 2}
    mesh.seconds("all_reduce", ("c",), bytes)       # numpy in, numpy out

Axes are named a, b, c, ... from the slowest to the fastest: first the prime factors of the number of nodes that the
stage spans, then those of the devices inside a node, each descending.  When a stage straddles nodes unevenly its axes
are the factors of its size, and a group costs the slowest link that any group along the same axes crosses.

All stages have axes of the same names and sizes (their device counts are equal); the links may differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from .description import Cluster, Link

Floats = NDArray[np.float64]


def prime_factors(n: int) -> list[int]:
    """Descending: 12 -> [3, 2, 2]; 1 -> []."""
    factors, p = [], 2
    while n > 1:
        while n % p == 0:
            factors.append(p)
            n //= p
        p += 1
    return factors[::-1]


@dataclass(frozen=True)
class Mesh:
    """sizes: of the axes, slowest first.  first: the number of the stage's first device, counted node by node."""

    cluster: Cluster
    stage: int
    first: int
    sizes: tuple[int, ...]
    _rates: dict[tuple[str, tuple[str, ...]], tuple[float, float]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @staticmethod
    def of(cluster: Cluster, stages: int, stage: int) -> Mesh:
        if cluster.devices % stages:
            raise ValueError(f"{cluster.devices} devices do not divide into {stages} stages")
        size, per_node = cluster.devices // stages, cluster.devices_per_node
        if size % per_node == 0:
            sizes = prime_factors(size // per_node) + prime_factors(per_node)
        else:
            sizes = prime_factors(size)
        return Mesh(cluster, stage, stage * size, tuple(sizes))

    @cached_property
    def axes(self) -> dict[str, int]:
        """name -> size, slowest first."""
        return {axis_name(n): size for n, size in enumerate(self.sizes)}

    @property
    def devices(self) -> int:
        return math.prod(self.sizes)

    def size(self, axes: Iterable[str]) -> int:
        table = self.axes
        return math.prod(table[axis] for axis in axes)

    def tensor_axes(self, tp: int) -> tuple[str, ...] | None:
        """The fastest axes whose sizes multiply to tp, in mesh order; None when there are none."""
        wanted, chosen = prime_factors(tp), []
        for axis, size in reversed(self.axes.items()):
            if size in wanted:
                wanted.remove(size)
                chosen.append(axis)
        return None if wanted else tuple(reversed(chosen))

    def data_axes(self, tp: int) -> tuple[str, ...]:
        """The axes that are not tensor axes, in mesh order."""
        tensor = self.tensor_axes(tp)
        if tensor is None:
            raise ValueError(f"no axes of {self.sizes} multiply to {tp}")
        return tuple(axis for axis in self.axes if axis not in tensor)

    def groups(self, axes: Iterable[str]) -> NDArray[np.int64]:
        """Global device numbers, one row per group along `axes`; inside a row in mesh order."""
        names, axes = list(self.axes), tuple(axes)
        chosen = [n for n, axis in enumerate(names) if axis in axes]
        rest = [n for n in range(len(names)) if n not in chosen]
        grid = np.arange(self.first, self.first + self.devices).reshape(self.sizes)
        return grid.transpose(rest + chosen).reshape(-1, self.size(axes))

    def link(self, axes: Iterable[str]) -> tuple[Link, float]:
        """The slowest link that a group along `axes` crosses, and how many groups share a node's port of it."""
        crosses, groups = _crossing(self.first, self.sizes, self.cluster.devices_per_node, tuple(axes))
        link = self.cluster.link(crosses)
        return link, groups if link.shared else 1.0

    def profile(self) -> tuple[object, ...]:
        """Equal for stages whose communication costs the same: every axis's groups, as seen from the nodes."""
        per_node = self.cluster.devices_per_node
        return (self.sizes, self.first % per_node if self.first // per_node != self._last() // per_node else -1)

    def _last(self) -> int:
        return self.first + self.devices - 1

    def alpha_beta(self, collective: str, axes: Iterable[str]) -> tuple[float, float]:
        """Seconds of an empty collective along `axes`, and seconds per byte (see `traffic` for of what)."""
        key = (collective, tuple(axes))
        if key not in self._rates:
            ranks = self.size(key[1])
            if ranks == 1:
                self._rates[key] = (0.0, 0.0)
            else:
                link, sharing = self.link(key[1])
                self._rates[key] = alpha_beta(self.cluster, link, collective, ranks, sharing)
        return self._rates[key]

    def seconds(self, collective: str, axes: Iterable[str], size: Floats | float) -> Floats:
        """Seconds of one collective along `axes`; `size` in bytes, see `traffic` for of what."""
        alpha, beta = self.alpha_beta(collective, axes)
        return alpha + beta * np.asarray(size, dtype=np.float64)

    def send_seconds(self, size: Floats | float) -> Floats:
        """Every device of this stage sends `size` bytes to its peer in the next stage, all at the same time.

        (The last stage: to its peer in the one before.)
        """
        per_node = self.cluster.devices_per_node
        source = np.arange(self.first, self.first + self.devices)
        last = self.first + self.devices == self.cluster.devices
        peer = source - min(self.devices, self.first) if last else source + self.devices
        crossing = source // per_node != peer // per_node
        link = self.cluster.link(bool(crossing.any()))
        ports = np.bincount(source[crossing] // per_node).max() if link.shared and crossing.any() else 1
        alpha, beta = alpha_beta(self.cluster, link, "send", 2, float(ports))
        return alpha + beta * np.asarray(size, dtype=np.float64)


def axis_name(n: int) -> str:
    """a, b, ..., z, aa, ab, ..."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return letters[n] if n < 26 else axis_name(n // 26 - 1) + letters[n % 26]


@lru_cache(maxsize=4096)
def _crossing(first: int, sizes: tuple[int, ...], per_node: int, axes: tuple[str, ...]) -> tuple[bool, float]:
    """Whether any group along `axes` leaves its node, and how many such groups have members on one node."""
    chosen = [n for n in range(len(sizes)) if axis_name(n) in axes]
    rest = [n for n in range(len(sizes)) if n not in chosen]
    grid = np.arange(first, first + math.prod(sizes)).reshape(sizes)
    nodes = grid.transpose(rest + chosen).reshape(-1, math.prod(sizes[n] for n in chosen)) // per_node
    crossing = nodes[nodes.min(axis=1) != nodes.max(axis=1)]
    if not len(crossing):
        return False, 1.0
    return True, float(max(sum(node in row for row in crossing.tolist()) for node in set(crossing.ravel().tolist())))


def traffic(collective: str, ranks: int, reduce_scatter_is_all_reduce: bool = False) -> tuple[int, float]:
    """Steps of the ring, and bytes that each device sends per byte of the WHOLE tensor.

    The whole tensor is the reduced one (all_reduce), the gathered result (all_gather), the full input
    (reduce_scatter), what one device holds before or after (all_to_all), and the message (send).
    """
    if collective == "send":
        return 1, 1.0
    if collective == "all_reduce" or collective == "reduce_scatter" and reduce_scatter_is_all_reduce:
        return 2 * (ranks - 1), 2 * (ranks - 1) / ranks
    if collective in ("all_gather", "reduce_scatter", "all_to_all"):
        return ranks - 1, (ranks - 1) / ranks
    raise ValueError(f"unknown collective {collective!r}")


def alpha_beta(cluster: Cluster, link: Link, collective: str, ranks: int, sharing: float = 1.0) -> tuple[float, float]:
    """overhead + steps * latency, and sent bytes / bandwidth, with `sharing` groups on one port."""
    rate = link.rate(collective)
    steps, share = traffic(collective, ranks, cluster.reduce_scatter_is_all_reduce)
    return rate.overhead + steps * rate.latency, share * sharing / rate.bandwidth
