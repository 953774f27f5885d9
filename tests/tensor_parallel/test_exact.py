"""The programme against enumeration: all choices of all ops, all layouts at rest, brute-force trees of collectives."""

from __future__ import annotations

from itertools import chain, combinations, product
from random import Random

import pytest

from tests.tensor_parallel.costs import RandomCost
from tests.tensor_parallel.tape import Tape
from uniap_compiler.ir import Affine
from uniap_compiler.passes.analysis.tensor_parallel import problem as problem_module
from uniap_compiler.passes.analysis.tensor_parallel.graph import build_graph
from uniap_compiler.passes.analysis.tensor_parallel.model import solve
from uniap_compiler.passes.analysis.tensor_parallel.network import Arc, Move, steiner_tree
from uniap_compiler.passes.analysis.tensor_parallel.problem import Problem, Weights, build_problem, evaluate


def linear_relu(s=12, k=12, n=12):
    tape = Tape({"b": Affine(1), "s": s, "k": k, "n": n}, "f64")
    x, w = tape.input("x", "b s k"), tape.param("w", "n k")
    return tape.differentiate(tape.relu(tape.contract(x, w, "b s n", "h")))


def residual(s=4, k=4):
    tape = Tape({"b": Affine(1), "s": s, "k": k}, "f64")
    x, w = tape.input("x", "b s k"), tape.param("w", "k")
    return tape.differentiate(tape.add(tape.mul(x, w), x))


def two_factors():
    """A dim of 2 x 2 that four devices can only split with one axis on each factor."""
    tape = Tape({"b": Affine(1), "h": 2, "g": 2, "k": 3}, "f64")
    x, w = tape.input("x", "b k"), tape.param("w", "(h g) k")
    return tape.differentiate(tape.contract(x, w, "b (h g)", "y"))


def enumerate_all(problem: Problem, monkeypatch) -> float:
    known = {}

    def remembered(root, terminals, arcs):
        key = (root, frozenset(terminals), id(arcs))
        if key not in known:
            known[key] = steiner_tree(root, terminals, arcs)
        return known[key]

    monkeypatch.setattr(problem_module, "steiner_tree", remembered)
    rests = list(problem.rests)
    best = float("inf")
    for choice in product(*(range(len(step.choices)) for step in problem.graph.steps)):
        for rest in product(*(problem.rests[t] for t in rests)):
            best = min(best, evaluate(problem, list(choice), dict(zip(rests, rest))).cost)
    return best


CASES = [
    (linear_relu, (2,), "replicated"),
    (linear_relu, (2, 2), "sequence"),
    (residual, (2,), "sequence"),
    (linear_relu, (3,), "sequence"),
    (residual, (2, 2), "replicated"),
    (two_factors, (2, 2), "replicated"),
]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("make", "mesh", "boundary"), CASES)
def test_optimum_is_the_best_of_all_plans(make, mesh, boundary, seed, monkeypatch) -> None:
    cost = RandomCost(seed, (0.05, 0.3)[seed % 2])
    problem = build_problem(build_graph(*make(), mesh, boundary), cost, Weights(round=0.0))
    solution = solve(problem)
    assert solution.cost == pytest.approx(solution.statistics["objective"], rel=1e-6)
    assert solution.cost == pytest.approx(enumerate_all(problem, monkeypatch), rel=1e-6)


def brute_force_tree(root, terminals, arcs) -> float:
    """The cheapest set of arcs that reaches all terminals."""
    best = float("inf")
    for chosen in chain.from_iterable(combinations(arcs, n) for n in range(len(arcs) + 1)):
        reached, grown = {root}, True
        while grown:
            new = {a.target for a in chosen if a.source in reached} - reached
            reached |= new
            grown = bool(new)
        if reached >= set(terminals):
            best = min(best, sum(a.cost for a in chosen))
    return best


@pytest.mark.parametrize("seed", range(30))
def test_steiner_tree_is_the_cheapest_set_of_arcs(seed) -> None:
    random = Random(seed)
    nodes = [(0, (i,)) for i in range(5)]
    pairs = [(a, b) for a in nodes for b in nodes if a != b]
    arcs = [Arc(a, b, Move("slice", ()), random.random()) for a, b in random.sample(pairs, 11)]
    terminals = random.sample(nodes, 3)
    cost, tree = steiner_tree(nodes[0], terminals, arcs)
    assert cost == pytest.approx(brute_force_tree(nodes[0], terminals, arcs))
    if cost < float("inf"):
        assert sum(a.cost for a in tree.values()) <= cost + 1e-12
        for node in terminals:
            while node != nodes[0]:
                node = tree[node].source
