"""Ops that decide for themselves, and ops that follow another one.

In an ordinary search every op is its own leader.  A layer of thousands of ops (a recurrence that is unrolled) makes a
programme that is too large.  There an op that mixes no dims (pointwise, reductions, slices, ...) does what keeps its
largest operand where it lies, as far as it can, whatever the op that made this operand does:

    %c = nn.contract(%q, %k)        leads: whole | split b | split h | ...
    %d = aten.mul.Tensor(%c, %g)    follows: whole | split b | split h | ...
    %e = aten.select.int(%d)        follows: whole | split b | split h, gathered before where it cannot go on | ...

Plans that change a layout in the middle of a segment are lost.  Costs are exact, so the best of the others is found.
"""

from __future__ import annotations

from dataclasses import dataclass

from uniap_compiler.ir import Rule

from .choices import State
from .graph import Step, Tensor
from .problem import Problem


@dataclass(frozen=True, slots=True)
class Segments:
    """leader: of every step, the index of the step that it follows (its own, if none).  follows: of every step, its own
    choice for each choice of the leader."""

    leader: list[int]
    follows: list[list[int]]

    def states(self, step: Step, states: list[State]) -> list[State]:
        """By choice of the leader, what is listed by choice of the step."""
        return [states[k] for k in self.follows[step.index]]


def no_segments(problem: Problem) -> Segments:
    steps = problem.graph.steps
    return Segments([step.index for step in steps], [list(range(len(step.choices))) for step in steps])


def find_segments(problem: Problem) -> Segments:
    """Ops that contract lead, and those that read nothing that the layer makes; the others follow.

    What is filled with a number (the zeros into which a slice's gradient is written) follows its reader.
    """
    graph = problem.graph
    batch = problem.prices.cost.batch
    found = no_segments(problem)
    maker: dict[Tensor, int] = {}
    made: dict[Tensor, list[State]] = {}
    filled: dict[Tensor, Step] = {}
    for step in graph.steps:
        if not step.reads and len(step.makes) == 1:
            filled[step.makes[0][0]] = step
            continue
        read = [t for t, _ in step.reads if t in maker]
        if read and not _contracts(step):
            largest = max(read, key=lambda t: (t.local_bytes(problem.whole, graph.mesh, batch), t.phase == step.phase))
            leader = found.leader[step.index] = maker[largest]
            near = [(t, states) for t, states in step.reads if maker.get(t) == leader]
            found.follows[step.index] = _follow_all(problem, step, near, [made[t] for t, _ in near])
        leader = found.leader[step.index]
        for tensor, states in step.makes:
            maker[tensor], made[tensor] = leader, found.states(step, states)
        for tensor, states in step.reads:
            if (source := filled.pop(tensor, None)) is not None:
                found.leader[source.index] = leader
                wanted = found.states(step, states)
                found.follows[source.index] = [_making(source, state) for state in wanted]
                maker[tensor], made[tensor] = leader, found.states(source, source.makes[0][1])
    return found


def _making(step: Step, state: State) -> int:
    """The choice that makes the only result in this state; whole where none does."""
    states = step.makes[0][1]
    return states.index(state) if state in states else 0


def _contracts(step: Step) -> bool:
    """Whether the op sums over something that two operands have."""
    rule = step.op.attrs.get("rule")
    if not isinstance(rule, Rule):
        return False
    kept = {f for dims in rule.results for group in dims for f in group}
    operands = [{f for group in dims or () for f in group} for dims in rule.operands]
    return any(sum(f in dims for dims in operands) > 1 for f in rule.factors() if f not in kept)


def _follow_all(
    problem: Problem, step: Step, near: list[tuple[Tensor, list[State]]], made: list[list[State]]
) -> list[int]:
    """For each choice of the leader.  near: the operands that it decides about; made: by its choice, where they lie."""
    known: dict[tuple[State, ...], int] = {}
    choices = []
    for states in zip(*made, strict=True):
        if states not in known:
            known[states] = _follow(problem, step, near, states)
        choices.append(known[states])
    return choices


def _follow(problem: Problem, step: Step, near: list[tuple[Tensor, list[State]]], made: tuple[State, ...]) -> int:
    """The choice that moves least of what lies there; the fastest of several."""
    if all(state == problem.whole for state in made):
        return 0
    costs = problem.costs[step.index]
    ends = [(tensor, (tensor.phase, state), states) for (tensor, states), state in zip(near, made, strict=True)]

    def moved(k: int) -> float:
        return sum(problem.distance(tensor, start, (step.phase, states[k])) for tensor, start, states in ends)

    still = [k for k in range(len(costs)) if all(states[k] == start[1] for _, start, states in ends)]
    return min(still or range(len(costs)), key=lambda k: (moved(k), costs[k], k))
