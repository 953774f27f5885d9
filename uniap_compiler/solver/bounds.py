"""Cheap lower bounds on the objective of a candidate (docs/solver.md, "The sweep")."""

from __future__ import annotations

import numpy as np

from uniap_compiler.solver.instance import Instance


def closed_form(at: Instance) -> float:
    """(B1) sum min A + (D-1) min R' + (c-1) max(sum min A / D, max_u min A, min R') + the least once-per-step time."""
    if not at.possible:
        return float("inf")
    D, c = at.stages, at.micro_batches
    masked = np.where(at.allowed[:, None, :], at.time, np.inf).min(axis=2)  # kind, stage
    least = np.array([masked[n, list(at.window(u))].min() for u, n in enumerate(at.kind)])
    hops = np.sort(at.transfer[at.edge[1:]].min(axis=(1, 2)) + at.crossing[1:])[: D - 1] if at.layers > 1 else least[:0]
    total, cheapest = float(least.sum()), float(hops.sum())
    longest = max(total / D, float(least.max()), float(hops.max()) if len(hops) else 0.0)
    if at.steady and D < c:
        longest = max(longest, (total + cheapest) / D)
    step = np.where(at.allowed, at.step, np.inf).min(axis=1)[at.kind]
    return total + cheapest + (c - 1) * longest + max(float(step.sum()) / D, float(step.max()))
