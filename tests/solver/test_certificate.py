"""The certificate confirms what is right, and refuses tables with one entry raised or lowered."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path

import pytest

from uniap_compiler.solver import Plan, Problem, enumerate_plans, fronts, solve
from uniap_compiler.solver.branch import relax
from uniap_compiler.solver.certificate import check_rows, check_sweep
from uniap_compiler.solver.instance import build_instance
from uniap_compiler.solver.miqp import StageTimes
from uniap_compiler.solver.proof import close, derive
from uniap_compiler.solver.recount import Raw

from .random_problems import random_problem

CASES = Path(__file__).parent / "cases"


def rows_of(name: str) -> tuple[Problem, Plan, StageTimes]:
    problem = Problem.load(CASES / f"{name}.json")
    plan = solve(problem).plans[0]
    derived = derive(relax(build_instance(problem, plan.candidate), {}), plan.objective * 1.02)
    assert derived is not None
    return problem, plan, derived


@pytest.mark.parametrize("name", ["gpt26-n8", "gpt50-n32", "tiny-04"])
def test_refuses_every_changed_entry(name: str) -> None:
    problem, plan, derived = rows_of(name)
    raw = Raw(problem, plan.candidate)
    assert check_rows(raw, derived) == ([], sum(len(values) for values in derived.entries.values()))
    changed = 0
    for key in list(derived.entries)[:: max(1, len(derived.entries) // 12)]:
        for weight in derived.entries[key]:
            for factor in (1 + 1e-6, 1 - 1e-6, 1.05, 0.95):
                wrong = copy.deepcopy(derived)
                wrong.entries[key][weight] *= factor
                refusals, _ = check_rows(raw, wrong)
                assert refusals, f"{key} x {factor} went unnoticed"
                changed += 1
    assert changed >= 4


def test_refuses_a_raised_entry_with_its_own_witness() -> None:
    """The strategies that come with a value attain it, but others are faster: only the label search can see that."""
    problem, plan, derived = rows_of("gpt26-n8")
    raw = Raw(problem, plan.candidate)
    (key, strategies), *_ = [(key, by[w]) for key, by in derived.witness.items() for w in by]
    i, a, b = key
    for u in range(a, b + 1):
        for k in raw.choices[u]:
            slower = list(strategies)
            slower[u - a] = k
            value = raw.interval_time(i, a, b, slower, 0.0)
            if value is not None and value > derived.entries[key][0.0] * (1 + 1e-6):
                wrong = StageTimes(derived.threshold, {key: {0.0: value}}, {key: {0.0: slower}})
                assert check_rows(raw, wrong)[0]
                return
    pytest.fail("no slower choice found")


def test_an_entry_that_was_left_out_is_refused() -> None:
    """No entry says that nothing fits: that is looked at too."""
    problem, plan, derived = rows_of("gpt26-n8")
    raw = Raw(problem, plan.candidate)
    intervals = list(derived.entries)
    assert check_rows(raw, derived, intervals=intervals)[0] == []
    del derived.entries[intervals[0]]
    assert "no row" in check_rows(raw, derived, intervals=intervals)[0][0]


def test_hard_intervals_have_bounds_of_the_certificates_own() -> None:
    """Without a single label, rows are recomputed bounds: they are below the exact ones, and may not close."""
    problem, plan, derived = rows_of("gpt50-n32")
    raw = Raw(problem, plan.candidate)
    table, threshold = raw.table(), plan.objective * (1 - 1e-6)
    before = table.time.copy()
    raw.sharpen(table, threshold)
    assert (table.time >= before).all() and (table.time > before).any()
    for key, values in derived.entries.items():
        if key in set(table.survivors(threshold)):
            own = table.row(*key)
            assert all(own[w] <= values[w] * (1 + 1e-9) for w in own if w in values)


def test_a_raised_entry_cuts_off_the_optimum() -> None:
    """Why this matters: the MIQP itself believes its rows."""
    problem, plan, derived = rows_of("gpt26-n8")
    at = build_instance(problem, plan.candidate)
    honest = close(at, derived, None, "cbc", 1e-7, 60.0)
    assert honest.bound == pytest.approx(plan.objective, rel=1e-6)
    for values in derived.entries.values():
        for weight in values:
            values[weight] *= 1.01
    assert close(at, derived, None, "cbc", 1e-7, 5.0).bound > plan.objective * 1.005


@pytest.mark.parametrize("name", ["tiny-00", "tiny-02", "tiny-05", "gpt26-n8"])
def test_certified(name: str) -> None:
    result = solve(Problem.load(CASES / f"{name}.json"), certify=True)
    assert result.status == "optimal"
    assert result.proof["certificate"]["certified"]


def test_a_plan_that_is_not_optimal_is_not_certified() -> None:
    """Every candidate's proof is asked for: with the optimum forbidden to be below, some candidate must refuse."""
    refused = 0
    for seed in range(40):
        problem = Problem.from_json(random_problem(seed))
        plans = sorted(enumerate_plans(problem))
        if not plans or plans[-1][0] < plans[0][0] * 1.001:
            continue
        objective, n, stage, strategy = plans[-1]
        candidate = problem.candidates[n]
        worse = Plan(n, candidate.stages, candidate.micro_batches, stage, strategy, objective)
        report = check_sweep(problem, worse, objective * (1 - 1e-6), "cbc", 1e-6)
        assert not report.certified
        refused += 1
    assert refused > 20


@pytest.mark.parametrize("labels", [True, False])
def test_certificates_of_random_problems(monkeypatch: pytest.MonkeyPatch, labels: bool) -> None:
    """Stage by stage, and by the MIQP with recomputed rows when no label of the other argument may be made."""
    if not labels:
        monkeypatch.setattr(fronts, "WORK", 0.0)
    arguments: Counter[str] = Counter()
    values = 0
    for seed in range(60):
        problem = Problem.from_json(random_problem(seed))
        result = solve(problem, certify=True)
        if result.plans:
            certificate = result.proof["certificate"]
            assert result.status == "optimal" and certificate["certified"], seed
            arguments.update(certificate["arguments"])
            values += certificate["values_recomputed"]
    assert arguments["stage by stage"] > 20 if labels else values > 50
