"""Schedules of micro-batches as tables, and what time they take: no torch, no IR.

    compute_order("1f1b", stages=2, micro_batches=3, stage=0)
        forward 0, forward 1, backward 0, forward 2, backward 1, backward 2
    stage_table("1f1b", 2, 3, 0, values=[["h"]])
        ["forward", 0], ["send", "h", 0], ["forward", 1], ["send", "h", 1], ["recv_grad", "h", 0], ["backward", 0], ...

A row is ["forward" | "backward", m] or ["recv" | "send" | "recv_grad" | "send_grad", name, m].  `send` and `recv` go
with the forward direction, from a stage to the next; `recv_grad` and `send_grad` come back.

What the runtime makes of it, and the simulation: receives are posted up to AHEAD micro-batches before their row, which
waits for the value; sends run in the background, IN_FLIGHT micro-batches at most.  A transfer begins when both sides
are there (a rendezvous), and those of one direction between two stages go one after another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Union

Row = list[Union[str, int]]
Table = list[Row]
Channel = tuple[int, str]
"""(boundary, "forward" | "backward"): one direction between stage `boundary` and the next."""

SCHEDULES = ("1f1b", "gpipe")

AHEAD = 2  # as in runtime/loop.py
IN_FLIGHT = 4


def in_flight(kind: str, stages: int, micro_batches: int, stage: int) -> int:
    """How many micro-batches a stage has begun and not ended, at most."""
    return min(micro_batches, stages - stage) if kind == "1f1b" else micro_batches


def compute_order(kind: str, stages: int, micro_batches: int, stage: int) -> list[tuple[str, int]]:
    """The segments of one stage in order: ("forward" | "backward", micro-batch)."""
    if kind not in SCHEDULES:
        raise ValueError(f"unknown schedule {kind!r}: known are {', '.join(SCHEDULES)}")
    ahead = in_flight(kind, stages, micro_batches, stage)
    order = [("forward", m) for m in range(ahead)]
    for m in range(micro_batches):
        order.append(("backward", m))
        if ahead + m < micro_batches:
            order.append(("forward", ahead + m))
    return order


def stage_table(
    kind: str,
    stages: int,
    micro_batches: int,
    stage: int,
    values: Sequence[Sequence[str]],
    gradients: Sequence[Sequence[str]] | None = None,
) -> Table:
    """values[j], gradients[j]: the names that cross from stage j to j + 1, and those whose gradients come back."""
    gradients = values if gradients is None else gradients
    above, below = stage > 0, stage + 1 < stages
    table: Table = []
    for phase, m in compute_order(kind, stages, micro_batches, stage):
        if phase == "forward":
            table += [["recv", name, m] for name in values[stage - 1]] if above else []
            table.append([phase, m])
            table += [["send", name, m] for name in values[stage]] if below else []
        else:
            table += [["recv_grad", name, m] for name in gradients[stage]] if below else []
            table.append([phase, m])
            table += [["send_grad", name, m] for name in gradients[stage - 1]] if above else []
    return table


def forward_first(table: Table) -> Table:
    """The same table with each group of rows between two segments reordered: at every boundary the forward direction
    goes first on both sides.  Then even sends that stop their stage until they are received cannot deadlock."""
    rank = {"recv": 0, "send": 1, "recv_grad": 2, "send_grad": 3}
    result: Table = []
    group: Table = []
    for row in table:
        if row[0] in rank:
            group.append(row)
        else:
            result += [*sorted(group, key=lambda r: rank[str(r[0])]), row]
            group = []
    return result + sorted(group, key=lambda r: rank[str(r[0])])


@dataclass(frozen=True)
class Event:
    stage: int
    phase: str
    micro_batch: int
    start: float
    end: float


@dataclass
class Timeline:
    """seconds: of one iteration.  bubble: the part of all stages' time in which they do not compute."""

    seconds: float
    bubble: float
    events: list[Event]
    finished: list[float] = field(default_factory=list)
    """per stage: when its last micro-batch is through, before what happens once per step"""


def _channel(stage: int, row: Row) -> Channel:
    kind = str(row[0])
    if kind in ("send", "recv"):
        return (stage if kind == "send" else stage - 1, "forward")
    return (stage if kind == "recv_grad" else stage - 1, "backward")


def _is_send(row: Row) -> bool:
    return str(row[0]).startswith("send")


def simulate(
    tables: Sequence[Table],
    forward: Sequence[float],
    backward: Sequence[float],
    transfer: Mapping[Channel, float],
    once: Sequence[float] | None = None,
    *,
    ahead: int = AHEAD,
    limit: int = IN_FLIGHT,
) -> Timeline:
    """forward, backward: seconds by stage.  transfer: (boundary, "forward" | "backward") -> seconds of everything that
    crosses there for one micro-batch.  once: seconds per step, by stage."""
    stages = len(tables)
    once = once if once is not None else [0.0] * stages
    duration, names = _row_seconds(tables, transfer)
    links = {channel: _Transfers(duration[channel], ahead * n, limit * n) for channel, n in names.items()}
    at, clock = [0] * stages, [0.0] * stages
    events: list[Event] = []
    moved = True
    while moved:
        moved = False
        for i in range(stages):
            while at[i] < len(tables[i]):
                row = tables[i][at[i]]
                if row[0] in ("forward", "backward"):
                    start = clock[i]
                    clock[i] = start + (forward[i] if row[0] == "forward" else backward[i])
                    events.append(Event(i, str(row[0]), int(row[1]), start, clock[i]))
                else:
                    link = links[_channel(i, row)]
                    done = link.send(clock[i]) if _is_send(row) else link.take(clock[i])
                    if done is None:
                        break
                    clock[i] = done
                at[i] += 1
                moved = True
    if any(at[i] < len(tables[i]) for i in range(stages)):
        raise ValueError(f"the schedule cannot finish: {find_deadlock(tables)}")
    finished = list(clock)
    for (boundary, direction), link in links.items():
        sender = boundary if direction == "forward" else boundary + 1
        finished[sender] = max([finished[sender], *link.arrived])
    seconds = max(end + extra for end, extra in zip(finished, once, strict=True))
    busy = sum(event.end - event.start for event in events) + sum(once)
    return Timeline(seconds, 1.0 - busy / (stages * seconds) if seconds else 0.0, events, finished)


