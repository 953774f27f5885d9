"""The search as a mixed-integer linear programme.

    minimise   sum_o,k  c(o,k) x(o,k)      every op does one choice, at the cost of its local shapes
             + sum_p,l  m(p,l) r(p,l)      every parameter lies in one layout; bytes at rest have a price
             + sum_v,a  c(v,a) z(v,a)      every arc of a tensor's network is paid once, however many readers use it
    subject to sum_k x(o,k) = 1,  sum_l r(p,l) = 1
               for each reader g of v, at every node n:  inflow + made(v,n) = outflow + wanted(g,n),  f(g,a) <= z(v,a)
               made(v,n) = sum of the x that make v in n,  wanted(g,n) = sum of the x that read it in n

Only x and r are binary: with them fixed the rest are shortest-path and Steiner problems, whose relaxation is nearly
always integral.  A tensor about which one op alone decides has no network: its tree is part of the op's price.
`evaluate` prices a solution exactly, arc by arc, and the solver's objective is checked against it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import isfinite
from typing import Union

from .choices import State
from .graph import BACKWARD, Sink, Step, Tensor
from .linear import LinearProgramme
from .network import Arc, Node, with_intermediates
from .problem import Problem, Solution, evaluate
from .segments import Segments, no_segments

Amount = Union[None, list[int]]
"""How much of a flow is made or wanted in a node: a sum of binary columns, or one (None)."""

Flow = tuple[dict[Node, Amount], dict[Node, Amount], list[Arc]]
"""Where it is made, where it is wanted, and the arcs that it may take."""


NODES = 1000
"""Nodes of branch and bound; nearly every search takes one."""


class Programme:
    """One programme.  Its columns are x, r, s (where a gradient lies), z and f."""

    def __init__(self, problem: Problem, segments: Segments, binary_arcs: bool = False) -> None:
        self.problem, self.segments, self.binary_arcs = problem, segments, binary_arcs
        self.lines = LinearProgramme()
        self.readers: dict[Tensor, list[tuple[Step, list[State]]]] = {}
        self.makers: dict[Tensor, tuple[Step, list[State]]] = {}
        for step in problem.graph.steps:
            for tensor, states in step.makes:
                self.makers[tensor] = step, segments.states(step, states)
            for tensor, states in step.reads:
                self.readers.setdefault(tensor, []).append((step, segments.states(step, states)))
        self.wanted_gradients = {sink.view.tensor for sink in problem.sinks}
        tensors = [t for t in problem.graph.tensors if t.source != "whole"]
        decided = {t: self._decided_by(t) for t in tensors}
        self.x = self._choices({t: leader for t, leader in decided.items() if leader is not None})
        self.r = self._rests()
        self.s = self._gradients()
        for tensor in tensors:
            if decided[tensor] is None:
                self._network(tensor)

    def _decided_by(self, tensor: Tensor) -> int | None:
        """The only step whose choice says where the tensor is made and read, if there is one."""
        if tensor.source == "parameter" or tensor in self.wanted_gradients:
            return None
        steps = [step for step, _ in self.readers.get(tensor, ())]
        if tensor in self.makers:
            steps.append(self.makers[tensor][0])
        leaders = {self.segments.leader[step.index] for step in steps}
        return leaders.pop() if len(leaders) == 1 else None

    def _choices(self, decided: dict[Tensor, int]) -> list[list[int]]:
        """Every leader does exactly one of its choices; those that follow it have its columns."""
        steps = self.problem.graph.steps
        costs: dict[int, list[float]] = {}
        for step, row in zip(steps, self.problem.costs, strict=True):
            leader, follows = self.segments.leader[step.index], self.segments.follows[step.index]
            total = costs.setdefault(leader, [0.0] * len(follows))
            for c, k in enumerate(follows):
                total[c] += row[k]
        for tensor, leader in decided.items():
            total = costs[leader]
            for c in range(len(total)):
                total[c] += self._tree_cost(tensor, c)
        columns: dict[int, list[int]] = {}
        for leader, total in costs.items():
            columns[leader] = [self.lines.column(*_possible(c), binary=True) for c in total]
            self.lines.row(columns[leader], [1.0] * len(total), 1.0)
        return [columns[self.segments.leader[step.index]] for step in steps]

    def _tree_cost(self, tensor: Tensor, choice: int) -> float:
        root = self.makers[tensor][1][choice] if tensor.state is None else tensor.state
        goals = [(step.phase, states[choice]) for step, states in self.readers.get(tensor, ())]
        goals += self.problem.fixed.get(tensor, ())
        return self.problem.tree(tensor, (tensor.phase, root), goals)[0]

    def _rests(self) -> dict[Tensor, dict[State, int]]:
        """Every parameter lies in exactly one layout."""
        result = {}
        for tensor, states in self.problem.rests.items():
            row = {s: self.lines.column(self.problem.prices.rest(tensor, s), 1.0, binary=True) for s in states}
            self.lines.row(list(row.values()), [1.0] * len(row), 1.0)
            result[tensor] = row
        return result

    def _gradients(self) -> dict[Sink, dict[State, list[int]]]:
        """A gradient lies like its parameter, or pending where the parameter is whole: s splits r over the two."""
        result = {}
        for sink, table in self.problem.sinks.items():
            assert sink.gradient_of is not None
            wanted: dict[State, list[int]] = {}
            for rest, options in table.items():
                row = []
                for state, price in options:
                    row.append(self.lines.column(price, 1.0))
                    wanted.setdefault(state, []).append(row[-1])
                r = self.r[sink.gradient_of][rest]
                self.lines.row([*row, r], [1.0] * len(row) + [-1.0], 0.0)
            result[sink] = wanted
        return result

    def _network(self, tensor: Tensor) -> None:
        """The flows of all readers of a tensor through its network."""
        made: dict[Node, Amount] = {}
        if tensor.state is not None:
            made[tensor.phase, tensor.state] = None
        elif tensor in self.makers:
            step, states = self.makers[tensor]
            made = _by_node(step.phase, states, self.x[step.index])
        wanted: dict[tuple[object, ...], tuple[int, dict[Node, Amount]]] = {}
        for step, states in self.readers.get(tensor, ()):
            key = (self.segments.leader[step.index], step.phase, *states)
            wanted.setdefault(key, (step.phase, _by_node(step.phase, states, self.x[step.index])))
        for node in sorted(self.problem.fixed.get(tensor, ()), key=str):
            wanted["fixed", node] = (node[0], {node: None})
        for sink, by_state in self.s.items():
            if sink.view.tensor is tensor:
                wanted["gradient", sink.position] = (BACKWARD, {(BACKWARD, n): list(v) for n, v in by_state.items()})

        ends = []
        for phase, demand in wanted.values():
            source = made
            if tensor.source == "parameter":
                source = {(phase, state): [var] for state, var in self.r[tensor].items()}
            source, demand = _apart(source, demand)
            if source or demand:
                ends.append((source, demand))
        near = set(with_intermediates({node[1] for pair in ends for amounts in pair for node in amounts}))
        arcs = [a for a in self.problem.arcs[tensor] if a.source[1] in near and a.target[1] in near]
        flows = [(source, demand, useful_arcs(arcs, source, demand)) for source, demand in ends]

        shared = Counter(arc for _, _, arcs in flows for arc in arcs)
        z = {}
        for arc, readers in shared.items():
            if readers > 1 or self.binary_arcs:
                z[arc] = self.lines.column(arc.cost, 1.0, binary=self.binary_arcs)
        for flow in flows:
            self._flow(flow, z)

    def _flow(self, flow: Flow, z: dict[Arc, int]) -> None:
        """One reader's unit of flow: at every node, what comes in and what is made goes on or is wanted there."""
        source, demand, arcs = flow
        terms: dict[Node, tuple[list[int], list[float]]] = {}
        constants: dict[Node, float] = {}
        for amounts, sign in ((source, 1.0), (demand, -1.0)):
            for node, amount in amounts.items():
                columns, values = terms.setdefault(node, ([], []))
                if amount is None:
                    constants[node] = constants.get(node, 0.0) + sign
                else:
                    columns += amount
                    values += [sign] * len(amount)
        for arc in arcs:
            f = self.lines.column(0.0 if arc in z else arc.cost)
            for node, sign in ((arc.source, -1.0), (arc.target, 1.0)):
                columns, values = terms.setdefault(node, ([], []))
                columns.append(f)
                values.append(sign)
            if arc in z:
                self.lines.row([f, z[arc]], [1.0, -1.0], 0.0, equal=False)
        for node, (columns, values) in terms.items():
            self.lines.row(columns, values, -constants.get(node, 0.0))

    def solve(self) -> Solution:
        values, proven = self.lines.solve(NODES)
        steps, follows = self.problem.graph.steps, self.segments.follows
        choice = [follows[s.index][max(range(len(x)), key=lambda k: values[x[k]])] for s, x in zip(steps, self.x)]
        rest = {tensor: max(row, key=lambda s: values[row[s]]) for tensor, row in self.r.items()}
        solution = evaluate(self.problem, choice, rest)
        objective = float(values @ self.lines.cost)
        solution.statistics = {**self.lines.statistics, "objective": objective}
        solution.bounded = "" if proven else f"after {NODES} nodes of branch and bound"
        return solution


