"""How solve time grows with layers, strategies, stages and devices; draws docs/solver_scaling.svg.

    python benchmarks/solver_scaling.py                    # the table, the plot, a few minutes
    python benchmarks/solver_scaling.py --write FILE.json --layers 98 --devices 64    # one problem as a file

The problems come from an analytic model of GPT-like training on nodes of eight A100s: realistic, not measured.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from uniap_compiler.solver import Problem, solve

GB = 1e9
FLOPS = 140e12  # attained in bf16
NVLINK, NETWORK = 230e9, 22e9  # bytes per second per device, inside a node and across nodes
PER_NODE = 8


def bandwidth(devices: int) -> float:
    return NVLINK if devices <= PER_NODE else NETWORK


def strategies(devices: int, most: int) -> list[tuple[int, int, str, int, int]]:
    """(dp, tp, sharding, recompute, sequence-split boundary), the plain ones first."""
    out = []
    tp = 1
    while tp <= min(PER_NODE, devices):
        dp = devices // tp
        for shard in ("none", "optimizer", "parameters") if dp > 1 else ("none",):
            for recompute in (0, 1):
                for sequence in (0, 1) if tp > 1 else (0,):
                    out.append((dp, tp, shard, recompute, sequence))
        tp *= 2
    return out[:most]


def gpt(
    layers: int,
    devices: int,
    *,
    hidden: int = 4096,
    sequence: int = 2048,
    vocabulary: int = 50304,
    batch: int = 64,
    memory: float = 40 * GB,
    most_strategies: int = 40,
    stages: list[int] | None = None,
    steps: bool = True,
    schedule: str | None = "1f1b",
    tied: bool = False,
) -> dict[str, Any]:
    """A `uniap-problem/1` of a GPT with `layers` blocks between an embedding and a head."""
    parameters = {"emb": vocabulary * hidden, "blk": 12 * hidden * hidden, "head": vocabulary * hidden}
    work = {"emb": 0.0, "blk": 6 * (12 * hidden**2 + sequence * hidden), "head": 6.0 * vocabulary * hidden}
    saved = {"emb": 2 * hidden, "blk": 34 * hidden, "head": 4 * vocabulary + 4 * hidden}  # bytes per token
    kinds = ["emb", *["blk"] * layers, "head"]
    pairs = sorted({f"{a}>{b}" for a, b in zip(kinds, kinds[1:], strict=False)})
    candidates = []
    for D in stages or [2**n for n in range(10) if 2**n <= min(devices, 64)]:
        c = 1
        while c <= batch:
            candidate = _candidate(
                D, c, devices // D, batch, sequence, hidden, parameters, work, saved, most_strategies, schedule
            )
            if candidate is not None:
                candidate["reshard"] = {pair: candidate["reshard"] for pair in pairs}
                candidate["transfer"] = {pair: candidate["transfer"] for pair in pairs}
                if not steps:
                    del candidate["step_time"]
                candidates.append(candidate)
            c *= 2
    data: dict[str, Any] = {"format": "uniap-problem/1", "name": f"gpt{layers}-n{devices}", "memory": memory}
    if schedule:
        data["schedule"] = schedule
    data |= {"layers": kinds, "candidates": candidates}
    if tied:
        data["same"] = [[0, len(kinds) - 1]]
    return data


def _candidate(
    D: int,
    c: int,
    group: int,
    batch: int,
    sequence: int,
    hidden: int,
    parameters: dict[str, int],
    work: dict[str, float],
    saved: dict[str, float],
    most: int,
    schedule: str | None,
) -> dict[str, Any] | None:
    rows = [s for s in strategies(group, 10**6) if batch // c >= s[0] and (batch // c) % s[0] == 0][:most]
    if not rows:
        return None
    kinds = list(parameters)
    out: dict[str, Any] = {"stages": D, "micro_batches": c, "strategies": [], "layout": []}
    out |= {"time": {k: [] for k in kinds}, "memory": {k: [[] for _ in range(D)] for k in kinds}}
    out |= {"step_time": {k: [] for k in kinds}, "workspace": {k: [] for k in kinds}}
    layouts = list(dict.fromkeys((dp, tp, sp) for dp, tp, _, _, sp in rows))
    for dp, tp, shard, recompute, sp in rows:
        out["strategies"].append(f"dp={dp},tp={tp},shard={shard},recompute={recompute},sequence={sp}")
        out["layout"].append(layouts.index((dp, tp, sp)))
        tokens = batch // c // dp * sequence
        for kind in kinds:
            weights = parameters[kind] / tp
            compute = work[kind] * tokens / tp / FLOPS * (4 / 3 if recompute else 1) * (1 + 0.02 * (tp > 1))
            reduce = (
                0.0
                if tp == 1
                else 4 * 2 * tokens * hidden * 2 * (tp - 1) / tp / bandwidth(tp) * (0.5 if kind != "blk" else 1)
            )
            gather = 3 * 2 * weights * (dp - 1) / dp / bandwidth(dp * tp) if shard == "parameters" else 0.0
            sync = 2 * 4 * weights * (dp - 1) / dp / bandwidth(dp * tp)
            out["time"][kind].append(compute + reduce * (0.95 if sp else 1.0) + 0.4 * gather)
            out["step_time"][kind].append((0.0 if shard == "parameters" else sync) + 16 * weights / 1.3e12)
            states = {"none": 18.0, "optimizer": 6 + 12 / dp, "parameters": 18 / dp}[shard] * weights
            kept = (
                saved[kind]
                * tokens
                / (tp if sp or tp == 1 else 0.3 * tp + 0.7)
                * (1 if not recompute else 2 * hidden / saved[kind])
            )
            out["workspace"][kind].append(
                (4 * weights if shard == "parameters" else 0.0)
                + saved[kind] * tokens / tp * (1.0 if recompute else 0.3)
            )
            for i in range(D):
                flight = min(c, D - i) if schedule == "1f1b" else c
                out["memory"][kind][i].append(float(round(states + kept * flight)))
    Q = range(len(layouts))
    move = 2 * batch / c * sequence * hidden
    out["reshard"] = [
        [0.0 if q == r else move / group * (1 + abs(q - r)) / bandwidth(group) + 5e-5 for r in Q] for q in Q
    ]
    out["transfer"] = (
        [[2 * move / group / NETWORK + 2e-5 + out["reshard"][q][r] for r in Q] for q in Q]
        if D > 1
        else [[0.0 for _ in Q] for _ in Q]
    )
    return out


def measure(data: dict[str, Any], limit: float = 120.0) -> tuple[float, float, str, float]:
    problem = Problem.from_json(data)
    cpu, wall = time.process_time(), time.monotonic()
    result = solve(problem, time_limit=limit)
    return (
        time.process_time() - cpu,
        time.monotonic() - wall,
        result.status,
        result.best.objective if result.best else float("nan"),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", type=Path)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--devices", type=int, default=32)
    parser.add_argument("--no-steps", action="store_true")
    parser.add_argument("--memory", type=float, default=40.0)
    parser.add_argument("--tied", action="store_true")
    options = parser.parse_args()
    if options.write:
        data = gpt(
            options.layers, options.devices, steps=not options.no_steps, memory=options.memory * GB, tied=options.tied
        )
        options.write.write_text(json.dumps(data))
