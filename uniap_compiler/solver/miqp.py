"""The MIQP of one candidate, linearised exactly and emitted through python-mip (docs/solver.md, equations 1-12).

The products of the paper's programme, P[u,i] P[v,j] S[u,k] S[v,l], are replaced by binaries y[u,i,k] and edge flows
z[u,i,j,q,r] over layout classes. Rows carry the number of their equation: `eq5_assign_u3`, `eq9_memory_i2`.

    y[u,i,k]      layer u is on stage i with strategy k
    z[u,i,j,q,r]  layer u-1 is on stage i in class q and layer u on stage j (i or i+1) in class r
    p[i], o[j]    seconds of stage i, of the boundary after stage j;   T the period;   s the once-per-step time
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import mip
import numpy as np

from uniap_compiler.solver.bounds import closed_form
from uniap_compiler.solver.instance import Instance
from uniap_compiler.solver.plan import Plan
from uniap_compiler.solver.problem import Value

Terms = list[tuple[Any, float]]


@dataclass(frozen=True)
class StageTimes:
    """Derived rows: `entries[i, a, b][w]` is the least p_i + w s_i of stage i when it holds layers a..b.

    `witness[i, a, b][w]` are strategies of these layers that attain it; without them a value is a lower bound.
    Intervals that are absent cannot be part of any plan below `threshold`. `hard` ones were not settled, and have no
    values yet.
    """

    threshold: float
    entries: dict[tuple[int, int, int], dict[float, float]]
    witness: dict[tuple[int, int, int], dict[float, list[int]]] = field(default_factory=dict)
    hard: list[tuple[int, int, int]] = field(default_factory=list)

    def give_up(self, i: int, a: int, b: int) -> None:
        """This interval is hard after all."""
        del self.entries[i, a, b], self.witness[i, a, b]
        self.hard.append((i, a, b))

    def filled(self, bounds: dict[tuple[int, int, int], dict[float, float]]) -> StageTimes:
        """The same rows, with bounds for the hard intervals; those without any bound are left out."""
        entries = self.entries | {key: bounds[key] for key in self.hard if key in bounds}
        return StageTimes(self.threshold, entries, self.witness)


@dataclass
class Miqp:
    """The emitted model and the handles needed to start it and to read its solution.

    `instance` has its times in units of `unit` seconds: solvers compare objectives with absolute tolerances.
    """

    instance: Instance
    model: Any
    unit: float = 1.0
    y: dict[tuple[int, int, int], Any] = field(default_factory=dict)
    z: dict[tuple[int, int, int, int, int], Any] = field(default_factory=dict)
    w: dict[tuple[int, int, int, int, int], Any] = field(default_factory=dict)
    interval: dict[tuple[int, int, int], Any] = field(default_factory=dict)
    p: list[Any] = field(default_factory=list)
    o: list[Any] = field(default_factory=list)
    period: Any = None
    step: Any = None
    room: list[Any] = field(default_factory=list)

    def read(self) -> tuple[list[int], list[int]]:
        """Stage and strategy of every layer in the solver's solution."""
        stage, strategy = [-1] * self.instance.layers, [-1] * self.instance.layers
        best = [-1.0] * self.instance.layers
        for (u, i, k), var in self.y.items():
            value = float(var.x)
            if value > best[u]:
                stage[u], strategy[u], best[u] = i, k, value
        return stage, strategy

    def start(self, plan: Plan) -> bool:
        """Hand the solver a plan as a full vector. False when the plan uses a variable that was left out."""
        at, values = self.instance, {}
        for u, (i, k) in enumerate(zip(plan.stage, plan.strategy, strict=True)):
            if (u, i, k) not in self.y:
                return False
            values[u, i, k] = 1.0
        classes = [int(at.layout[k]) for k in plan.strategy]
        ones = {(u, plan.stage[u - 1], plan.stage[u], classes[u - 1], classes[u]) for u in range(1, at.layers)}
        skips = {(u, v, plan.stage[v], classes[u], classes[v]) for u, v, _ in skip_edges(at)}
        cuts = [u for u in range(1, at.layers) if plan.stage[u] != plan.stage[u - 1]]
        held = set(zip(range(at.stages), [0, *cuts], [*(cut - 1 for cut in cuts), at.layers - 1], strict=True))
        if self.interval and not held <= self.interval.keys():
            return False
        p, o, s, room = stage_times(at, plan.stage, plan.strategy)
        start = [(var, values.get(key, 0.0)) for key, var in self.y.items()]
        start += [(var, float(key in ones)) for key, var in self.z.items()]
        start += [(var, float(key in skips)) for key, var in self.w.items()]
        start += [(var, float(key in held)) for key, var in self.interval.items()]
        start += [*zip(self.p, p, strict=True), *zip(self.o, o, strict=True)]
        start += [(var, room[i] / max(float(at.limit[i]), 1e-30)) for i, var in enumerate(self.room) if var is not None]
        if self.period is not None:
            start.append((self.period, period(at, p, o)))
        if self.step is not None:
            start.append((self.step, max(s)))
        self.model.start = start
        return True


