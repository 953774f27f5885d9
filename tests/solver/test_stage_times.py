"""Exact stage times against all choices of an interval: many strategies, tight memory, varied working sets."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest

from uniap_compiler.solver import Problem, labels
from uniap_compiler.solver.instance import Instance, build_instance
from uniap_compiler.solver.labels import Limit, least_possible, stage_time
from uniap_compiler.solver.recount import Raw
from uniap_compiler.solver.tables import StageCosts, coarse_table, fine_table

LAYERS = 3


def interval(seed: int) -> Problem:
    """One stage of a few layers with 24 strategies in 4 classes: faster ones need more memory or a larger set."""
    rng = random.Random(seed)
    K, Q, types = 24, 4, ["a", "b"]
    layout = [rng.randrange(Q) for _ in range(K)]
    memory = {t: [rng.uniform(1, 9) for _ in range(K)] for t in types}
    work = {t: [rng.choice([0.0, 1.0, rng.uniform(0, 6)]) for _ in range(K)] for t in types}
    time = {t: [12 - memory[t][k] - 0.5 * work[t][k] + rng.uniform(0, 2) for k in range(K)] for t in types}
    table = [[0.0 if q == r else rng.uniform(0, 1) for r in range(Q)] for q in range(Q)]
    candidate: dict[str, Any] = {
        "stages": 1, "micro_batches": 4, "strategies": [f"s{k}" for k in range(K)], "layout": layout, "time": time,
        "memory": {t: [row] for t, row in memory.items()}, "workspace": work,
        "step_time": {t: [rng.uniform(0, 3) for _ in range(K)] for t in types},
        "reshard": {f"{a}>{b}": table for a in types for b in types}, "transfer": {},
    }  # fmt: skip
    layers = [rng.choice(types) for _ in range(LAYERS)]
    limit = rng.uniform(3 * LAYERS, 7 * LAYERS)
    return Problem.from_json(
        {"format": "uniap-problem/1", "memory": limit, "layers": layers, "candidates": [candidate]}
    )


def everything(problem: Problem) -> list[tuple[float, float, int, int]]:
    """(time, step, first class, last class) of every choice that fits."""
    raw = Raw(problem, 0)
    found = []
    for choice in itertools.product(range(raw.K), repeat=LAYERS):
        seconds = raw.interval_time(0, 0, LAYERS - 1, list(choice), 0.0)
        if seconds is not None:
            step = sum(raw.step[u][k] for u, k in enumerate(choice))
            found.append((seconds, step, raw.layout[choice[0]], raw.layout[choice[-1]]))
    return found


def costs_of(at: Instance) -> list[StageCosts]:
    return [StageCosts(at, 0, w) for w in (0.0, 0.1, 0.4, 1.0)]


@pytest.mark.parametrize("ranges", [labels.MOST_RANGES, 3])
@pytest.mark.parametrize("seed", range(12))
def test_stage_times_equal_enumeration(seed: int, ranges: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a limit nothing is missing, and beyond it nothing is claimed, however near the limit is.

    With few ranges, those of largest working sets are split again and again.
    """
    monkeypatch.setattr(labels, "MOST_RANGES", ranges)
    problem = interval(seed)
    at, all_choices = build_instance(problem, 0), everything(problem)
    Q = at.classes
    rng = np.random.default_rng(seed)
    before, after = rng.uniform(0, 2, Q), rng.uniform(0, 2, Q)
    for step in (np.inf, float(np.quantile([s for _, s, _, _ in all_choices], 0.2))):
        choices = [c for c in all_choices if c[1] <= step]
        through = [t + before[q] + after[r] for t, _, q, r in choices]
        for reach in (1.0001, 1.01, 1.1):
            most = min(through) * reach
            found = stage_time(at, 0, 0, LAYERS - 1, costs_of(at), Limit(most, before, after, 0.0, step)).options
            mine = {}
            for n in range(len(found.time)):
                pair = int(found.q[n]), int(found.r[n])
                assert found.step[n] <= step * (1 + 1e-9)
                mine[pair] = min(mine.get(pair, np.inf), float(found.time[n]))
            within = {}
            for (t, _, q, r), value in zip(choices, through, strict=True):
                if value <= most * (1 - 1e-9):
                    within[q, r] = min(within.get((q, r), np.inf), t)
            assert mine.keys() == within.keys()
            assert all(mine[pair] == pytest.approx(within[pair], rel=1e-9) for pair in within)


@pytest.mark.parametrize("seed", range(12))
def test_bounds_are_never_too_high(seed: int) -> None:
    """Closed bounds, tables and ranged tables: each at most the least choice, and ranges are at least as good."""
    problem = interval(seed)
    at, choices = build_instance(problem, 0), everything(problem)
    tables = {own.weight: [own] for own in costs_of(at)}
    coarse = coarse_table(at, tables)
    fine = fine_table(at, tables, coarse)
    ranged = fine_table(at, tables, fine, ranged=True)
    for m, (w, (own,)) in enumerate(tables.items()):
        least = np.full((at.classes, at.classes), np.inf)
        for t, s, q, r in choices:
            least[q, r] = min(least[q, r], t + w * s)
        assert least_possible(at, 0, LAYERS - 1, own) <= least.min() * (1 + 1e-12)
        bounds = [[table.stages[0].t, *table.stages[0].sums][m][0] for table in (coarse, fine, ranged)]
        for bound in bounds:
            assert np.all(bound <= least)
        assert np.all(bounds[2] >= bounds[1])
    # and with a limit on the once-per-step time
    most = float(np.quantile([s for _, s, _, _ in choices], 0.1))
    lines = {w: fine_table(at, {w: own}, ranged.timed(), ranged=True) for w, own in tables.items() if w}
    under = ranged.timed().under_step(most, lines).stages[0].t[0]
    least = np.full((at.classes, at.classes), np.inf)
    for t, s, q, r in choices:
        if s <= most:
            least[q, r] = min(least[q, r], t)
    assert np.all(under <= least)


@pytest.mark.parametrize("seed", range(6))
def test_the_second_code_finds_the_same(seed: int) -> None:
    problem = interval(seed)
    raw = Raw(problem, 0)
    for w in (0.0, 0.25):
        least = min(t + w * s for t, s, _, _ in everything(problem))
        assert raw.least_time(0, 0, LAYERS - 1, w, least * 1.1) == pytest.approx(least, rel=1e-12)
        assert raw.least_time(0, 0, LAYERS - 1, w, least * (1 - 1e-9)) == np.inf
        assert raw.table().time[0, 0, LAYERS - 1] <= least
