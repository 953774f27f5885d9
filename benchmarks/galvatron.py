"""Galvatron's own search problems (Llama-2-7B, its profiles, its numbers), solved by this solver, side by side.

    python benchmarks/galvatron.py [FOLDER]        # default: tests/solver/cases/galvatron

Galvatron chooses one strategy per layer, one for embedding and head together, a buffer size per search task, stages and
chunks. Here every (chunks, pp, task, embedding) is one candidate: the embedding's cost belongs to the first layer, the
head's to the last, what they need on stages between is taken off those stages' memory, and the buffer is a workspace.
Both plans are timed by the same event simulation of 1F1B on the same numbers.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from uniap_compiler.solver import Plan, Problem, solve
from uniap_compiler.solver.instance import build_instance
from uniap_compiler.solver.miqp import stage_times

MB = 2.0**20
CASES = Path(__file__).parent.parent / "tests" / "solver" / "cases" / "galvatron"


def convert(
    tables: dict[str, Any], tail: bool = True
) -> tuple[dict[str, Any], list[tuple[dict[str, Any], dict[str, Any], int]]]:
    """The `uniap-problem/1` of Galvatron's tables, and (problem, task, embedding) behind every candidate.

    Without `tail`, gradient synchronisation is left out, as in most of what Galvatron itself adds up.
    """
    L = tables["layers"]
    kinds = ["first", *["block"] * (L - 2), "last"]
    candidates, origin = [], []
    for problem in tables["problems"]:
        for task in problem["tasks"]:
            if task["strategy_idx"]:
                for e in task["embedding_idx"]:
                    candidate = _candidate(tables, problem, task, problem["embeddings"][e])
                    if not tail:
                        del candidate["step_time"]
                    candidates.append(candidate)
                    origin.append((problem, task, e))
    data = {
        "format": "uniap-problem/1",
        "name": tables["case"],
        "memory": tables["usable_mb"] * MB,
        "schedule": "1f1b",
        "layers": kinds,
        "candidates": candidates,
    }
    return data, origin


def _candidate(
    tables: dict[str, Any], problem: dict[str, Any], task: dict[str, Any], embedding: dict[str, Any]
) -> dict[str, Any]:
    D, rows = problem["pp"], [problem["strategies"][s] for s in task["strategy_idx"]]
    moves = [[problem["reshard_seconds"][s][r] for r in task["strategy_idx"]] for s in task["strategy_idx"]]
    layout, kept = classes(moves)
    ends = {"first": 0, "last": D - 1}
    time_: dict[str, list[float]] = {"block": [row["t_nosync"] for row in rows]}
    step = {"block": [max(0.0, row["t_sync"] - row["t_nosync"]) for row in rows]}
    memory = {kind: [[row["mem"][i] * MB for row in rows] for i in range(D)] for kind in ("first", "block", "last")}
    for kind, i in ends.items():
        share = 0.0 if D == 1 and kind == "last" else 1.0  # one stage: the table holds both together
        nosync, sync = embedding["t_nosync"][i], embedding["t_sync"][i]
        time_[kind] = [t + share * nosync for t in time_["block"]]
        step[kind] = [s + share * max(0.0, sync - nosync) for s in step["block"]]
        memory[kind][i] = [m + share * embedding["mem"][i] * MB for m in memory["block"][i]]
    between = [0.0 if i in (0, D - 1) else embedding["mem"][i] for i in range(D)]
    reshard = [[moves[q][r] for r in kept] for q in kept]
    zero = [[0.0] * len(kept) for _ in kept]
    pairs = ("first>block", "block>block", "block>last")
    return {
        "stages": D,
        "micro_batches": problem["chunks"],
        "strategies": [row["name"] for row in rows],
        "layout": layout,
        "time": time_,
        "memory": memory,
        "memory_limit": [(tables["usable_mb"] - used) * MB for used in between],
        "reshard": dict.fromkeys(pairs, reshard),
        "transfer": dict.fromkeys(pairs, zero),
        "step_time": step,
        "workspace": {kind: [task["global_memory_mb"] * MB] * len(rows) for kind in ("first", "block", "last")},
    }


def classes(moves: list[list[float]]) -> tuple[list[int], list[int]]:
    """Strategies with the same rows and columns of resharding are one layout class; a member stands for each."""
    keys = [(tuple(moves[q]), tuple(row[q] for row in moves)) for q in range(len(moves))]
    kept: list[int] = []
    layout = []
    for q, key in enumerate(keys):
        same = [n for n, r in enumerate(kept) if keys[r] == key and moves[q][r] == moves[r][q] == 0.0]
        if not same:
            kept.append(q)
        layout.append(same[0] if same else len(kept) - 1)
    return layout, kept


def simulate(p: list[float], s: list[float], micro_batches: int) -> float:
    """One iteration of 1F1B, event by event: forward p/3, backward 2p/3, transfers free, then each stage's step."""
    D, c = len(p), micro_batches
    order = []
    for i in range(D):
        warm = min(c, D - i)
        rest = [event for m in range(warm, c) for event in (("B", m - warm), ("F", m))]
        order.append([("F", m) for m in range(warm)] + rest + [("B", m) for m in range(c - warm, c)])
    end: dict[tuple[str, int, int], float] = {}
    clock, position = [0.0] * D, [0] * D
    while any(position[i] < len(order[i]) for i in range(D)):
        moved = False
        for i in range(D):
            while position[i] < len(order[i]):
                kind, m = order[i][position[i]]
                needs = (kind, i - 1, m) if kind == "F" else (kind, i + 1, m)
                first = i == 0 if kind == "F" else i == D - 1
                if not first and needs not in end:
                    break
                ready = end[("F", i, m)] if kind == "B" and first else 0.0 if first else end[needs]
                clock[i] = max(clock[i], ready) + (p[i] / 3 if kind == "F" else 2 * p[i] / 3)
                end[kind, i, m] = clock[i]
                position[i] += 1
                moved = True
        assert moved, "the schedule cannot deadlock"
    return max(t + tail for t, tail in zip(clock, s, strict=True))


