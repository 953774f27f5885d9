"""What recompute=selective makes again: the best of all sets on small funcs, and what it comes to on a real layer."""

from __future__ import annotations

import itertools
import random

import pytest

from tests.cost.mlp import B, layout, mlp, pointwise, value
from tests.cost.test_layer_cost import cluster
from uniap_compiler.ir import Func, Op, Value
from uniap_compiler.passes.analysis.cost.layer_cost import layer_cost
from uniap_compiler.passes.analysis.cost.op_cost import Roofline, local_bytes, local_dims
from uniap_compiler.passes.analysis.cost.selective import worth_repeating
from uniap_compiler.passes.lower.rematerialize import rematerialize

BATCH = 2
OPS = ("aten.mul.Tensor", "aten.exp", "aten.view", "comm.all_reduce", "aten.split.Tensor")


def random_pair(seed: int) -> tuple[Func, Func]:
    """Up to eight ops of one shape in a random graph, some of whose values backward reads."""
    pick = random.Random(seed)
    x = value("x", (B, 16, 8), layout(3), role="activation")
    w = value("w", (B, 16, 8), layout(3), role="param", path="w")
    values, ops = [x, w], []
    for n in range(pick.randint(2, 8)):
        name = pick.choice(OPS)
        operands = [pick.choice(values[-4:]) for _ in range(2 if name == "aten.mul.Tensor" else 1)]
        tails = "ab"[: 1 + (n % 3 == 0)]
        results = [value(f"v{n}{tail}", (B, 16, pick.choice((4, 8, 32))), layout(3)) for tail in tails]
        ops.append(Op(name, operands, results, {"axes": ["t0"], "op": "sum"} if name.startswith("comm.") else {}))
        values += results
    saved = pick.sample(values[2:], pick.randint(1, len(values) - 2))
    forward = Func("f.forward", [x, w], ops, [values[-1], *saved],
                   {"kind": "forward", "results": ["value", *["saved"] * len(saved)]})  # fmt: skip
    mine = [value(v.name, v.type.shape, layout(3), role="saved", of=v.name) for v in saved]
    g = value("g", (B, 16, 8), layout(3), role="tangent", of=values[-1].name)
    out = value("dx", (B, 16, 8), layout(3))
    backward = Func("f.backward", [*mine, g], [Op("aten.add", [*mine, g], [out])], [out],
                    {"kind": "backward", "of": "f.forward", "results": ["grad:x"]})  # fmt: skip
    return forward, backward


class Reckoning:
    """Seconds and bytes of a choice of ops that run again, counted from the definition."""

    def __init__(self, forward: Func, backward: Func) -> None:
        self.forward = forward
        named = {v.name: v for v in forward.values()}
        self.wanted = [named[str(p.attrs["of"])] for p in backward.params if p.attrs["role"] == "saved"]
        self.maker = {r: op for op in forward.ops for r in op.results}

    def memory(self, v: Value) -> Value:
        while v in self.maker and self.maker[v].name in ("aten.view", "aten.split.Tensor"):
            v = self.maker[v].operands[0]  # type: ignore[assignment]
        return v

    def of(self, again: set[Op]) -> tuple[float, float]:
        kept: set[Value] = set()
        ran: set[Op] = set()
        todo = list(self.wanted)
        while todo:
            v = todo.pop()
            op = self.maker.get(v)
            if op in again:
                if op not in ran:
                    ran.add(op)  # type: ignore[arg-type]
                    todo += op.operands  # type: ignore[union-attr, arg-type]
            else:
                kept.add(self.memory(v))
        size = sum(float(local_bytes(v.type, {}, BATCH)) for v in kept if v.attrs.get("role") != "param")
        return sum(map(self.seconds, ran)), size

    @staticmethod
    def seconds(op: Op) -> float:
        dims = [local_dims(v.type, {}, BATCH) for v in op.flat_operands() if v is not None]
        return float(Roofline(cluster()).op_seconds(op, dims, [local_dims(v.type, {}, BATCH) for v in op.results]))


@pytest.mark.parametrize("seed", range(60))
def test_no_other_set_lies_further_below_the_line(seed: int) -> None:
    forward, backward = random_pair(seed)
    reckon = Reckoning(forward, backward)
    local = [op for op in forward.ops if not op.name.startswith("comm.")]
    none = reckon.of(set())
    every = [reckon.of(set(some)) for n in range(len(local) + 1) for some in itertools.combinations(local, n)]
    names = set(worth_repeating(forward, backward, {}, BATCH, cluster()))
    chosen = reckon.of({op for op in forward.ops if op.results[0].name in names})
    whole = reckon.of(set(forward.ops))
    x = float(local_bytes(forward.params[0].type, {}, BATCH))
    # recompute=full runs what is local again, collectives at another price, and keeps the inputs
    again = sum(reckon.seconds(op) for op in local if op in _needed(reckon))
    if none[1] <= x or again == 0:
        assert not names
        return
    price = again / (none[1] - x)
    assert whole[1] <= x
    best = min(t + price * size for t, size in every)
    assert chosen[0] + price * chosen[1] == pytest.approx(best, rel=1e-9)
    assert chosen[1] <= none[1]


def _needed(reckon: Reckoning) -> set[Op]:
    found: set[Op] = set()
    todo = list(reckon.wanted)
    while todo:
        op = reckon.maker.get(todo.pop())
        if op is not None and op not in found:
            found.add(op)
            todo += [v for v in op.flat_operands() if v is not None]
    return found


def test_an_activation_runs_again_and_a_contraction_does_not() -> None:
    """y = w2 exp(relu(w1 x)): backward reads both activations' results."""
    forward, backward = mlp()
    relu, down = forward.ops[1:]
    e = value("e", (B, 16, 32), layout(3))
    exp = pointwise("aten.mul.Scalar", [relu.results[0]], e, "b s n")
    down.operands[0] = e
    forward.ops.insert(2, exp)
    forward.returns.append(e)
    forward.attrs["results"] = ["value", "saved", "saved"]
    saved = value("e", (B, 16, 32), layout(3), role="saved", of="e")
    backward.params.insert(4, saved)
    backward.ops[0].operands[1] = saved
    assert worth_repeating(forward, backward, {}, BATCH, cluster()) == ["e"]  # h would cost a contraction
    before, after = (
        layer_cost(*pair, {}, [BATCH], cluster())
        for pair in ((forward, backward), rematerialize(forward, backward, ["e"]))
    )
    size = BATCH * 16 * 32 * 4
    assert before.saved - after.saved == size
    assert after.backward_seconds - before.backward_seconds == pytest.approx(2 * size / 1e9)
    assert after.forward_seconds == before.forward_seconds
