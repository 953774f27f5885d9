"""The search as a mixed-integer linear programme, written with python-mip and solved by CBC.

    minimise   sum_o,k  c(o,k) x(o,k)      every op does one choice, at the cost of its local shapes
             + sum_p,l  m(p,l) r(p,l)      every parameter lies in one layout; bytes at rest have a price
             + sum_v,a  c(v,a) z(v,a)      every arc of a tensor's network is paid once, however many readers use it
    subject to sum_k x(o,k) = 1,  sum_l r(p,l) = 1
               for each reader g of v, at every node n:  inflow + made(v,n) = outflow + wanted(g,n),  f(g,a) <= z(v,a)
               made(v,n) = sum of the x that make v in n,  wanted(g,n) = sum of the x that read it in n

Only x and r are binary: with them fixed the rest are shortest-path and Steiner problems, whose relaxation is nearly
always integral.  `evaluate` prices a solution exactly, arc by arc, and the solver's objective is checked against it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Union

import mip
import mip.cbc

from .choices import State
from .graph import BACKWARD, Sink, Tensor
from .network import Arc, Node
from .problem import Problem, Solution, evaluate

# python-mip's CBC wrapper first resolves this symbol in a destructor; inside a garbage collection that can hang.
mip.cbc.cbclib.Cbc_deleteModel  # noqa: B018

Amount = Union[None, list[mip.Var]]
"""How much of a flow is made or wanted in a node: a sum of binaries, or one (None)."""


class Programme:
    """One MILP.  Rows are named after what they say, so that the .lp file reads like the formulation."""

    def __init__(self, problem: Problem, binary_arcs: bool = False) -> None:
        self.problem = problem
        self.arc_type = mip.BINARY if binary_arcs else mip.CONTINUOUS
        self.model = mip.Model("tensor_parallel", solver_name=mip.CBC)
        self.model.verbose = 0
        self.model.threads = 1
        self.model.seed = 1
        self.model.max_mip_gap = 1e-6
        self.model.max_mip_gap_abs = 1e-5
        self.x = self._choices()
        self.r = self._rests()
        self.s = self._gradients()
        for tensor in problem.graph.tensors:
            if tensor.source != "whole":
                self._network(tensor)

    def _row(self, variables: list[mip.Var], coefficients: list[float], sense: str, bound: float, name: str) -> None:
        self.model.add_constr(mip.LinExpr(variables, coefficients, -bound, sense), name)

    def _choices(self) -> list[list[mip.Var]]:
        """Every op does exactly one of its choices."""
        rows = []
        for step, costs in zip(self.problem.graph.steps, self.problem.costs, strict=True):
            row = [self.model.add_var(f"x{step.index}_{k}", obj=c, var_type=mip.BINARY) for k, c in enumerate(costs)]
            self._row(row, [1.0] * len(row), "=", 1, f"choose_{step.index}")
            rows.append(row)
        return rows

    def _rests(self) -> dict[Tensor, dict[State, mip.Var]]:
        """Every parameter lies in exactly one layout."""
        result = {}
        for tensor, states in self.problem.rests.items():
            row = {
                state: self.model.add_var(
                    f"r{tensor.index}_{i}", obj=self.problem.prices.rest(tensor, state), var_type=mip.BINARY
                )
                for i, state in enumerate(states)
            }
            self._row(list(row.values()), [1.0] * len(row), "=", 1, f"rest_{tensor.index}")
            result[tensor] = row
        return result

    def _gradients(self) -> dict[Sink, dict[State, list[mip.Var]]]:
        """A gradient lies like its parameter, or pending where the parameter is whole: s splits r over the two."""
        result = {}
        for sink, table in self.problem.sinks.items():
            assert sink.gradient_of is not None
            wanted: dict[State, list[mip.Var]] = {}
            for i, (rest, options) in enumerate(table.items()):
                r = self.r[sink.gradient_of][rest]
                row = []
                for j, (state, price) in enumerate(options):
                    row.append(self.model.add_var(f"s{sink.position}_{i}_{j}", obj=price, ub=1.0))
                    wanted.setdefault(state, []).append(row[-1])
                self._row([*row, r], [1.0] * len(row) + [-1.0], "=", 0, f"gradient_{sink.position}_{i}")
            result[sink] = wanted
        return result

    def _network(self, tensor: Tensor) -> None:
        """The flows of all readers of a tensor through its network."""
        made: dict[Node, Amount] = {}
        if tensor.state is not None:
            made[tensor.phase, tensor.state] = None
        wanted: dict[tuple[object, ...], tuple[int, dict[Node, Amount]]] = {}
        for step, row in zip(self.problem.graph.steps, self.x, strict=True):
            for t, states in step.makes:
                if t is tensor:
                    made = _by_node(step.phase, states, row)
            for t, states in step.reads:
                if t is tensor:
                    wanted.setdefault((step.index, *states), (step.phase, _by_node(step.phase, states, row)))
        for node in sorted(self.problem.fixed.get(tensor, ()), key=str):
            wanted["fixed", node] = (node[0], {node: None})
        for sink, by_state in self.s.items():
            if sink.view.tensor is tensor:
                wanted["gradient", sink.position] = (BACKWARD, {(BACKWARD, n): list(v) for n, v in by_state.items()})

        flows = []
        for phase, demand in wanted.values():
            source = made
            if tensor.source == "parameter":
                source = {(phase, state): [var] for state, var in self.r[tensor].items()}
            arcs = useful_arcs(self.problem.arcs[tensor], source, demand)
            if arcs or source != demand:
                flows.append((source, demand, arcs))

        shared = Counter(arc for _, _, arcs in flows for arc in arcs)
        z = {}
        for i, (arc, readers) in enumerate(shared.items()):
            if readers > 1 or self.arc_type == mip.BINARY:
                z[arc] = self.model.add_var(f"z{tensor.index}_{i}", obj=arc.cost, ub=1.0, var_type=self.arc_type)
        for g, (source, demand, arcs) in enumerate(flows):
            self._flow(f"{tensor.index}_{g}", source, demand, arcs, z)

    def _flow(
        self,
        name: str,
        source: Mapping[Node, Amount],
        demand: Mapping[Node, Amount],
        arcs: list[Arc],
        z: dict[Arc, mip.Var],
    ) -> None:
        """One reader's unit of flow: at every node, what comes in and what is made goes on or is wanted there."""
        terms: dict[Node, tuple[list[mip.Var], list[float]]] = {}
        constants: dict[Node, float] = {}
        for amounts, sign in ((source, 1.0), (demand, -1.0)):
            for node, amount in amounts.items():
                variables, coefficients = terms.setdefault(node, ([], []))
                if amount is None:
                    constants[node] = constants.get(node, 0.0) + sign
                else:
                    variables += amount
                    coefficients += [sign] * len(amount)
        for i, arc in enumerate(arcs):
            f = self.model.add_var(f"f{name}_{i}", obj=0.0 if arc in z else arc.cost)
            for node, sign in ((arc.source, -1.0), (arc.target, 1.0)):
                variables, coefficients = terms.setdefault(node, ([], []))
                variables.append(f)
                coefficients.append(sign)
            if arc in z:
                self._row([f, z[arc]], [1.0, -1.0], "<", 0, f"pay_{name}_{i}")
        for i, (node, (variables, coefficients)) in enumerate(terms.items()):
            self._row(variables, coefficients, "=", -constants.get(node, 0.0), f"flow_{name}_{i}")

    def solve(self) -> Solution:
        status = self.model.optimize()
        if status != mip.OptimizationStatus.OPTIMAL:
            raise RuntimeError(f"CBC ended the tensor-parallel search of a layer with {status.name}")
        choice = [max(range(len(row)), key=lambda k: row[k].x) for row in self.x]
        rest = {tensor: max(row, key=lambda s: row[s].x) for tensor, row in self.r.items()}
        solution = evaluate(self.problem, choice, rest)
        solution.statistics = {
            "columns": self.model.num_cols,
            "binaries": self.model.num_int,
            "rows": self.model.num_rows,
            "nonzeros": self.model.num_nz,
            "objective": self.model.objective_value,
        }
        return solution


