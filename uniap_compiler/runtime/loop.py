"""One training step on one rank: walks the schedule table of a stage with a store keyed by role strings.

    SCHEDULE = [["recv", "h", 0], ["forward", 0], ["recv_grad", "g", 0], ["backward", 0], ["send_grad", "h", 0]]

The format of the generated modules (ARGS, RESULTS, TRANSFERS, PARAMETERS, SCHEDULE, ...) is in docs/bundle.md.
Receives are posted ahead of their entry; sends run in the background, a bounded number at a time.  A value is given up
when its last reader takes it: the list of arguments is then its only owner.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch

from .comm import Communicator, Pending

AHEAD = 2  # micro-batches whose receives are posted before they are needed, per direction
IN_FLIGHT = 4  # micro-batches whose sends may be on their way, per direction

_PERSISTENT = ("param", "buffer", "constant")
_ORDER = ("prelude", "forward", "backward")


def kind_and_name(role: str) -> tuple[str, str]:
    kind, _, name = role.partition(":")
    return kind, name


class StageLoop:
    """tensors: persistent values by role ("param:w", "buffer:mean", "constant:mask", and a prelude without inputs)."""

    def __init__(
        self,
        rank: ModuleType,
        comm: Communicator,
        tensors: dict[str, torch.Tensor],
        micro_batches: int,
        loss_dtype: torch.dtype,
    ) -> None:
        self.stage: Any = rank.stage
        self.schedule: list[list[Any]] = rank.SCHEDULE
        self.comm, self.tensors, self.micro_batches = comm, tensors, micro_batches
        self.seed = torch.full((), 1.0 / micro_batches, dtype=loss_dtype, device=comm.device)
        args: Mapping[str, Sequence[str]] = self.stage.ARGS
        self.last_reader = {role: segment for segment in _ORDER for role in args.get(segment, ())}
        self.prelude_once = not any(role.startswith(("input:", "seed:")) for role in args.get("prelude", ()))
        self.at = "start"  # what is being done, for error messages
        self.store: dict[tuple[str, int], torch.Tensor] = {}
        self.accumulators: dict[str, torch.Tensor] = {}
        self._own: set[str] = set()
        self.loss: torch.Tensor | None = None
        self.keys: Sequence[torch.Tensor] = ()
        self.reduced: set[str] = set()
        self._prepare()

    def _prepare(self) -> None:
        """What depends on persistent values alone."""
        if "prelude" in self.stage.ARGS and self.prelude_once:
            self._segment("prelude", 0)

    # -- a step ------------------------------------------------------------------------------------------------------

    def run(
        self, inputs: Sequence[Mapping[str, torch.Tensor]], keys: Sequence[torch.Tensor] = ()
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """inputs: per micro-batch the batch tensors by path.  keys: per micro-batch, for random numbers (random.py).

        My share of the loss, and the final gradients.
        """
        self.store.clear()
        self.keys = keys
        self.accumulators, self._own = {}, set()
        self.loss = None
        for m, batch in enumerate(inputs):
            for path, x in batch.items():
                if f"input:{path}" in self.last_reader:
                    self.store[f"input:{path}", m] = x
        receives = {kind: _Receives(self, kind) for kind in ("recv", "recv_grad")}
        sends = {kind: _Sends(self, kind) for kind in ("send", "send_grad")}
        for entry in self.schedule:
            self.at = " ".join(map(str, entry))
            what, m = entry[0], entry[-1]
            if what in receives:
                self.store[f"{what}:{entry[1]}", m] = receives[what].take(entry[1], m)
            elif what in sends:
                sends[what].start(entry[1], m)
            else:
                if what == "forward" and "prelude" in self.stage.ARGS and not self.prelude_once:
                    self._segment("prelude", m)
                self._segment(what, m)
        self.at = "waiting for sends"
        for queue in sends.values():
            queue.finish()
        self.at = "reduce_gradients"
        if "reduce_gradients" in self.stage.ARGS:
            self._segment("reduce_gradients", 0)
        self.comm.flush()
        if self.store:
            left = sorted({role for role, _ in self.store})
            raise RuntimeError(f"the schedule leaves values that nobody took: {', '.join(left)}")
        if self.loss is None:
            self.loss = torch.zeros((), dtype=self.seed.dtype, device=self.comm.device)
        gradients, self.accumulators = self.accumulators, {}
        return self.loss / self.micro_batches, gradients

    def refresh(self) -> None:
        """After the parameters at home have new values: everything derived from them."""
        self.at = "refresh_parameters"
        if "refresh_parameters" in self.stage.ARGS:
            self._segment("refresh_parameters", 0)
        self.comm.flush()

    def reload(self) -> None:
        """After persistent values were replaced by others: everything derived from them."""
        self._prepare()
        self.refresh()

    # -- one segment -------------------------------------------------------------------------------------------------

    def _segment(self, segment: str, m: int) -> None:
        args = [self._argument(role, segment, m) for role in self.stage.ARGS[segment]]
        results = getattr(self.stage, segment)(self.comm, args)
        roles = self.stage.RESULTS[segment]
        if len(results) != len(roles):
            raise RuntimeError(f"{segment} returns {len(results)} values for {len(roles)} roles")
        for role, value in zip(roles, results, strict=True):
            self._result(role, value, segment, m)

    def _argument(self, role: str, segment: str, m: int) -> torch.Tensor:
        kind, name = kind_and_name(role)
        if kind in _PERSISTENT or role in self.tensors:
            return self.tensors[role]
        if role == "seed:loss":
            return self.seed
        if role == "seed:random":
            return self.keys[m]
        if kind == "grad":
            if name not in self.accumulators:
                raise RuntimeError(f"{segment} reads the gradient of {name}, which no backward has given")
            return self.accumulators.pop(name)
        last = self.last_reader[role] == segment.removesuffix("_last")
        try:
            return self.store.pop((role, m)) if last else self.store[role, m]
        except KeyError:
            raise RuntimeError(f"{segment} {m} reads {role}, which is not there") from None

    def _result(self, role: str, value: torch.Tensor | None, segment: str, m: int) -> None:
        kind, name = kind_and_name(role)
        if kind == "grad":
            if value is not None:
                self._accumulate(name, value)
            return
        assert value is not None, f"{segment} returns None for {role}"
        if kind == "loss":
            self.loss = value if self.loss is None else self.loss + value
        elif kind in ("param", "buffer") or (kind == "prelude" and self.prelude_once):
            self.tensors[role] = value
        elif kind in ("send", "send_grad") or role in self.last_reader:
            self.store[role, m] = value

    def _accumulate(self, name: str, value: torch.Tensor) -> None:
        """A segment may return one tensor under two names, so only a sum that was made here is added to in place."""
        held = self.accumulators.get(name)
        if held is None:
            self.accumulators[name] = value
        elif name in self._own:
            held.add_(value)
        else:
            self.accumulators[name] = held + value
            self._own.add(name)


def _tag(kind: str, name: str, m: int) -> int:
    """The same on both sides; 0 and 1 are taken."""
    return 2 + zlib.crc32(f"{kind.removeprefix('recv').removeprefix('send')}:{name}:{m}".encode()) % (2**30)


class _Receives:
    """The receives of one direction, in the order of the table, posted up to AHEAD micro-batches early."""

    def __init__(self, loop: StageLoop, kind: str) -> None:
        self.loop, self.kind = loop, kind
        self.todo = deque((entry[1], entry[2]) for entry in loop.schedule if entry[0] == kind)
        self.peer = _peer(loop.comm, 1 if kind == "recv_grad" else -1) if self.todo else -1
        self.posted: dict[tuple[str, int], Pending] = {}
        for _ in range(AHEAD * len({name for name, _ in self.todo})):
            self._post()

    def _post(self) -> None:
        if self.todo:
            name, m = self.todo.popleft()
            shape, dtype = self.loop.stage.TRANSFERS[name]
            handle = self.loop.comm.irecv(list(shape), getattr(torch, dtype), self.peer, _tag(self.kind, name, m))
            self.posted[name, m] = handle

    def take(self, name: str, m: int) -> torch.Tensor:
        value = self.posted.pop((name, m)).wait()
        self._post()
        return value


class _Sends:
    """The sends of one direction; the oldest is waited for when too many are on their way."""

    def __init__(self, loop: StageLoop, kind: str) -> None:
        self.loop, self.kind = loop, kind
        names = [entry[1] for entry in loop.schedule if entry[0] == kind]
        self.peer = _peer(loop.comm, -1 if kind == "send_grad" else 1) if names else -1
        self.limit = IN_FLIGHT * len(set(names))
        self.flying: deque[Pending] = deque()

    def start(self, name: str, m: int) -> None:
        value = self.loop.store.pop((f"{self.kind}:{name}", m))
        self.flying.append(self.loop.comm.isend(value, self.peer, _tag(self.kind, name, m)))
        while len(self.flying) > self.limit:
            self.flying.popleft().wait()

    def finish(self) -> None:
        while self.flying:
            self.flying.popleft().wait()


def _peer(comm: Communicator, offset: int) -> int:
    stage = comm.stage + offset
    if not 0 <= stage < len(comm.peers):
        raise RuntimeError(f"stage {comm.stage} has a transfer with stage {stage}, which does not exist")
    return comm.peers[stage]
