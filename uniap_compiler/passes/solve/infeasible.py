"""Why nothing fits, in GiB: how much is missing, on which stage, and what would make it fit.

For every candidate the least that its stages need: each layer takes the strategy with the smallest memory, and the
layers are cut where the fullest stage has the least above its limit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from uniap_compiler.cluster import Cluster
from uniap_compiler.ir import Diagnostic

from .force import Force
from .problem import Candidate, Setting, build_problem
from .problem import _admits as admitted

GIB = 2.0**30


@dataclass(frozen=True)
class Shortage:
    """missing: bytes above the limit on the fullest stage (negative: it fits)."""

    missing: float
    stage: int
    layers: tuple[int, int]
    candidate: Candidate


def explain(setting: Setting) -> Diagnostic:
    """To be called when the solver has proven that no plan fits."""
    candidates = build_problem(setting).candidates
    least = min((shortage(setting, c) for c in candidates), key=lambda s: s.missing)
    names, cluster = setting.graph.names, setting.cluster
    first, last = least.layers
    where = names[first] if first == last else f"{names[first]} ... {names[last]}"
    notes = [
        f"stage {least.stage} ({where}) needs {_gib(cluster.memory + least.missing)} of the {_gib(cluster.memory)} "
        f"that a device gives ({_gib(cluster.device.memory)} less {_gib(cluster.memory_reserve)} reserved)",
        f"this is the plan that needs least: {least.candidate.stages} stages, "
        f"{least.candidate.micro_batches} micro-batches",
    ]
    stages = f"stage {least.stage} of {least.candidate.stages}" if least.candidate.stages > 1 else "the only stage"
    return Diagnostic(
        f"no plan fits: {_gib(max(least.missing, 0.0))} are missing on every device of {stages}",
        notes=notes,
        help="; or ".join(_remedies(setting, least)),
    )


def shortage(setting: Setting, candidate: Candidate) -> Shortage:
    """The cut into stages whose fullest stage has the least above the limit (dynamic programme over last layers)."""
    graph, D = setting.graph, candidate.stages
    L, limit = len(graph.layers), setting.cluster.memory
    need = np.full((L, D), np.inf)
    work = np.full((L, D), np.inf)
    for u, kind in enumerate(graph.types):
        choices = setting.choices(u)
        options = [k for k in candidate.allowed[kind] if admitted(choices, candidate.strategies[k])]
        memory, space = candidate.memory(kind, setting.schedule), candidate.workspace[kind]
        for i in range(D):
            if options and choices.get("stage") in (None, i):
                k = min(options, key=lambda k: memory[i, k] + space[k])
                need[u, i], work[u, i] = memory[i, k], space[k]
    # over[i][end] = the least worst stage when stages 0..i hold layers 0..end; cut[i][end] = where stage i begins.
    over = np.full((D + 1, L + 1), np.inf)
    over[0, 0] = -np.inf
    cut = np.zeros((D + 1, L + 1), dtype=np.int64)
    for i in range(D):
        for end in range(i + 1, L - (D - 1 - i) + 1):
            # Sums and maxima over layers start..end-1, for every start at once.
            here = need[:end, i][::-1].cumsum()[::-1] + np.maximum.accumulate(work[:end, i][::-1])[::-1] - limit
            worst = np.maximum(over[i, :end], here)
            cut[i + 1, end] = start = int(worst.argmin())
            over[i + 1, end] = worst[start]
    found, end = [], L
    for i in reversed(range(D)):
        start = int(cut[i + 1, end])
        missing = float(need[start:end, i].sum() + work[start:end, i].max() - limit)
        found.append(Shortage(missing, i, (start, end - 1), candidate))
        end = start
    return max(found, key=lambda s: s.missing)


def _remedies(setting: Setting, least: Shortage) -> list[str]:
    cluster = setting.cluster
    found = [f"devices with {_gib(cluster.device.memory + least.missing)} of memory"]
    if setting.force.text and _fits(replace(setting, force=Force())):
        found.append("compiling without --force: then a plan fits")
    for times in (2, 4, 8, 16):
        more = _larger(cluster, times)
        if _fits(replace(setting, cluster=more)):
            found.append(f"{more.devices} such devices instead of {cluster.devices}")
            break
    for parts in (2, 4, 8, 16, 32, 64):
        if setting.global_batch % parts == 0 and _fits(replace(setting, global_batch=setting.global_batch // parts)):
            found.append(f"a global batch of {setting.global_batch // parts}")
            break
    return found


def _fits(setting: Setting) -> bool:
    """Whether some candidate of a changed setting fits; False where it was never costed."""
    try:
        return any(shortage(setting, c).missing <= 0 for c in build_problem(setting).candidates)
    except (Diagnostic, ValueError):
        return False


def _larger(cluster: Cluster, times: int) -> Cluster:
    """More nodes where there is a link between nodes, else more devices in the node."""
    if cluster.inter is not None:
        return replace(cluster, nodes=cluster.nodes * times)
    return replace(cluster, devices_per_node=cluster.devices_per_node * times)


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= 0.1 * GIB else f"{size / GIB:.4f} GiB"
