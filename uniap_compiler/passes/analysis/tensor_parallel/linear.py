"""A mixed-integer linear programme as arrays, solved by branch and bound over Clp's dual simplex.

The relaxation of a search is nearly always integral, and then it is the answer; else a few nodes from a warm basis find
and prove it.  CBC has so much to say before its first node (preprocessing, cuts, heuristics) that it takes eight times
as long.  Its library has Clp inside, whose C interface is called here: python-mip's way there writes to stdout.
Without it (another library of CBC) CBC does everything.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import mip
import mip.cbc
import numpy as np
from numpy.typing import NDArray

# python-mip's CBC wrapper first resolves this symbol in a destructor; inside a garbage collection that can hang.
mip.cbc.cbclib.Cbc_deleteModel  # noqa: B018

Values = NDArray[np.float64]

_INTEGRAL = 1e-6
"""How far from a whole number a variable may be."""

_GAP, _ABSOLUTE_GAP = 1e-6, 1e-5
"""A plan that is better by less is not looked for."""


class LinearProgramme:
    """minimise cost x  subject to rows, 0 <= x <= upper, some x binary."""

    def __init__(self) -> None:
        self.cost: list[float] = []
        self.upper: list[float] = []
        self.binary: list[bool] = []
        self.bound: list[float] = []
        self.equal: list[bool] = []
        self._rows: list[int] = []
        self._columns: list[int] = []
        self._values: list[float] = []

    def column(self, cost: float, upper: float = np.inf, binary: bool = False) -> int:
        self.cost.append(cost)
        self.upper.append(upper)
        self.binary.append(binary)
        return len(self.cost) - 1

    def row(self, columns: Sequence[int], values: Sequence[float], bound: float, equal: bool = True) -> None:
        """sum of values x = bound, or <= bound where not equal."""
        self._rows += [len(self.bound)] * len(columns)
        self._columns += columns
        self._values += values
        self.bound.append(bound)
        self.equal.append(equal)

    @property
    def statistics(self) -> dict[str, float]:
        sizes = len(self.cost), sum(self.binary), len(self.bound), len(self._values)
        return dict(zip(("columns", "binaries", "rows", "nonzeros"), sizes, strict=True))

    def solve(self, nodes: int) -> tuple[Values, bool]:
        """The optimum; False with the best that was found, if more than so many nodes would be needed."""
        library = clp_library()
        if library is None:
            return self._by_cbc(nodes)
        with self._loaded(library) as clp:
            return self._branch_and_bound(clp, nodes)

    def _branch_and_bound(self, clp: _Clp, nodes: int) -> tuple[Values, bool]:
        """Depth first: what is nearly chosen is chosen, then it is ruled out."""
        cost, binary = np.asarray(self.cost), np.flatnonzero(self.binary)
        found: Values | None = None
        enough, count = np.inf, 0  # enough: nodes from there on are not worth looking at
        stack: list[dict[int, float]] = [{}]
        while stack and (count < nodes or found is None):
            fixed = stack.pop()
            count += 1
            values = clp.solve(fixed, self.upper)
            if values is None or (objective := float(cost @ values)) >= enough:
                continue
            part = values[binary]
            undecided = np.abs(part - np.round(part)) > _INTEGRAL
            if not undecided.any():
                found = values
                enough = objective - max(_ABSOLUTE_GAP, _GAP * abs(objective))
                continue
            column = int(binary[np.argmax(np.where(undecided, part, 0.0))])
            stack += [{**fixed, column: 0.0}, {**fixed, column: 1.0}]
        return (found, not stack) if found is not None and clp.sure else self._by_cbc(nodes)

    @contextmanager
    def _loaded(self, library: ctypes.CDLL) -> Iterator[_Clp]:
        columns = np.asarray(self._columns, dtype=np.int32)
        order = np.argsort(columns, kind="stable")
        bound = np.asarray(self.bound)
        arrays: list[NDArray[Any]] = [
            np.searchsorted(columns[order], np.arange(len(self.cost) + 1)).astype(np.int32),
            np.asarray(self._rows, dtype=np.int32)[order],
            np.asarray(self._values, dtype=np.float64)[order],
            np.zeros(len(self.cost)),
            np.asarray(self.upper),
            np.asarray(self.cost),
            np.where(self.equal, bound, -np.inf),
            bound,
        ]
        model = ctypes.c_void_p(library.Clp_newModel())
        try:
            library.Clp_setLogLevel(model, 0)
            pointers = [ctypes.c_void_p(a.ctypes.data) for a in arrays]
            library.Clp_loadProblem(model, len(self.cost), len(bound), *pointers)
            yield _Clp(library, model, len(self.cost))
        finally:
            library.Clp_deleteModel(model)

    def _by_cbc(self, nodes: int) -> tuple[Values, bool]:
        model = mip.Model("tensor_parallel", solver_name=mip.CBC)
        model.verbose, model.threads, model.seed = 0, 1, 1
        model.max_mip_gap, model.max_mip_gap_abs = _GAP, _ABSOLUTE_GAP
        columns = [
            model.add_var(obj=cost, ub=upper, var_type=mip.BINARY if binary else mip.CONTINUOUS)
            for cost, upper, binary in zip(self.cost, self.upper, self.binary, strict=True)
        ]
        terms: list[tuple[list[Any], list[float]]] = [([], []) for _ in self.bound]
        for row, column, value in zip(self._rows, self._columns, self._values, strict=True):
            terms[row][0].append(columns[column])
            terms[row][1].append(value)
        for (variables, values), bound, equal in zip(terms, self.bound, self.equal, strict=True):
            model.add_constr(mip.LinExpr(variables, values, -bound, "=" if equal else "<"))
        status = model.optimize(max_nodes=nodes)
        if status not in (mip.OptimizationStatus.OPTIMAL, mip.OptimizationStatus.FEASIBLE):
            raise RuntimeError(f"CBC ended the tensor-parallel search of a layer with {status.name}")
        return np.array([v.x for v in columns]), status == mip.OptimizationStatus.OPTIMAL


@dataclass
class _Clp:
    """A model inside Clp, which keeps its basis from one solution to the next."""

    library: ctypes.CDLL
    model: ctypes.c_void_p
    columns: int
    fixed: dict[int, float] | None = None
    sure: bool = True
    """Whether Clp has always ended with an optimum or with the proof that there is none."""

    def solve(self, fixed: dict[int, float], upper: Sequence[float]) -> Values | None:
        """An optimal vertex with some columns fixed; None if there is none."""
        lower, above = self._array(self.library.Clp_columnLower), self._array(self.library.Clp_columnUpper)
        for column in self.fixed or ():
            lower[column], above[column] = 0.0, upper[column]
        for column, value in fixed.items():
            lower[column] = above[column] = value
        if self.fixed is None:
            self.library.Clp_initialDualSolve(self.model)
        else:
            self.library.Clp_dual(self.model, 0)
        self.fixed = fixed
        status = self.library.Clp_status(self.model)  # 0: optimal, 1: infeasible, others: it gave up
        self.sure = self.sure and status in (0, 1)
        return self._array(self.library.Clp_primalColumnSolution).copy() if status == 0 else None

    def _array(self, of: Any) -> Values:
        return np.ctypeslib.as_array(of(self.model), (self.columns,))


@cache
def clp_library() -> ctypes.CDLL | None:
    """None where the library of CBC has no Clp that can be called."""
    try:
        library = ctypes.CDLL(mip.cbc.libfile)
        library.Clp_newModel.restype = ctypes.c_void_p
        for name in ("Clp_columnLower", "Clp_columnUpper", "Clp_primalColumnSolution"):
            getattr(library, name).restype = ctypes.POINTER(ctypes.c_double)
    except (OSError, AttributeError):
        return None
    return library
