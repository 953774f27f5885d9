"""A decoder block sends no more than Megatron's two all-reduces forward and two backward, in rounds and in bytes."""

from __future__ import annotations

from math import prod
from time import process_time

import pytest

from tests.tensor_parallel.counts import traffic
from tests.tensor_parallel.tape import llama
from uniap_compiler.ir import ITEM_BYTES, Func
from uniap_compiler.passes.analysis.tensor_parallel import RooflineCost, search

SEVEN_B = {"hidden": 4096, "heads": 32, "kv_heads": 32, "d": 128, "ffn": 11008, "s": 2048, "dtype": "bf16"}
GROUPED = {**SEVEN_B, "kv_heads": 2}
SMALL = {"hidden": 256, "heads": 8, "kv_heads": 4, "d": 32, "ffn": 768, "s": 128, "dtype": "f32"}
CPU = {"flops": 1e11, "bandwidth": 4e10, "link": 1e9, "latency": 5e-4, "overhead": 3e-6}

CASES = [
    pytest.param(SEVEN_B, {}, id="7b"),
    pytest.param(GROUPED, {}, id="2-kv-heads"),
    pytest.param(SMALL, CPU, id="small"),
]
MESHES = [(2,), (2, 2), (2, 2, 2)]
BATCH = 2


def plan(config: dict, machine: dict, mesh: tuple[int, ...], boundary: str) -> tuple[Func, Func]:
    return search(*llama(**config), mesh, boundary, RooflineCost(mesh, batch=BATCH, **machine))


@pytest.mark.parametrize("boundary", ["replicated", "sequence"])
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize(("config", "machine"), CASES)
def test_no_more_than_megatron(config, machine, mesh, boundary) -> None:
    activation = BATCH * config["s"] * config["hidden"] * ITEM_BYTES[config["dtype"]]
    for func in plan(config, machine, mesh, boundary):
        rounds, size = traffic(func, BATCH)
        assert 0 < rounds <= 4, [op for op in func.ops if op.name.startswith("comm.")]
        assert size <= 4 * activation


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize(("config", "machine"), CASES[:2])
def test_big_matrices_are_split(config, machine, mesh) -> None:
    forward, _ = plan(config, machine, mesh, "replicated")
    axes = {f"t{i}" for i in range(len(mesh))}
    heads = min(config["kv_heads"], prod(mesh))
    for param in forward.params:
        if param.attrs["role"] == "param" and len(param.type.shape) == 2:
            split = set(param.type.layout.split_axes())
            # Keys and values have fewer heads than devices in one case: their projection is split in heads only.
            assert split == axes or param.name in ("wk.weight", "wv.weight") and prod(mesh) > heads, param


def test_sequence_boundary_gathers_and_scatters() -> None:
    forward, backward = plan(SEVEN_B, {}, (2, 2), "sequence")
    for func in (forward, backward):
        names = sorted(op.name for op in func.ops if op.name.startswith("comm.") and op.name != "comm.slice")
        assert names == ["comm.all_gather"] * 2 + ["comm.reduce_scatter"] * 2


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize(("config", "machine"), CASES)
def test_search_takes_less_than_a_second_and_a_half(config, machine, mesh) -> None:
    pair = llama(**config)
    start = process_time()
    search(*pair, mesh, "replicated", RooflineCost(mesh, batch=BATCH, **machine))
    assert process_time() - start < 1.5
