"""What is searched once: kinds of layers that differ in numbers only, boundaries that differ in name only.

What the others get is what their own search would find.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from uniap_compiler import TrainingTask
from uniap_compiler.capture import capture
from uniap_compiler.cluster import load_cluster
from uniap_compiler.ir import ConstantStore, Func, Module
from uniap_compiler.ir.printer import print_func, print_module
from uniap_compiler.passes.analysis.cost.op_cost import SearchCost
from uniap_compiler.passes.manager import Session, run_passes
from uniap_compiler.passes.pipelines import parse_pipeline
from uniap_compiler.passes.solve import enumerate_strategies, solve_parallelism
from uniap_compiler.passes.solve.alike import alike, plain_pair, translated, translation
from uniap_compiler.passes.solve.cluster_op import cluster_of
from uniap_compiler.passes.solve.enumerate_strategies import EnumerateStrategies, force_of, search_pattern
from uniap_compiler.passes.solve.pattern_costs import pattern_costs
from uniap_compiler.passes.solve.step_graph import StepGraph

RULES = "canonicalize,outline-layers,differentiate,decompose-losses,shard-rules"
PAD = (0.3, 0.3)


class Block(nn.Module):
    """rates: of two ops, and of a third one with the same name."""

    def __init__(self, rates: tuple[float, float]) -> None:
        super().__init__()
        self.up, self.down, self.rates = nn.Linear(256, 1024), nn.Linear(1024, 256), rates

    def forward(self, x: Tensor) -> Tensor:
        y = self.down(torch.relu(self.up(x)) / self.rates[0]) / self.rates[0]
        return x / self.rates[1] + y


def compiled(
    rates: list[tuple[float, float]], passes: str, force: str = "tp=2", tokens: int = 16
) -> tuple[Module, list[str]]:
    """The module, and the kinds of the blocks with these rates; what stands before and behind joins other blocks."""
    blocks = [Block(pair) for pair in (PAD, *rates, PAD)]
    model = nn.Sequential(nn.Linear(64, 256), *blocks, nn.Linear(256, 8))
    batch, targets = torch.randn(4, tokens, 64), torch.randn(4, tokens, 8)
    task = TrainingTask(model, batch, lambda y, t: (y - t).square().mean(), targets)
    constants = ConstantStore()
    module = capture(task, constants=constants)
    module.attrs |= {"global_batch": 8, "force": force}
    session = Session(cluster=load_cluster("laptop"), global_batch=8, constants=constants)
    run_passes(module, parse_pipeline(passes), session)
    kind = {layer.name: layer.kind for layer in StepGraph.of(module).layers}
    return module, [kind[str(n + 2)] for n in range(len(rates))]


def test_what_is_searched_once_is_what_every_search_would_find() -> None:
    module, kinds = compiled([(0.9, 0.5), (0.8, 0.5), (0.7, 0.25)], f"{RULES},enumerate-strategies")
    graph, first = StepGraph.of(module), kinds[0]
    assert len(set(kinds)) == 3 and [graph.like[kind] for kind in kinds] == [first] * 3
    assert {t for name, t in zip(graph.names, graph.types, strict=True) if name in "234"} == {first}
    wanted = _wanted(module)
    assert [w[2] for w in wanted if w[0] == first] == ["replicated", "sequence"]
    for _, _, boundary, cost in (w for w in wanted if w[0] == first):
        pattern = tuple(module.funcs[f"{first}.tp2.{boundary}.{phase}"] for phase in ("forward", "backward"))
        for kind in kinds[1:]:
            assert f"{kind}.tp2.{boundary}.forward" not in module.funcs
            words = translation(plain_pair(module, first), plain_pair(module, kind))
            assert words is not None
            own = search_pattern(module, kind, tuple(cost.mesh.axes[a] for a in cost.axes), boundary, cost)
            for made, found in zip(translated((pattern[0], pattern[1]), words, first, kind), own, strict=True):
                assert made is not None
                made.attrs.pop("selective", None), found.attrs.pop("selective", None)  # chosen behind the search
                assert print_func(made) == print_func(found)


@pytest.mark.parametrize(
    "rates, same",
    [
        ([(0.9, 0.8), (0.7, 0.6)], True),
        ([(0.8, 0.7), (0.9, 0.9)], True),  # two numbers become one
        ([(0.9, 0.9), (0.8, 0.7)], False),  # one would become two
        ([(0.5, 0.5), (0.5, 0.25)], False),
    ],
)
def test_every_number_has_one_translation(rates: list[tuple[float, float]], same: bool) -> None:
    module, (a, b) = compiled(rates, RULES)
    assert a != b
    assert alike(module, [a, b]) == {a: a, b: a if same else b}


def test_the_plan_has_its_own_patterns_only() -> None:
    rates, force = [(0.9, 0.5), (0.8, 0.5)], "tp=1;[23]:tp=2,boundary=sequence"
    module, kinds = compiled(rates, f"{RULES},enumerate-strategies,solve-parallelism", force)
    sharded = {name for name, func in module.funcs.items() if "tensor_axes" in func.attrs}
    assert sharded == {f"{kind}.tp2.sequence.{phase}" for kind in kinds for phase in ("forward", "backward")}
    for layer, kind, (a, b) in zip("23", kinds, rates, strict=True):
        ops = module.funcs[f"{kind}.tp2.sequence.forward"].ops
        assert [op.attrs["other"] for op in ops if op.name == "aten.div.Tensor"] == [a, a, b]
        assert {op.loc.module.split(".")[0] for op in ops if op.loc is not None} == {layer}
        assert module.funcs[f"{kind}.tp2.sequence.backward"].attrs["of"] == f"{kind}.tp2.sequence.forward"


@pytest.mark.parametrize("tokens, searches", [(15, ["replicated"]), (16, ["replicated", "sequence"])])
def test_a_sequence_that_does_not_divide_is_not_searched_again(
    tokens: int, searches: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def count(module: Module, kind: str, sizes: tuple[int, ...], boundary: str, cost: SearchCost) -> tuple[Func, Func]:
        found.append((kind, boundary))
        return search_pattern(module, kind, sizes, boundary, cost)

    monkeypatch.setattr(enumerate_strategies, "search_pattern", count)
    module, (kind,) = compiled([(0.9, 0.5)], f"{RULES},enumerate-strategies", tokens=tokens)
    assert [boundary for name, boundary in found if name == kind] == searches
    cost = next(w[3] for w in _wanted(module) if w[0] == kind)
    own = search_pattern(module, kind, tuple(cost.mesh.axes[a] for a in cost.axes), "sequence", cost)
    for func in own:
        func.attrs.pop("selective", None)
        module.funcs[func.name].attrs.pop("selective", None)
        assert print_func(func) == print_func(module.funcs[func.name])


def _wanted(module: Module) -> list[tuple[str, int, str, SearchCost]]:
    return list(EnumerateStrategies()._wanted(StepGraph.of(module), force_of(module), cluster_of(module), 8))


def test_costs_that_are_left_to_the_solver_are_those_that_it_would_find(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(solve_parallelism, "pattern_costs", lambda *args: asked.append(args) or pattern_costs(*args))
    together, _ = compiled([(0.9, 0.5)], f"{RULES},enumerate-strategies,solve-parallelism", "")
    assert not asked
    alone, _ = compiled([(0.9, 0.5)], f"{RULES},enumerate-strategies", "")
    run_passes(alone, parse_pipeline("solve-parallelism"), Session())
    assert len(asked) == 1
    assert print_module(alone) == print_module(together)
    compiled([(0.9, 0.5)], f"{RULES},enumerate-strategies,cse,solve-parallelism", "")
    assert len(asked) == 2  # what lies between may change the module
