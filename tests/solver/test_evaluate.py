"""Our evaluation against the executable meaning of the format, on random plans, feasible or not."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from typing import Any

import pytest

from uniap_compiler.solver import Problem, evaluate
from uniap_compiler.solver.instance import build_instance
from uniap_compiler.solver.miqp import period, stage_times

from .random_problems import random_problem


def meaning() -> Any:
    path = Path(__file__).parent / "cases" / "evaluate.py"
    spec = importlib.util.spec_from_file_location("case_evaluate", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


REFERENCE = meaning()


@pytest.mark.parametrize("block", range(4))
def test_agrees_with_the_meaning(block: int) -> None:
    rng, seen = random.Random(block), [0, 0]
    for seed in range(block * 100, block * 100 + 100):
        data = random_problem(seed)
        problem = Problem.from_json(data)
        for n, candidate in enumerate(problem.candidates):
            L, D = len(problem.layers), candidate.stages
            for _ in range(8):
                cuts = sorted(rng.sample(range(1, L), min(L - 1, D - 1)))
                stage = [sum(u >= cut for cut in cuts) for u in range(L)]
                if rng.random() < 0.1:
                    stage[rng.randrange(L)] = rng.randrange(D)
                strategy = [rng.randrange(len(candidate.layout)) for _ in range(L)]
                own = data["candidates"][n]  # with values of its own it is a problem with these values
                given = data | {"values": own["values"]} if "values" in own else data
                expected, wrong = REFERENCE.evaluate(given, own, stage, strategy)
                objective, bad = evaluate(problem, n, stage, strategy)
                assert objective == expected
                assert len(bad) == len(wrong)
                seen[bool(bad)] += 1
    assert min(seen) > 50


def test_the_arrays_say_the_same() -> None:
    """`stage_times` on the arrays is what the MIQP start and the branching use."""
    rng = random.Random(0)
    for seed in range(200):
        problem = Problem.from_json(random_problem(seed))
        for n, candidate in enumerate(problem.candidates):
            at = build_instance(problem, n)
            L, D = at.layers, at.stages
            if D > L:
                continue
            cuts = sorted(rng.sample(range(1, L), D - 1))
            stage = [sum(u >= cut for cut in cuts) for u in range(L)]
            strategy = [rng.randrange(len(candidate.layout)) for _ in range(L)]
            p, o, s, _ = stage_times(at, stage, strategy)
            objective = sum(p) + sum(o) + (at.micro_batches - 1) * period(at, p, o) + max(s)
            assert objective == pytest.approx(evaluate(problem, n, stage, strategy)[0], rel=1e-12)


def test_nonsense_plans_are_violations() -> None:
    problem = Problem.from_json(random_problem(3))
    L = len(problem.layers)
    for stage, strategy in (([0] * (L + 1), [0] * L), ([99] * L, [0] * L), ([-1] * L, [0] * L), ([0] * L, [99] * L)):
        assert evaluate(problem, 0, stage, strategy)[1]
