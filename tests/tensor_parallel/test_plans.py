"""Whatever the objective, a plan computes what the unsharded pair computes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.tensor_parallel.costs import RandomCost
from tests.tensor_parallel.spmd import check
from tests.tensor_parallel.tape import llama, mlp
from uniap_compiler.ir import Func, Layout, Value, print_func
from uniap_compiler.passes.analysis.tensor_parallel import RooflineCost, Weights, search

PAIRS = {
    "mlp": mlp,
    "llama": llama,
    "grouped": lambda: llama(hidden=24, heads=8, kv_heads=2, d=4, ffn=24, s=12),
    "bidirectional": lambda: llama(hidden=24, heads=6, kv_heads=3, d=6, ffn=24, s=12, causal=False),
}


def random_plan(pair: tuple[Func, Func], mesh: tuple[int, ...], seed: int) -> tuple[Func, Func]:
    cost = RandomCost(seed, (0.0, 0.1, 1.0)[seed % 3])
    weights = Weights(rest=(0.0, 0.1)[seed % 2], round=0.0)
    return search(*pair, mesh, ("replicated", "sequence")[seed // 2 % 2], cost, weights)


@pytest.mark.parametrize("mesh", [(2,), (3,), (2, 2)])
@pytest.mark.parametrize("name", PAIRS)
def test_random_plans_compute_the_same(name, mesh) -> None:
    for seed in range(2 if mesh == (2, 2) else 4):
        pair = PAIRS[name]()
        check(pair, random_plan(pair, mesh, seed), mesh)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(2,), (3,), (2, 2), (3, 2), (2, 2, 2)])
@pytest.mark.parametrize("name", PAIRS)
def test_many_random_plans_compute_the_same(name, mesh) -> None:
    for seed in range(2, 24):
        pair = PAIRS[name]()
        check(pair, random_plan(pair, mesh, seed), mesh)


@pytest.mark.parametrize("boundary", ["replicated", "sequence"])
@pytest.mark.parametrize("mesh", [(2,), (3,), (2, 2), (2, 2, 2)])
def test_best_plans_compute_the_same(mesh, boundary) -> None:
    for name in ("grouped",) if len(mesh) == 3 else ("mlp", "grouped", "bidirectional"):
        pair = PAIRS[name]()
        check(pair, search(*pair, mesh, boundary, RooflineCost(mesh, batch=2)), mesh)


def test_random_plans_differ_and_use_every_collective() -> None:
    kinds = set()
    for seed in range(6):
        for func in random_plan(llama(), (2,), seed):
            kinds |= {op.name for op in func.ops if op.name.startswith("comm.")}
    assert kinds == {
        f"comm.{k}" for k in ("all_reduce", "reduce_scatter", "all_gather", "all_to_all", "slice", "first")
    }


def mutants(plan: tuple[Func, Func]):
    """Plans with one collective replaced by one that has the same types and does something else."""
    for f in range(2):
        for i, op in enumerate(plan[f].ops):
            copy = (plan[0].clone(), plan[1].clone())
            broken = copy[f].ops[i]
            if op.name == "comm.all_reduce":
                broken.attrs["op"] = "max"
            elif op.name == "comm.reduce_scatter":
                broken.name = "comm.slice"
            elif op.name == "comm.first":
                del copy[f].ops[i]
                for user in copy[f].ops:
                    user.replace_operands(lambda v, b=broken: b.operands[0] if v is b.results[0] else v)
            else:
                continue
            yield copy


def test_the_check_finds_broken_collectives() -> None:
    found = 0
    for seed in (0, 1, 2):
        pair = llama()
        for mutant in list(mutants(random_plan(pair, (2,), seed)))[::3]:
            with pytest.raises(AssertionError):
                check(pair, mutant, (2,))
            found += 1
    assert found >= 5


def layouts(value: Value) -> Layout:
    assert value.type.layout is not None, f"%{value.name} has no layout"
    return value.type.layout


def test_shape_of_a_sharded_pair() -> None:
    pair = llama()
    forward, backward = search(*pair, (2, 2), "sequence", RooflineCost((2, 2), batch=2))
    assert (forward.name, backward.name) == ("block.tp4.sequence.forward", "block.tp4.sequence.backward")
    assert backward.attrs["of"] == forward.name
    for func in (forward, backward):
        assert str(func.attrs["tensor_axes"].asdict()) == "{'t0': 2, 't1': 2}" and func.attrs["boundary"] == "sequence"
        names = [v.name for v in func.values()]
        assert len(set(names)) == len(names)
        defined = set(func.params)
        for value in func.values():
            layouts(value)
        for op in func.ops:
            assert {v for v in op.flat_operands() if v is not None} <= defined
            assert op.name.startswith("comm.") or "split" in op.attrs
            defined |= set(op.results)
        assert {v for v in func.returns if v is not None} <= defined
    assert [p.name for p in forward.params] == [p.name for p in pair[0].params]
    outside = {v.name: v.type for v in (*forward.params, *forward.returns)}
    for param in backward.params:
        if param.attrs["role"] == "tangent":
            assert outside[param.attrs["of"]].layout == param.type.layout
        else:
            assert outside[str(param.attrs.get("of", param.name))] == param.type
    at_rest = {p.name: layouts(p) for p in forward.params}
    for gradient, kind in zip(backward.returns, backward.attrs["results"], strict=True):
        rest, layout = at_rest[kind.removeprefix("grad:")], layouts(gradient)
        assert layout.dims == rest.dims and not set(layout.pending_axes()) & set(rest.split_axes())
    assert len(forward.attrs["results"]) == len(forward.returns)


def test_originals_are_left_alone() -> None:
    pair = llama()
    before = [print_func(f) for f in pair]
    search(*pair, (2,), "replicated", RooflineCost((2,), batch=2))
    assert [print_func(f) for f in pair] == before


PROGRAM = """
from tests.tensor_parallel.test_plans import *
print(*map(print_func, search(*llama(heads=8, kv_heads=2, d=4), (2, 2), "sequence", RooflineCost((2, 2), batch=2))))
print(*map(print_func, random_plan(llama(), (2,), 3)))
"""


def test_the_same_input_gives_the_same_text() -> None:
    texts = set()
    for seed in ("1", "4711"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        texts.add(subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, check=True).stdout)
    assert len(texts) == 1 and len(texts.pop()) > 10_000
