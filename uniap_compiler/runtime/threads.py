"""All ranks of a world as threads of one process: the same collectives without a network.

Sums run in rank order, so every rank gets the same bits.  What torch.distributed would answer with a hang or a crash
is an error here: ranks that call different operations, a deadlock (found when every thread waits), a rank that dies.

    run_ranks(4, lambda rank, world: SimulatedComm(world, rank, GROUPS, STAGES).all_reduce(x, "a"))
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from .comm import Communicator, Group, Groups, Pending, distinct_groups
from .errors import CommunicationError

T = TypeVar("T")


class Stopped(Exception):
    """Raised in the ranks that wait when another rank has failed."""


@dataclass
class _Meeting:
    """One collective of one group: everybody's tensors, then everybody's results."""

    what: str
    arrived: dict[int, torch.Tensor] = field(default_factory=dict)
    results: dict[int, torch.Tensor] = field(default_factory=dict)


class World:
    """What the threads share.  Every wait goes through `wait`, which knows when nobody can go on."""

    def __init__(self, size: int, timeout: float = 300.0) -> None:
        self.size, self.timeout = size, timeout
        self.changed = threading.Condition()
        self.alive: set[int] = set(range(size))
        self.waiting: dict[int, tuple[Callable[[], bool], str]] = {}
        self.failure: BaseException | None = None
        self.meetings: dict[tuple[tuple[int, ...], int], _Meeting] = {}
        self.calls: dict[tuple[tuple[int, ...], int], int] = defaultdict(int)
        self.mail: dict[tuple[int, int, int], deque[torch.Tensor]] = defaultdict(deque)
        self.posted: dict[tuple[int, int, int], int] = defaultdict(int)  # receives asked for so far
        self.sent: dict[tuple[int, int, int], int] = defaultdict(int)

    def fail(self, error: BaseException) -> None:
        with self.changed:
            if self.failure is None:
                self.failure = error
            self.changed.notify_all()

    def leave(self, rank: int) -> None:
        with self.changed:
            self.alive.discard(rank)
            self.changed.notify_all()

    def wait(self, rank: int, ready: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + self.timeout
        with self.changed:
            self.waiting[rank] = (ready, what)
            try:
                while not ready():
                    if self.failure is not None:
                        raise Stopped(f"rank {rank}: another rank failed")
                    # A set test first: only when everybody waits are the conditions of the others looked at.
                    if self.alive <= self.waiting.keys() and not any(self.waiting[r][0]() for r in self.alive):
                        raise self._stuck("deadlock: no rank can go on")
                    if not self.changed.wait(deadline - time.monotonic()) and time.monotonic() >= deadline:
                        raise self._stuck(f"no progress for {self.timeout:g} s")
            finally:
                del self.waiting[rank]

    def _stuck(self, why: str) -> CommunicationError:
        lines = [f"rank {r} waits for {what}" for r, (_, what) in sorted(self.waiting.items())]
        gone = [f"rank {r} has finished" for r in range(self.size) if r not in self.alive]
        return CommunicationError("\n  ".join([why, *lines, *gone]))

    def meet(
        self,
        rank: int,
        group: Group,
        what: str,
        x: torch.Tensor,
        combine: Callable[[list[torch.Tensor]], list[torch.Tensor]],
    ) -> Pending:
        """Deposit x; the last to come computes everybody's result: nobody reads a tensor after its owner went on."""
        with self.changed:
            if self.failure is not None:
                raise Stopped(f"rank {rank}: another rank failed")
            number = self.calls[group.ranks, rank]
            self.calls[group.ranks, rank] += 1
            key = (group.ranks, number)
            meeting = self.meetings.setdefault(key, _Meeting(what))
            if meeting.what != what:
                other = next(iter(meeting.arrived), None)
                raise CommunicationError(
                    f"in {group}, rank {other} calls {meeting.what} where rank {rank} calls {what}"
                )
            meeting.arrived[rank] = x
            last = len(meeting.arrived) == group.size
        if last:
            results = combine([meeting.arrived[r] for r in group.ranks])
            with self.changed:
                meeting.arrived.clear()
                meeting.results = dict(zip(group.ranks, results, strict=True))
                del self.meetings[key]
                self.changed.notify_all()
        return _Result(self, rank, meeting, f"{what} in {group}")

    def send(self, key: tuple[int, int, int], x: torch.Tensor) -> int:
        """The number of this message among those of its key."""
        with self.changed:
            self.mail[key].append(x)
            self.sent[key] += 1
            self.changed.notify_all()
            return self.sent[key]

    def post(self, key: tuple[int, int, int]) -> None:
        with self.changed:
            self.posted[key] += 1
            self.changed.notify_all()


@dataclass
class _Result:
    world: World
    rank: int
    meeting: _Meeting
    what: str

    def wait(self) -> torch.Tensor:
        self.world.wait(self.rank, lambda: self.rank in self.meeting.results, self.what)
        return self.meeting.results.pop(self.rank)


