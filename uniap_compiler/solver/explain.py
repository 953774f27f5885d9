"""Why nothing fits, in GiB: the least memory of any plan per stage count, and the stage and layers that decide."""

from __future__ import annotations

from typing import Any

import numpy as np

from uniap_compiler.solver.instance import Bools, Floats, Instance

GIB = 2.0**30


def explain(instances: list[Instance]) -> dict[str, Any]:
    """The explanation of an infeasible problem."""
    counts: dict[int, dict[str, Any]] = {}
    conflicts: list[str] = []
    for at in instances:
        blocked = _conflicts(at)
        if blocked:
            conflicts += [text for text in blocked if text not in conflicts]
            continue
        report = _least_memory(at)
        known = counts.get(at.stages)
        if known is None or report["needed_fraction"] < known["needed_fraction"]:
            counts[at.stages] = report
    rows = [counts[D] for D in sorted(counts)]
    fits = [row["smallest_memory_gib"] for row in rows if row["smallest_memory_gib"] is not None]
    out: dict[str, Any] = {"message": _message(rows, fits, conflicts), "stage_counts": rows}
    out["smallest_memory_gib"] = min(fits) if fits else None
    if conflicts:
        out["conflicts"] = conflicts[:20]
    return out


def _message(rows: list[dict[str, Any]], fits: list[float], conflicts: list[str]) -> str:
    if not rows:
        return "no candidate has a plan: " + "; ".join(conflicts[:3])
    best = min(rows, key=lambda row: row["needed_fraction"])
    if best["needed_fraction"] <= 1 + 1e-12:
        return "the memory would suffice, but the fixed and coupled choices exclude each other" + (
            ": " + "; ".join(conflicts[:3]) if conflicts else ""
        )
    text = (
        f"no plan fits: the leanest ({best['stages']} stages, {best['micro_batches']} micro-batches) needs "
        f"{best['needed_gib']:.4g} GiB on stage {best['stage']} (layers {best['layers'][0]}-{best['layers'][1]}), "
        f"and a device has {best['limit_gib']:.4g} GiB"
    )
    return text + (f"; something fits from {min(fits):.4g} GiB per device on" if fits else "")


def _conflicts(at: Instance) -> list[str]:
    if at.stages > at.layers:
        return [f"{at.stages} stages need at least as many layers, there are {at.layers}"]
    out = [
        f"layer {u} ({at.problem.layers[u]}): no strategy is both allowed and among the fixed ones"
        for u in range(at.layers)
        if not at.allowed[at.kind[u]].any()
    ]
    return out + [
        f"layer {u} ({at.problem.layers[u]}): the fixed stages leave it none of {at.stages}"
        for u in range(at.layers)
        if at.first[u] > at.last[u]
    ]


def _least_memory(at: Instance) -> dict[str, Any]:
    """The plan that needs the least of its fullest device, as a fraction of that device."""
    (fraction, i, a, b, need), _ = min(_fullest(at, mask) for mask in _tied_choices(at))
    uniform = bool(np.all(at.limit == at.limit[0]))
    return {
        "stages": at.stages,
        "micro_batches": at.micro_batches,
        "needed_fraction": fraction,
        "needed_gib": need / GIB,
        "limit_gib": float(at.limit[i]) / GIB,
        "stage": i,
        "layers": [a, b],
        "heaviest": _heaviest(at, i, a, b),
        "smallest_memory_gib": need / GIB if uniform else None,
    }


def leanest_plan(at: Instance) -> tuple[list[int], list[int]] | None:
    """Stage and strategy of every layer in the plan that needs the least of its fullest device, if that is found."""
    if not at.possible:
        return None
    stage, strategy = [0] * at.layers, [0] * at.layers
    best = np.inf
    for mask in _tied_choices(at):
        (fraction, *_), intervals = _fullest(at, mask)
        if fraction >= best:
            continue
        best = fraction
        for i, (a, b) in enumerate(intervals):
            for u, k in zip(range(a, b + 1), _leanest(at, i, a, b, mask), strict=True):
                stage[u], strategy[u] = i, k
    return (stage, strategy) if np.isfinite(best) else None


