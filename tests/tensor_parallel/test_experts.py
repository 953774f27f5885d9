"""Expert parallelism, found by the same search: tokens and experts split over the same axes, two exchanges each way."""

from __future__ import annotations

from math import prod

import pytest
import torch

from tests.tensor_parallel.costs import RandomCost
from tests.tensor_parallel.counts import ROUNDS
from tests.tensor_parallel.spmd import check
from uniap_compiler.capture import capture
from uniap_compiler.ir import ITEM_BYTES, ConstantStore, Func, Op, at
from uniap_compiler.passes.analysis.exchange import exchanges, routed_axes
from uniap_compiler.passes.analysis.tensor_parallel import RooflineCost, Weights, search
from uniap_compiler.passes.manager import Session, run_passes
from uniap_compiler.passes.pipelines import parse_pipeline
from uniap_compiler.runtime.experts import experts
from uniap_compiler.runtime.threads import SimulatedComm, run_ranks
from uniap_compiler.zoo import find_task

PASSES = "canonicalize,outline-layers,differentiate,decompose-losses,shard-rules"
MESHES = [(2,), (2, 2), (2, 2, 2)]


def block(spec: str, dtype: str | None = None) -> tuple[Func, Func]:
    task, constants = find_task(spec), ConstantStore()
    module = capture(task, dtype=dtype, constants=constants)
    run_passes(module, parse_pipeline(PASSES), Session(constants=constants, task=task))
    (name,) = [n for n, f in module.funcs.items() if any(op.name == "nn.experts" for op in f.ops)]
    return module.funcs[name], module.funcs[name.removesuffix("forward") + "backward"]


@pytest.fixture(scope="module")
def full() -> tuple[Func, Func]:
    """A block of Mixtral 8x7B."""
    return block("zoo:mixtral-8x7b,num_hidden_layers=2")


@pytest.fixture(scope="module")
def small() -> tuple[Func, Func]:
    """Six experts and twelve tokens a row: both divide by 2 and by 3, the experts not by 4."""
    return block("zoo:mixtral-8x7b@small,num_hidden_layers=2,num_local_experts=6,seq=12", "float64")


def mixtures(func: Func) -> list[Op]:
    return [op for op in func.ops if op.name.startswith("nn.experts")]


def shares(op: Op, mesh: tuple[int, ...]) -> list[list[int] | None]:
    """Local shapes of the operands at a batch of one."""
    sizes = {f"t{n}": size for n, size in enumerate(mesh)}
    return [
        list(v.type.layout.local_shape(v.type.shape, sizes, 1)) if v is not None and v.type.layout else None
        for v in op.flat_operands()
    ]


def sent(func: Func, mesh: tuple[int, ...]) -> tuple[list[str], float]:
    """The collectives of a func, exchanges inside ops included, and the bytes that a device sends to others."""
    devices, kinds, total = prod(mesh), [], 0.0
    for op in func.ops:
        if op.name in ROUNDS:
            t = op.results[0].type
            whole = prod(at(d, 1) for d in t.shape) * ITEM_BYTES[t.dtype]
            kind = op.name.removeprefix("comm.")
            kinds.append(kind)
            total += ROUNDS[op.name] * whole / devices * (1 if kind != "all_to_all" else 1 / devices) * (devices - 1)
        for size in exchanges(op, shares(op, mesh)):
            if size:  # beside the exchange of counts
                kinds.append("exchange")
                total += float(size) * (devices - 1) / devices
    return kinds, total


def by_hand(devices: int) -> float:
    """Bytes in one direction of a block of Megatron with sequence parallelism and expert parallelism: a gather and a
    scatter around attention, two exchanges of every token's two copies around the experts."""
    whole = 2048 * 4096 * 4
    share = (devices - 1) / devices
    return 2 * share * whole + 2 * share * (whole / devices) * 2