def _by_node(phase: int, states: list[State], row: list[mip.Var]) -> dict[Node, Amount]:
    result: dict[Node, Amount] = {}
    for state, var in zip(states, row, strict=True):
        amount = result.setdefault((phase, state), [])
        assert amount is not None
        amount.append(var)
    return result


def useful_arcs(arcs: list[Arc], source: Mapping[Node, Amount], demand: Mapping[Node, Amount]) -> list[Arc]:
    """The arcs that lie on a path from source to demand."""
    phase = max(node[0] for node in demand)
    kept = [a for a in arcs if a.target[0] <= phase]
    return _reached(_reached(kept, set(source), forward=True), set(demand), forward=False)


def _reached(arcs: list[Arc], nodes: set[Node], forward: bool) -> list[Arc]:
    """The arcs that start in what can be reached from the nodes (not forward: end in what reaches them)."""
    grown = True
    while grown:
        grown = False
        for arc in arcs:
            start, end = (arc.source, arc.target) if forward else (arc.target, arc.source)
            if start in nodes and end not in nodes:
                nodes.add(end)
                grown = True
    return [a for a in arcs if (a.source if forward else a.target) in nodes]


def solve(problem: Problem) -> Solution:
    """The optimal plan.  Should the relaxed arcs come out fractional (its true cost is higher), they become binary."""
    solution = Programme(problem).solve()
    objective = solution.statistics["objective"]
    if solution.cost > objective + 1e-4 * max(1.0, abs(objective)):
        solution = Programme(problem, binary_arcs=True).solve()
    return solution
