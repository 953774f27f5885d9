"""Problems that are hard for the solver, and how long they take; the tables of docs/solver.md.

    python benchmarks/solver_hard.py [--certify] [--time-limit 60] [NAME ...]     # names that contain one of these

50 or 98 layers, up to 40 strategies in 4-7 classes, 1F1B, once-per-step time, working sets, tight memory. Families:
- skips       eight values from the first half to the second, as in a U-Net
- readers     one value with 23 readers, as the encoder's output in T5
- pairs       two pairs of layers that must take the same strategy
- different   every layer of a type of its own: times and working sets differ by up to 30 %, states by 10 %
"""

from __future__ import annotations

import argparse
import random
import time
from typing import Any

from solver_scaling import GB, gpt

from uniap_compiler.solver import Problem, solve

Data = dict[str, Any]


def _between_classes(data: Data, seconds: float = 2e-4) -> list[list[float]]:
    classes = range(1 + max(max(candidate["layout"]) for candidate in data["candidates"]))
    return [[0.0 if q == r else seconds * (1 + abs(q - r)) for r in classes] for q in classes]


def readers(data: Data) -> Data:
    middle, table = len(data["layers"]) // 2 - 1, _between_classes(data)
    value = {"from": middle, "to": list(range(middle + 2, middle + 25)), "reshard": table, "transfer": 3e-3}
    return data | {"values": [value]}


def skips(data: Data) -> Data:
    last, table = len(data["layers"]) - 3, _between_classes(data)
    pairs = [(2 + 2 * n, last - 2 * n) for n in range(8)]
    return data | {"values": [{"from": u, "to": [v], "reshard": table, "transfer": 1e-3} for u, v in pairs]}


def pairs(data: Data) -> Data:
    L = len(data["layers"])
    return data | {"same": [[0, L - 1], [5, L - 6]]}


def different(data: Data) -> Data:
    rng, kinds = random.Random(1), data["layers"]
    names = [f"{kind}{u}" for u, kind in enumerate(kinds)]
    for candidate in data["candidates"]:
        tables = {field: candidate[field] for field in ("time", "memory", "step_time", "workspace")}
        new: dict[str, dict[str, Any]] = {field: {} for field in tables}
        for name, kind in zip(names, kinds, strict=True):
            wide = [rng.uniform(0.7, 1.3) for _ in candidate["strategies"]]
            near = [rng.uniform(0.9, 1.1) for _ in candidate["strategies"]]
            for field, factors in (("time", wide), ("step_time", near), ("workspace", wide)):
                new[field][name] = [x * y for x, y in zip(tables[field][kind], factors, strict=True)]
            new["memory"][name] = [[x * y for x, y in zip(row, near, strict=True)] for row in tables["memory"][kind]]
        for field in ("reshard", "transfer"):
            old = candidate[field]
            new[field] = {f"{names[u - 1]}>{names[u]}": old[f"{kinds[u - 1]}>{kinds[u]}"] for u in range(1, len(kinds))}
        candidate |= new
    return data | {"layers": names}


def small(devices: int, memory: float) -> Data:
    return gpt(48, devices, hidden=2048, memory=memory * GB)


def large(memory: float, stages: list[int] | None = None) -> Data:
    return gpt(96, 64, memory=memory * GB, stages=stages)


PROBLEMS = {
    "chain, 16 devices": lambda: small(16, 8),
    "chain, 32 devices": lambda: small(32, 6),
    "readers, 16 devices": lambda: readers(small(16, 8)),
    "readers, 32 devices": lambda: readers(small(32, 6)),
    "skips, 16 devices": lambda: skips(small(16, 8)),
    "skips, 32 devices": lambda: skips(small(32, 6)),
    "pairs, 16 devices": lambda: pairs(small(16, 8)),
    "pairs, 32 devices": lambda: pairs(small(32, 6)),
    "different, 16 devices": lambda: different(small(16, 8)),
    "different, 32 devices": lambda: different(small(32, 6)),
    "different, readers, 16 devices": lambda: readers(different(small(16, 8))),
    "different, skips, 16 devices": lambda: skips(different(small(16, 8))),
    "different, pairs, 16 devices": lambda: pairs(different(small(16, 8))),
    "different, skips, pairs, 32 devices": lambda: pairs(skips(different(small(32, 6)))),
    "98 layers, 64 devices": lambda: large(9),
    "98 layers, 64 devices, skips, 8 or 16 stages": lambda: skips(large(9, [8, 16])),
    "98 layers, 64 devices, different": lambda: different(large(12)),
    "98 layers, 64 devices, different, readers": lambda: readers(different(large(10))),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--certify", action="store_true")
    parser.add_argument("--time-limit", type=float, default=60.0)
    arguments = parser.parse_args()
    print(
        "| problem | CPU s | wall s | status | gap | stages, micro-batches | objective, s | arguments |\n"
        + "|---" * 8
        + "|"
    )
    for name, build in PROBLEMS.items():
        if arguments.names and not any(part in name for part in arguments.names):
            continue
        problem = Problem.from_json(build())
        cpu, wall = time.process_time(), time.monotonic()
        result = solve(problem, time_limit=arguments.time_limit, certify=arguments.certify)
        cpu, wall = time.process_time() - cpu, time.monotonic() - wall
        best = result.plans[0] if result.plans else None
        shape, objective = (f"({best.stages}, {best.micro_batches})", f"{best.objective:.6f}") if best else ("-", "-")
        how = result.proof.get("certificate", {}).get("arguments", "")
        gap = "-" if result.gap is None else f"{result.gap:.0e}"
        print(
            f"| {name} | {cpu:.1f} | {wall:.1f} | {result.status} | {gap} | {shape} | {objective} | {how} |", flush=True
        )


if __name__ == "__main__":
    main()
