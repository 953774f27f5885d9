"""A plan of the solver, simulated with its schedule: seconds of one iteration, and what each stage needs and does.

The programme's objective has one transfer time for all boundaries and no room for the order of events; here every
boundary has its own, and forward and backward are apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Union

from uniap_compiler.solver import Plan

from .enumerate_strategies import short
from .problem import Candidate, Problem, Setting
from .simulate_schedule import Channel, in_flight, simulate, stage_table

Number = Union[int, float]


@dataclass(frozen=True)
class Simulated:
    """stages: per stage its bytes (`memory` is the sum of the others) and its seconds."""

    plan: Plan
    candidate: Candidate
    seconds: float
    bubble: float
    stages: list[dict[str, Number]]


def simulate_plan(setting: Setting, problem: Problem, plan: Plan) -> Simulated:
    candidate = problem.candidates[plan.candidate]
    D, c = candidate.stages, candidate.micro_batches
    forward, backward, once = stage_seconds(setting, candidate, plan)
    transfer = boundary_seconds(setting, candidate, plan)
    names = [["h"] if any(j == b for b, _ in transfer) else [] for j in range(D - 1)]
    back = [["h"] if (j, "backward") in transfer else [] for j in range(D - 1)]
    tables = [stage_table(setting.schedule, D, c, i, names, back) for i in range(D)]
    timeline = simulate(tables, forward, backward, transfer, once)
    memory = stage_memory(setting, candidate, plan)
    stages: list[dict[str, Number]] = [
        {**memory[i], "forward": short(forward[i]), "backward": short(backward[i]), "once": short(once[i])}
        for i in range(D)
    ]
    return Simulated(plan, candidate, timeline.seconds, timeline.bubble, stages)


def stage_seconds(setting: Setting, candidate: Candidate, plan: Plan) -> tuple[list[float], list[float], list[float]]:
    """Per stage: forward and backward of one micro-batch, resharding included, and what happens once per step."""
    D, types = candidate.stages, setting.graph.types
    forward, backward, once = [0.0] * D, [0.0] * D, [0.0] * D
    for u, kind in enumerate(types):
        i, k = plan.stage[u], plan.strategy[u]
        forward[i] += float(candidate.forward[kind][i, k])
        backward[i] += float(candidate.backward[kind][i, k])
        once[i] += float(candidate.step[kind][k])
        if u and plan.stage[u - 1] == i:
            a, b, pair = candidate.layout[plan.strategy[u - 1]], candidate.layout[k], f"{types[u - 1]}>{kind}"
            forward[i] += float(candidate.move[pair][a, b])
            backward[i] += float(candidate.move_back[pair][a, b])
    for crossing, table, _ in candidate.skips:
        for v, _ in crossing.readers:
            a, b = candidate.layout[plan.strategy[crossing.source]], candidate.layout[plan.strategy[v]]
            half = 0.5 if crossing.gradient else 1.0
            forward[plan.stage[v]] += half * float(table[a, b])
            backward[plan.stage[v]] += (1.0 - half) * float(table[a, b])
    return forward, backward, once


def boundary_seconds(setting: Setting, candidate: Candidate, plan: Plan) -> dict[Channel, float]:
    """(boundary, direction) -> seconds of one micro-batch; boundaries that nothing crosses are absent."""
    seconds: dict[Channel, float] = {}

    def add(j: int, forward: float, backward: float) -> None:
        seconds[j, "forward"] = seconds.get((j, "forward"), 0.0) + forward
        if backward:
            seconds[j, "backward"] = seconds.get((j, "backward"), 0.0) + backward

    types = setting.graph.types
    for u in range(1, len(types)):
        j = plan.stage[u - 1]
        if plan.stage[u] != j and setting.graph.between(u - 1):
            a, b = candidate.layout[plan.strategy[u - 1]], candidate.layout[plan.strategy[u]]
            pair = f"{types[u - 1]}>{types[u]}"
            add(j, float(candidate.pass_on[pair][j, a, b]), float(candidate.pass_back[pair][j, a, b]))
    for crossing, _, sent in candidate.skips:
        half = 0.5 if crossing.gradient else 1.0
        for j in range(plan.stage[crossing.source], max(plan.stage[v] for v, _ in crossing.readers)):
            add(j, half * sent, (1.0 - half) * sent)
    return seconds


def stage_memory(setting: Setting, candidate: Candidate, plan: Plan) -> list[dict[str, Number]]:
    """Bytes of one device of every stage: what stays, what micro-batches in flight keep, the largest working set."""
    rows: list[dict[str, Number]] = []
    for i in range(candidate.stages):
        layers = [u for u, stage in enumerate(plan.stage) if stage == i]
        held = in_flight(setting.schedule, candidate.stages, candidate.micro_batches, i)
        states = activations = working = 0.0
        for u in layers:
            kind, k = setting.graph.types[u], plan.strategy[u]
            states += float(candidate.resident[kind][k])
            activations += held * float(candidate.in_flight[kind][k])
            working = max(working, float(candidate.workspace[kind][k]))
        rows.append({
            "memory": round(states + activations + working),
            "states": round(states),
            "activations": round(activations),
            "working": round(working),
        })  # fmt: skip
    return rows
