#!/usr/bin/env python3
"""What a `uniap-problem/1` file means, executably: objective and feasibility of one plan, and brute force.

evaluate.py PROBLEM.json PLAN.json     re-evaluates a plan as printed by `uniap solve`
evaluate.py --brute PROBLEM.json       the optimum by enumeration (tiny problems only)
"""

import itertools
import json
import sys


def per_stage(table, i):
    """A table of K numbers, or one such table for each stage."""
    return table[i] if isinstance(table[0], list) else table


def evaluate(problem, candidate, stage, strategy):
    """Objective in seconds and the list of violated conditions (empty = feasible)."""
    layers, D, c = problem["layers"], candidate["stages"], candidate["micro_batches"]
    layout, bad = candidate["layout"], []
    p, o, s = [0.0] * D, [0.0] * (D - 1), [0.0] * D
    memory, workspace = [0.0] * D, [0.0] * D
    for u, kind in enumerate(layers):
        i, k = stage[u], strategy[u]
        if k not in candidate.get("allowed", {}).get(kind, range(len(layout))):
            bad.append(f"layer {u}: strategy {k} is not allowed")
        p[i] += per_stage(candidate["time"][kind], i)[k]
        s[i] += candidate.get("step_time", {}).get(kind, [0.0] * len(layout))[k]
        memory[i] += candidate["memory"][kind][i][k]
        workspace[i] = max(workspace[i], candidate.get("workspace", {}).get(kind, [0.0] * len(layout))[k])
        if u:
            a, b, pair = layout[strategy[u - 1]], layout[k], f"{layers[u - 1]}>{kind}"
            if stage[u - 1] == i:
                p[i] += candidate["reshard"][pair][a][b]
            elif stage[u - 1] == i - 1:
                o[i - 1] += candidate["transfer"][pair][a][b]
            else:
                bad.append(f"layers {u - 1}, {u}: stages {stage[u - 1]}, {i} are not in order")
    for value in problem.get("values", []):  # tensors read beyond the next layer
        u, reach = value["from"], stage[value["from"]]
        for v in value["to"]:
            p[stage[v]] += value["reshard"][layout[strategy[u]]][layout[strategy[v]]]
            reach = max(reach, stage[v])
        for j in range(stage[u], reach):  # relayed, paid once per boundary
            o[j] += value["transfer"]
    limit = candidate.get("memory_limit", problem["memory"])
    for i in range(D):
        room = limit[i] if isinstance(limit, list) else limit
        if memory[i] + workspace[i] > room * (1 + 1e-12):
            bad.append(f"stage {i}: {memory[i] + workspace[i]:.6g} of {room:.6g} bytes")
    if set(stage) != set(range(D)):
        bad.append("an empty stage")
    for rule in problem.get("fixed", []):
        u = rule["layer"]
        if "stage" in rule and stage[u] != rule["stage"]:
            bad.append(f"layer {u}: stage is fixed")
        if "strategies" in rule and candidate["strategies"][strategy[u]] not in rule["strategies"]:
            bad.append(f"layer {u}: strategy is fixed")
    for u, v in problem.get("same", []):
        if strategy[u] != strategy[v]:
            bad.append(f"layers {u}, {v}: strategies differ")
    period = max(p + o)
    if problem.get("schedule") == "1f1b":  # at most D-i micro-batches in flight from stage i on
        for i in range(D):
            if D - i < c:
                period = max(period, (sum(p[i:]) + sum(o[i:])) / (D - i))
    return sum(p) + sum(o) + (c - 1) * period + max(s), bad


def brute(problem):
    best = None
    for n, candidate in enumerate(problem["candidates"]):
        L, D = len(problem["layers"]), candidate["stages"]
        for cuts in itertools.combinations(range(1, L), D - 1):
            stage = [sum(u >= cut for cut in cuts) for u in range(L)]
            for strategy in itertools.product(range(len(candidate["layout"])), repeat=L):
                value, bad = evaluate(problem, candidate, stage, strategy)
                if not bad and (best is None or value < best["objective"]):
                    best = {
                        "objective": value,
                        "candidate": n,
                        "stages": D,
                        "micro_batches": candidate["micro_batches"],
                        "stage": stage,
                        "strategy": list(strategy),
                    }
    return best or {"objective": None}


if __name__ == "__main__":
    if sys.argv[1] == "--brute":
        print(json.dumps(brute(json.load(open(sys.argv[2])))))
    else:
        problem, plan = (json.load(open(path)) for path in sys.argv[1:3])
        n = plan.get("candidate")
        pool = (
            [problem["candidates"][n]]
            if n is not None
            else [
                c
                for c in problem["candidates"]
                if (c["stages"], c["micro_batches"]) == (plan["stages"], plan["micro_batches"])
            ]
        )
        results = [evaluate(problem, c, plan["stage"], plan["strategy"]) for c in pool]
        value, bad = min(results, key=lambda r: (bool(r[1]), r[0]))
        print(json.dumps({"objective": value, "violations": bad}))
        sys.exit(bool(bad))