def simulated(problem: Problem, plan: Plan) -> float:
    p, _, s, _ = stage_times(build_instance(problem, plan.candidate), plan.stage, plan.strategy)
    return simulate(p, s, plan.micro_batches)


def theirs(problem: Problem, origin: list[Any], answer: dict[str, Any]) -> Plan:
    """Galvatron's answer as a plan of the candidate that it belongs to."""
    best = answer["best"]
    wanted = best["embedding_lmhead"]
    found = []
    for n, (source, task, e) in enumerate(origin):
        if (source["chunks"], source["pp"], task["mode"]) != (best["chunks"], best["pp_size"], best["tp_sp_mode"]):
            continue
        embedding = source["embeddings"][e]
        if embedding["sp" if wanted["sp"] else "tp"] != wanted["tp_sp_size"]:
            continue
        if (embedding["dp_type"] == "zero3") != bool(wanted["zero3"]):
            continue
        names = problem.candidates[n].strategies
        if all(name in names or name + "-sp" in names for name in best["strategies"]):
            chosen = [names.index(name if name in names else name + "-sp") for name in best["strategies"]]
            stage = [i for i, count in enumerate(best["pp_stage_list"]) for _ in range(count)]
            found.append(Plan(n, best["pp_size"], best["chunks"], stage, chosen, float("nan")))
    return min(found, key=lambda plan: simulated(problem, plan))


def compare(folder: Path) -> dict[str, Any]:
    """One case: CPU seconds and simulated iteration times of both."""
    tables, answer = (json.loads((folder / f"{name}.json").read_text()) for name in ("tables", "answer"))
    cpu = time.process_time()
    data, origin = convert(tables)
    problem = Problem.from_json(data)
    result = solve(problem)
    cpu = time.process_time() - cpu
    plan = min(result.plans, key=lambda plan: simulated(problem, plan))
    other = theirs(problem, origin, answer)
    return {
        "case": folder.name,
        "candidates": len(problem.candidates),
        "status": result.status,
        "objective": result.plans[0].objective,
        "their_cpu": answer["cpu_seconds"],
        "our_cpu": cpu,
        "their_seconds": simulated(problem, other),
        "our_seconds": simulated(problem, plan),
        "their_plan": (other.stages, other.micro_batches),
        "our_plan": (plan.stages, plan.micro_batches),
    }


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else CASES
    print("| case | candidates | search, CPU s: Galvatron | ours | faster | iteration, s: Galvatron | ours | gain |")
    print("|---|---|---|---|---|---|---|---|")
    for folder in sorted(path.parent for path in root.glob("*/tables.json")):
        row = compare(folder)
        print(
            f"| {row['case']} | {row['candidates']} | {row['their_cpu']:.1f} | {row['our_cpu']:.2f} "
            f"| {row['their_cpu'] / row['our_cpu']:.0f}x | {row['their_seconds']:.4f} | {row['our_seconds']:.4f} "
            f"| {100 * (row['their_seconds'] / row['our_seconds'] - 1):.2f} % |",
            flush=True,
        )


if __name__ == "__main__":
    main()
