"""The layer-level problem `uniap-problem/1`: plain data, read from and written to JSON.

    problem = Problem.load("gpt26-n8.json")          # ProblemError("candidates[3].time.blk[2]: ...") when malformed
    problem.candidates[0].time["blk"]                # [K seconds] or one such list per stage
    Problem.from_json(problem.to_json()) == problem

What the fields mean is said, executably, by `evaluate.py`. Nothing is solved here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FORMAT = "uniap-problem/1"

Row = list[float]
Matrix = list[list[float]]


class ProblemError(ValueError):
    """A malformed problem. The message starts with the path of the field at fault."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path = path


@dataclass(frozen=True)
class Value:
    """A tensor of layer `source` that is read beyond the next layer.

    Each reader pays `reshard[class of source][class of reader]` on its own stage; every stage boundary that the value
    crosses pays `transfer` once, however many readers lie beyond it.
    """

    source: int
    readers: list[int]
    reshard: Matrix
    transfer: float


@dataclass(frozen=True)
class Fixed:
    """A choice made by the user: the stage of a layer, or the names of the strategies that it may take."""

    layer: int
    stage: int | None = None
    strategies: list[str] | None = None


@dataclass(frozen=True)
class Candidate:
    """The numbers of one (stages, micro_batches), possibly of one order of unlike devices."""

    stages: int
    micro_batches: int
    strategies: list[str]
    layout: list[int]
    time: dict[str, Row | Matrix]
    memory: dict[str, Matrix]
    reshard: dict[str, Matrix]
    transfer: dict[str, Matrix]
    memory_limit: float | Row | None = None
    allowed: dict[str, list[int]] = field(default_factory=dict)
    step_time: dict[str, Row] = field(default_factory=dict)
    workspace: dict[str, Row] = field(default_factory=dict)
    values: list[Value] | None = None
    """In the place of the problem's, where they cost something else here."""


@dataclass(frozen=True)
class Problem:
    """One model on one cluster: layers in topological order, and every candidate (stages, micro_batches)."""

    memory: float
    layers: list[str]
    candidates: list[Candidate]
    name: str = ""
    schedule: str | None = None
    values: list[Value] = field(default_factory=list)
    fixed: list[Fixed] = field(default_factory=list)
    same: list[tuple[int, int]] = field(default_factory=list)

    @staticmethod
    def from_json(data: Any) -> Problem:
        """Check and read one decoded JSON object."""
        from uniap_compiler.solver.validate import read_problem

        return read_problem(data)

    @staticmethod
    def load(path: str | Path) -> Problem:
        """Read a problem from a file."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ProblemError(str(path), f"cannot be read ({error})") from error
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ProblemError(str(path), f"is not JSON ({error})") from error
        return Problem.from_json(data)

    def to_json(self) -> dict[str, Any]:
        """The JSON object of the format; optional fields only where they say something."""
        data: dict[str, Any] = {"format": FORMAT, "name": self.name, "memory": self.memory}
        if self.schedule is not None:
            data["schedule"] = self.schedule
        data["layers"] = list(self.layers)
        if self.values:
            data["values"] = _values_to_json(self.values)
        if self.fixed:
            data["fixed"] = [
                {"layer": f.layer}
                | ({} if f.stage is None else {"stage": f.stage})
                | ({} if f.strategies is None else {"strategies": f.strategies})
                for f in self.fixed
            ]
        if self.same:
            data["same"] = [list(pair) for pair in self.same]
        data["candidates"] = [_candidate_to_json(candidate) for candidate in self.candidates]
        return data

    def values_of(self, candidate: Candidate) -> list[Value]:
        """The candidate's own, else the problem's."""
        return self.values if candidate.values is None else candidate.values

    def limits(self, candidate: Candidate) -> Row:
        """Bytes per device, stage by stage."""
        limit = self.memory if candidate.memory_limit is None else candidate.memory_limit
        return list(limit) if isinstance(limit, list) else [limit] * candidate.stages


def _values_to_json(values: list[Value]) -> list[dict[str, Any]]:
    return [{"from": v.source, "to": v.readers, "reshard": v.reshard, "transfer": v.transfer} for v in values]


def _candidate_to_json(candidate: Candidate) -> dict[str, Any]:
    data: dict[str, Any] = {
        "stages": candidate.stages,
        "micro_batches": candidate.micro_batches,
        "strategies": candidate.strategies,
        "layout": candidate.layout,
    }
    if candidate.allowed:
        data["allowed"] = candidate.allowed
    data |= {"time": candidate.time, "memory": candidate.memory}
    if candidate.memory_limit is not None:
        data["memory_limit"] = candidate.memory_limit
    data |= {"reshard": candidate.reshard, "transfer": candidate.transfer}
    if candidate.step_time:
        data["step_time"] = candidate.step_time
    if candidate.workspace:
        data["workspace"] = candidate.workspace
    if candidate.values is not None:
        data["values"] = _values_to_json(candidate.values)
    return data
