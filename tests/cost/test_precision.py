"""Bytes and messages of bfloat16 parameters: masters, float32 accumulators, the dtype in which gradients travel."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.cost.mlp import mlp
from tests.cost.test_layer_cost import cluster
from uniap_compiler.cluster import Mesh
from uniap_compiler.ir import Module, struct
from uniap_compiler.passes.analysis.cost.layer_cost import layer_cost
from uniap_compiler.passes.analysis.cost.strategy_cost import Optimizer, Strategy, StrategyCost, strategy_cost
from uniap_compiler.passes.analysis.precision import Precision

COUNT = 2 * 32 * 8
"""Elements of both weights."""


def cost(shard: str, precision: Precision, dtype: str = "bf16") -> StrategyCost:
    layer = layer_cost(*mlp(), {}, [1, 2], cluster())
    layer.parameters = [replace(p, dtype=dtype) for p in layer.parameters]
    optimizer = Optimizer.of("adamw", precision=precision)
    return strategy_cost(layer, Strategy(1, 4, shard=shard), Mesh.of(cluster(), 1, 0), optimizer, 8, (1, 2))


@pytest.mark.parametrize(
    ("shard", "weights", "gradients", "states"),
    [
        ("none", 1, 1, 1),
        ("optimizer", 1.25, 1, 0.25),
        ("gradients", 1.25, 0.25, 0.25),
        ("parameters", 0.25, 0.25, 0.25),
    ],
)
def test_memory_with_masters(shard: str, weights: float, gradients: float, states: float) -> None:
    """Parameters in 2 bytes; gradients in 4, twice with several micro-batches; two moments and the master in 4 each."""
    found = cost(shard, Precision())
    rest = COUNT * (2 * weights + 12 * states)
    assert found.resident.tolist() == [rest + 4 * COUNT * gradients, rest + 8 * COUNT * gradients]
    plain = cost(shard, Precision(master_weights=False))
    assert plain.resident[0] == COUNT * 2 * (weights + gradients + 2 * states)


def test_messages_of_gradients() -> None:
    mesh = Mesh.of(cluster(), 1, 0)

    def seconds(kind: str, item: int) -> float:
        return 2 * float(mesh.seconds(kind, ("a", "b"), COUNT / 2 * item))

    def once(item: int) -> float:
        """What happens once per step besides the reduction: nothing that depends on how gradients are sent."""
        found = cost("none", Precision(reduce="bf16" if item == 2 else None))
        return float(found.step[0]) - seconds("all_reduce", item)

    casts = 2 * (4 + 2) * COUNT / 1e9  # to bf16 before, to f32 after
    assert once(2) - once(4) == pytest.approx(casts)
    scattered = {item: cost("gradients", Precision(reduce="bf16" if item == 2 else None)) for item in (2, 4)}
    difference = scattered[4].backward - scattered[2].backward
    cast = (2 + 4) * COUNT / 1e9
    # in f32: a cast before; in bf16: one of a quarter after
    less = seconds("reduce_scatter", 4) - seconds("reduce_scatter", 2)
    assert difference == pytest.approx(np.full(2, less + 0.75 * cast))
    assert scattered[2].step.tolist() == scattered[4].step.tolist()


def test_float32_is_as_it_was_and_float64_is_never_reduced_in_less() -> None:
    assert cost("none", Precision(), "f32").step.tolist() == cost("none", Precision(False), "f32").step.tolist()
    half = Precision(reduce="bf16")
    assert (half.reduced("f32"), half.reduced("f64"), half.accumulated("f32")) == ("bf16", "f64", "f32")
    assert (Precision().accumulated("bf16"), Precision(False).accumulated("bf16")) == ("f32", "bf16")


def test_read_off_the_module() -> None:
    module = Module("m", {"optimizer": struct("optimizer", kind="sgd", master_weights=False, reduce_dtype="bf16")})
    assert Precision.of(module) == Precision(False, "bf16")
    assert Precision.of(Module("m", {"optimizer": struct("optimizer", kind="sgd")})) == Precision()
