"""python-mip as this project needs it: two backends, limits that hold, no deadlock, Ctrl-C at once.

What is worked around here, with python-mip 2.0.0 (each was met, see docs/solver.md, "Traps"):
- the garbage collector can run `SolverCbc.__del__` inside a cffi parse and hang for ever: the symbol is touched once;
- `mip.Model()` picks Gurobi as soon as it can be imported: the name is always given;
- CBC's preprocessing can report OPTIMAL with an objective and a bound that are 1e-5 too low: it is switched off;
- a solver's C code does not return for SIGINT: it runs in a thread, and the caller waits in Python.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any

import mip
import mip.cbc

from uniap_compiler.solver.miqp import Miqp

mip.cbc.cbclib.Cbc_deleteModel  # noqa: B018  (parsed now, so that no destructor has to parse it)

BACKENDS = ("cbc", "highs")
#: Solvers may be late by so many seconds; then they are left alone.
LATE = 0.4
_abandoned: list[tuple[threading.Thread, Miqp]] = []


class BackendError(RuntimeError):
    """A backend that is not installed, or that failed."""


@dataclass(frozen=True)
class Outcome:
    """`bound` holds for every solution of the model; `found` says whether a solution can be read."""

    status: str
    bound: float
    found: bool


def check_backend(name: str) -> None:
    """Refuse an unknown backend, or one that is not installed, in words."""
    if name not in BACKENDS:
        raise BackendError(f"unknown backend {name!r}: choose one of {', '.join(BACKENDS)}")
    if name == "highs":
        try:
            import mip.highs

            if not mip.highs.has_highs:
                raise ImportError("the HiGHS library was not found")
            mip.highs.highslib.Highs_destroy  # noqa: B018
        except (ImportError, FileNotFoundError, AttributeError, OSError) as error:
            raise BackendError(
                "the backend 'highs' is not installed: pip install 'mip[highs]', or use --backend cbc"
            ) from error


def left_alone() -> bool:
    """Whether a solver that was given up is still at work in this process."""
    _abandoned[:] = [pair for pair in _abandoned if pair[0].is_alive()]
    return bool(_abandoned)


def run(miqp: Miqp, backend: str, gap: float, seconds: float, nodes: int | None = None) -> Outcome:
    """Solve the model within `seconds` and `nodes`; the model is never left in an undefined state."""
    model = miqp.model
    model.max_mip_gap = gap
    model.max_mip_gap_abs = 1e-12
    model.threads = 1
    model.preprocess = 0
    model.integer_tol = 1e-9 if backend == "highs" else 1e-8
    model.infeas_tol = 1e-9
    model.opt_tol = 1e-9
    model.seed = 1
    answer: list[Any] = []

    def work() -> None:
        try:
            limit = {} if nodes is None else {"max_nodes": nodes}
            answer.append(model.optimize(max_seconds=max(0.01, seconds), **limit))
        except Exception as error:  # handed to the caller below
            answer.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    until = time.monotonic() + max(0.01, seconds) + LATE
    while thread.is_alive():  # short waits, so that SIGINT reaches the caller
        thread.join(0.1)
        if time.monotonic() > until and thread.is_alive():  # deep in one linear programme, where it looks at no clock
            _abandoned.append((thread, miqp))
            return Outcome("stopped", -float("inf"), False)
    status = answer[0]
    if isinstance(status, Exception):
        raise BackendError(f"{backend}: {status}") from status
    if status == mip.OptimizationStatus.INFEASIBLE:
        return Outcome("infeasible", float("inf"), False)
    found = status in (mip.OptimizationStatus.OPTIMAL, mip.OptimizationStatus.FEASIBLE)
    bound = model.objective_bound
    if bound is None or not abs(bound) < 1e29:
        bound = -float("inf")
    status = "optimal" if status == mip.OptimizationStatus.OPTIMAL else "stopped"
    return Outcome(status, float(bound) * miqp.unit, found)