def stage_times(
    at: Instance, stage: list[int], strategy: list[int]
) -> tuple[list[float], list[float], list[float], list[float]]:
    """p, o, s and the working set of every stage."""
    p, o, s = [0.0] * at.stages, [0.0] * (at.stages - 1), [0.0] * at.stages
    room = [0.0] * at.stages
    q = at.layout[strategy]
    for u, (i, k) in enumerate(zip(stage, strategy, strict=True)):
        n = at.kind[u]
        p[i] += float(at.time[n, i, k])
        s[i] += float(at.step[n, k])
        room[i] = max(room[i], float(at.workspace[n, k]))
        if u and stage[u - 1] == i:
            p[i] += float(at.reshard[at.edge[u], q[u - 1], q[u]])
        elif u:
            o[i - 1] += float(at.transfer[at.edge[u], q[u - 1], q[u]]) + float(at.crossing[u])
    for u, v, table in skip_edges(at):
        p[stage[v]] += float(table[q[u], q[v]])
    return p, o, s, room


def period(at: Instance, p: list[float], o: list[float]) -> float:
    """T: the longest stage or boundary, and with 1F1B the longest round trip from a stage to the end."""
    longest = max(p + o)
    if at.steady:
        for i in range(at.stages):
            if at.stages - i < at.micro_batches:
                longest = max(longest, (sum(p[i:]) + sum(o[i:])) / (at.stages - i))
    return longest


def skip_edges(at: Instance) -> list[tuple[int, int, np.ndarray]]:
    """(source, reader, reshard table) of the values whose resharding costs anything; equal pairs are summed."""
    tables: dict[tuple[int, int], np.ndarray] = {}
    for value in at.values:
        table = np.asarray(value.reshard)
        if table.any():
            for v in value.readers:
                tables[value.source, v] = tables.get((value.source, v), 0.0) + table
    return [(u, v, table) for (u, v), table in sorted(tables.items())]


def build_miqp(at: Instance, backend: str, derived: StageTimes | None = None) -> Miqp:
    """Emit the model of one candidate; `derived` adds the interval rows (D1)-(D3)."""
    model = mip.Model(name=f"uniap_D{at.stages}_c{at.micro_batches}", sense=mip.MINIMIZE, solver_name=backend.upper())
    model.verbose = 0
    unit = _unit(closed_form(at) or max(float(table.max()) for table in (at.time, at.reshard, at.transfer, at.step)))
    out = Miqp(_in_units(at, unit), model, unit)
    _Builder(out.instance, out, derived).build()
    return out


def _unit(objective: float) -> float:
    """A power of two, so that nothing rounds, of which an objective has about 10,000."""
    return 2.0 ** round(math.log2(objective / 1e4)) if 0 < objective < math.inf else 1.0


def _in_units(at: Instance, unit: float) -> Instance:
    values = [Value(v.source, v.readers, (np.asarray(v.reshard) / unit).tolist(), v.transfer / unit) for v in at.values]
    return replace(
        at,
        time=at.time / unit,
        step=at.step / unit,
        reshard=at.reshard / unit,
        transfer=at.transfer / unit,
        crossing=at.crossing / unit,
        values=values,
    )


