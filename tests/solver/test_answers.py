"""What the answer carries besides the plan: alternatives, explanations, limits, the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from uniap_compiler.cli.solve import register
from uniap_compiler.solver import Problem, evaluate, solve
from uniap_compiler.solver.backend import BackendError

from .random_problems import random_problem
from .test_references import CASES, run

GIB = 2.0**30


def test_further_plans_differ() -> None:
    problem = Problem.load(CASES / "gpt26-n8.json")
    result = solve(problem, top=4)
    assert len(result.plans) == 4
    objectives = [plan.objective for plan in result.plans]
    assert objectives == sorted(objectives)
    for n, plan in enumerate(result.plans):
        value, bad = evaluate(problem, plan.candidate, plan.stage, plan.strategy)
        assert value == plan.objective and not bad
        assert all(plan.differs(other) for other in result.plans[:n])
    assert len({(plan.stages, plan.micro_batches) for plan in result.plans}) == 4  # the second best pair is next
    assert len(result.to_json()["plans"]) == 4
    rough = solve(problem, top=4, top_gap=0.05)
    assert rough.plans[0].objective == objectives[0] and rough.gap is not None and rough.gap <= 1e-6
    for plan, least in zip(rough.plans, objectives, strict=True):
        assert plan.objective <= 1.05 * least


def test_further_plans_of_the_same_shape() -> None:
    """One (stages, micro_batches) only: the others move at least 10 % of the layers."""
    data = json.loads((CASES / "tiny-04.json").read_text())
    data["candidates"] = [data["candidates"][6]]
    problem = Problem.from_json(data)
    result = solve(problem, top=3)
    assert len(result.plans) == 3
    first, second, third = result.plans
    assert first.objective <= second.objective <= third.objective
    assert second.differs(first) and third.differs(first) and third.differs(second)


def infeasible(memory: float) -> dict[str, Any]:
    """Four layers of 1 GiB or 2 GiB of states, and 0.5 GiB of workspace."""

    def candidate(D: int) -> dict[str, Any]:
        return {
            "stages": D, "micro_batches": 1, "strategies": ["lean", "fast"], "layout": [0, 0],
            "time": {"t": [2.0, 1.0]}, "memory": {"t": [[1 * GIB, 2 * GIB]] * D},
            "workspace": {"t": [0.5 * GIB, 0.25 * GIB]},
            "reshard": {"t>t": [[0.0]]}, "transfer": {"t>t": [[0.1]]},
        }  # fmt: skip

    return {"format": "uniap-problem/1", "name": "no", "memory": memory, "layers": ["t"] * 4,
            "candidates": [candidate(1), candidate(2)]}  # fmt: skip


def test_infeasible_in_gib() -> None:
    result = solve(Problem.from_json(infeasible(1.9 * GIB)))
    assert result.status == "infeasible" and not result.plans
    explanation = result.explanation
    assert explanation is not None
    assert explanation["smallest_memory_gib"] == pytest.approx(2.5)
    by_stages = {row["stages"]: row for row in explanation["stage_counts"]}
    assert by_stages[1]["needed_gib"] == pytest.approx(4.5)
    assert by_stages[2]["needed_gib"] == pytest.approx(2.5)
    assert by_stages[2]["layers"][1] - by_stages[2]["layers"][0] == 1
    assert "2.5 GiB" in explanation["message"] and "1.9 GiB" in explanation["message"]
    # and it is true: at the memory named, something fits; just below, nothing does
    assert solve(Problem.from_json(infeasible(2.5 * GIB))).status == "optimal"
    assert solve(Problem.from_json(infeasible(2.4999 * GIB))).status == "infeasible"


def test_smallest_memory_of_random_problems() -> None:
    """Scale the memory of infeasible problems to what the explanation names: they become feasible."""
    tried = 0
    for seed in range(400):
        data = random_problem(seed, chain=True)
        data["memory"] = 1.0
        for candidate in data["candidates"]:
            candidate.pop("memory_limit", None)
        result = solve(Problem.from_json(data))
        if result.status == "infeasible" and result.explanation["smallest_memory_gib"] is not None:  # type: ignore[index]
            smallest = result.explanation["smallest_memory_gib"] * GIB  # type: ignore[index]
            data["memory"] = smallest
            assert solve(Problem.from_json(data)).status == "optimal"
            data["memory"] = smallest * 0.999
            assert solve(Problem.from_json(data)).status == "infeasible"
            tried += 1
        if tried > 25:
            return
    pytest.fail("too few infeasible problems")


def test_conflicting_choices_are_named() -> None:
    data = infeasible(99 * GIB)
    data["fixed"] = [{"layer": 2, "strategies": ["odd"]}]
    result = solve(Problem.from_json(data))
    assert result.status == "infeasible"
    assert "layer 2" in result.explanation["message"]  # type: ignore[index]


def test_a_time_limit_gives_a_plan_with_its_gap() -> None:
    problem = Problem.load(CASES / "gpt50-n32.json")
    began = time.monotonic()
    result = solve(problem, time_limit=0.12)
    assert time.monotonic() - began < 10
    if result.plans:
        assert result.bound is not None and result.bound <= 6.087042865962999 * (1 + 1e-6)
        assert result.plans[0].objective >= 6.087042865962999 * (1 - 1e-9)
        assert (result.status == "optimal") == (result.gap is not None and result.gap <= 1e-6)
    else:
        assert result.status == "unknown"
    assert solve(problem, time_limit=0.0).status in ("unknown", "feasible", "optimal")


@pytest.mark.parametrize("wrong", [{"gap": -1.0}, {"top": 0}, {"time_limit": -1.0}, {"gap": float("nan")}])
def test_wrong_arguments(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        solve(Problem.load(CASES / "tiny-00.json"), **wrong)


def test_unknown_backend() -> None:
    with pytest.raises(BackendError, match="cbc"):
        solve(Problem.load(CASES / "tiny-00.json"), backend="gurobi")


def test_progress() -> None:
    events: list[dict[str, Any]] = []
    solve(Problem.load(CASES / "gpt26-n8.json"), progress=events.append)
    assert events
    bounds = [event["bound"] for event in events]
    assert bounds == sorted(bounds)
    assert all({"done", "candidates", "incumbent", "bound", "seconds"} <= event.keys() for event in events)


def test_the_model_is_written_with_the_equations(tmp_path: Path) -> None:
    code, out, _, _ = run(str(CASES / "tiny-00.json"), "--write-lp", str(tmp_path))
    assert code == 0 and json.loads(out)["status"] == "optimal"  # nothing but the answer on stdout
    (path,) = tmp_path.glob("*.lp")
    text = path.read_text()
    for row in ("eq2_stage_i0", "eq3_boundary_j0", "eq4_period_i0", "eq5_assign_u0", "eq9_memory_i0", "eq11_same_u0"):
        assert row in text


def test_exit_codes(tmp_path: Path) -> None:
    (tmp_path / "no.json").write_text(json.dumps(infeasible(1.0)))
    (tmp_path / "bad.json").write_text("{}")
    code, out, _, _ = run(str(tmp_path / "no.json"), "--quiet")
    assert code == 1 and json.loads(out)["status"] == "infeasible"
    code, out, err, _ = run(str(tmp_path / "bad.json"), "--quiet")
    assert code == 1 and out == "" and err == "error: format: expected 'uniap-problem/1', found None\n"


def test_the_typer_command() -> None:
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)
    result = CliRunner().invoke(app, ["solve", str(CASES / "tiny-00.json"), "--quiet", "--top", "2"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["status"] == "optimal"
    assert CliRunner().invoke(app, ["solve", "absent.json"]).exit_code == 2


def test_interrupted_at_once(tmp_path: Path) -> None:
    """SIGINT in the middle of a long solve: exit code 130 within two seconds, no output, no process left."""
    data = json.loads((CASES / "gpt50-n32.json").read_text())
    data["layers"] = ["emb", *["blk"] * 400, "head"]
    path = tmp_path / "long.json"
    path.write_text(json.dumps(data))
    with subprocess.Popen(
        [sys.executable, "-m", "uniap_compiler.solver", str(path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as process:  # fmt: skip
        assert process.stderr is not None
        process.stderr.readline()  # the first progress line: it is at work
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        out, _ = process.communicate(timeout=20)
        assert time.monotonic() - began < 10
    assert process.returncode == 130 and out == ""
    assert [p.name for p in tmp_path.iterdir()] == ["long.json"]


def test_no_torch() -> None:
    code = "import sys, uniap_compiler.solver; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False"


@pytest.mark.slow
def test_a_thousand_solves_in_one_process() -> None:
    code = """
import resource, sys
from tests.solver.random_problems import random_problem
from uniap_compiler.solver import Problem, solve
def peak():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20
for n in range(1000):
    solve(Problem.from_json(random_problem(n)))
    if n == 200:
        before = peak()
print(before, peak())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280)
    before, after = map(float, done.stdout.split()[-2:])
    assert after < before + 30, f"{before} MiB grew to {after} MiB"
