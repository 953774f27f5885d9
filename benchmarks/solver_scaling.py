"""How solve time grows with layers, strategies, stages and devices; draws docs/solver_scaling.svg.

    python benchmarks/solver_scaling.py                    # the table, the plot, a few minutes
    python benchmarks/solver_scaling.py --write FILE.json --layers 98 --devices 64    # one problem as a file

The problems come from an analytic model of GPT-like training on nodes of eight A100s: realistic, not measured.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
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
    """(dp, tp, sharding, recompute, sequence-split boundary); the first `most`, every tp in turn."""
    by_degree = []
    tp = 1
    while tp <= min(PER_NODE, devices):
        dp = devices // tp
        shards = ("none", "parameters", "optimizer", "gradients") if dp > 1 else ("none",)
        splits = (0, 1) if tp > 1 else (0,)
        by_degree.append([(dp, tp, shard, r, sp) for r in (0, 2, 1) for shard in shards for sp in splits])
        tp *= 2
    turns = itertools.zip_longest(*by_degree)
    return [row for turn in turns for row in turn if row is not None][:most]


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
        again = (1.0, 4 / 3, 1.08)[recompute]
        for kind in kinds:
            weights, across = parameters[kind] / tp, bandwidth(dp * tp)
            compute = work[kind] * tokens / tp / FLOPS * again * (1 + 0.02 * (tp > 1))
            reduce = 8 * tokens * hidden * 2 * (tp - 1) / tp / bandwidth(tp) * (1.0 if kind == "blk" else 0.5)
            gather = 6 * weights * (dp - 1) / dp / across if shard == "parameters" else 0.0
            scatter = 2 * weights * (dp - 1) / dp / across if shard == "gradients" else 0.0
            sync = 8 * weights * (dp - 1) / dp / across if shard in ("none", "optimizer") else 0.0
            out["time"][kind].append(compute + reduce * (0.95 if sp else 1.0) + 0.4 * (gather + scatter))
            out["step_time"][kind].append(sync + 16 * weights / 1.3e12)
            held = {"none": 18.0, "optimizer": 6 + 12 / dp, "gradients": 2 + 16 / dp, "parameters": 18 / dp}[shard]
            split = tp if sp or tp == 1 else 0.3 * tp + 0.7
            kept = (saved[kind], 2 * hidden, 0.45 * saved[kind])[recompute] * tokens / split
            out["workspace"][kind].append(
                (4 * weights if shard == "parameters" else 0.0) + saved[kind] * tokens / tp * (0.3, 1.0, 0.6)[recompute]
            )
            for i in range(D):
                flight = min(c, D - i) if schedule == "1f1b" else c
                out["memory"][kind][i].append(float(round(held * weights + kept * flight)))
    Q = range(len(layouts))
    move = 2 * batch / c * sequence * hidden / group
    out["reshard"] = [[0.0 if q == r else move * (1 + abs(q - r)) / bandwidth(group) + 5e-5 for r in Q] for q in Q]
    hop = 2 * move / NETWORK + 2e-5 if D > 1 else 0.0
    out["transfer"] = [[hop + out["reshard"][q][r] if D > 1 else 0.0 for r in Q] for q in Q]
    return out


def measure(limit: float = 60.0, **size: Any) -> dict[str, Any]:
    """CPU seconds of one solve, with what came out. `size` are the arguments of `gpt`."""
    problem = Problem.from_json(gpt(**size))
    cpu = time.process_time()
    result = solve(problem, time_limit=limit)
    cpu = time.process_time() - cpu
    plan = result.plans[0] if result.plans else None
    return {
        "cpu": cpu,
        "status": result.status,
        "candidates": len(problem.candidates),
        "plan": (plan.stages, plan.micro_batches) if plan else None,
        "closed": result.proof.get("confirmation", {}).get("closed"),
    }


BASE: dict[str, Any] = {"layers": 48, "devices": 64, "most_strategies": 40}
AXES: dict[str, list[dict[str, Any]]] = {
    "layers": [{"layers": n} for n in (12, 24, 48, 96, 144, 200)],
    "strategies": [{"most_strategies": n} for n in (4, 8, 16, 32, 64)],
    "stages": [{"stages": [2**m for m in range(n + 1)], "at": 2**n} for n in range(6)],
    "devices": [{"devices": n, "batch": max(64, n)} for n in (8, 64, 512, 4096)],
}


def sweep() -> dict[str, list[tuple[int, dict[str, Any]]]]:
    """One axis after the other, the rest at BASE; memory such that plans are tight."""
    out: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for axis, points in AXES.items():
        for point in points:
            size = BASE | {key: value for key, value in point.items() if key != "at"}
            at = point.get("at", size.get("most_strategies" if axis == "strategies" else axis))
            states = 18 * 12 * 4096**2 * size["layers"] / size["devices"]
            row = measure(memory=float(round(1.3 * states + 4 * GB)), **size)
            out.setdefault(axis, []).append((at, row))
            print(
                f"| {axis} | {at} | {row['candidates']} | {row['cpu']:.2f} | {row['status']} | {row['plan']} |",
                flush=True,
            )
    return out


def draw(results: dict[str, list[tuple[int, dict[str, Any]]]]) -> str:
    """Four log-log panels as SVG."""
    width, height, margin = 260, 220, 46
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width * len(results)}" height="{height}" '
        'font-family="sans-serif" font-size="11">'
    ]
    for n, (axis, rows) in enumerate(results.items()):
        left, right = n * width + margin, (n + 1) * width - 14
        top, bottom = 14, height - 34
        logs = [math.log2(at) for at, _ in rows]
        span = max(logs[-1] - logs[0], 1e-9)

        box = (left, right, top, bottom, logs[0], span)
        parts.append(f'<path d="M{left},{top}V{bottom}H{right}" fill="none" stroke="#888"/>')
        for seconds in (0.1, 1, 10, 100):
            _, y = place(rows[0][0], seconds, *box)
            parts.append(f'<path d="M{left},{y}H{right}" stroke="#ddd"/>')
            parts.append(f'<text x="{left - 4}" y="{y + 4}" text-anchor="end">{seconds:g} s</text>')
        points = [place(at, row["cpu"], *box) for at, row in rows]
        parts.append(f'<polyline points="{" ".join(f"{x},{y}" for x, y in points)}" fill="none" stroke="#1f6fb4"/>')
        for (x, y), (at, _) in zip(points, rows, strict=True):
            parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="#1f6fb4"/>')
            parts.append(f'<text x="{x}" y="{bottom + 14}" text-anchor="middle">{at}</text>')
        parts.append(f'<text x="{(left + right) / 2}" y="{bottom + 29}" text-anchor="middle">{axis}</text>')
    return "\n".join([*parts, "</svg>\n"])


def place(
    at: int, cpu: float, left: int, right: int, top: int, bottom: int, first: float, span: float
) -> tuple[float, float]:
    """Where a point lies in a panel; 0.03 s to 100 s from bottom to top."""
    low, high = -1.5, 2.0
    x = left + (math.log2(at) - first) / span * (right - left)
    y = bottom - (min(max(math.log10(max(cpu, 1e-3)), low), high) - low) / (high - low) * (bottom - top)
    return round(x, 1), round(y, 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="write one problem instead")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--devices", type=int, default=32)
    parser.add_argument("--memory", type=float, default=40.0, help="GB per device")
    parser.add_argument("--tied", action="store_true", help="embedding and head share parameters")
    parser.add_argument("--plot", type=Path, default=Path(__file__).parent.parent / "docs" / "solver_scaling.svg")
    options = parser.parse_args()
    if options.write:
        data = gpt(options.layers, options.devices, memory=options.memory * GB, tied=options.tied)
        options.write.write_text(json.dumps(data))
    else:
        print("| axis | value | candidates | CPU s | status | stages, micro-batches |\n|---|---|---|---|---|---|")
        options.plot.write_text(draw(sweep()))
