"""What the model says against what is emitted: bytes to the byte, collectives one by one."""

from __future__ import annotations

import math
from collections import Counter

import pytest

from tests.cost.chain import chain, cluster
from uniap_compiler.ir import ITEM_BYTES, Func, Module, TensorType
from uniap_compiler.passes.manager import Session
from uniap_compiler.passes.pipelines import parse_pipeline
from uniap_compiler.passes.solve.simulate_schedule import in_flight
from uniap_compiler.passes.solve.solve_parallelism import setting_of

LOWER = "insert-communication,partition-stages,localize"


def size(type: TensorType) -> int:
    return ITEM_BYTES[type.dtype] * math.prod(type.shape)  # type: ignore[arg-type]


def by_role(func: Func | None, prefix: str, *, results: bool) -> dict[str, int]:
    """role -> bytes of the parameters or returns of a segment."""
    if func is None:
        return {}
    roles, values = (func.attrs["results"], func.returns) if results else (func.attrs["args"], func.params)
    return {str(r): size(v.type) for r, v in zip(roles, values, strict=True) if str(r).startswith(prefix) and v}  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def annotated() -> str:
    from tests.cost.captured import annotated_mlp

    return annotated_mlp(64)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize(
    "force",
    [
        "dp=4",
        "tp=4",
        "dp=2,tp=2,micro_batches=2",
        "pp=2,dp=2,micro_batches=4",
        "pp=4,micro_batches=8,recompute=full",
        "dp=4,shard=optimizer,micro_batches=2",
        "dp=4,shard=gradients",
        "dp=4,shard=parameters,micro_batches=2",
        "dp=2,tp=2,shard=parameters,recompute=full",
        "pp=2,tp=2,micro_batches=4,recompute=selective",
        "dp=4,shard=parameters,recompute=selective",
        "boundary=sequence,tp=4",
        "blocks.[012]:tp=4;blocks.[345]:dp=4",
    ],
)
def test_bytes_of_a_stage(annotated: str, force: str, dtype: str) -> None:
    from uniap_compiler.cluster import load_cluster
    from uniap_compiler.ir import parse_module
    from uniap_compiler.passes.manager import run_passes

    module = parse_module(annotated)
    module.attrs["force"] = force
    run_passes(
        module,
        parse_pipeline(f"promote-dtype{{dtype={dtype}}},enumerate-strategies,solve-parallelism"),
        Session(cluster=load_cluster("laptop")),
        verify_each=False,
    )
    plan = module.find("plan.plan")
    assert plan is not None
    stages, count = int(plan.attrs["stages"]), int(plan.attrs["micro_batches"])  # type: ignore[arg-type]
    predicted = [op.attrs for op in module.ops if op.name == "plan.stage"]
    run_passes(module, parse_pipeline(LOWER), Session(), verify_each=False)
    for i, row in enumerate(predicted):
        states = 2 if dtype == "f32" else 3  # of AdamW, and the masters
        emitted = measured(module, i, count, in_flight("1f1b", stages, count, i), states)
        assert row["activations"] == emitted["activations"]
        assert row["states"] == emitted["states"]


def measured(module: Module, stage: int, count: int, held: int, states: int) -> dict[str, int]:
    funcs = {
        name: module.funcs.get(f"stage_{stage}.{name}")
        for name in ("forward", "backward", "reduce_gradients", "refresh_parameters")
    }
    saved = {  # one tensor may have two roles
        value: size(value.type)
        for role, value in zip(funcs["forward"].attrs["results"], funcs["forward"].returns, strict=True)  # type: ignore[arg-type, union-attr]
        if str(role).startswith("saved:") and value is not None
    }
    parameters: dict[str, int] = {}
    for func in funcs.values():
        parameters |= by_role(func, "param:", results=False) | by_role(func, "param:", results=True)
    accumulators = by_role(funcs["backward"], "grad:", results=True)
    final = by_role(funcs["reduce_gradients"], "grad:", results=True)
    homes = {k: v for k, v in accumulators.items() if "@copy" not in k} | final
    fresh = 2 if count > 1 else 1
    return {
        "activations": held * sum(saved.values()),
        "states": sum(parameters.values()) + fresh * sum(accumulators.values()) + states * sum(homes.values()),
    }


def test_collectives_of_a_tensor_pattern_are_those_of_the_emitted_funcs() -> None:
    made = setting_of(chain(cluster()))
    cost = made.patterns["mlp", 2, "replicated"].cost
    counted = Counter((c.phase, c.kind, c.axes) for c in cost.communications for _ in range(c.count))
    assert counted == {("forward", "all_reduce", ("t0",)): 1, ("backward", "all_reduce", ("t0",)): 1}
