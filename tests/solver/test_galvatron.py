"""Galvatron's search problems: the converter, the event simulation, and what the benchmark promises."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from uniap_compiler.solver import Problem, solve

CASES = Path(__file__).parent / "cases" / "galvatron"
FOLDERS = sorted(path.parent for path in CASES.glob("*/tables.json"))


def benchmark() -> Any:
    path = Path(__file__).parents[2] / "benchmarks" / "galvatron.py"
    spec = importlib.util.spec_from_file_location("galvatron_benchmark", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["galvatron_benchmark"] = module
    spec.loader.exec_module(module)
    return module


galvatron = benchmark()


def test_the_event_simulation() -> None:
    """Equal stages: (c + D - 1) periods; one slow stage: its c periods and the way to it and back."""
    assert galvatron.simulate([3.0], [0.5], 4) == pytest.approx(12.5)
    assert galvatron.simulate([3.0, 3.0], [0.0, 0.0], 4) == pytest.approx(15.0)
    assert galvatron.simulate([3.0, 3.0, 3.0], [0.0, 1.0, 0.0], 1) == pytest.approx(9.0, abs=1.1)
    assert galvatron.simulate([3.0, 9.0], [0.0, 0.0], 4) == pytest.approx(4 * 9.0 + 3.0)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_faster_and_never_slower(folder: Path) -> None:
    row = galvatron.compare(folder)
    assert row["status"] == "optimal"
    assert row["our_cpu"] * 20 <= row["their_cpu"]
    assert row["our_seconds"] <= row["their_seconds"] * (1 + 1e-9)


@pytest.mark.parametrize("folder", [f for f in FOLDERS if f.name[:2] in ("A4", "A5")], ids=lambda folder: folder.name)
def test_exact_optimum_of_their_numbers(folder: Path) -> None:
    """Without the synchronisation tail and resharding the references were computed: the same optima to 1e-6."""
    data, _ = galvatron.convert(json.loads((folder / "tables.json").read_text()), tail=False)
    del data["schedule"]
    for candidate in data["candidates"]:
        candidate["reshard"] = candidate["transfer"]  # all zero
    result = solve(Problem.from_json(data))
    reference = json.loads((folder / "reference_max_free.json").read_text())
    assert result.status == "optimal"
    assert result.plans[0].objective == pytest.approx(reference["iteration_seconds"], rel=1e-6)
