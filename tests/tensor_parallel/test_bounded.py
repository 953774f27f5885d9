"""Layers that are too large for one programme: searched in segments, correct, the same every time, and said."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest

from tests.tensor_parallel.costs import RandomCost
from tests.tensor_parallel.spmd import check
from tests.tensor_parallel.tape import Tape
from uniap_compiler.ir import Affine
from uniap_compiler.ir.printer import print_func
from uniap_compiler.passes.analysis.tensor_parallel import RooflineCost
from uniap_compiler.passes.analysis.tensor_parallel import linear as linear_module
from uniap_compiler.passes.analysis.tensor_parallel.graph import build_graph
from uniap_compiler.passes.analysis.tensor_parallel.linear import LinearProgramme
from uniap_compiler.passes.analysis.tensor_parallel.model import solve
from uniap_compiler.passes.analysis.tensor_parallel.problem import Weights, build_problem
from uniap_compiler.passes.analysis.tensor_parallel.search import LayerSearch
from uniap_compiler.passes.analysis.tensor_parallel.segments import find_segments


def two_linears(depth: int = 3):
    """Two matrices with a chain of pointwise ops before, between and behind."""
    tape = Tape({"b": Affine(1), "s": 8, "k": 8, "n": 16}, "f64")
    x, up, down = tape.input("x", "b s k"), tape.param("up", "n k"), tape.param("down", "k n")

    def chain(value):
        for _ in range(depth):
            value = tape.add(tape.relu(value), value)
        return value

    h = tape.contract(chain(x), up, "b s n", "h")
    return tape.differentiate(tape.add(chain(tape.contract(chain(h), down, "b s k", "y")), x))


MESHES = [(2,), (2, 2)]
SMALL = 600
"""Columns: fewer than the layer has, more than its segments have."""


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("boundary", ["replicated", "sequence"])
def test_a_bounded_search_is_correct_and_says_so(mesh, boundary) -> None:
    pair = two_linears()
    for seed in range(3):
        layer, cost = LayerSearch(*pair, mesh, boundary, columns=SMALL), RandomCost(seed, 0.05)
        assert layer.size > SMALL
        plan = layer.find(cost, Weights(round=0.0))
        check(pair, plan, mesh, batch=2)
        assert all("segments" in func.attrs["bounded"] for func in plan)
        again = LayerSearch(*two_linears(), mesh, boundary, columns=SMALL).find(cost, Weights(round=0.0))
        assert [print_func(func) for func in again] == [print_func(func) for func in plan]


@pytest.mark.parametrize("mesh", MESHES)
def test_segments_cost_what_they_say_and_never_less_than_the_optimum(mesh) -> None:
    for seed in range(4):
        problem = build_problem(build_graph(*two_linears(), mesh, "sequence"), RandomCost(seed, 0.1), Weights())
        best, segments = solve(problem), find_segments(problem)
        found = solve(problem, segments)
        assert len(set(segments.leader)) < len(segments.leader) / 2
        assert found.cost == pytest.approx(found.statistics["objective"], rel=1e-6)
        assert found.statistics["columns"] < best.statistics["columns"]
        assert found.cost >= best.cost - 1e-6


def test_a_plan_that_follows_the_segments_anyway_is_found() -> None:
    """Real prices change no layout in the middle of a chain: segments lose nothing."""
    pair, mesh = two_linears(), (2,)
    cost = RooflineCost(mesh, batch=4096, latency=0.0)
    problem = build_problem(build_graph(*pair, mesh, "replicated"), cost, Weights())
    best, found = solve(problem), solve(problem, find_segments(problem))
    assert found.cost == pytest.approx(best.cost, rel=1e-9)
    assert any(found.choice)


def test_what_is_too_large_in_segments_is_not_divided() -> None:
    pair = two_linears()
    plan = LayerSearch(*pair, (2,), "sequence", columns=10).find(RandomCost(0, 0.05))
    check(pair, plan, (2,), batch=2)
    for func in plan:
        assert "nothing is divided" in func.attrs["bounded"]
        assert not any(op.attrs["split"].fields for op in func.ops if op.name == "nn.contract")


def test_an_ordinary_search_says_nothing() -> None:
    for func in LayerSearch(*two_linears(), (2,), "replicated").find(RandomCost(0, 0.05)):
        assert "bounded" not in func.attrs


def odd_cycle(length: int) -> LinearProgramme:
    """Cover the edges of an odd cycle: the relaxation has halves everywhere."""
    lines = LinearProgramme()
    columns = [lines.column(1.0 + 0.01 * n, 1.0, binary=True) for n in range(length)]
    for a, b in [*pairwise(columns), (columns[-1], columns[0])]:
        lines.row([a, b], [-1.0, -1.0], -1.0, equal=False)
    return lines


def covers(length: int):
    """All sets of vertices that cover the cycle."""
    for count in range(length + 1):
        for cover in combinations(range(length), count):
            if all(n in cover or (n + 1) % length in cover for n in range(length)):
                yield cover


@pytest.mark.parametrize("library", ["clp", "cbc"])
def test_branch_and_bound(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if library == "cbc":
        monkeypatch.setattr(linear_module, "clp_library", lambda: None)
    else:
        assert linear_module.clp_library() is not None
    lines = odd_cycle(7)
    values, proven = lines.solve(nodes=100)
    best = min(sum(lines.cost[n] for n in cover) for cover in covers(7))
    assert proven and values @ lines.cost == pytest.approx(best)
    assert set(values.round(6)) == {0.0, 1.0}


def test_branch_and_bound_ends_with_what_it_has() -> None:
    values, proven = odd_cycle(31).solve(nodes=1)
    assert not proven and set(values.round(6)) == {0.0, 1.0}