def _tied_choices(at: Instance) -> list[Bools]:
    """What is left to every kind of layer when tied layers have agreed: each strategy of the first group in turn, and
    the leanest ones of the others.
    """
    base = at.allowed.copy()
    groups = [sorted({int(at.kind[u]) for u in group}) for group in at.ties]
    for kinds in groups[1:]:
        common = np.asarray(base[kinds].all(axis=0))
        lean = int(np.argmin(np.where(common, at.memory[kinds].mean(axis=1).sum(axis=0), np.inf)))
        base[kinds] = False
        base[kinds, lean] = common[lean]
    if not groups:
        return [base]
    out = []
    for k in np.flatnonzero(base[groups[0]].all(axis=0)):
        mask = base.copy()
        mask[groups[0]] = False
        mask[groups[0], k] = True
        out.append(mask)
    return out or [np.zeros_like(base)]


def _fullest(at: Instance, allowed: Bools) -> tuple[tuple[float, int, int, int, float], list[tuple[int, int]]]:
    """(fraction, stage, first layer, last layer, bytes) of the fullest stage of the leanest plan: a min-max path.

    With it, the interval of layers on every stage of that plan.
    """
    L, D = at.layers, at.stages
    reach = np.full(L + 1, np.inf)
    reach[0] = 0.0
    back = np.zeros((D, L + 1), dtype=int)
    needs = []
    cache: dict[bytes, Floats] = {}
    for i in range(D):
        key = at.memory[:, i].tobytes()
        if key not in cache:
            cache[key] = _interval_memory(at, i, allowed)
        inside = (at.first <= i) & (i <= at.last)
        blocked = np.r_[0, np.cumsum(~inside)]
        need = np.where(blocked[1:][None, :] - blocked[:-1][:, None] == 0, cache[key], np.inf)
        needs.append(need)
        value = np.maximum(reach[:-1, None], need / max(float(at.limit[i]), 1e-30))  # a, b
        back[i, 1:] = value.argmin(axis=0)
        reach = np.r_[np.inf, value.min(axis=0)]
    b, worst = L, (-1.0, 0, 0, 0, 0.0)
    intervals = []
    for i in range(D - 1, -1, -1):
        a = int(back[i, b])
        held = float(needs[i][a, b - 1])
        worst = max(worst, (held / max(float(at.limit[i]), 1e-30), i, a, b - 1, held))
        intervals.append((a, b - 1))
        b = a
    return worst, intervals[::-1]


def _leanest(at: Instance, i: int, a: int, b: int, allowed: Bools) -> list[int]:
    """The strategies of layers a..b that need the least memory together, working set included."""
    best, chosen = np.inf, [0] * (b - a + 1)
    kinds = at.kind[a : b + 1]
    for ceiling in np.unique(at.workspace[kinds][allowed[kinds]]):
        held = np.where(allowed & (at.workspace <= ceiling), at.memory[:, i], np.inf)[kinds]
        need = float(held.min(axis=1).sum() + ceiling)
        if need < best:
            best, chosen = need, held.argmin(axis=1).tolist()
    return chosen


def _interval_memory(at: Instance, i: int, allowed: Bools) -> Floats:
    """need[a, b]: the least memory of layers a..b on stage i, working set included (one is chosen as the ceiling)."""
    L = at.layers
    out = np.full((L, L), np.inf)
    for ceiling in np.unique(np.where(allowed, at.workspace, 0.0)):
        mask = allowed & (at.workspace <= ceiling)
        least = np.where(mask, at.memory[:, i], np.inf).min(axis=1)[at.kind]
        sums = np.zeros((L, L))
        for a in range(L):
            sums[a, a:] = np.cumsum(least[a:])
        out = np.minimum(out, sums + ceiling)
    out[np.tril_indices(L, -1)] = np.inf
    return out


def _heaviest(at: Instance, i: int, a: int, b: int) -> list[dict[str, Any]]:
    """The kinds of layers on the deciding stage, by what they need at least."""
    rows: dict[str, dict[str, Any]] = {}
    for u in range(a, b + 1):
        n = at.kind[u]
        k = int(np.argmin(np.where(at.allowed[n], at.memory[n, i] + at.workspace[n], np.inf)))
        row = rows.setdefault(at.problem.layers[u], {"type": at.problem.layers[u], "layers": 0, "gib": 0.0})
        row["layers"] += 1
        row["gib"] += float(at.memory[n, i, k]) / GIB
    return sorted(rows.values(), key=lambda row: -row["gib"])[:5]
