"""Random small problems over every optional field, for comparison with enumeration."""

from __future__ import annotations

import random
from typing import Any


def random_problem(seed: int, *, chain: bool = False) -> dict[str, Any]:
    """One problem as JSON. With `chain`, no values and no coupled layers."""
    rng = random.Random(seed)
    types = ["a", "b", "c"][: rng.randint(1, 3)]
    L = rng.randint(1, 6)
    K = rng.randint(1, 4 if L <= 4 else 3 if L <= 5 else 2)
    layers = [rng.choice(types) for _ in range(L)]
    steady = rng.random() < 0.5
    uneven = rng.random() < 0.5
    classes = rng.randint(1, min(3, K))

    def number(high: float) -> float:
        return rng.choice([round(rng.uniform(0, high), 3), float(rng.randint(0, int(high) + 1))])

    def table(high: float) -> list[list[float]]:
        return [
            [0.0 if q == r and rng.random() < 0.7 else number(high) for r in range(classes)] for q in range(classes)
        ]

    pairs = sorted({f"{a}>{b}" for a in types for b in types})
    candidates = []
    for D in range(1, min(4, L + 1) + (rng.random() < 0.1)):
        for c in rng.sample([1, 2, 4, 8], rng.randint(1, 2)):
            for _ in range(1 + (rng.random() < 0.2)):
                candidate: dict[str, Any] = {
                    "stages": D,
                    "micro_batches": c,
                    "strategies": [f"s{k}" for k in range(K)],
                    "layout": [rng.randrange(classes) for _ in range(K)],
                    "time": {
                        t: [[number(8) for _ in range(K)] for _ in range(D)]
                        if uneven and rng.random() < 0.5
                        else [number(8) for _ in range(K)]
                        for t in types
                    },
                    "memory": {t: [[number(6) for _ in range(K)] for _ in range(D)] for t in types},
                    "reshard": {pair: table(2) for pair in pairs},
                    "transfer": {pair: table(4) for pair in pairs},
                }
                if uneven and rng.random() < 0.5:
                    candidate["memory_limit"] = [rng.choice([3.0, 6.0, 9.0, 14.0, 30.0]) for _ in range(D)]
                if rng.random() < 0.6:
                    candidate["step_time"] = {t: [number(5) for _ in range(K)] for t in types if rng.random() < 0.8}
                if rng.random() < 0.5:
                    candidate["workspace"] = {t: [number(4) for _ in range(K)] for t in types if rng.random() < 0.8}
                if rng.random() < 0.2:
                    candidate["allowed"] = {rng.choice(types): sorted(rng.sample(range(K), rng.randint(1, K)))}
                candidates.append(candidate)
    data: dict[str, Any] = {
        "format": "uniap-problem/1",
        "name": f"random-{seed}",
        "memory": rng.choice([6.0, 9.0, 12.0, 16.0, 40.0]),
        "layers": layers,
        "candidates": candidates,
    }
    if steady:
        data["schedule"] = "1f1b"
    if rng.random() < 0.2:
        fixed: dict[str, Any] = {"layer": rng.randrange(L)}
        if rng.random() < 0.6:
            fixed["strategies"] = [f"s{k}" for k in range(K) if rng.random() < 0.7] or ["s0"]
        else:
            fixed["stage"] = rng.randint(0, 1)
        data["fixed"] = [fixed]
    if not chain:
        if L > 2 and rng.random() < 0.6:
            data["values"] = []
            for _ in range(rng.randint(1, 3)):
                u = rng.randint(0, L - 2)
                readers = sorted(rng.sample(range(u + 1, L), rng.randint(1, min(3, L - 1 - u))))
                data["values"].append({"from": u, "to": readers, "reshard": table(3), "transfer": number(2)})
            if rng.random() < 0.5:  # a candidate with costs of its own, or without any
                own = [v | {"reshard": table(3), "transfer": number(2)} for v in data["values"]]
                rng.choice(candidates)["values"] = rng.choice([own, []])
        if L > 1 and rng.random() < 0.4:
            data["same"] = [sorted(rng.sample(range(L), 2)) for _ in range(rng.randint(1, 2))]
    return data