class _Transfers:
    """One direction between two stages: times of sends, of posted receives, and of arrivals once both are known."""

    def __init__(self, seconds: float, ahead: int, limit: int) -> None:
        self.seconds, self.ahead, self.limit = seconds, ahead, limit
        self.sent: list[float] = []
        self.posted: list[float] = [0.0] * ahead
        self.arrived: list[float] = []
        self.taken = 0
        self.held = False

    def _settle(self) -> None:
        while len(self.arrived) < min(len(self.sent), len(self.posted)):
            n = len(self.arrived)
            begin = max(self.sent[n], self.posted[n], self.arrived[-1] if n else 0.0)
            self.arrived.append(begin + self.seconds)

    def send(self, now: float) -> float | None:
        """When the sender goes on; None: not yet known."""
        if not self.held:
            self.sent.append(now)
            self.held = True
        oldest = len(self.sent) - self.limit - 1
        self._settle()
        if oldest >= len(self.arrived):
            return None
        self.held = False
        return max(now, self.arrived[oldest]) if oldest >= 0 else now

    def take(self, now: float) -> float | None:
        """When the receiver has the value; None: not yet known."""
        if self.taken >= len(self.posted):  # nothing posted ahead
            self.posted.append(now)
        self._settle()
        if self.taken >= len(self.arrived):
            return None
        value = max(now, self.arrived[self.taken])
        self.taken += 1
        if self.ahead:
            self.posted.append(value)
        return value


def _row_seconds(
    tables: Sequence[Table], transfer: Mapping[Channel, float]
) -> tuple[dict[Channel, float], dict[Channel, int]]:
    """Seconds of one row, and rows of one micro-batch: the values of a channel share its seconds."""
    names: dict[Channel, set[str]] = {}
    for i, table in enumerate(tables):
        for row in table:
            if row[0] not in ("forward", "backward"):
                names.setdefault(_channel(i, row), set()).add(str(row[1]))
    counts = {channel: len(found) for channel, found in names.items()}
    return {channel: transfer.get(channel, 0.0) / n for channel, n in counts.items()}, counts


def find_deadlock(
    tables: Sequence[Table], blocking: bool = False, ahead: int = AHEAD, limit: int = IN_FLIGHT
) -> str | None:
    """In words what stops the schedule, None when it runs to its end.

    Both sides of a direction must name the same values in the same order.  blocking: a send stops its stage until the
    other side stands at the receive, and a receive until the value is there (the strictest reading of a table).
    """
    stages = len(tables)
    for channel in {_channel(i, row) for i, table in enumerate(tables) for row in table if len(row) == 3}:
        wrong = _mismatch(tables, channel)
        if wrong is not None:
            return wrong
    names = _row_seconds(tables, {})[1]
    at = [0] * stages
    sent, taken = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    moved = True
    while moved:
        moved = False
        for i in range(stages):
            while at[i] < len(tables[i]):
                row = tables[i][at[i]]
                if len(row) == 3:
                    channel = _channel(i, row)
                    other = channel[0] + 1 if i == channel[0] else channel[0]
                    if blocking:
                        peer = tables[other][at[other]] if at[other] < len(tables[other]) else row
                        if len(peer) == 2 or peer == row or _channel(other, peer) != channel:
                            break
                        at[other] += 1
                    elif _is_send(row):  # the oldest of `limit` sends must have been received or be awaited
                        if sent[channel] - (taken[channel] + ahead * names[channel]) >= limit * names[channel]:
                            break
                        sent[channel] += 1
                    elif sent[channel] <= taken[channel]:
                        break
                    else:
                        taken[channel] += 1
                at[i] += 1
                moved = True
    stuck = [f"stage {i} waits at {tables[i][at[i]]}" for i in range(stages) if at[i] < len(tables[i])]
    return "; ".join(stuck) or None


def _mismatch(tables: Sequence[Table], channel: Channel) -> str | None:
    """Whether the two sides of a direction name different values, or in another order."""
    boundary, direction = channel
    sender, receiver = (boundary, boundary + 1) if direction == "forward" else (boundary + 1, boundary)

    def rows(stage: int, send: bool) -> list[Row]:
        table = tables[stage] if 0 <= stage < len(tables) else []
        return [row for row in table if len(row) == 3 and _channel(stage, row) == channel and _is_send(row) == send]

    gone, come = rows(sender, True), rows(receiver, False)
    for a, b in zip(gone, come):
        if a[1:] != b[1:]:
            return f"across boundary {boundary} {a} is sent where {b} is received"
    if len(gone) != len(come):
        return f"across boundary {boundary} {len(gone)} values are sent and {len(come)} received"
    return None
