"""The given problems with known optima: objective within 1e-6, status optimal, in CPU seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CASES = Path(__file__).parent / "cases"
NAMES = sorted(p.name.removesuffix(".reference.json") for p in CASES.glob("*.reference.json"))


def run(*arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str, str, float]:
    """Exit code, stdout, stderr and CPU seconds of the whole process."""
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-m", "uniap_compiler.solver", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **(environment or {})},
    )
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return done.returncode, done.stdout, done.stderr, cpu


@pytest.mark.parametrize("name", NAMES)
def test_reference(name: str) -> None:
    code, out, err, cpu = run(str(CASES / f"{name}.json"))
    assert code == 0, err
    answer: dict[str, Any] = json.loads(out)
    reference = json.loads((CASES / f"{name}.reference.json").read_text())
    assert answer["status"] == "optimal"
    assert answer["objective"] == pytest.approx(reference["objective"], rel=1e-6)
    assert answer["bound"] <= reference["objective"] * (1 + 1e-9)
    assert answer["gap"] <= 1e-6
    assert answer["proof"]["confirmation"]["closed"]
    assert cpu < 5.0
    assert "candidates" in err  # progress, on stderr only


def test_evaluated_by_the_meaning_of_the_format(tmp_path: Path) -> None:
    """What is printed is what `evaluate.py PROBLEM PLAN` expects."""
    _, out, _, _ = run(str(CASES / "gpt26-n8.json"))
    (tmp_path / "plan.json").write_text(out)
    done = subprocess.run(
        [sys.executable, str(CASES / "evaluate.py"), str(CASES / "gpt26-n8.json"), str(tmp_path / "plan.json")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    assert json.loads(done.stdout)["objective"] == json.loads(out)["objective"]


def test_same_input_same_answer() -> None:
    answers = set()
    for seed in ("0", "1", "2"):
        _, out, _, _ = run(str(CASES / "gpt50-n32.json"), "--quiet", environment={"PYTHONHASHSEED": seed})
        answer = json.loads(out)
        answer.pop("seconds")
        answers.add(json.dumps(answer))
    assert len(answers) == 1
