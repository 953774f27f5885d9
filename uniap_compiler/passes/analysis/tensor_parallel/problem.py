"""The search problem: a layer's graph with every choice and collective priced, and the exact cost of a plan.

`evaluate` takes what a plan decides (the choice of every op, the layout of every parameter at rest) and completes it
with the cheapest tree of collectives for every tensor.  The programme in model.py optimises the same cost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from uniap_compiler.ir import Dim, Op, Rule, at

from ..exchange import with_peers
from .choices import MAX, SUM, WHOLE, State, split_attr
from .costs import LayerCost, Shape
from .graph import BACKWARD, FORWARD, Graph, Sink, Step, Tensor, View
from .network import Arc, Node, Prices, arcs_of, distances, state_key, steiner_tree, with_intermediates


@dataclass(frozen=True, slots=True)
class Weights:
    """What counts beside the seconds of ops; parts are parts of the layer's time on one device.

    rest: of keeping all parameters whole on every device.  Their gradients are reduced and their optimizer steps
    are done on every device, and tensor parallelism is asked for where they do not fit.
    saved: of saving all forward values whole.
    round: of one more round of large messages, beside the seconds of the collective (an all-reduce is two rounds).
    communication: a factor on the seconds of collectives: what they save should be more than what they cost.
    """

    rest: float = 0.1
    saved: float = 0.01
    round: float = 0.01
    communication: float = 2.0


@dataclass(eq=False, slots=True)
class Problem:
    """A graph with its prices: everything that the programme is made of, and what `evaluate` needs.

    Tensors of one size with the same states share one list of arcs, and `tree` what it found there.
    """

    graph: Graph
    prices: Prices
    costs: list[list[float]]
    rests: dict[Tensor, list[State]]
    states: dict[Tensor, list[State]]
    arcs: dict[Tensor, list[Arc]]
    fixed: dict[Tensor, set[Node]]
    sinks: dict[Sink, dict[State, list[tuple[State, float]]]]
    _trees: dict[tuple[int, Node, frozenset[Node]], tuple[float, dict[Node, Arc]]] = field(default_factory=dict)

    _distances: dict[tuple[int, Node], dict[Node, float]] = field(default_factory=dict)

    @property
    def whole(self) -> State:
        return (WHOLE,) * len(self.graph.mesh)

    def tree(self, tensor: Tensor, root: Node, readers: Iterable[Node]) -> tuple[float, dict[Node, Arc]]:
        """The cheapest tree of collectives from root to all readers."""
        arcs, nodes = self.arcs[tensor], frozenset(readers) - {root}
        if not nodes:
            return 0.0, {}
        key = id(arcs), root, nodes
        if key not in self._trees:
            self._trees[key] = steiner_tree(root, sorted(nodes, key=_node_key), arcs)
        return self._trees[key]

    def distance(self, tensor: Tensor, start: Node, end: Node) -> float:
        """Of the tree with one reader."""
        key = id(self.arcs[tensor]), start
        if key not in self._distances:
            self._distances[key] = distances(start, self.arcs[tensor])
        return self._distances[key].get(end, float("inf"))


@dataclass(eq=False, slots=True)
class Solution:
    """choice: per step its index.  rest: per parameter its layout.  trees: from a (tensor, phase) to its readers.

    bounded: why a better one may have been missed; empty for an optimum.
    """

    choice: list[int]
    rest: dict[Tensor, State]
    cost: float = 0.0
    trees: dict[tuple[Tensor, int], dict[Node, Arc]] = field(default_factory=dict)
    gradients: dict[Sink, State] = field(default_factory=dict)
    statistics: dict[str, float] = field(default_factory=dict)
    bounded: str = ""


LocalOps = list[list[tuple[Op, list[Shape | None], list[Shape]]]]
"""For every step and every choice the op with its local shapes."""


def build_problem(graph: Graph, cost: LayerCost, weights: Weights, local: LocalOps | None = None) -> Problem:
    """Price every choice and arc; the unit is a thousandth of the layer's time on one device.

    local: the graph's local ops at this batch, where they are known.
    """
    mesh, whole = graph.mesh, (WHOLE,) * len(graph.mesh)
    local = local or local_ops(graph, cost.batch)
    seconds = [_seconds(row, cost) for row in local]
    second = sum(row[0] for row in seconds) / 1000 or 1.0
    saved = rest = 1.0
    for tensor in graph.tensors:
        if tensor.source == "parameter":
            rest += tensor.local_bytes(whole, mesh, cost.batch)
        elif tensor.phase == FORWARD and tensor.source != "whole":
            saved += tensor.local_bytes(whole, mesh, cost.batch)
    prices = Prices(
        cost,
        mesh,
        second,
        1000 * weights.saved / saved,
        1000 * weights.rest / rest,
        1000 * weights.round,
        weights.communication,
    )
    costs = [
        [s / second + prices.exchanges(op, operands) for s, (op, operands, _) in zip(row, choices, strict=True)]
        for row, choices in zip(seconds, local, strict=True)
    ]
    problem = Problem(graph, prices, costs, {}, {}, {}, {}, {})

    wanted: dict[Tensor, set[State]] = {t: {whole} for t in graph.tensors}
    phases: dict[Tensor, set[int]] = {t: {t.phase} for t in graph.tensors}
    for step in graph.steps:
        for tensor, states in (*step.reads, *step.makes):
            wanted[tensor].update(states)
            phases[tensor].add(step.phase)
    for tensor in graph.tensors:
        if tensor.state is not None:
            wanted[tensor].add(tensor.state)
    for sink in graph.sinks:
        phases[sink.view.tensor].add(sink.phase)
        if sink.state is not None:
            wanted[sink.view.tensor].add(sink.state)
            problem.fixed.setdefault(sink.view.tensor, set()).add((sink.phase, sink.state))
        if sink.gradient_of is not None:
            param = graph.views[sink.gradient_of.value]
            wanted[sink.gradient_of].update(_same_splits(sink.view, wanted[sink.view.tensor], param))
            wanted[sink.view.tensor].update(_same_splits(param, wanted[sink.gradient_of], sink.view))
    shared: dict[tuple[object, ...], list[Arc]] = {}
    for tensor in graph.tensors:
        states = problem.states[tensor] = with_intermediates(wanted[tensor])
        size = tensor.local_bytes(whole, mesh, cost.batch)
        key = (tensor.source == "parameter", tensor.phase, tensor.dims, size, *sorted(phases[tensor]), *states)
        if key not in shared:
            shared[key] = arcs_of(tensor, states, phases[tensor], prices)
        problem.arcs[tensor] = shared[key]
        if tensor.source == "parameter":
            problem.rests[tensor] = [
                s for s in problem.states[tensor] if all(x == WHOLE or isinstance(x, int) for x in s)
            ]
    for sink in graph.sinks:
        if sink.gradient_of is not None:
            problem.sinks[sink] = _gradient_states(problem, sink, sink.gradient_of)
    return problem


def _seconds(choices: list[tuple[Op, list[Shape | None], list[Shape]]], cost: LayerCost) -> list[float]:
    """Of one op, by choice; many choices leave it the same local shapes."""
    known: dict[tuple[object, ...], float] = {}
    row = []
    for op, operands, results in choices:
        key = (id(op), *operands, None, *results)
        if key not in known:
            known[key] = cost.op_seconds(op, operands, results)
        row.append(known[key])
    return row


def local_ops(graph: Graph, batch: int) -> LocalOps:
    return [list(_local(graph, step, batch)) for step in graph.steps]


def _local(graph: Graph, step: Step, batch: int) -> Iterator[tuple[Op, list[Shape | None], list[Shape]]]:
    sizes = {f"t{n}": size for n, size in enumerate(graph.mesh)}
    values = [v for v in step.op.flat_operands() if v is not None] + [tensor.value for tensor, _ in step.makes]
    shapes = []
    for value, (_, states) in zip(values, (*step.reads, *step.makes), strict=True):
        there = graph.views[value].local_shapes(value, set(states), graph.mesh, batch)
        shapes.append([there[state] for state in states])
    reads = iter(shapes)
    operands = [next(reads) if v is not None else None for v in step.op.flat_operands()]
    results = list(reads)
    rule = step.op.attrs.get("rule")
    for k, choice in enumerate(step.choices):
        op = step.op
        if isinstance(rule, Rule) and any(isinstance(p, str) and rule.split_by(p) != (p,) for p in choice):
            attrs = {**op.attrs, "split": split_attr(choice)}
            op = with_peers(Op(op.name, op.operands, op.results, attrs, None, op.loc), sizes)
        yield op, [s[k] if s is not None else None for s in operands], [s[k] for s in results]


def _same_splits(source: View, states: Iterable[State], target: View) -> list[State]:
    """The states of the tensor behind `source` without pending axes, as states of the one behind `target`.

    The two values have the same shape; their atoms may differ.  An atom is found again by its stride and size.
    """
    here, there = _spans(source), _spans(target)
    found = []
    for state in states:
        outer = source.outward(state)
        if all(s == WHOLE or (isinstance(s, int) and here[s] in there) for s in outer):
            found.append(target.inward(tuple(there.index(here[s]) if isinstance(s, int) else s for s in outer)))
    return found


def _spans(view: View) -> list[tuple[int, Dim, Dim]]:
    """Of each atom its dim, the size of what is minor to it in that dim, and its own size."""
    spans = []
    for number, group in enumerate(view.dims):
        minor: Dim = 1
        for atom in reversed(group):
            size = view.sizes[atom]
            spans.append((atom, (number, minor, size)))
            minor = minor * size if isinstance(size, int) else size * at(minor, 0)
    return [span for _, span in sorted(spans, key=lambda pair: pair[0])]


def _gradient_states(problem: Problem, sink: Sink, param: Tensor) -> dict[State, list[tuple[State, float]]]:
    """For each layout of the parameter at rest: the layouts its gradient may have, and what finishing it costs.

    The gradient lies like the parameter, except that it may be pending over axes on which the parameter is whole.
    """
    result = {}
    for rest in problem.rests[param]:
        wanted = problem.graph.views[param.value].layout(rest, problem.graph.mesh)
        row = []
        for state in problem.states[sink.view.tensor]:
            complete = tuple(WHOLE if s == SUM else s for s in state)
            if MAX not in complete and sink.view.layout(complete, problem.graph.mesh) == wanted:
                row.append((state, problem.prices.pending_gradient(sink.view.tensor, state)))
        result[rest] = row
    return result


def evaluate(problem: Problem, choice: list[int], rest: dict[Tensor, State]) -> Solution:
    """The exact cost of a plan, with the cheapest tree of collectives for every tensor."""
    solution = Solution(choice, rest)
    graph, prices = problem.graph, problem.prices
    total = sum(problem.costs[i][k] for i, k in enumerate(choice))
    total += sum(prices.rest(t, s) for t, s in rest.items())
    goals: dict[Tensor, list[Node]] = {t: sorted(problem.fixed.get(t, ()), key=_node_key) for t in graph.tensors}
    roots: dict[Tensor, State] = {t: t.state for t in graph.tensors if t.state is not None} | rest
    for step, k in zip(graph.steps, choice, strict=True):
        for tensor, states in step.reads:
            goals[tensor].append((step.phase, states[k]))
        for tensor, states in step.makes:
            roots[tensor] = states[k]
    sinks: dict[Tensor, list[Sink]] = {}
    for sink in problem.sinks:
        sinks.setdefault(sink.view.tensor, []).append(sink)
    for tensor in graph.tensors:
        if tensor.source == "whole":
            continue
        for phase in (FORWARD, BACKWARD) if tensor.source == "parameter" else (tensor.phase,):
            wanted = [g for g in goals[tensor] if g[0] == phase or tensor.source != "parameter"]
            options: list[tuple[float, list[Node], dict[Sink, State]]] = [(0.0, wanted, {})]
            for sink in sinks.get(tensor, ()) if phase == tensor.phase or tensor.source != "parameter" else ():
                assert sink.gradient_of is not None
                options = [
                    (cost + price, [*nodes, (BACKWARD, state)], {**chosen, sink: state})
                    for cost, nodes, chosen in options
                    for state, price in problem.sinks[sink][rest[sink.gradient_of]]
                ]
            best = None
            for extra, nodes, chosen in options:
                cost, tree = problem.tree(tensor, (phase, roots[tensor]), nodes)
                if best is None or extra + cost < best[0]:
                    best = (extra + cost, tree, chosen)
            assert best is not None, f"the gradient {tensor.name} cannot lie like its parameter"
            total += best[0]
            solution.trees[tensor, phase] = best[1]
            solution.gradients.update(best[2])
    solution.cost = total
    return solution


def _node_key(node: Node) -> tuple[int, tuple[str, ...]]:
    return node[0], state_key(node[1])
