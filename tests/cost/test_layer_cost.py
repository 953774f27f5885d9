"""Seconds and bytes of a layer and its strategies, against figures computed by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.cost.mlp import mlp
from uniap_compiler.cluster import Cluster, Mesh
from uniap_compiler.ir import Affine, Op, TensorType, Value
from uniap_compiler.passes.analysis.cost.layer_cost import layer_cost
from uniap_compiler.passes.analysis.cost.op_cost import Roofline, local_dims, moved_bytes, operations
from uniap_compiler.passes.analysis.cost.strategy_cost import Optimizer, Strategy, overlapped, strategy_cost


def cluster(devices: int = 4, launch: float = 0.0, overlap: float = 1.0) -> Cluster:
    return Cluster.from_dict({
        "name": "test", "nodes": 1, "devices_per_node": devices, "overlap": overlap,
        "device": {"kind": "cpu", "memory": "1 GiB", "memory_bandwidth": 1e9, "flops": {"f32": 1e9}, "launch": launch},
        "links": {"intra": {"bandwidth": 1e6, "latency": 1e-3}},
    })  # fmt: skip


ADAMW = Optimizer.of("adamw")
TOKENS, HIDDEN, WIDE, F32 = 16, 8, 32, 4
W1 = W2 = WIDE * HIDDEN * F32  # 1024 bytes each


def test_operations_and_bytes_of_ops() -> None:
    forward, backward = mlp()
    batch = np.array([1.0, 3.0])
    up, relu, _ = forward.ops
    dims = [local_dims(v.type, {}, batch) for v in up.flat_operands() if v is not None]
    out = [local_dims(up.results[0].type, {}, batch)]
    np.testing.assert_array_equal(operations(up, dims, out), 2 * batch * TOKENS * HIDDEN * WIDE)
    np.testing.assert_array_equal(
        moved_bytes(up, dims, out), F32 * (batch * TOKENS * HIDDEN + HIDDEN * WIDE + batch * TOKENS * WIDE)
    )
    x = [local_dims(relu.results[0].type, {}, batch)]
    np.testing.assert_array_equal(operations(relu, x, x), batch * TOKENS * WIDE)


def test_attention_counts_both_products_and_half_of_it_when_causal() -> None:
    def attention(causal: bool, mask: bool) -> Op:
        q = Value("q", TensorType((Affine(1), 4, 64, 16), "f32"))
        m = Value("m", TensorType((64, 64), "f32")) if mask else None
        return Op("nn.attention", [q, q, q, m], [q], {"causal": causal, "scale": 1.0})

    dims = [[2.0, 4.0, 64.0, 16.0]] * 3 + [None]
    scores = 2 * 4 * 64 * 64
    assert operations(attention(False, False), dims, dims[:1], "cuda") == scores * (4 * 16 + 2 * 8)
    assert operations(attention(True, False), dims, dims[:1], "cpu") == scores * (4 * 16 + 2 * 80) / 2
    assert operations(attention(True, True), dims, dims[:1], "cpu") == scores * (4 * 16 + 2 * 80)


def test_convolution() -> None:
    x = Value("x", TensorType((Affine(1), 3, 32, 32), "f32"))
    w = Value("w", TensorType((8, 3, 5, 5), "f32"))
    y = Value("y", TensorType((Affine(1), 8, 28, 28), "f32"))
    op = Op("aten.convolution", [x, w, None], [y], {})
    assert operations(op, [[2, 3, 32, 32], [8, 3, 5, 5], None], [[2, 8, 28, 28]]) == 2 * 2 * 8 * 28 * 28 * 3 * 25
    back = Op("aten.convolution_backward", [y, x, w], [x, w], {"output_mask": [True, True, False]})
    assert operations(back, [[2, 8, 28, 28], [2, 3, 32, 32], [8, 3, 5, 5]], []) == 2 * 2 * 2 * 8 * 28 * 28 * 3 * 25


def test_launches_are_added_on_a_cpu_and_hidden_on_a_gpu() -> None:
    cpu = cluster(launch=1e-3)
    gpu = Cluster.from_dict(cpu.to_dict() | {"device": cpu.to_dict()["device"] | {"kind": "cuda"}})
    assert Roofline(cpu).seconds(2e6, 1e6, "f32") == pytest.approx(3e-3)
    assert Roofline(gpu).seconds(2e6, 1e6, "f32") == pytest.approx(2e-3)
    assert Roofline(gpu).seconds(2e5, 1e5, "f32") == pytest.approx(1e-3)


def test_memory_of_an_mlp_to_the_byte() -> None:
    cost = layer_cost(*mlp(), {}, [1, 2], cluster())
    for n, b in enumerate([1, 2]):
        x, h = b * TOKENS * HIDDEN * F32, b * TOKENS * WIDE * F32
        assert cost.saved[n] == x + h  # the input and relu's result
        assert cost.inputs[n] == x
        assert cost.forward_peak[n] == max(h, x)  # h while relu writes a (saved); then y
        assert cost.backward_peak[n] == x + 2 * h  # g; da and dh; later g, dh and dx
    assert [(p.name, p.shape, p.bytes, p.gradient) for p in cost.parameters] == [
        ("up.weight", (32, 8), W1, ()),
        ("down.weight", (8, 32), W2, ()),
    ]


def test_time_of_an_mlp() -> None:
    cost = layer_cost(*mlp(), {}, [1, 2], cluster())
    for n, b in enumerate([1, 2]):
        product = 2 * b * TOKENS * HIDDEN * WIDE / 1e9
        relu = 2 * b * TOKENS * WIDE * F32 / 1e9
        assert cost.forward_seconds[n] == pytest.approx(2 * product + relu)
        assert cost.backward_seconds[n] == pytest.approx(4 * product + 1.5 * relu)
        assert cost.recompute_seconds[n] == pytest.approx(product + relu)  # y is not needed again
    assert cost.communications == []


def test_tensor_split_halves_and_pays_two_all_reduces() -> None:
    whole, half = layer_cost(*mlp(), {}, [2], cluster()), layer_cost(*mlp(True), {"t0": 2}, [2], cluster())
    assert half.forward_seconds[0] == pytest.approx(whole.forward_seconds[0] / 2)
    assert [p.shape for p in half.parameters] == [(16, 8), (8, 16)]
    mesh = Mesh.of(cluster(2), 1, 0)
    size = 2 * TOKENS * HIDDEN * F32
    for phase in ("forward", "backward"):
        seconds = half.communication_seconds(phase, mesh, {"t0": ("a",), "data": ()})
        assert seconds[0] == pytest.approx(2e-3 + size / 1e6)  # 2 (n-1) steps of 1 ms, 2 (n-1)/n bytes
    assert half.communication_seconds("recompute", mesh, {"t0": ("a",), "data": ()})[0] == 0


def costs(shard: str, recompute: str = "none", micro_batches: tuple[int, ...] = (1, 2), overlap: float = 1.0, **more):  # type: ignore[no-untyped-def]
    layer = layer_cost(*mlp(), {}, [1, 2], cluster())
    strategy = Strategy(1, 4, shard=shard, recompute=recompute)
    return layer, strategy_cost(
        layer, strategy, Mesh.of(cluster(overlap=overlap), 1, 0), ADAMW, 8, micro_batches, **more
    )


def test_memory_of_shards() -> None:
    full = W1 + W2
    for shard, parameters, gradients, states in [
        ("none", full, full, 2 * full),
        ("optimizer", full + full / 4, full, 2 * full / 4),
        ("gradients", full + full / 4, full / 4, 2 * full / 4),
        ("parameters", full / 4, full / 4, 2 * full / 4),
    ]:
        layer, cost = costs(shard)
        # Two micro-batches: accumulator and fresh gradients exist together.
        assert cost.resident.tolist() == [parameters + gradients + states, parameters + 2 * gradients + states], shard
        assert cost.in_flight.tolist() == layer.saved[::-1].tolist()
        gathered = 2 * full if shard == "parameters" else 0  # this layer's and the next one's
        fresh = full if shard in ("gradients", "parameters") else 0
        assert cost.workspace.tolist() == (layer.backward_peak[::-1] + gathered + fresh).tolist()


def test_time_of_shards() -> None:
    mesh = Mesh.of(cluster(), 1, 0)
    one = {
        kind: 2 * float(mesh.seconds(kind, ("a", "b"), W1)) for kind in ("all_reduce", "all_gather", "reduce_scatter")
    }
    update = (W1 + W2) * ADAMW.passes / 1e9
    layer, none = costs("none")
    accumulate = 3 * (W1 + W2) / 1e9
    np.testing.assert_allclose(none.forward, layer.forward_seconds[::-1])
    np.testing.assert_allclose(none.backward, layer.backward_seconds[::-1] + [0, accumulate])
    assert none.step == pytest.approx(one["all_reduce"] + update)
    _, optimizer = costs("optimizer")
    assert optimizer.step == pytest.approx(one["reduce_scatter"] + one["all_gather"] + update / 4)
    _, gradients = costs("gradients")
    assert gradients.step == pytest.approx(one["all_gather"] + update / 4)
    np.testing.assert_allclose(
        gradients.backward, layer.backward_seconds[::-1] + one["reduce_scatter"] + [0, accumulate / 4]
    )
    _, parameters = costs("parameters")
    assert parameters.step == pytest.approx(update / 4)
    np.testing.assert_allclose(parameters.forward, layer.forward_seconds[::-1] + one["all_gather"])
    np.testing.assert_allclose(
        parameters.backward,
        layer.backward_seconds[::-1] + one["all_gather"] + one["reduce_scatter"] + [0, accumulate / 4],
    )


def test_recompute_keeps_inputs_and_runs_forward_again() -> None:
    layer, plain = costs("none")
    _, again = costs("none", "full")
    assert again.in_flight.tolist() == layer.inputs[::-1].tolist()
    np.testing.assert_allclose(again.backward - plain.backward, layer.recompute_seconds[::-1])
    np.testing.assert_allclose(again.workspace, layer.backward_peak[::-1] + layer.saved[::-1])


def test_overlap() -> None:
    assert overlapped(np.array([3.0]), np.array([2.0]), 0.0) == [3.0]
    assert overlapped(np.array([3.0]), np.array([2.0]), 1.0) == [5.0]
    layer, apart = costs("parameters", overlap=0.25, prefetch=False)
    _, beside = costs("parameters", overlap=0.25)
    assert apart.workspace[0] < beside.workspace[0]
    gather = apart.forward[0] - layer.forward_seconds[1]
    assert beside.forward[0] == pytest.approx(
        max(gather, layer.forward_seconds[1]) + 0.25 * min(gather, layer.forward_seconds[1])
    )


def test_copies_of_tied_parameters() -> None:
    _, plain = costs("none")
    _, copy = costs("none", copies=frozenset({"up.weight"}))
    assert plain.resident[0] - copy.resident[0] == 2 * W1  # no optimizer states
    _, free = costs("none", copies=frozenset({"up.weight"}), free=frozenset({"up.weight"}))
    assert plain.resident[0] - free.resident[0] == 4 * W1


def test_a_parameter_that_does_not_divide_stays_whole() -> None:
    layer = layer_cost(*mlp(), {}, [1], cluster())
    layer.parameters = layer.parameters[:1]
    mesh = Mesh.of(cluster(5), 1, 0)
    cost = strategy_cost(layer, Strategy(1, 5, shard="parameters"), mesh, ADAMW, 5, [1])
    assert cost.resident[0] == 4 * W1
    assert cost.step == pytest.approx(float(mesh.seconds("all_reduce", ("a",), W1)) + W1 * ADAMW.passes / 1e9)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    layer = layer_cost(*mlp(), {}, [1, 2], cluster())
    with pytest.raises(ValueError, match="a batch of 6 does not divide"):
        strategy_cost(layer, Strategy(1, 4), Mesh.of(cluster(), 1, 0), ADAMW, 6, [1])


def test_strategy_text() -> None:
    strategy = Strategy(2, 3, "sequence", "optimizer", "full")
    assert Strategy.parse(str(strategy)) == strategy
    assert dict(strategy.attr().fields)["shard"] == "optimizer"


def test_buckets_pay_the_latency_once_per_stage() -> None:
    mesh = Mesh.of(cluster(), 1, 0)
    alpha, beta = mesh.alpha_beta("all_reduce", ("a", "b"))
    _, apart = costs("none")
    _, together = costs("none", layers=5)
    pack = 2 * (W1 + W2) / 1e9
    assert apart.step - together.step == pytest.approx(2 * alpha - alpha / 5 - pack)  # 2 of 10 parameters
    layer = layer_cost(*mlp(), {}, [2], cluster())
    layer.parameters = [replace(layer.parameters[0], shape=(64, 2**18))]  # 64 MiB: four messages, one by one
    big = strategy_cost(layer, Strategy(1, 4), mesh, Optimizer(0, 0.0, 0), 8, [1], layers=5)
    assert big.step == pytest.approx(64 * 2**20 * (beta + 2e-9) + alpha)


def test_reductions_hide_behind_the_last_backward() -> None:
    mesh = Mesh.of(cluster(), 1, 0)
    layer, apart = costs("none", layers=5)
    _, beside = costs("none", layers=5, overlap=0.25)
    alpha, beta = mesh.alpha_beta("all_reduce", ("a", "b"))
    reduce = (W1 + W2) * (beta + 4e-9) + 2 * alpha / 10
    np.testing.assert_allclose(
        apart.step - beside.step, 0.75 * np.minimum(reduce, beside.backward - [0, 3 * 2048 / 1e9])
    )
