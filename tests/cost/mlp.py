"""A two-layer perceptron as a forward and backward func with rules, whole or with Megatron's split, built by hand.

y = relu(x w1') w2'     x [B, 16, 8], w1 [32, 8], w2 [8, 32], all f32
"""

from __future__ import annotations

from uniap_compiler.ir import Affine, Dim, Func, Layout, Op, Part, Rule, Struct, TensorType, Value

B = Affine(1)
Shape = tuple[Dim, ...]
SIZES: dict[str, Dim] = {"b": B, "s": 16, "k": 8, "n": 32, "m": 8}


def layout(rank: int, dim: int | None = None, axis: str = "t0", pending: str | None = None) -> Layout:
    dims = tuple((Part((axis,) if n == dim else ()),) for n in range(rank))
    return Layout(dims, (("sum", pending),) if pending else ())


def value(name: str, shape: Shape, how: Layout | None = None, **attrs: str) -> Value:
    return Value(name, TensorType(shape, "f32", how), dict(attrs))


def contract(a: Value, b: Value, equation: str, result: Value, split: str | None = None) -> Op:
    inputs, output = equation.split("->")
    terms = [tuple((f,) for f in term.split()) for term in inputs.split(",")]
    out = tuple((f,) for f in output.split())
    factors = {f for term in terms for (f,) in term}
    rule = Rule(
        tuple(terms),
        (out,),
        reduce=tuple((f, "sum") for f in sorted(factors - {f for (f,) in out})),
        linear=((0,), (1,)),
        sizes=tuple((f, SIZES[f]) for f in sorted(factors)),
    )
    attrs: dict[str, object] = {"equation": equation, "rule": rule}
    if split:
        attrs["split"] = Struct("split", (("t0", split),))
    return Op("nn.contract", [a, b], [result], attrs)  # type: ignore[arg-type]


def pointwise(name: str, operands: list[Value], result: Value, factors: str) -> Op:
    dims = tuple((f,) for f in factors.split())
    rule = Rule((dims,) * len(operands), (dims,), sizes=tuple((f, SIZES[f]) for f in factors.split()))
    return Op(name, operands, [result], {"rule": rule})


def mlp(split: bool = False) -> tuple[Func, Func]:
    """With `split`: w1 by rows, w2 by columns over t0, one all-reduce forward and one backward."""
    down = 0 if split else None
    col = 1 if split else None
    hidden = 2 if split else None
    partial = "t0" if split else None
    x = value("x", (B, 16, 8), layout(3), role="activation")
    w1 = value("up.weight", (32, 8), layout(2, down), role="param", path="up.weight")
    w2 = value("down.weight", (8, 32), layout(2, col), role="param", path="down.weight")
    h = value("h", (B, 16, 32), layout(3, hidden))
    a = value("a", (B, 16, 32), layout(3, hidden))
    y = value("y", (B, 16, 8), layout(3, pending=partial))
    ops = [
        contract(x, w1, "b s k, n k -> b s n", h, "n" if split else None),
        pointwise("aten.relu", [h], a, "b s n"),
        contract(a, w2, "b s n, m n -> b s m", y, "n" if split else None),
    ]
    out = y
    if split:
        out = value("y_1", (B, 16, 8), layout(3))
        ops.append(Op("comm.all_reduce", [y], [out], {"axes": ["t0"], "op": "sum"}))
    name = "mlp.tp2.replicated" if split else "mlp"
    forward = Func(f"{name}.forward", [x, w1, w2], ops, [out, a], {"kind": "forward", "results": ["value", "saved"]})

    xb = value("x", (B, 16, 8), layout(3), role="activation")
    w1b = value("up.weight", (32, 8), layout(2, down), role="param", path="up.weight")
    w2b = value("down.weight", (8, 32), layout(2, col), role="param", path="down.weight")
    ab = value("a", (B, 16, 32), layout(3, hidden), role="saved", of="a")
    g = value("g", (B, 16, 8), layout(3), role="tangent", of=out.name)
    dw2 = value("dw2", (8, 32), layout(2, col))
    da = value("da", (B, 16, 32), layout(3, hidden))
    dh = value("dh", (B, 16, 32), layout(3, hidden))
    dw1 = value("dw1", (32, 8), layout(2, down))
    dx = value("dx", (B, 16, 8), layout(3, pending=partial))
    ops = [
        contract(g, ab, "b s m, b s n -> m n", dw2, "n" if split else None),
        contract(g, w2b, "b s m, m n -> b s n", da, "n" if split else None),
        pointwise("aten.threshold_backward", [da, ab], dh, "b s n"),
        contract(dh, xb, "b s n, b s k -> n k", dw1, "n" if split else None),
        contract(dh, w1b, "b s n, n k -> b s k", dx, "n" if split else None),
    ]
    back = dx
    if split:
        back = value("dx_1", (B, 16, 8), layout(3))
        ops.append(Op("comm.all_reduce", [dx], [back], {"axes": ["t0"], "op": "sum"}))
    backward = Func(
        f"{name}.backward", [xb, w1b, w2b, ab, g], ops, [back, dw1, dw2],
        {"kind": "backward", "of": forward.name, "results": ["grad:x", "grad:up.weight", "grad:down.weight"]},
    )  # fmt: skip
    return forward, backward