@dataclass
class _Delivery:
    world: World
    rank: int
    key: tuple[int, int, int]
    shape: list[int]
    dtype: torch.dtype

    def wait(self) -> torch.Tensor:
        box = self.world.mail[self.key]
        self.world.wait(
            self.rank, lambda: bool(box), f"a tensor {self.shape} from rank {self.key[0]} (tag {self.key[2]})"
        )
        with self.world.changed:
            x = box.popleft()
        if list(x.shape) != self.shape or x.dtype != self.dtype:
            raise CommunicationError(
                f"rank {self.rank} expects {self.dtype} {self.shape} from rank {self.key[0]}, "
                f"which sent {x.dtype} {list(x.shape)}"
            )
        return x


@dataclass
class _Sending:
    """As with gloo, a send ends when its receive was posted: schedules that would hang do so here too."""

    world: World
    rank: int
    key: tuple[int, int, int]
    number: int
    x: torch.Tensor

    def wait(self) -> torch.Tensor:
        what = f"rank {self.key[1]} to receive a tensor {list(self.x.shape)} (tag {self.key[2]})"
        self.world.wait(self.rank, lambda: self.world.posted[self.key] >= self.number, what)
        return self.x


class SimulatedComm(Communicator):
    def __init__(self, world: World, rank: int, groups: Groups, stages: list[list[int]]) -> None:
        distinct_groups(groups, world.size)  # refuses what torch.distributed would
        super().__init__(rank, world.size, groups, stages, torch.device("cpu"))
        self.world = world

    def _meet(
        self, kind: str, x: torch.Tensor, group: Group, combine: Callable[[list[torch.Tensor]], list[torch.Tensor]]
    ) -> Pending:
        what = f"{kind} of {str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
        return self.world.meet(self.rank, group, what, x, combine)

    def _reduce(self, x: torch.Tensor, group: Group, op: str) -> Pending:
        def combine(all_x: list[torch.Tensor]) -> list[torch.Tensor]:
            total = all_x[0]
            for other in all_x[1:]:
                total = total.add_(other) if op == "sum" else torch.maximum(total, other)
            return [total] + [total.clone() for _ in all_x[1:]]

        return self._meet(f"all_reduce {op}", x, group, combine)

    def _gather(self, x: torch.Tensor, group: Group) -> Pending:
        return self._meet("all_gather", x, group, lambda all_x: [torch.stack(all_x) for _ in all_x])

    def _scatter(self, stacked: torch.Tensor, group: Group) -> Pending:
        def combine(all_x: list[torch.Tensor]) -> list[torch.Tensor]:
            total = all_x[0].clone()
            for other in all_x[1:]:
                total.add_(other)
            return [piece.clone() for piece in total]

        return self._meet("reduce_scatter", stacked, group, combine)

    def _exchange(self, stacked: torch.Tensor, group: Group) -> Pending:
        return self._meet(
            "all_to_all", stacked, group, lambda all_x: [torch.stack(column) for column in zip(*all_x, strict=True)]
        )

    def _exchange_rows(self, x: torch.Tensor, group: Group, sent: list[int], received: list[int]) -> Pending:
        def combine(all_rows: list[Any]) -> list[torch.Tensor]:
            return [torch.cat(column) for column in zip(*all_rows, strict=True)]

        # ranks differ in how many rows they send: only the rest of the shape is compared
        what = f"exchange of rows of {str(x.dtype).removeprefix('torch.')} {list(x.shape[1:])}"
        rows: Any = x.split(sent)
        return self.world.meet(self.rank, group, what, rows, combine)

    def isend(self, x: torch.Tensor, to_rank: int, tag: int = 0) -> Pending:
        key = (self.rank, to_rank, tag)
        return _Sending(
            self.world, self.rank, key, self.world.send(key, x.clone(memory_format=torch.contiguous_format)), x
        )

    def irecv(self, shape: list[int], dtype: torch.dtype, from_rank: int, tag: int = 0) -> Pending:
        key = (from_rank, self.rank, tag)
        self.world.post(key)
        return _Delivery(self.world, self.rank, key, list(shape), dtype)

    def barrier(self) -> None:
        self.all_reduce(torch.zeros(1), "world")


def run_ranks(size: int, work: Callable[[int, World], T], timeout: float = 300.0) -> list[T]:
    """work(rank, world) on every rank at once; the results in rank order, or the first exception of any rank."""
    world = World(size, timeout)
    results: dict[int, Any] = {}

    def body(rank: int) -> None:
        torch.set_num_threads(1)
        try:
            results[rank] = work(rank, world)
        except Stopped:
            pass
        except BaseException as error:
            error.add_note(f"on simulated rank {rank}")
            world.fail(error)
        finally:
            world.leave(rank)

    before = torch.get_num_threads()
    threads = [threading.Thread(target=body, args=(rank,), name=f"rank {rank}", daemon=True) for rank in range(size)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(0.5)
            while thread.is_alive() and world.failure is None:
                thread.join(0.5)
        if world.failure is not None:  # the others stop at their next wait; one that never waits again is left behind
            end = time.monotonic() + 10
            for thread in threads:
                thread.join(max(end - time.monotonic(), 0))
    finally:
        torch.set_num_threads(before)
    if world.failure is not None:
        raise world.failure
    return [results[rank] for rank in range(size)]
