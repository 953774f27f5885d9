"""Collectives as the generated code calls them; `processes.py` and `threads.py` carry them out.

    y = comm.all_reduce(x, "a")                        # the sum over my group of axis a
    y = comm.all_gather(x, "a_b", dim=1, outer=8)      # dim 1 is [8, rest]; rest is joined

No method changes its argument.  A group is looked up by name in GROUPS; a rank that is in no group of that name is
alone, and its collectives are identities.  Groups of several ranks are created by all ranks in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from . import pieces

Groups = Mapping[str, list[list[int]]]


class Pending(Protocol):
    """Something on its way: wait() gives the tensor.  Bounded by the group's timeout."""

    def wait(self) -> torch.Tensor: ...


@dataclass(frozen=True)
class Done:
    value: torch.Tensor

    def wait(self) -> torch.Tensor:
        return self.value


@dataclass(frozen=True)
class Then:
    """A pending value and what is done with it locally when it is there."""

    pending: Pending
    finish: Callable[[torch.Tensor], torch.Tensor]

    def wait(self) -> torch.Tensor:
        return self.finish(self.pending.wait())


@dataclass(frozen=True)
class Many:
    """Several tensors on their way in buckets: wait() gives them in their order."""

    done: list[torch.Tensor]
    flying: list[tuple[Pending, list[int]]]
    finish: Callable[[torch.Tensor, list[int]], list[torch.Tensor]]

    def wait(self) -> list[torch.Tensor]:
        results: dict[int, torch.Tensor] = dict(enumerate(self.done))
        for pending, bucket in self.flying:
            results.update(zip(bucket, self.finish(pending.wait(), bucket), strict=True))
        return [results[i] for i in range(len(results))]


@dataclass(frozen=True)
class Group:
    """One group as one of its ranks sees it.  handle: the torch process group, where there is one."""

    name: str
    ranks: tuple[int, ...]
    position: int
    handle: Any = None

    @property
    def size(self) -> int:
        return len(self.ranks)

    def __str__(self) -> str:
        return f"group {self.name} (ranks {', '.join(map(str, self.ranks))})"


def distinct_groups(groups: Groups, world_size: int) -> list[tuple[int, ...]]:
    """Every set of several ranks once, in the order in which all ranks create them; without the world."""
    found: dict[tuple[int, ...], None] = {}
    for name, lists in groups.items():
        seen: set[int] = set()
        for ranks in lists:
            if list(ranks) != sorted(set(ranks)) or not all(0 <= r < world_size for r in ranks):
                raise ValueError(f"group {name}: {ranks} is not an ascending list of ranks below {world_size}")
            if seen & set(ranks):
                raise ValueError(f"group {name}: a rank is in two of its lists")
            seen |= set(ranks)
            if 1 < len(ranks) < world_size:
                found[tuple(ranks)] = None
    return list(found)


