"""The format: reading, writing, and refusing with the field's path."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uniap_compiler.solver import Problem, ProblemError

from .random_problems import random_problem

CASES = Path(__file__).parent / "cases"
TINY = json.loads((CASES / "tiny-00.json").read_text())


PROBLEMS = sorted(path for path in CASES.glob("*.json") if "reference" not in path.name)


@pytest.mark.parametrize("path", PROBLEMS, ids=lambda path: path.stem)
def test_round_trip(path: Path) -> None:
    data = json.loads(path.read_text())
    assert Problem.load(path).to_json() == data


def test_round_trip_of_random_problems() -> None:
    for seed in range(100):
        problem = Problem.from_json(random_problem(seed))
        assert Problem.from_json(json.loads(json.dumps(problem.to_json()))) == problem


def edit(*path: Any, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: dict[str, Any]) -> None:
        at: Any = data
        for step in path[:-1]:
            at = at[step]
        if value is KeyError:
            del at[path[-1]]
        else:
            at[path[-1]] = value

    return change


BROKEN = [
    ("candidates[2].time.b[1]", edit("candidates", 2, "time", "b", 1, value=-1.0)),
    ("candidates[2].time.b[1]", edit("candidates", 2, "time", "b", 1, value=math.nan)),
    ("candidates[2].time.b[1]", edit("candidates", 2, "time", "b", 1, value=math.inf)),
    ("candidates[2].time.b[1]", edit("candidates", 2, "time", "b", 1, value="1")),
    ("candidates[2].time.b[1]", edit("candidates", 2, "time", "b", 1, value=True)),
    ("candidates[2].time.b", edit("candidates", 2, "time", "b", value=[1.0])),
    ("candidates[2].time.b", edit("candidates", 2, "time", "b", value=[[1.0, 2.0]])),
    ("candidates[2].time.b", edit("candidates", 2, "time", "b", value=KeyError)),
    ("candidates[2].memory.a[1]", edit("candidates", 2, "memory", "a", 1, value=[1.0])),
    ("candidates[2].memory.a", edit("candidates", 2, "memory", "a", value=[[1.0, 1.0]])),
    ("candidates[2].memory", edit("candidates", 2, "memory", value=KeyError)),
    ("candidates[4].memory_limit", edit("candidates", 4, "memory_limit", value=[1.0])),
    ("candidates[4].memory_limit[0]", edit("candidates", 4, "memory_limit", 0, value=-1.0)),
    ("candidates[0].reshard.b>b", edit("candidates", 0, "reshard", "b>b", value=KeyError)),
    ("candidates[0].reshard.b>b", edit("candidates", 0, "reshard", "b>b", value=[[0.0]])),
    ("candidates[2].transfer.a>b[1]", edit("candidates", 2, "transfer", "a>b", 1, value=[0.0])),
    ("candidates[2].transfer", edit("candidates", 2, "transfer", value=None)),
    ("candidates[0].layout", edit("candidates", 0, "layout", value=[0])),
    ("candidates[0].layout[1]", edit("candidates", 0, "layout", 1, value=-1)),
    ("candidates[0].layout[1]", edit("candidates", 0, "layout", 1, value=0.5)),
    ("candidates[0].strategies", edit("candidates", 0, "strategies", value=[])),
    ("candidates[0].strategies", edit("candidates", 0, "strategies", value=["s0", "s0"])),
    ("candidates[0].stages", edit("candidates", 0, "stages", value=0)),
    ("candidates[0].micro_batches", edit("candidates", 0, "micro_batches", value=-4)),
    ("candidates[2].allowed.a[0]", edit("candidates", 2, "allowed", "a", value=[7])),
    ("candidates[2].step_time.a", edit("candidates", 2, "step_time", "a", value=[1.0])),
    ("candidates[0].workspace.a", edit("candidates", 0, "workspace", "a", value=3)),
    ("candidates[0].colour", edit("candidates", 0, "colour", value=3)),
    ("candidates[0]", edit("candidates", 0, value=[])),
    ("candidates", edit("candidates", value=[])),
    ("candidates", edit("candidates", value=KeyError)),
    ("layers", edit("layers", value=[])),
    ("layers", edit("layers", value=["a"] * 1_000_000)),
    ("layers[1]", edit("layers", 1, value=1)),
    ("layers", edit("layers", value="abba")),
    ("memory", edit("memory", value=-1)),
    ("memory", edit("memory", value=KeyError)),
    ("schedule", edit("schedule", value="zero-bubble")),
    ("format", edit("format", value="uniap-problem/2")),
    ("format", edit("format", value=KeyError)),
    ("same[0]", edit("same", 0, value=[0])),
    ("same[0][1]", edit("same", 0, value=[0, 4])),
    ("fixed[0].layer", edit("fixed", value=[{"layer": 9}])),
    ("fixed[0].stage", edit("fixed", value=[{"layer": 0, "stage": -1}])),
    ("fixed[0].layer", edit("fixed", value=[{"stage": 0}])),
    ("values[0].to[0]", edit("values", value=[{"from": 2, "to": [1], "reshard": [[0, 0], [0, 0]], "transfer": 0}])),
    ("values[0].to", edit("values", value=[{"from": 2, "to": [], "reshard": [[0, 0], [0, 0]], "transfer": 0}])),
    ("values[0].reshard", edit("values", value=[{"from": 0, "to": [2], "reshard": [[0]], "transfer": 0}])),
    ("values[0].transfer", edit("values", value=[{"from": 0, "to": [2], "reshard": [[0, 0], [0, 0]]}])),
    ("extra", edit("extra", value=1)),
]


@pytest.mark.parametrize(("path", "change"), BROKEN, ids=[f"{n}-{path}" for n, (path, _) in enumerate(BROKEN)])
def test_refused_with_the_path(path: str, change: Callable[[dict[str, Any]], None]) -> None:
    data = copy.deepcopy(TINY)
    Problem.from_json(data)  # sound before
    change(data)
    with pytest.raises(ProblemError) as error:
        Problem.from_json(data)
    assert error.value.path == path
    assert str(error.value).startswith(path + ": ")


@pytest.mark.parametrize("data", [None, 3, [], "x", {}])
def test_not_a_problem(data: Any) -> None:
    with pytest.raises(ProblemError):
        Problem.from_json(data)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "text.json").write_text("{")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for name in ("text.json", "deep.json", "binary.json", "absent.json"):
        with pytest.raises(ProblemError, match=name):
            Problem.load(tmp_path / name)