def _possible(cost: float) -> tuple[float, float]:
    """Cost and upper bound of a choice, whose tensors may be out of reach of their readers."""
    return (cost, 1.0) if isfinite(cost) else (0.0, 0.0)


def _by_node(phase: int, states: list[State], row: list[int]) -> dict[Node, Amount]:
    result: dict[Node, Amount] = {}
    for state, column in zip(states, row, strict=True):
        amount = result.setdefault((phase, state), [])
        assert amount is not None
        amount.append(column)
    return result


def _apart(source: dict[Node, Amount], demand: dict[Node, Amount]) -> tuple[dict[Node, Amount], dict[Node, Amount]]:
    """Without what is wanted where it is made, whatever is chosen: a column on both sides of a node's equation."""
    both = {node: set(made or ()) & set(demand[node] or ()) for node, made in source.items() if node in demand}
    equal = {node for node in both if source[node] is None and demand[node] is None}

    def left(amounts: dict[Node, Amount]) -> dict[Node, Amount]:
        result: dict[Node, Amount] = {}
        for node, amount in amounts.items():
            if amount is None:
                if node not in equal:
                    result[node] = None
            elif rest := [column for column in amount if column not in both.get(node, ())]:
                result[node] = rest
        return result

    return left(source), left(demand)


def useful_arcs(arcs: list[Arc], source: Mapping[Node, Amount], demand: Mapping[Node, Amount]) -> list[Arc]:
    """The arcs that lie on a path from source to demand."""
    phase = max((node[0] for node in demand), default=0)
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


def solve(problem: Problem, segments: Segments | None = None, columns: int | None = None) -> Solution:
    """The optimal plan among those in which ops follow each other as the segments say.

    columns: of a programme, at most; with more of them nothing is divided.
    Should relaxed arcs come out fractional (the true cost is higher), they become binary.
    """
    segments = segments or no_segments(problem)
    programme = Programme(problem, segments)
    if columns is not None and len(programme.lines.cost) > columns:
        solution = evaluate(problem, [0] * len(problem.graph.steps), {t: problem.whole for t in problem.rests})
        solution.statistics = {**programme.lines.statistics, "objective": solution.cost}
        solution.bounded = "nothing is divided"
        return solution
    solution = programme.solve()
    objective = solution.statistics["objective"]
    if not solution.bounded and solution.cost > objective + 1e-4 * max(1.0, abs(objective)):
        solution = Programme(problem, segments, binary_arcs=True).solve()
    return solution
