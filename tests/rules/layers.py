"""Forward/backward pairs written by hand: a two-layer perceptron and a grouped-query attention block."""

from __future__ import annotations

from uniap_compiler.ir import Func

from .build import B, func, op, tensor


def mlp(seq: int = 16, width: int = 32, hidden: int = 64) -> tuple[Func, Func]:
    """y = gelu(x @ up.T) @ down.T + bias"""
    x = tensor("x", B, seq, width, role="activation")
    up, down = tensor("up", hidden, width, role="param"), tensor("down", width, hidden, role="param")
    bias = tensor("bias", width, role="param")
    h, g = tensor("h", B, seq, hidden), tensor("g", B, seq, hidden)
    p, y = tensor("p", B, seq, width), tensor("y", B, seq, width)
    forward = func(
        "mlp.forward",
        [x, up, down, bias],
        [
            op("nn.contract", [x, up], h, equation="b s k, n k -> b s n"),
            op("aten.gelu", [h], g),
            op("nn.contract", [g, down], p, equation="b s k, n k -> b s n"),
            op("aten.add.Tensor", [p, bias], y),
        ],
        [y, h, g],
        kind="forward",
        results=["value", "saved", "saved"],
    )
    bx, bup, bdown = tensor("x", *x.type.shape), tensor("up", *up.type.shape), tensor("down", *down.type.shape)
    bh, bg = tensor("h", *h.type.shape, role="saved", of="h"), tensor("g", *g.type.shape, role="saved", of="g")
    t = tensor("t", B, seq, width, role="tangent", of="y")
    dg, dh = tensor("dg", B, seq, hidden), tensor("dh", B, seq, hidden)
    dx, dup = tensor("dx", B, seq, width), tensor("dup", hidden, width)
    ddown, dbias = tensor("ddown", width, hidden), tensor("dbias", width)
    backward = func(
        "mlp.backward",
        [bx, bup, bdown, bh, bg, t],
        [
            op("aten.sum.dim_IntList", [t], dbias, dim=[0, 1]),
            op("nn.contract", [t, bg], ddown, equation="b s n, b s k -> n k"),
            op("nn.contract", [t, bdown], dg, equation="b s n, n k -> b s k"),
            op("aten.gelu_backward", [dg, bh], dh),
            op("nn.contract", [dh, bx], dup, equation="b s n, b s k -> n k"),
            op("nn.contract", [dh, bup], dx, equation="b s n, n k -> b s k"),
        ],
        [dx, dup, ddown, dbias],
        kind="backward",
        of="mlp.forward",
        results=["grad:x", "grad:up", "grad:down", "grad:bias"],
    )
    return forward, backward


def attention(seq: int = 16, width: int = 32, heads: int = 8, kv: int = 2, size: int = 4) -> tuple[Func, Func]:
    """x + attention(x @ wq.T, x @ wk.T, x @ wv.T) @ wo.T with query heads in groups of heads // kv."""
    x = tensor("x", B, seq, width, role="activation")
    widths = {"q": heads * size, "k": kv * size, "v": kv * size}
    weights = {n: tensor(f"w{n}", w, width, role="param") for n, w in widths.items()}
    wo = tensor("wo", width, heads * size, role="param")
    ops, split = [], {}
    for n, w in widths.items():
        flat, view = tensor(f"{n}_flat", B, seq, w), tensor(f"{n}_view", B, seq, w // size, size)
        split[n] = tensor(n, B, w // size, seq, size)
        ops += [
            op("nn.contract", [x, weights[n]], flat, equation="b s k, n k -> b s n"),
            op("aten.view", [flat], view, size=list(view.type.shape)),
            op("aten.transpose.int", [view], split[n], dim0=1, dim1=2),
        ]
    out, lse = tensor("out", B, heads, seq, size), tensor("lse", B, heads, seq)
    back, flat = tensor("out_t", B, seq, heads, size), tensor("out_flat", B, seq, heads * size)
    o, y = tensor("o", B, seq, width), tensor("y", B, seq, width)
    ops += [
        op("nn.attention", [split["q"], split["k"], split["v"], None], [out, lse], causal=True, scale=0.5),
        op("aten.transpose.int", [out], back, dim0=1, dim1=2),
        op("aten.view", [back], flat, size=list(flat.type.shape)),
        op("nn.contract", [flat, wo], o, equation="b s k, n k -> b s n"),
        op("aten.add.Tensor", [x, o], y),
    ]
    forward = func(
        "attention.forward",
        [x, *weights.values(), wo],
        ops,
        [y, split["q"], split["k"], split["v"], out, lse],
        kind="forward",
        results=["value", "saved", "saved", "saved", "saved", "saved"],
    )

    def again(value, **attrs):  # type: ignore[no-untyped-def]
        return tensor(value.name, *value.type.shape, **attrs)

    bx, bwo = again(x, role="activation"), again(wo, role="param")
    bw = {n: again(w, role="param") for n, w in weights.items()}
    bs = {n: again(v, role="saved", of=n) for n, v in split.items()}
    bout, blse = again(out, role="saved", of="out"), again(lse, role="saved", of="lse")
    t = tensor("t", B, seq, width, role="tangent", of="y")
    rt, rflat = again(back), again(flat)
    dflat, dback = tensor("dflat", *flat.type.shape), tensor("dback", *back.type.shape)
    dout, dwo = tensor("dout", *out.type.shape), tensor("dwo", *wo.type.shape)
    d = {n: tensor(f"d{n}", *v.type.shape) for n, v in split.items()}
    ops = [
        op("aten.transpose.int", [bout], rt, dim0=1, dim1=2),
        op("aten.view", [rt], rflat, size=list(flat.type.shape)),
        op("nn.contract", [t, rflat], dwo, equation="b s n, b s k -> n k"),
        op("nn.contract", [t, bwo], dflat, equation="b s n, n k -> b s k"),
        op("aten.view", [dflat], dback, size=list(back.type.shape)),
        op("aten.transpose.int", [dback], dout, dim0=1, dim1=2),
        op(
            "nn.attention_backward", [dout, bs["q"], bs["k"], bs["v"], None, bout, blse], list(d.values()),
            causal=True, scale=0.5,
        ),
    ]  # fmt: skip
    grads, total = {}, t
    for n, w in widths.items():
        dt, df = tensor(f"d{n}_t", B, seq, w // size, size), tensor(f"d{n}_flat", B, seq, w)
        grads[n] = tensor(f"dw{n}", w, width)
        part, nxt = tensor(f"dx_{n}", B, seq, width), tensor(f"dx_sum_{n}", B, seq, width)
        ops += [
            op("aten.transpose.int", [d[n]], dt, dim0=1, dim1=2),
            op("aten.view", [dt], df, size=list(df.type.shape)),
            op("nn.contract", [df, bx], grads[n], equation="b s n, b s k -> n k"),
            op("nn.contract", [df, bw[n]], part, equation="b s n, n k -> b s k"),
            op("aten.add.Tensor", [total, part], nxt),
        ]
        total = nxt
    backward = func(
        "attention.backward",
        [bx, *bw.values(), bwo, *bs.values(), bout, blse, t],
        ops,
        [total, *grads.values(), dwo],
        kind="backward",
        of="attention.forward",
        results=["grad:x", *(f"grad:w{n}" for n in grads), "grad:wo"],
    )
    return forward, backward
