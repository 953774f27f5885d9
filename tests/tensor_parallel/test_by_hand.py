"""Layers beside the decoder block: no more bytes than the schemes that people write by hand."""

from __future__ import annotations

from math import prod

import pytest

from tests.tensor_parallel.counts import traffic
from tests.tensor_parallel.spmd import check
from uniap_compiler.capture import capture
from uniap_compiler.cluster import Mesh, load_cluster
from uniap_compiler.ir import ConstantStore, Func, Module
from uniap_compiler.passes.analysis.cost.op_cost import SearchCost
from uniap_compiler.passes.analysis.tensor_parallel import RooflineCost, search
from uniap_compiler.passes.manager import Session, run_passes
from uniap_compiler.passes.pipelines import parse_pipeline
from uniap_compiler.zoo import find_task

PASSES = "canonicalize,outline-layers,differentiate,decompose-losses,shard-rules"
MESHES = [(2,), (2, 2), (2, 2, 2)]


def captured(spec: str, dtype: str | None = None) -> Module:
    task, constants = find_task(spec), ConstantStore()
    module = capture(task, dtype=dtype, constants=constants)
    run_passes(module, parse_pipeline(PASSES), Session(constants=constants, task=task))
    return module


def pair(module: Module, kind: str) -> tuple[Func, Func]:
    return module.funcs[f"{kind}.forward"], module.funcs[f"{kind}.backward"]


@pytest.fixture(scope="module", params=["llama-7b,num_hidden_layers=1", "gpt3-175b,n_layer=1,vocab_size=50304"])
def head(request: pytest.FixtureRequest) -> tuple[Func, Func]:
    """With GPT-3's, a hundredth of the layer's time is much more than it takes to gather the logits."""
    return pair(captured(f"zoo:{request.param}"), "lm_head")


@pytest.mark.parametrize("boundary", ["replicated", "sequence"])
@pytest.mark.parametrize("mesh", MESHES)
def test_a_split_vocabulary_gathers_no_logits(head, mesh, boundary) -> None:
    """Forward gathers x at most and reduces three numbers per row, backward sums one gradient of x."""
    node = Mesh.of(load_cluster("a100-80gb"), 1, 0)
    axes = node.tensor_axes(prod(mesh))
    assert axes is not None
    forward, backward = search(*head, mesh, boundary, SearchCost(node, axes, 8, 0.25))
    weight = next(p.type for p in forward.params if p.name.endswith("weight") and len(p.type.shape) == 2)
    x, row = 8 * 2048 * weight.shape[-1] * 4, 8 * 2048 * 4
    assert weight.layout.split_axes() == tuple(f"t{n}" for n in range(len(mesh)))
    assert traffic(forward, 8)[1] <= 7 * row + (x if boundary == "sequence" else 0)
    assert traffic(backward, 8)[1] <= (x if boundary == "sequence" else 2 * x)


@pytest.fixture(scope="module")
def biased() -> tuple[Func, Func]:
    """Attention of T5 that reads the position biases [1, heads, s, s] which the first layer has made."""
    module = captured("zoo:t5-large@small,dropout=0,num_layers=3,num_decoder_layers=3", "float64")
    kinds = [n.removesuffix(".forward") for n, f in module.funcs.items() if n.endswith(".forward") and _biases(f)]
    return pair(module, kinds[0])


def _biases(func: Func) -> list[str]:
    return [
        p.name for p in func.params if p.attrs["role"] == "activation" and all(isinstance(d, int) for d in p.type.shape)
    ]


@pytest.mark.parametrize("boundary", ["replicated", "sequence"])
@pytest.mark.parametrize("mesh", MESHES[:2])
def test_position_biases_stay_split_by_heads(biased, mesh, boundary) -> None:
    """Under both boundaries, in forward and, as gradients, in backward: nothing of them is sent from layer to layer."""
    plan = search(*biased, mesh, boundary, RooflineCost(mesh, batch=2, flops=1e9, bandwidth=1e9, latency=0.0))
    (name,) = _biases(biased[0])
    axes = tuple(f"t{n}" for n in range(len(mesh)))
    bias = plan[0].param(name)
    gradient = plan[1].returns[list(plan[1].attrs["results"]).index(f"grad:{name}")]
    for value in (bias, gradient):
        assert [part.axes for part in value.type.layout.dims[1]] == [axes]
    for func in plan:
        for op in func.ops:
            if op.name.startswith("comm."):
                assert op.results[0].type.shape != bias.type.shape
    check(biased, plan, mesh)
