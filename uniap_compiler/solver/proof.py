"""Closing the MIQP: derived rows for one candidate, and the solve that turns them into a proof.

    derived = derive(chain, threshold)       # exact least times of the intervals that a better plan could use
    close(at, derived, plan, ...)            # the exact MIQP with these rows, started from the plan

The rows only speed the MIQP up; `certificate.py` recomputes every value in them from the raw problem.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from uniap_compiler.solver import backend as solvers
from uniap_compiler.solver.chain import ChainSearch
from uniap_compiler.solver.exact import FURTHER, REACH, step_weights
from uniap_compiler.solver.instance import Instance
from uniap_compiler.solver.labels import Budget, Limit, TooManyLabels, least_possible, stage_time
from uniap_compiler.solver.miqp import Miqp, StageTimes, build_miqp
from uniap_compiler.solver.plan import Plan
from uniap_compiler.solver.tables import StageCosts

#: Models of at most this many binaries y are tried without derived rows first, for so many seconds.
SMALL, SMALL_SECONDS = 120, 1.0
#: What emitting one variable of a model costs, rows included.
SECONDS_PER_VARIABLE = 2e-5
#: Labels that may be made for the derived rows of one candidate.
ROWS_WORK = 3e6
#: Derived rows take every second of the weights of once-per-step time that the search takes.
ROW_WEIGHTS = 2


@dataclass(frozen=True)
class Closed:
    """One MIQP solved: `bound` holds for every plan of the candidate, up to `threshold` when rows were derived."""

    bound: float
    plan: tuple[list[int], list[int]] | None
    derived: StageTimes | None


def size(at: Instance) -> int:
    """How many binaries y the plain model has."""
    return sum(len(at.window(u)) * len(at.strategies(u)) for u in range(at.layers))


def derive(
    chain: Instance, threshold: float, deadline: float = math.inf, known: ChainSearch | None = None
) -> StageTimes | None:
    """The least time of every interval that a plan below `threshold` may use; None when time runs out.

    Intervals with too many labels have the bounds of the tables. `known` is an earlier search of the same chain.
    """
    search = known or ChainSearch(chain, lambda stage, strategy: None, deadline)
    while search.level < 3 and search.bound < threshold:
        search.refine(lambda: threshold)
        if time.monotonic() > deadline:
            return None
    bounds = search.rows(threshold)
    return least_times(chain, list(bounds.entries), bounds.threshold, deadline).filled(bounds.entries)


def least_times(
    chain: Instance,
    intervals: list[tuple[int, int, int]],
    threshold: float,
    deadline: float = math.inf,
    most: float = ROWS_WORK,
) -> StageTimes:
    """The rows for these (stage, first layer, last layer), each value with strategies that attain it.

    Intervals are hard when `most` labels have been made, or when time is over.
    """
    weights = [0.0]
    if chain.step.any():  # one stage: c p + s is one sum
        weights = [1 / chain.micro_batches] if chain.stages == 1 else step_weights(chain)[::ROW_WEIGHTS]
    costs = {(i, w): StageCosts(chain, i, w) for i in range(chain.stages) for w in weights}
    out = StageTimes(threshold, {}, {})
    budget = Budget(most)
    cache: dict[tuple[bytes, ...], tuple[float, list[int]] | None] = {}
    for i, a, b in intervals:
        values: dict[float, float] = {}
        for w in weights:
            key = (
                chain.kind[a : b + 1].tobytes(), chain.edge[a + 1 : b + 1].tobytes(), chain.time[:, i].tobytes(),
                chain.memory[:, i].tobytes(), chain.limit[i : i + 1].tobytes(), str(w).encode(),
            )  # fmt: skip
            if key not in cache:
                try:
                    cache[key] = _least(chain, i, a, b, costs[i, w], deadline, budget)
                except TooManyLabels:
                    out.hard.append((i, a, b))
                    out.witness.pop((i, a, b), None)
                    values = {}
                    break
            found = cache[key]
            if found is not None:
                values[w] = found[0]
                out.witness.setdefault((i, a, b), {})[w] = found[1]
        if values:  # otherwise nothing fits there
            out.entries[i, a, b] = values
    return out


def _least(
    at: Instance, i: int, a: int, b: int, costs: StageCosts, deadline: float, budget: Budget
) -> tuple[float, list[int]] | None:
    """min of time + w step over layers a..b within memory, whatever the classes at the ends; None when nothing fits.

    Labels reach further and further above the bound, until one arrives.
    """
    none = np.zeros(at.classes)
    least = least_possible(at, a, b, costs)
    if not math.isfinite(least):
        return None
    most = float(max(at.time[:, i][at.allowed].max(), at.reshard.max(), costs.weight * at.step.max(), 1e-30))
    reach = REACH * max(least, 1e-3 * most)
    while True:
        limit = Limit(least + reach, none, none, costs.weight)
        found = stage_time(at, i, a, b, [costs], limit, none, deadline=deadline, budget=budget).options
        if len(found.time):
            values = found.time + costs.weight * found.step
            n = int(np.argmin(values))
            return float(values[n]), found.strategies(n)
        if reach > 4 * (b - a + 1) * most:  # beyond anything that there is: only memory can be in the way
            return None
        reach *= FURTHER


def close(
    at: Instance,
    derived: StageTimes | None,
    plan: Plan | None,
    backend: str,
    gap: float,
    seconds: float,
    write_lp: str | Path | None = None,
    nodes: int | None = None,
) -> Closed:
    """Solve the MIQP of one candidate, started from `plan` when it is a plan of this candidate."""
    if derived is not None and _unreachable(at, derived):
        return Closed(derived.threshold, None, derived)
    if expensive(at, seconds):
        return Closed(-math.inf, None, derived)
    began = time.monotonic()
    miqp = build_miqp(at, backend, derived)
    if write_lp is not None:
        write(miqp, write_lp)
    if plan is not None and plan.candidate == at.index:
        miqp.start(plan)
    outcome = solvers.run(miqp, backend, gap, seconds - (time.monotonic() - began), nodes)
    bound = outcome.bound if derived is None else min(outcome.bound, derived.threshold)
    return Closed(bound, miqp.read() if outcome.found else None, derived)


def expensive(at: Instance, seconds: float) -> bool:
    """Whether the MIQP could not even be written down in this time."""
    return SECONDS_PER_VARIABLE * _variables(at) > seconds


def _variables(at: Instance) -> int:
    """How many variables the model has: nearly all are y and the flows z of neighbours."""
    classes = [len(set(at.layout[at.strategies(u)].tolist())) for u in range(at.layers)]
    flows = sum(2 * len(at.window(u)) * classes[u - 1] * classes[u] for u in range(1, at.layers))
    return size(at) + flows


def write(miqp: Miqp, folder: str | Path) -> None:
    """One file per candidate: `n16_D4_c32.lp`, with `-rows` when derived rows are in it."""
    at = miqp.instance
    Path(folder).mkdir(parents=True, exist_ok=True)
    rows = "-rows" if miqp.interval else ""
    miqp.model.write(str(Path(folder) / f"n{at.index:02d}_D{at.stages}_c{at.micro_batches}{rows}.lp"))


def _unreachable(at: Instance, derived: StageTimes) -> bool:
    """A stage without any interval left, or a layer that none covers: no plan is below the threshold."""
    covered = {(u, i) for i, a, b in derived.entries for u in range(a, b + 1)}
    return len({i for i, _, _ in derived.entries}) < at.stages or len({u for u, _ in covered}) < at.layers


def remaining(deadline: float, most: float) -> float:
    return max(0.05, min(most, deadline - time.monotonic()))
