"""What joint optimisation gains: the same problems, solved jointly and in the ways that split the decision.

    python benchmarks/joint_vs_two_level.py [PROBLEM.json ...]

- even stages    layers split evenly over the stages first, then the best strategies
- uniform        one strategy for all layers (a grid search, as with Megatron), stages free
- min-max        stages by the programme of Alpa: intra-layer optima of every interval, then the least sum plus longest
                 stage, blind to what lies between stages and to what happens once per step; paid afterwards
- intra only     one stage                    - inter only     a device per stage, no parallelism inside
Every row is the true objective (1) of the plan, and how much slower it is than the joint optimum.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from solver_scaling import GB, gpt

from uniap_compiler.solver import Problem, evaluate, solve

CASES = Path(__file__).parent.parent / "tests" / "solver" / "cases"
Data = dict[str, Any]


def objective(data: Data) -> float | None:
    if not data["candidates"]:
        return None
    result = solve(Problem.from_json(data), time_limit=60)
    return result.plans[0].objective if result.plans else None


def even_stages(data: Data) -> float | None:
    L, found = len(data["layers"]), []
    for D in sorted({candidate["stages"] for candidate in data["candidates"]}):
        if D <= L:
            fixed = [{"layer": u, "stage": u * D // L} for u in range(L)]
            own = [candidate for candidate in data["candidates"] if candidate["stages"] == D]
            found.append(objective(data | {"fixed": fixed, "candidates": own}))
    return min((value for value in found if value is not None), default=None)


def uniform(data: Data) -> float | None:
    types = set(data["layers"])
    return objective(
        data
        | {
            "candidates": [
                candidate | {"allowed": {kind: [k] for kind in types}}
                for candidate in data["candidates"]
                for k in range(len(candidate["strategies"]))
            ]
        }
    )


def min_max(data: Data) -> float | None:
    blind = {key: value for key, value in data.items() if key != "schedule"}
    blind["candidates"] = []
    for candidate in data["candidates"]:
        free = {pair: [[0.0] * len(row) for row in table] for pair, table in candidate["transfer"].items()}
        blind["candidates"].append({k: v for k, v in candidate.items() if k != "step_time"} | {"transfer": free})
    result = solve(Problem.from_json(blind), time_limit=60)
    if not result.plans:
        return None
    plan = result.plans[0]
    return evaluate(Problem.from_json(data), plan.candidate, plan.stage, plan.strategy)[0]


def only(data: Data, keep: Any) -> float | None:
    return objective(data | {"candidates": [candidate for candidate in data["candidates"] if keep(candidate)]})


def compare(data: Data) -> dict[str, float | None]:
    return {
        "joint": objective(data),
        "even stages": even_stages(data),
        "uniform": uniform(data),
        "min-max": min_max(data),
        "intra only": only(data, lambda candidate: candidate["stages"] == 1),
        "inter only": only(data, lambda candidate: all("dp=1,tp=1" in name for name in candidate["strategies"])),
    }


def main() -> None:
    if len(sys.argv) > 1:
        problems = [json.loads(Path(path).read_text()) for path in sys.argv[1:]]
    else:
        names = ("gpt26-n8", "gpt34-n16", "gpt50-n32", "swin53-n16")
        problems = [json.loads((CASES / f"{name}.json").read_text()) for name in names]
        problems += [
            gpt(32, 16, hidden=4096, memory=16 * GB) | {"name": "gpt34-n16-16GB, 1F1B"},
            gpt(48, 64, hidden=5120, memory=10 * GB) | {"name": "gpt50-n64-10GB, 1F1B"},
        ]
    print("| problem | joint, s | even stages | uniform | min-max | intra only | inter only |")
    print("|---|---|---|---|---|---|---|")
    for data in problems:
        row = compare(data)
        best = row.pop("joint")
        assert best is not None
        cells = ["no plan" if value is None else f"+{100 * (value / best - 1):.1f} %" for value in row.values()]
        print(f"| {data['name']} | {best:.4f} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