class Communicator:
    """The methods for generated code.  A child supplies the primitives below."""

    rank: int
    world_size: int
    device: torch.device

    def __init__(
        self, rank: int, world_size: int, groups: Groups, stages: list[list[int]], device: torch.device
    ) -> None:
        self.rank, self.world_size, self.device = rank, world_size, device
        self.stage = next((i for i, ranks in enumerate(stages) if rank in ranks), 0)
        self.peers = [ranks[stages[self.stage].index(rank)] for ranks in stages] if stages else [rank]
        self._sent: list[Pending] = []
        self.groups: dict[str, Group] = {}
        for name, lists in groups.items():
            ranks = next((tuple(r) for r in lists if rank in r), (rank,))
            self.groups[name] = Group(name, ranks, ranks.index(rank))
        self.groups["world"] = Group("world", tuple(range(world_size)), rank)

    # -- what a child supplies: primitives on contiguous tensors --------------------------------------------------

    def _reduce(self, x: torch.Tensor, group: Group, op: str) -> Pending:
        """x is the child's to keep and to write to."""
        raise NotImplementedError

    def _gather(self, x: torch.Tensor, group: Group) -> Pending:
        """[n, *x.shape]"""
        raise NotImplementedError

    def _scatter(self, stacked: torch.Tensor, group: Group) -> Pending:
        """[n, ...] on every rank -> the sum of everybody's piece `position`."""
        raise NotImplementedError

    def _exchange(self, stacked: torch.Tensor, group: Group) -> Pending:
        """[n, ...]: piece i goes to rank i; [n, ...]: piece i came from rank i."""
        raise NotImplementedError

    def _exchange_rows(self, x: torch.Tensor, group: Group, sent: list[int], received: list[int]) -> Pending:
        """sent[i] rows go to rank i, in order; received[i] rows come from it."""
        raise NotImplementedError

    def isend(self, x: torch.Tensor, to_rank: int, tag: int = 0) -> Pending:
        raise NotImplementedError

    def irecv(self, shape: list[int], dtype: torch.dtype, from_rank: int, tag: int = 0) -> Pending:
        raise NotImplementedError

    def barrier(self) -> None:
        raise NotImplementedError

    # -- collectives -----------------------------------------------------------------------------------------------

    def group(self, name: str) -> Group:
        if name not in self.groups:
            raise KeyError(f"no group {name!r} in GROUPS ({', '.join(self.groups)})")
        return self.groups[name]

    def coordinate(self, group: str) -> int:
        """My place among the ranks of my group: which slice of a dim that is split over it is mine."""
        return self.group(group).position

    def wait(self, handle: Any) -> Any:
        """What a `_start` began: a tensor, or the list of a `_many_start`."""
        return handle.wait()

    def all_reduce_start(self, x: torch.Tensor, group: str, op: str = "sum") -> Pending:
        if op not in ("sum", "max"):
            raise ValueError(f"all_reduce with op {op!r}; sum and max exist")
        g = self.group(group)
        return Done(x) if g.size == 1 else self._reduce(x.clone(memory_format=torch.contiguous_format), g, op)

    def all_gather_start(self, x: torch.Tensor, group: str, dim: int, outer: int = 1) -> Pending:
        g = self.group(group)
        if g.size == 1:
            return Done(x)
        dim = pieces.normalize(dim, x.dim())
        if x.shape[dim] % outer:
            raise ValueError(f"all_gather: dim {dim} of {list(x.shape)} does not divide into {outer} blocks")
        return Then(self._gather(x.contiguous(), g), lambda stacked: pieces.join(stacked, dim, outer))

    def reduce_scatter_start(self, x: torch.Tensor, group: str, dim: int, outer: int = 1) -> Pending:
        g = self.group(group)
        return Done(x) if g.size == 1 else self._scatter(pieces.split(x, g.size, dim, outer).contiguous(), g)

    def all_to_all_start(
        self, x: torch.Tensor, group: str, split_dim: int, concat_dim: int, split_outer: int = 1, concat_outer: int = 1
    ) -> Pending:
        g = self.group(group)
        if g.size == 1:
            return Done(x)
        concat_dim = pieces.normalize(concat_dim, x.dim())
        stacked = pieces.split(x, g.size, split_dim, split_outer).contiguous()
        if stacked.shape[concat_dim + 1] % concat_outer:
            raise ValueError(
                f"all_to_all: dim {concat_dim} of {list(x.shape)} does not divide into {concat_outer} blocks"
            )
        return Then(self._exchange(stacked, g), lambda got: pieces.join(got, concat_dim, concat_outer))

    def all_reduce(self, x: torch.Tensor, group: str, op: str = "sum") -> torch.Tensor:
        return self.all_reduce_start(x, group, op).wait()

    def all_gather(self, x: torch.Tensor, group: str, dim: int, outer: int = 1) -> torch.Tensor:
        return self.all_gather_start(x, group, dim, outer).wait()

    def reduce_scatter(self, x: torch.Tensor, group: str, dim: int, outer: int = 1) -> torch.Tensor:
        return self.reduce_scatter_start(x, group, dim, outer).wait()

    def all_to_all(
        self, x: torch.Tensor, group: str, split_dim: int, concat_dim: int, split_outer: int = 1, concat_outer: int = 1
    ) -> torch.Tensor:
        return self.all_to_all_start(x, group, split_dim, concat_dim, split_outer, concat_outer).wait()

    def exchange_rows(self, x: torch.Tensor, group: str, sent: list[int], received: list[int]) -> torch.Tensor:
        """An all-to-all whose pieces differ: the first sent[0] rows of x go to rank 0 of my group, and so on.

        received: how many rows come from each rank; everybody must know (`all_to_all` of the counts)."""
        g = self.group(group)
        if sum(sent) != x.shape[0] or len(sent) != g.size:
            raise ValueError(f"exchange_rows of {x.shape[0]} rows over {g.size} ranks: sent is {sent}")
        return x if g.size == 1 else self._exchange_rows(x.contiguous(), g, sent, received).wait()

    # -- several tensors of one group with few messages: gradients and parameters, once per step ----------------------

    def all_reduce_many(self, xs: Sequence[torch.Tensor], group: str, op: str = "sum") -> list[torch.Tensor]:
        return self.all_reduce_many_start(xs, group, op).wait()

    def all_reduce_many_start(self, xs: Sequence[torch.Tensor], group: str, op: str = "sum") -> Many:
        def start(bucket: list[int]) -> Pending:
            return self._reduce(torch.cat([xs[i].reshape(-1) for i in bucket]), self.group(group), op)

        def finish(flat: torch.Tensor, bucket: list[int]) -> list[torch.Tensor]:
            parts = flat.split([xs[i].numel() for i in bucket])
            return [part.view(xs[i].shape) for part, i in zip(parts, bucket, strict=True)]

        return self._many(xs, group, start, finish)

    def reduce_scatter_many(
        self, xs: Sequence[torch.Tensor], group: str, dims: Sequence[int], outers: Sequence[int] | None = None
    ) -> list[torch.Tensor]:
        return self.reduce_scatter_many_start(xs, group, dims, outers).wait()

    def reduce_scatter_many_start(
        self, xs: Sequence[torch.Tensor], group: str, dims: Sequence[int], outers: Sequence[int] | None = None
    ) -> Many:
        n = self.group(group).size
        pieces_of = [pieces.split(x, n, d, o) for x, d, o in zip(xs, dims, outers or [1] * len(xs), strict=True)]

        def start(bucket: list[int]) -> Pending:
            return self.reduce_scatter_start(torch.cat([pieces_of[i].reshape(n, -1) for i in bucket], 1), group, 0)

        def finish(flat: torch.Tensor, bucket: list[int]) -> list[torch.Tensor]:
            parts = flat.view(-1).split([pieces_of[i][0].numel() for i in bucket])
            return [part.view(pieces_of[i].shape[1:]) for part, i in zip(parts, bucket, strict=True)]

        return self._many(xs, group, start, finish)

    def all_gather_many(
        self, xs: Sequence[torch.Tensor], group: str, dims: Sequence[int], outers: Sequence[int] | None = None
    ) -> list[torch.Tensor]:
        n = self.group(group).size
        blocks = outers or [1] * len(xs)

        def start(bucket: list[int]) -> Pending:
            return self.all_gather_start(torch.cat([xs[i].reshape(1, -1) for i in bucket], 1), group, 0)

        def finish(flat: torch.Tensor, bucket: list[int]) -> list[torch.Tensor]:
            parts = flat.split([xs[i].numel() for i in bucket], 1)
            stacked = [part.reshape(n, *xs[i].shape) for part, i in zip(parts, bucket, strict=True)]
            return [pieces.join(s, dims[i], blocks[i]) for s, i in zip(stacked, bucket, strict=True)]

        return self._many(xs, group, start, finish).wait()

    def _many(
        self, xs: Sequence[torch.Tensor], group: str, start: Callable[[list[int]], Pending],
        finish: Callable[[torch.Tensor, list[int]], list[torch.Tensor]],
    ) -> Many:  # fmt: skip
        if self.group(group).size == 1:
            return Many(list(xs), [], finish)
        return Many([], [(start(bucket), bucket) for bucket in _buckets(xs)], finish)

    def slice(self, x: torch.Tensor, group: str, dim: int, outer: int = 1) -> torch.Tensor:
        g = self.group(group)
        # contiguous: a view would keep the whole tensor alive (one along dim 0, as of inputs, is contiguous as it is)
        return x if g.size == 1 else pieces.take(x, g.size, g.position, dim, outer).contiguous()

    def first(self, x: torch.Tensor, group: str) -> torch.Tensor:
        return x if self.group(group).position == 0 else torch.zeros_like(x)

    # -- tied parameters: once per step, between ranks at the same position of their stages -------------------------

    def send(self, x: torch.Tensor, to_stage: int) -> None:
        """Returns at once; `flush` at the end of the step waits until everything has left."""
        self._sent.append(self.isend(x, self.peers[to_stage], TIED))

    def recv(self, shape: list[int], dtype: torch.dtype | str, from_stage: int) -> torch.Tensor:
        wanted: torch.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        return self.irecv(list(shape), wanted, self.peers[from_stage], TIED).wait()

    def flush(self) -> None:
        while self._sent:
            self._sent.pop(0).wait()


def _buckets(xs: Sequence[torch.Tensor]) -> list[list[int]]:
    """Positions of tensors of one dtype, in order, up to BUCKET bytes together."""
    buckets: list[list[int]] = []
    open_bucket: dict[torch.dtype, tuple[list[int], int]] = {}
    for i, x in enumerate(xs):
        size = x.numel() * x.element_size()
        bucket, held = open_bucket.get(x.dtype, ([], BUCKET))
        if held + size > BUCKET:
            bucket, held = [], 0
            buckets.append(bucket)
        bucket.append(i)
        open_bucket[x.dtype] = (bucket, held + size)
    return buckets


BUCKET = 16 * 2**20  # bytes of one message of the *_many methods
TIED = 1  # the tag of send/recv between stages; the schedule's transfers have tags from 2 on
