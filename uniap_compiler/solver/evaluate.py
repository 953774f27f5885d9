"""What a plan costs and whether it fits: the meaning of the format, without any solver.

    objective = sum_i p_i + sum_j o_j + (c-1) T + max_i s_i                                          (1)

`evaluate` re-reads the raw problem for every plan that is printed; `enumerate_plans` is brute force for tiny problems.
The sums run over the same numbers in the same order as the formula is written, so that two implementations of the
format agree to the last digits.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from uniap_compiler.solver.problem import Candidate, Matrix, Problem, Row

#: A stage may exceed its memory by this fraction: rounding of sums, nothing more.
MEMORY_TOLERANCE = 1e-12


def per_stage(table: Row | Matrix, stage: int) -> Row:
    """A table of K numbers that holds for every stage, or the one of K numbers that belongs to `stage`."""
    entry = table[stage] if isinstance(table[0], list) else table
    return entry


def evaluate(
    problem: Problem, candidate_index: int, stage: Sequence[int], strategy: Sequence[int]
) -> tuple[float, list[str]]:
    """The objective (1) in seconds, and every violated condition in words (an empty list: the plan is feasible)."""
    candidate = problem.candidates[candidate_index]
    D, c, L = candidate.stages, candidate.micro_batches, len(problem.layers)
    bad = _malformed(candidate, L, stage, strategy)
    if bad:
        return float("inf"), bad
    p, o, s = [0.0] * D, [0.0] * (D - 1), [0.0] * D
    memory, workspace = [0.0] * D, [0.0] * D
    layout = candidate.layout
    for u, kind in enumerate(problem.layers):
        i, k = stage[u], strategy[u]
        if kind in candidate.allowed and k not in candidate.allowed[kind]:
            bad.append(f"layer {u}: strategy {candidate.strategies[k]!r} is not allowed")
        p[i] += per_stage(candidate.time[kind], i)[k]
        memory[i] += candidate.memory[kind][i][k]
        if kind in candidate.step_time:
            s[i] += candidate.step_time[kind][k]
        if kind in candidate.workspace:
            workspace[i] = max(workspace[i], candidate.workspace[kind][k])
        if u:
            before, now, pair = layout[strategy[u - 1]], layout[k], f"{problem.layers[u - 1]}>{kind}"
            if stage[u - 1] == i:
                p[i] += candidate.reshard[pair][before][now]
            elif stage[u - 1] == i - 1:
                o[i - 1] += candidate.transfer[pair][before][now]
            else:
                bad.append(f"layers {u - 1}, {u}: stages {stage[u - 1]}, {i} are not in order")
    for value in problem.values_of(candidate):
        home = stage[value.source]
        for reader in value.readers:
            p[stage[reader]] += value.reshard[layout[strategy[value.source]]][layout[strategy[reader]]]
        for j in range(home, max([home, *(stage[reader] for reader in value.readers)])):
            o[j] += value.transfer
    for i, room in enumerate(problem.limits(candidate)):
        if memory[i] + workspace[i] > room * (1 + MEMORY_TOLERANCE):
            bad.append(f"stage {i}: {memory[i] + workspace[i]:.6g} of {room:.6g} bytes")
    if set(stage) != set(range(D)):
        bad.append("a stage has no layer")
    bad += _broken_choices(problem, candidate, stage, strategy)
    period = max(p + o)
    if problem.schedule == "1f1b":  # at most D - i micro-batches are in flight from stage i on
        for i in range(D):
            if D - i < c:
                period = max(period, (sum(p[i:]) + sum(o[i:])) / (D - i))
    return sum(p) + sum(o) + (c - 1) * period + max(s), bad


def _malformed(candidate: Candidate, layers: int, stage: Sequence[int], strategy: Sequence[int]) -> list[str]:
    if len(stage) != layers or len(strategy) != layers:
        return [f"a plan names the stage and the strategy of each of the {layers} layers"]
    return [f"layer {u}: stage {i} does not exist" for u, i in enumerate(stage) if not 0 <= i < candidate.stages] + [
        f"layer {u}: strategy {k} does not exist"
        for u, k in enumerate(strategy)
        if not 0 <= k < len(candidate.strategies)
    ]


def _broken_choices(problem: Problem, candidate: Candidate, stage: Sequence[int], strategy: Sequence[int]) -> list[str]:
    bad = []
    for choice in problem.fixed:
        u = choice.layer
        if choice.stage is not None and stage[u] != choice.stage:
            bad.append(f"layer {u}: stage {stage[u]} where {choice.stage} is fixed")
        if choice.strategies is not None and candidate.strategies[strategy[u]] not in choice.strategies:
            bad.append(f"layer {u}: strategy {candidate.strategies[strategy[u]]!r} is not among the fixed ones")
    for u, v in problem.same:
        if strategy[u] != strategy[v]:
            bad.append(f"layers {u}, {v}: strategies differ")
    return bad


def enumerate_plans(problem: Problem) -> Iterator[tuple[float, int, list[int], list[int]]]:
    """Every feasible plan as (objective, candidate, stage, strategy). For tiny problems and tests only."""
    L = len(problem.layers)
    for n, candidate in enumerate(problem.candidates):
        for cuts in itertools.combinations(range(1, L), candidate.stages - 1):
            stage = [sum(u >= cut for cut in cuts) for u in range(L)]
            for strategy in itertools.product(range(len(candidate.layout)), repeat=L):
                objective, bad = evaluate(problem, n, stage, strategy)
                if not bad:
                    yield objective, n, stage, list(strategy)