@pytest.mark.parametrize("mesh", MESHES)
def test_a_mixtral_block_is_expert_parallel(full: tuple[Func, Func], mesh: tuple[int, ...]) -> None:
    """Two exchanges forward, two backward, at most the bytes of the scheme that people write by hand."""
    plan = search(*full, mesh, "sequence", RooflineCost(mesh))
    axes = tuple(f"t{n}" for n in range(len(mesh)))
    for func in plan:
        (op,) = mixtures(func)
        assert routed_axes(op) == axes and op.attrs["peers"] == prod(mesh)
        kinds, size = sent(func, mesh)
        assert sorted(kinds) == ["all_gather", "exchange", "exchange", "reduce_scatter"]
        # weights and numbers of the choices go with the tokens: 16 bytes for 16 KiB
        assert size <= by_hand(prod(mesh)) * 1.001
    forward, backward = plan
    saved = [v for v, kind in zip(forward.returns, forward.attrs["results"], strict=True) if kind == "saved"]
    (op,) = mixtures(forward)
    assert op.results[1] in saved and mixtures(backward)[0].operands[1] is None


@pytest.mark.parametrize("mesh", [(2,), (2, 2), (2, 2, 2)])
def test_without_split_sequences_it_is_no_worse_than_a_sum(full: tuple[Func, Func], mesh: tuple[int, ...]) -> None:
    """Whole activations between layers: at most Megatron's two all-reduces each way."""
    for func in search(*full, mesh, "replicated", RooflineCost(mesh)):
        _, size = sent(func, mesh)
        assert size <= 4 * 2048 * 4096 * 4 * (prod(mesh) - 1) / prod(mesh) * 1.001


@pytest.mark.parametrize("mesh", [(2,), (3,), (2, 2), pytest.param((3, 2), marks=pytest.mark.slow)])
def test_any_plan_computes_the_same(small: tuple[Func, Func], mesh: tuple[int, ...]) -> None:
    routed = 0
    for seed in range(6 if len(mesh) == 1 else 4):
        cost = RandomCost(seed, (0.0, 0.02)[seed % 2])
        plan = search(*small, mesh, ("sequence", "replicated")[seed // 3], cost, Weights(rest=0.0, round=0.0))
        check(small, plan, mesh)
        routed += sum(bool(routed_axes(op)) for func in plan for op in mixtures(func))
    best = search(*small, mesh, "sequence", RooflineCost(mesh, batch=2, latency=0.0), Weights(round=0.0))
    check(small, best, mesh)
    routed += sum(bool(routed_axes(op)) for func in best for op in mixtures(func))
    assert routed, "no plan exchanged tokens"


def test_the_bytes_are_those_that_are_sent() -> None:
    """Tokens whose choices fall evenly, counted where they are sent: once per device, not once per choice."""
    torch.manual_seed(0)
    devices, tokens, h, e, k = 4, 600, 8, 8, 2
    index = torch.stack([torch.randperm(e)[:k] for _ in range(devices * tokens)])
    x, weights = torch.randn(devices * tokens, h), torch.rand(devices * tokens, k)
    gate_up, down = torch.randn(e, 8, h), torch.randn(e, h, 4)

    def work(rank: int, world):  # type: ignore[no-untyped-def]
        comm = SimulatedComm(world, rank, {"t": [list(range(devices))]}, [list(range(devices))])
        rows = []
        exchange = comm.exchange_rows

        def counted(x, group, sent, received):  # type: ignore[no-untyped-def]
            rows.append((x.shape[1], sum(sent) - sent[rank]))
            return exchange(x, group, sent, received)

        comm.exchange_rows = counted
        local = [t.chunk(devices)[rank] for t in (x, index, weights, gate_up, down)]
        experts(*local, activation="silu(gate) * up", comm=comm, group="t", stride=2, offset=2 * rank)
        return rows

    for there, back in run_ranks(devices, work):
        assert there[0] == h * 4 + k * (4 + 4) and back[0] == h * 4
        others = devices * tokens * (1 - (1 - 1 / devices) ** k) * (devices - 1) / devices
        assert abs(there[1] - others) < 0.15 * others
        assert there[1] < k * tokens * (devices - 1) / devices, "more than a copy for every choice"
