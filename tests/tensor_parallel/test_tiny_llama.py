"""The captured example: Megatron's traffic on the laptop's prices, and equal results of every layer."""

from __future__ import annotations

import runpy
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest

from tests.tensor_parallel.costs import RandomCost
from tests.tensor_parallel.counts import ROUNDS, traffic
from tests.tensor_parallel.spmd import check
from uniap_compiler.capture import capture
from uniap_compiler.cluster import Mesh, load_cluster
from uniap_compiler.ir import ConstantStore, Func, Module, Op
from uniap_compiler.passes.analysis.cost.op_cost import SearchCost, local_bytes
from uniap_compiler.passes.analysis.find_tensor_parallelism import empty_backward
from uniap_compiler.passes.analysis.tensor_parallel import Weights, search
from uniap_compiler.passes.manager import Session, run_passes
from uniap_compiler.passes.pipelines import parse_pipeline

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny_llama.py"
PASSES = "canonicalize,outline-layers,differentiate,decompose-losses,shard-rules"
BATCH = 4


@pytest.fixture(scope="module")
def module() -> Module:
    example = runpy.run_path(str(EXAMPLE))
    task = example["task"](example["Config"](layers=2))
    constants = ConstantStore()
    captured = capture(task, dtype="float64", constants=constants)
    run_passes(captured, parse_pipeline(PASSES), Session(constants=constants, task=task))
    return captured


def layer(module: Module, name: str) -> tuple[Func, Func]:
    forward = module.funcs[f"{name}.forward"]
    return forward, module.funcs.get(f"{name}.backward") or empty_backward(forward)


def laptop(mesh: tuple[int, ...]) -> SearchCost:
    devices = Mesh.of(replace(load_cluster("laptop"), devices_per_node=prod(mesh)), 1, 0)
    return SearchCost(devices, tuple(devices.axes), BATCH, 0.25)


def sent(func: Func) -> list[Op]:
    return [op for op in func.ops if op.name in ROUNDS]


ACTIVATION = BATCH * 128 * 256 * 8
MESHES = [(2,), (2, 2), (2, 2, 2)]


@pytest.mark.parametrize("mesh", MESHES)
def test_the_block_is_megatron(module, mesh) -> None:
    pair = layer(module, "block")
    plan = search(*pair, mesh, "replicated", laptop(mesh))
    for func in plan:
        assert [op.name for op in sent(func)] == ["comm.all_reduce"] * 2
        assert traffic(func, BATCH)[1] <= 4 * ACTIVATION
    check(pair, plan, mesh, batch=1)


@pytest.mark.parametrize("mesh", MESHES)
def test_the_block_with_split_sequences_is_no_worse_than_megatron(module, mesh) -> None:
    """At most its two gathers and two scatters, in time: on the laptop a scatter moves what an all-reduce does."""
    pair, cost = layer(module, "block"), laptop(mesh)
    plan = search(*pair, mesh, "sequence", cost)
    axes = tuple(range(len(mesh)))
    megatron = sum(2 * cost.collective_seconds(kind, axes, ACTIVATION) for kind in ("all_gather", "reduce_scatter"))
    for func in plan:
        seconds = 0.0
        for op in sent(func):
            whole = [v.type for v in (op.operands[0], op.results[0])]
            size = max(local_bytes(t, dict(zip(("t0", "t1", "t2"), mesh)), BATCH) for t in whole)
            seconds += cost.collective_seconds(op.name.removeprefix("comm."), axes, size)
        assert 0 < len(sent(func)) <= 4 and seconds <= megatron
    check(pair, plan, mesh, batch=1)


@pytest.mark.parametrize("name", ["embed", "block", "head"])
def test_random_plans_of_every_layer(module, name) -> None:
    pair = layer(module, name)
    for seed in range(1 if name == "block" else 6):
        weights = Weights(rest=(0.0, 0.3)[seed % 2], round=0.0)
        plan = search(*pair, (2, 2), ("replicated", "sequence")[seed // 2 % 2], RandomCost(seed, 0.05), weights)
        check(pair, plan, (2, 2), batch=1)