class _Builder:
    """Writes the variables and rows in the order of the equations."""

    def __init__(self, at: Instance, out: Miqp, derived: StageTimes | None) -> None:
        self.at, self.out, self.model = at, out, out.model
        self.derived = derived
        self.stages = [list(at.window(u)) for u in range(at.layers)]
        if derived is not None:
            used: list[set[int]] = [set() for _ in range(at.layers)]
            for i, a, b in derived.entries:
                for u in range(a, b + 1):
                    used[u].add(i)
            self.stages = [[i for i in window if i in used[u]] for u, window in enumerate(self.stages)]
        self.by_class = [
            {int(q): [int(k) for k in at.strategies(u) if at.layout[k] == q] for q in set(at.layout[at.strategies(u)])}
            for u in range(at.layers)
        ]
        self.p_terms: list[Terms] = [[] for _ in range(at.stages)]
        self.o_terms: list[Terms] = [[] for _ in range(at.stages - 1)]
        self.o_const = [0.0] * (at.stages - 1)

    def build(self) -> None:
        self.variables()
        self.assignment()
        self.edges()
        self.values()
        self.times()
        self.memory()
        self.ties()
        self.objective()
        if self.derived is not None:
            self.intervals(self.derived)

    def row(self, terms: Iterable[tuple[Any, float]], sense: str, rhs: float, name: str) -> None:
        pairs = [(var, value) for var, value in terms if value != 0.0]
        expr = mip.LinExpr([var for var, _ in pairs], [value for _, value in pairs], -rhs, sense)
        self.model.add_constr(expr, name)

    def variables(self) -> None:
        at, out, add = self.at, self.out, self.model.add_var
        for u in range(at.layers):
            for i in self.stages[u]:
                for k in at.strategies(u):
                    out.y[u, i, int(k)] = add(f"y_u{u}_i{i}_k{k}", var_type=mip.BINARY)
        out.p = [add(f"p_i{i}") for i in range(at.stages)]
        out.o = [add(f"o_j{j}") for j in range(at.stages - 1)]
        if at.micro_batches > 1:
            out.period = add("T")
        if at.step.any():
            out.step = add("s")

    def held(self, u: int, i: int, q: int | None = None) -> Terms:
        """sum_k y[u,i,k], over one class or all: whether layer u is on stage i (in class q)."""
        strategies = self.at.strategies(u) if q is None else self.by_class[u][q]
        return [(self.out.y[u, i, int(k)], 1.0) for k in strategies]

    def assignment(self) -> None:
        """(5) every layer has one stage and one strategy."""
        for u in range(self.at.layers):
            terms = [term for i in self.stages[u] for term in self.held(u, i)]
            self.row(terms, "=", 1.0, f"eq5_assign_u{u}")

    def edges(self) -> None:
        """(6), (7) the flow z between neighbours: its marginals are their (stage, class); later stages only."""
        at, out = self.at, self.out
        for v in range(1, at.layers):
            u, e = v - 1, at.edge[v]
            leaving: dict[tuple[int, int], Terms] = {}
            arriving: dict[tuple[int, int], Terms] = {}
            for i in self.stages[u]:
                for j in (i, i + 1):
                    if j not in self.stages[v]:
                        continue
                    for q in self.by_class[u]:
                        for r in self.by_class[v]:
                            var = self.model.add_var(f"z_u{v}_i{i}_j{j}_q{q}_r{r}", lb=0.0, ub=1.0)
                            out.z[v, i, j, q, r] = var
                            leaving.setdefault((i, q), []).append((var, -1.0))
                            arriving.setdefault((j, r), []).append((var, -1.0))
                            if i == j:
                                self.p_terms[i].append((var, float(at.reshard[e, q, r])))
                            else:
                                self.o_terms[i].append((var, float(at.transfer[e, q, r] + at.crossing[v])))
            for i in self.stages[u]:
                for q in self.by_class[u]:
                    self.row(self.held(u, i, q) + leaving.get((i, q), []), "=", 0.0, f"eq6_leave_u{u}_i{i}_q{q}")
            for j in self.stages[v]:
                for r in self.by_class[v]:
                    self.row(self.held(v, j, r) + arriving.get((j, r), []), "=", 0.0, f"eq7_arrive_u{v}_i{j}_r{r}")

    def values(self) -> None:
        """(8) resharding of a value read beyond the next layer: a flow between the classes of source and reader."""
        at, out = self.at, self.out
        for u, v, table in skip_edges(at):
            for q in self.by_class[u]:
                terms: Terms = [(var, value) for i in self.stages[u] for var, value in self.held(u, i, q)]
                for j in self.stages[v]:
                    for r in self.by_class[v]:
                        var = self.model.add_var(f"w_u{u}_v{v}_j{j}_q{q}_r{r}", lb=0.0, ub=1.0)
                        out.w[u, v, j, q, r] = var
                        terms.append((var, -1.0))
                        self.p_terms[j].append((var, float(table[q, r])))
                self.row(terms, "=", 0.0, f"eq8_source_u{u}_v{v}_q{q}")
            for j in self.stages[v]:
                for r in self.by_class[v]:
                    flows: Terms = [(out.w[u, v, j, q, r], -1.0) for q in self.by_class[u]]
                    self.row(self.held(v, j, r) + flows, "=", 0.0, f"eq8_reader_u{u}_v{v}_j{j}_r{r}")

    def times(self) -> None:
        """(2), (3) stage and boundary times; (4) the period, with the 1F1B rows; the once-per-step time."""
        at, out = self.at, self.out
        for (u, i, k), var in out.y.items():
            self.p_terms[i].append((var, float(at.time[at.kind[u], i, k])))
        for i in range(at.stages):
            self.row([(out.p[i], 1.0)] + [(var, -value) for var, value in self.p_terms[i]], "=", 0.0, f"eq2_stage_i{i}")
        for j in range(at.stages - 1):
            terms = [(out.o[j], 1.0)] + [(var, -value) for var, value in self.o_terms[j]]
            self.row(terms, "=", 0.0, f"eq3_boundary_j{j}")
        if out.period is not None:
            for n, var in enumerate(out.p + out.o):
                name = f"i{n}" if n < at.stages else f"j{n - at.stages}"
                self.row([(out.period, 1.0), (var, -1.0)], ">", 0.0, f"eq4_period_{name}")
            for i in range(at.stages if at.steady else 0):
                if at.stages - i < at.micro_batches:
                    rest = [(var, -1.0) for var in out.p[i:] + out.o[i:]]
                    self.row([(out.period, float(at.stages - i)), *rest], ">", 0.0, f"eq4_round_trip_i{i}")
        if out.step is not None:
            for i in range(at.stages):
                terms = [(var, -float(at.step[at.kind[u], k])) for (u, j, k), var in out.y.items() if j == i]
                self.row([(out.step, 1.0), *terms], ">", 0.0, f"eq10_step_i{i}")

    def memory(self) -> None:
        """(9) states and activations plus the largest working set fit on the devices of a stage, in fractions of it."""
        at, out = self.at, self.out
        flat = not at.workspace.any()
        for i in range(at.stages):
            scale = max(float(at.limit[i]), 1e-30)
            terms: Terms = [
                (var, float(at.memory[at.kind[u], i, k]) / scale) for (u, j, k), var in out.y.items() if j == i
            ]
            largest = None
            if not flat:
                largest = self.model.add_var(f"largest_i{i}")
                for u in range(at.layers):
                    if i in self.stages[u]:
                        need = [
                            (out.y[u, i, int(k)], -float(at.workspace[at.kind[u], k]) / scale) for k in at.strategies(u)
                        ]
                        self.row([(largest, 1.0), *need], ">", 0.0, f"eq9_largest_i{i}_u{u}")
                terms.append((largest, 1.0))
            out.room.append(largest)
            self.row(terms, "<", float(at.limit[i]) / scale, f"eq9_memory_i{i}")

    def ties(self) -> None:
        """(11) layers with shared parameters take the same strategy."""
        at, out = self.at, self.out
        for group in at.ties:
            u = group[0]
            for v in group[1:]:
                for k in at.strategies(u):
                    mine: Terms = [(out.y[u, i, int(k)], 1.0) for i in self.stages[u]]
                    theirs: Terms = [(out.y[v, i, int(k)], -1.0) for i in self.stages[v]]
                    self.row(mine + theirs, "=", 0.0, f"eq11_same_u{u}_v{v}_k{k}")

    def objective(self) -> None:
        """(1) one micro-batch through everything, the others one period apart, and the work of a step."""
        out = self.out
        terms: Terms = [(var, 1.0) for var in out.p + out.o]
        if out.period is not None:
            terms.append((out.period, self.at.micro_batches - 1.0))
        if out.step is not None:
            terms.append((out.step, 1.0))
        self.model.objective = mip.LinExpr([var for var, _ in terms], [value for _, value in terms])

    def intervals(self, derived: StageTimes) -> None:
        """(D1)-(D3) stage i holds exactly one interval of layers, and takes at least that interval's least time."""
        at, out = self.at, self.out
        covering: dict[tuple[int, int], Terms] = {}
        holds: list[Terms] = [[] for _ in range(at.stages)]
        least: list[dict[float, Terms]] = [{} for _ in range(at.stages)]
        for (i, a, b), seconds in sorted(derived.entries.items()):
            var = self.model.add_var(f"h_i{i}_a{a}_b{b}", var_type=mip.BINARY)
            out.interval[i, a, b] = var
            holds[i].append((var, 1.0))
            for weight, value in seconds.items():
                least[i].setdefault(weight, []).append((var, -value / out.unit))
            for u in range(a, b + 1):
                covering.setdefault((u, i), []).append((var, -1.0))
        for i in range(at.stages):
            self.row(holds[i], "=", 1.0, f"eqD1_interval_i{i}")
            for n, (weight, terms) in enumerate(sorted(least[i].items())):
                step: Terms = [(out.step, weight)] if weight else []
                self.row([(out.p[i], 1.0), *step, *terms], ">", 0.0, f"eqD3_least_i{i}_w{n}")
        for (u, i), terms in sorted(covering.items()):
            if i in self.stages[u]:
                self.row(self.held(u, i) + terms, "=", 0.0, f"eqD2_cover_u{u}_i{i}")
