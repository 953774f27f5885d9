"""A module at level `annotated`, built by hand: perceptrons in a chain, then a head that sums to the loss.

@step:  %h1 = @mlp.forward(%x, ...)  %h2 = @mlp.forward(%h1, ...)  ...  %loss = @head.forward(%hN)
"""

from __future__ import annotations

from collections.abc import Mapping

from tests.cost.mlp import SIZES, B, mlp, value
from uniap_compiler.cluster import Cluster
from uniap_compiler.ir import Atom, Func, Layout, Module, Op, Rule, Value, struct
from uniap_compiler.passes.solve.cluster_op import record_cluster

DIMS = (("b",), ("s",), ("m",))
SHAPE = (B, 16, 8)
ALL = tuple((f, SIZES[f]) for f in "bsm")


def head(prefix: str = "head") -> tuple[Func, Func]:
    x = value("x", SHAPE, Layout.replicated(3), role="activation")
    loss = value("loss", (), Layout.replicated(0))
    total = Rule((DIMS,), ((),), reduce=tuple((f, "sum") for f in "bsm"), linear=((0,),), sizes=ALL)
    forward = Func(
        f"{prefix}.forward", [x], [Op("aten.sum", [x], [loss], {"rule": total})], [loss],
        {"kind": "forward", "results": ["value"]},
    )  # fmt: skip
    g = value("g", (), Layout.replicated(0), role="tangent", of="loss")
    dx = value("dx", SHAPE, Layout.replicated(3))
    spread = Rule(((),), (DIMS,), sizes=ALL)
    op = Op("aten.expand", [g], [dx], {"size": list(SHAPE), "rule": spread})
    backward = Func(
        f"{prefix}.backward", [g], [op], [dx], {"kind": "backward", "of": forward.name, "results": ["grad:x"]}
    )
    return forward, backward


def chain(
    cluster: Cluster,
    batch: int = 8,
    layers: int = 3,
    *,
    patterns: bool = True,
    skip: bool = False,
    tied: bool = False,
    **attrs: str,
) -> Module:
    """patterns: with the pairs for tp = 2.  skip: the head reads the first layer's result, too (as its only value).
    tied: all layers share their weights."""
    module = Module("chain", {"level": Atom("annotated"), "global_batch": batch, **attrs})
    module.attrs["optimizer"] = struct("optimizer", kind="adamw")
    record_cluster(module, cluster)
    pairs = [mlp(), head()]
    if patterns:
        pairs.append(_pattern(mlp(True)))
        pairs.append(_pattern(head("head.tp2.replicated")))
    for forward, backward in pairs:
        module.add(forward)
        module.add(backward)
    module.add(_step(layers, skip, tied))
    return module


def _pattern(pair: tuple[Func, Func]) -> tuple[Func, Func]:
    for func in pair:
        func.attrs |= {"tensor_axes": struct("axes", t0=2), "boundary": "replicated"}
    return pair


def _step(layers: int, skip: bool, tied: bool) -> Func:
    x = value("x", SHAPE, None, role="input", path="x")
    weights: dict[tuple[int, str], Value] = {}
    for n in range(layers):
        for name, shape in (("up.weight", (32, 8)), ("down.weight", (8, 32))):
            key = (0 if tied else n, name)
            weights.setdefault(key, value(f"{key[0]}.{name}", shape, None, role="param", path=f"{key[0]}.{name}"))
            weights[n, name] = weights[key]
    ops, hidden = [], [x]
    for n in range(layers):
        h, a = value(f"h{n}", SHAPE), value(f"h{n}.a", (B, 16, 32))
        operands = [hidden[-1], weights[n, "up.weight"], weights[n, "down.weight"]]
        ops.append(Op("plan.call", operands, [h, a], _attrs(f"layers.{n}", "forward"), symbol="mlp.forward"))
        hidden.append(h)
    loss = value("loss", ())
    read = hidden[1] if skip else hidden[-1]
    ops.append(Op("plan.call", [read], [loss], _attrs("head", "forward"), symbol="head.forward"))
    for n in reversed(range(layers)):  # operands do not matter to the solver
        ops.append(Op("plan.call", [], [], _attrs(f"layers.{n}", "backward"), symbol="mlp.backward"))
    ops.append(Op("plan.call", [], [], _attrs("head", "backward"), symbol="head.backward"))
    params = [x, *dict.fromkeys(weights.values())]
    return Func("step", params, ops, [loss], {"results": ["loss"]})


def _attrs(layer: str, phase: str) -> dict[str, str]:
    return {"layer": layer, "phase": phase}


def cluster(
    devices: int = 4,
    nodes: int = 1,
    memory: object = "1 GiB",
    intra: Mapping[str, object] | None = None,
    **inter: object,
) -> Cluster:
    links: dict[str, object] = {"intra": dict(intra or {"bandwidth": 1e8, "latency": 1e-6})}
    if nodes > 1:
        links["inter"] = {"bandwidth": 1e8, "latency": 1e-6, **inter}
    return Cluster.from_dict({
        "name": "test", "nodes": nodes, "devices_per_node": devices // nodes,
        "device": {"kind": "cpu", "memory": memory, "memory_bandwidth": 1e9, "flops": {"f32": 1e8}, "launch": 1e-7},
        "links": links,
    })  # fmt: skip
