"""The certificate's own argument without the MIQP: never above the optimum, and complete for chains."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniap_compiler.solver import Problem, enumerate_plans, fronts
from uniap_compiler.solver import stage_fronts as module
from uniap_compiler.solver.fronts import Fronts
from uniap_compiler.solver.recount import Raw
from uniap_compiler.solver.stage_fronts import StageFronts, undominated

from .random_problems import random_problem


def optima(problem: Problem) -> dict[int, float]:
    best: dict[int, float] = {}
    for objective, n, _, _ in enumerate_plans(problem):
        best[n] = min(best.get(n, math.inf), objective)
    return best


def reached(problem: Problem, n: int, threshold: float) -> bool:
    """Whether the fronts say that candidate n has no plan below the threshold."""
    raw = Raw(problem, n)
    if raw.impossible() or threshold <= 0:
        return True
    return Fronts(raw, raw.table(), threshold).bound() >= threshold


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_never_above_the_optimum(seed: int, chain: bool) -> None:
    """A plan below the threshold is never denied; for a chain the answer is yes as soon as there is none."""
    problem = Problem.from_json(random_problem(seed, chain=chain))
    for n, best in optima(problem).items():
        if best > 0:
            assert not reached(problem, n, best * (1 + 1e-6)), "a plan below the threshold was denied"
            if chain:
                assert reached(problem, n, best * (1 - 1e-7)), "there is no plan, and it was not seen"


def test_ranges_of_once_per_step_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """With hardly a label for a whole range it is split, again and again: the same answers, and only by splitting."""
    monkeypatch.setattr(module, "SPLIT", 2)
    monkeypatch.setattr(fronts, "TRIAL", 20.0)
    split = 0
    honest = Fronts._in_trial

    def counted(self: Fronts, *arguments: Any) -> float | None:
        nonlocal split
        least = honest(self, *arguments)
        split += least is None
        return least

    monkeypatch.setattr(Fronts, "_in_trial", counted)
    for seed in range(25):
        problem = Problem.from_json(random_problem(seed, chain=True))
        for n, best in optima(problem).items():
            if best > 0:
                assert not reached(problem, n, best * (1 + 1e-6)), "a plan below the threshold was denied"
                assert reached(problem, n, best * (1 - 1e-7)), "there is no plan, and it was not seen"
    assert split > 40


def test_a_candidate_that_nothing_fits_has_no_plan() -> None:
    seen = 0
    for seed in range(60):
        problem = Problem.from_json(random_problem(seed, chain=True))
        for n in set(range(len(problem.candidates))) - optima(problem).keys():
            assert reached(problem, n, 1e3)
            seen += 1
    assert seen > 10


@pytest.mark.parametrize("attribute", ["time", "step"])
def test_the_comparison_can_fail(monkeypatch: pytest.MonkeyPatch, attribute: str) -> None:
    """With one number of every layer too high, plans are denied, and the comparison with enumeration shows it."""
    honest = StageFronts._kinds

    def raised(self: StageFronts, i: int) -> list[module._Kind]:
        out = honest(self, i)
        for kind in {id(kind): kind for kind in out}.values():
            getattr(kind, attribute)[:] *= 1 + 1e-5
        return out

    monkeypatch.setattr(StageFronts, "_kinds", raised)
    denied = 0
    for seed in range(40):
        problem = Problem.from_json(random_problem(seed, chain=True))
        denied += any(reached(problem, n, best * (1 + 1e-7)) for n, best in optima(problem).items() if best > 0)
    assert denied > 5


def test_undominated() -> None:
    rng = np.random.default_rng(0)
    for high, third in ((3, 3), (8, 8), (8, 1)):
        x, y, z, g = (rng.integers(0, top, 60).astype(float) for top in (high, high, third, 3))
        kept = set(undominated(x, y, z, g).tolist())
        rows = list(zip(x, y, z, g, strict=True))

        def beats(n: int, m: int, rows: list[tuple[float, ...]] = rows) -> bool:
            return rows[n][3] == rows[m][3] and all(rows[n][d] <= rows[m][d] for d in range(3))

        assert all(any(beats(n, m) for n in kept) for m in range(60))
        assert not any(beats(n, m) for n in kept for m in kept if n != m)
