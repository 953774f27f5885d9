"""Collectives over torch.distributed: gloo on CPUs, nccl on CUDA devices.

Transfers between stages have a process group per direction: gloo is not reliably full duplex on one connection, and
nccl orders the operations of one group.  Every group has a timeout, so a dead or hanging peer ends in an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from dataclasses import replace as replaced
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from .comm import Communicator, Done, Group, Groups, Pending, distinct_groups
from .errors import CommunicationError

# torch 2.13 renames these two; older versions only know the second name.
_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_scatter_single = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass
class _Work:
    """An operation in flight.  keep: its input, which must live until the end."""

    work: Any
    result: torch.Tensor
    what: str
    keep: Any = None

    def wait(self) -> torch.Tensor:
        try:
            if self.work is not None:
                self.work.wait()
        except (RuntimeError, dist.DistError) as error:
            raise _explained(self.what, error) from error
        self.keep = None
        return self.result


def _explained(what: str, error: Exception) -> CommunicationError:
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return CommunicationError(f"{what} failed: another rank has died, hangs or runs other code ({first})")


class ProcessGroups(Communicator):
    """Must be built by all ranks at the same time, after dist.init_process_group."""

    def __init__(self, groups: Groups, stages: list[list[int]], device: torch.device, timeout: timedelta) -> None:
        super().__init__(dist.get_rank(), dist.get_world_size(), groups, stages, device)
        handles: dict[tuple[int, ...], Any] = {tuple(range(self.world_size)): dist.group.WORLD}
        for ranks in distinct_groups(groups, self.world_size):
            handle = dist.new_group(list(ranks), timeout=timeout)
            if self.rank in ranks:
                handles[ranks] = handle
        for name, group in self.groups.items():
            if group.size > 1:
                self.groups[name] = replaced(group, handle=handles[group.ranks])
        # up: to a rank with a higher number, that is, activations; down: gradients
        self.up, self.down = None, None
        if len(stages) > 1:
            everyone = list(range(self.world_size))
            self.up, self.down = dist.new_group(everyone, timeout=timeout), dist.new_group(everyone, timeout=timeout)

    def warm_up(self) -> None:
        """One small operation per group: connections are made here and not within the first step."""
        done: set[tuple[int, ...]] = set()
        for name, group in self.groups.items():
            if group.size > 1 and group.ranks not in done:
                done.add(group.ranks)
                self.all_reduce(torch.ones(1, device=self.device), name)
        order = sorted(self.peers)
        here = order.index(self.rank)
        handles: list[Pending] = []
        for other in order[max(here - 1, 0) : here + 2]:
            if other != self.rank:
                handles.append(self.irecv([1], torch.float32, other))
                handles.append(self.isend(torch.ones(1, device=self.device), other))
        for handle in handles:
            handle.wait()
        self.barrier()

    def _start(self, what: str, result: torch.Tensor, keep: Any, call: Any, *args: Any, **named: Any) -> Pending:
        try:
            return _Work(call(*args, **named), result, what, keep)
        except (RuntimeError, dist.DistError) as error:
            raise _explained(what, error) from error

    def _reduce(self, x: torch.Tensor, group: Group, op: str) -> Pending:
        kind = dist.ReduceOp.SUM if op == "sum" else dist.ReduceOp.MAX
        return self._start(
            f"all_reduce over {group}", x, None, dist.all_reduce, x, op=kind, group=group.handle, async_op=True
        )

    def _gather(self, x: torch.Tensor, group: Group) -> Pending:
        x = x.detach()
        out = torch.empty((group.size, *x.shape), dtype=x.dtype, device=x.device)
        flat = out.view(-1)
        return self._start(
            f"all_gather over {group}", out, x, _gather_single, flat, x.view(-1), group=group.handle, async_op=True
        )

    def _scatter(self, stacked: torch.Tensor, group: Group) -> Pending:
        out = torch.empty(stacked.shape[1:], dtype=stacked.dtype, device=stacked.device)
        flat = out.view(-1)
        return self._start(
            f"reduce_scatter over {group}",
            out,
            stacked,
            _scatter_single,
            flat,
            stacked.view(-1),
            group=group.handle,
            async_op=True,
        )

    def _exchange(self, stacked: torch.Tensor, group: Group) -> Pending:
        out = torch.empty_like(stacked)
        return self._start(
            f"all_to_all over {group}",
            out,
            stacked,
            dist.all_to_all_single,
            out,
            stacked,
            group=group.handle,
            async_op=True,
        )

    def _exchange_rows(self, x: torch.Tensor, group: Group, sent: list[int], received: list[int]) -> Pending:
        out = torch.empty((sum(received), *x.shape[1:]), dtype=x.dtype, device=x.device)
        return self._start(
            f"exchange of rows over {group}",
            out,
            x,
            dist.all_to_all_single,
            out,
            x,
            received,
            sent,
            group=group.handle,
            async_op=True,
        )

    def isend(self, x: torch.Tensor, to_rank: int, tag: int = 0) -> Pending:
        x = x.contiguous()
        group = self.up if to_rank > self.rank else self.down
        return self._start(f"send to rank {to_rank}", x, x, dist.isend, x, to_rank, group=group, tag=tag)

    def irecv(self, shape: list[int], dtype: torch.dtype, from_rank: int, tag: int = 0) -> Pending:
        out = torch.empty(shape, dtype=dtype, device=self.device)
        group = self.up if from_rank < self.rank else self.down
        return self._start(
            f"receive from rank {from_rank}", out, None, dist.irecv, out, from_rank, group=group, tag=tag
        )

    def barrier(self) -> None:
        if self.world_size > 1:
            self.all_reduce(torch.zeros(1, device=self.device), "world")


class SingleProcess(Communicator):
    """A world of one rank without torch.distributed."""

    def __init__(self, groups: Groups, stages: list[list[int]], device: torch.device) -> None:
        super().__init__(0, 1, groups, stages, device)

    def warm_up(self) -> None:
        pass

    def barrier(self) -> None:
        pass

    def isend(self, x: torch.Tensor, to_rank: int, tag: int = 0) -> Pending:
        return Done(x)
