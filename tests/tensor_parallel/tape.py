"""Builds small differentiated pairs by hand, with rules: dims are named, and names are factors.

    tape = Tape({"b": Affine(1), "s": 8, "k": 16, "n": 32})
    x = tape.input("x", "b s k");  w = tape.param("w", "n k")
    y = tape.contract(x, w, "b s n")
    forward, backward = tape.differentiate(y)

Every op records how its gradient is made, with the same few ops.  A dim in parentheses is a group of factors.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from uniap_compiler.ir import Affine, Atom, Dim, Func, Namer, Op, Rule, Symbol, TensorType, Value

Dims = tuple[tuple[str, ...], ...]


def dims(text: str) -> Dims:
    """`b (h d) 1` is (("b",), ("h", "d"), ())."""
    result, group = [], None
    for token in text.replace("(", " ( ").replace(")", " ) ").split():
        if token == "(":
            group = []
        elif token == ")":
            result.append(tuple(group))
            group = None
        elif group is not None:
            group.append(token)
        else:
            result.append(() if token == "1" else (token,))
    return tuple(result)


def flat(d: Dims) -> list[str]:
    return [f for group in d for f in group]


class Tape:
    def __init__(self, sizes: dict[str, Dim], dtype: str = "f64") -> None:
        self.sizes, self.dtype = sizes, dtype
        self.forward, self.backward = Func("block.forward"), Func("block.backward")
        self.func = self.forward
        self.namer = Namer()
        self.dims: dict[Value, Dims] = {}
        self.pulls: list[tuple[list[Value], Callable[..., list[Value | None]]]] = []
        self.there: dict[Value, Value] = {}  # forward values as seen in backward
        self.views: dict[Value, tuple[Value, Op]] = {}
        self.wants_gradient: set[Value] = set()

    def size(self, group: tuple[str, ...]) -> Dim:
        numbers = [self.sizes[f] for f in group]
        batch = [n for n in numbers if isinstance(n, Affine)]
        number = prod(n for n in numbers if not isinstance(n, Affine))
        return batch[0] * number if batch else number

    def value(self, name: str, d: Dims, dtype: str | None = None, attrs: dict | None = None) -> Value:
        value = Value(self.namer(name), TensorType(tuple(map(self.size, d)), dtype or self.dtype), attrs)
        self.dims[value] = d
        return value

    def _argument(self, name: str, text: str, **attrs) -> Value:
        value = self.value(name, dims(text), None, attrs)
        self.forward.params.append(value)
        return value

    def input(self, name: str, text: str) -> Value:
        value = self._argument(name, text, role="activation")
        self.wants_gradient.add(value)
        return value

    def param(self, name: str, text: str) -> Value:
        value = self._argument(name, text, role="param")
        self.wants_gradient.add(value)
        return value

    def prelude(self, name: str, text: str) -> Value:
        return self._argument(name, text, role="prelude")

    # Emission.

    def emit(
        self,
        name: str,
        operands: list[Value | None],
        results: list[str],
        names: list[str],
        operand_dims=None,
        dtypes=None,
        **clauses,
    ) -> list[Value]:
        """Adds an op; its rule is read off the dims.  clauses: sum, max, copy, keep, linear, attrs."""
        attrs = clauses.pop("attrs", {})
        operands = [self._seen(v) if v is not None else None for v in operands]
        ds = operand_dims or [self.dims[v] if v is not None else None for v in operands]
        rs = [dims(r) if isinstance(r, str) else r for r in results]
        factors = {f for d in (*ds, *rs) if d is not None for f in flat(d)}
        reduce = tuple((f, kind) for kind in ("sum", "max", "copy") for f in clauses.get(kind, "").split())
        rule = Rule(
            tuple(ds),
            tuple(rs),
            reduce,
            tuple(clauses.get("keep", "").split()),
            (),
            tuple(clauses.get("linear", ())),
            tuple((f, self.sizes[f]) for f in sorted(factors)),
        )
        values = [self.value(n, r, (dtypes or [None] * 9)[i]) for i, (n, r) in enumerate(zip(names, rs, strict=True))]
        self.func.ops.append(Op(name, operands, values, {**attrs, "rule": rule}))
        return values

    def _seen(self, value: Value) -> Value:
        """The value in the func under construction: backward gets parameters for forward values, and repeats views."""
        if self.func is self.forward or value in self.there.values() or not self._is_forward(value):
            return value
        if value in self.views and value not in self.there:
            inner, op = self.views[value]
            copy = Value(self.namer(value.name), value.type)
            self.dims[copy] = self.dims[value]
            self.func.ops.append(Op(op.name, [self._seen(inner)], [copy], dict(op.attrs)))
            self.there[value] = copy
        if value not in self.there:
            attrs = dict(value.attrs) or {"role": "saved", "of": value.name}
            self.there[value] = Value(value.name, value.type, attrs)
            self.dims[self.there[value]] = self.dims[value]
        return self.there[value]

    def _is_forward(self, value: Value) -> bool:
        return value in self._forward_values

    # Ops with their gradients.

    def contract(self, a: Value, b: Value, out: str | Dims, name: str = "y") -> Value:
        da, db = self.dims[self._seen(a)], self.dims[self._seen(b)]
        do = dims(out) if isinstance(out, str) else out
        assert all(len(g) >= 1 for d in (da, db, do) for g in d)
        term = lambda d: " ".join("_".join(g) for g in d)  # noqa: E731
        summed = " ".join(f for f in dict.fromkeys(flat(da) + flat(db)) if f not in flat(do))
        attrs = {"equation": f"{term(da)}, {term(db)} -> {term(do)}"}
        (y,) = self.emit("nn.contract", [a, b], [do], [name], sum=summed, linear=((0,), (1,)), attrs=attrs)
        if self.func is self.forward:
            self.pulls.append(
                (
                    [y],
                    lambda g: [
                        (a, self.contract(g, b, da, f"d_{a.name}")),
                        (b, self.contract(g, a, db, f"d_{b.name}")),
                    ],
                )
            )
        return y

    def add(self, a: Value, b: Value, name: str = "sum") -> Value:
        (y,) = self.emit("aten.add.Tensor", [a, b], [self.dims[self._seen(a)]], [name], linear=((0, 1),))
        if self.func is self.forward:
            self.pulls.append(([y], lambda g: [(a, g), (b, self._reduced(g, self.dims[b]))]))
        return y

    def _reduced(self, g: Value, d: Dims) -> Value:
        """The gradient of something that was broadcast to g's dims."""
        gone = [f for f in flat(self.dims[g]) if f not in flat(d)]
        if not gone:
            return g
        at = [i for i, group in enumerate(self.dims[g]) if group and group[0] in gone]
        keepdim = len(d) == len(self.dims[g])
        (y,) = self.emit(
            "aten.sum.dim_IntList",
            [g],
            [d],
            ["reduced"],
            sum=" ".join(gone),
            linear=((0,),),
            attrs={"dim": at, **({"keepdim": True} if keepdim else {})},
        )
        return y

    def mul(self, a: Value, b: Value, name: str = "product") -> Value:
        """b may lack leading dims or have dims of size one."""
        (y,) = self.emit("aten.mul.Tensor", [a, b], [self.dims[self._seen(a)]], [name], linear=((0,), (1,)))
        if self.func is self.forward:

            def pull(g):
                pairs = [(a, self.mul(g, b))] if a in self.wants_gradient else []
                if b in self.wants_gradient:
                    pairs.append((b, self._reduced(self.mul(g, a), self.dims[b])))
                return pairs

            self.pulls.append(([y], pull))
        return y

    def unary(self, name: str, x: Value, pull=None, **clauses) -> Value:
        (y,) = self.emit(f"aten.{name}", [x], [self.dims[self._seen(x)]], [name.split(".")[0]], **clauses)
        if self.func is self.forward:
            self.pulls.append(([y], lambda g: [(x, pull(g, x, y))]))
        return y

    def silu(self, x: Value) -> Value:
        def pull(g, x, y):
            return self.emit("aten.silu_backward", [g, x], [self.dims[g]], ["d_silu"], linear=((0,),))[0]

        return self.unary("silu", x, pull)

    def relu(self, x: Value) -> Value:
        def pull(g, x, y):
            return self.emit(
                "aten.threshold_backward", [g, y], [self.dims[g]], ["d_relu"], linear=((0,),), attrs={"threshold": 0.0}
            )[0]

        return self.unary("relu", x, pull)

    def scale(self, x: Value, factor: float) -> Value:
        return self.unary(
            "mul.Tensor", x, lambda g, x, y: self.scale(g, factor), linear=((0,),), attrs={"other": factor}
        )

    def rms_norm(self, x: Value, weight: Value) -> Value:
        d = self.dims[x]
        h = d[-1][0]
        square = self.mul(x, x, "square")
        (total,) = self.emit(
            "aten.sum.dim_IntList",
            [square],
            [(*d[:-1], ())],
            ["total"],
            sum=h,
            linear=((0,),),
            attrs={"dim": [-1], "keepdim": True},
        )

        def pull_sum(g):
            (y,) = self.emit(
                "aten.expand", [g], [d], ["expanded"], linear=((0,),), attrs={"size": list(square.type.shape)}
            )
            return [(square, y)]

        self.pulls.append(([total], pull_sum))
        mean = self.scale(total, 1.0 / self.sizes[h])

        def pull_rsqrt(g, x, y):
            return self.scale(self.mul(g, self.mul(self.mul(y, y), y)), -0.5)

        inverse = self.unary("rsqrt", mean, pull_rsqrt)
        return self.mul(self.mul(x, inverse), weight, "normed")

    def view(
        self, x: Value, text: str | Dims, name: str, attrs: dict, backward: tuple[str, dict], kind: str = "view"
    ) -> Value:
        """A regrouping or transposition; backward: the op that undoes it."""
        (y,) = self.emit(f"aten.{kind}", [x], [text], [name], attrs=attrs, linear=((0,),))
        if self.func is self.forward:
            self.views[y] = (x, self.func.ops[-1])
            self.pulls.append(
                ([y], lambda g: [(x, self.view(g, self.dims[x], f"{name}_back", backward[1], ("", {}), backward[0]))])
            )
        return y

    def heads(self, x: Value, groups: str, d: str) -> Value:
        """[b, s, (groups d)] -> [b, groups, s, d]"""
        b, s, _ = self.dims[x]
        four = (b, s, tuple(groups.split()), (d,))
        shape = [self.size(g) for g in four]
        opened = self.view(x, four, "opened", {"size": shape}, ("reshape", {"shape": list(x.type.shape)}))
        swap = {"dim0": 1, "dim1": 2}
        return self.view(opened, (b, four[2], s, four[3]), "heads", swap, ("transpose.int", swap), "transpose.int")

    def merge(self, x: Value) -> Value:
        b, h, s, d = self.dims[x]
        swap = {"dim0": 1, "dim1": 2}
        swapped = self.view(x, (b, s, h, d), "swapped", swap, ("transpose.int", swap), "transpose.int")
        three = (b, s, (*h, *d))
        return self.view(
            swapped,
            three,
            "merged",
            {"shape": [self.size(g) for g in three]},
            ("reshape", {"shape": list(swapped.type.shape)}),
            "reshape",
        )

    def attention(self, q: Value, k: Value, v: Value, causal: bool = True) -> Value:
        """Grouped-query self-attention; the keys' sequence is another factor `t` than the queries'."""
        dq, dk, dv = self.dims[q], self.dims[k], self.dims[v]
        t = lambda d: tuple(("t",) if g == ("s",) else g for g in d)  # noqa: E731
        self.sizes["t"] = self.sizes["s"]
        attrs = {"causal": causal, "scale": 0.3}
        keep = "t d e s" if causal else "t d e"
        group = [f for f in flat(dq) if f not in flat(dk)]
        out, lse = self.emit(
            "nn.attention",
            [q, k, v, None],
            [dq[:-1] + dv[-1:], dq[:-1]],
            ["attended", "lse"],
            operand_dims=[dq, t(dk), t(dv), None],
            keep=keep,
            attrs=attrs,
        )

        def pull(g, _):
            do = self.dims[self._seen(out)]
            gradients = self.emit(
                "nn.attention_backward",
                [g, q, k, v, None, out, lse],
                [dq, t(dk), t(dv)],
                ["d_q", "d_k", "d_v"],
                operand_dims=[do, dq, t(dk), t(dv), None, do, dq[:-1]],
                keep=keep,
                linear=((0,),),
                sum=" ".join(group + ([] if causal else ["s"])),
                attrs=attrs,
            )
            self.dims.update(zip(gradients, (dq, dk, dv), strict=True))
            return list(zip((q, k, v), gradients, strict=True))

        self.pulls.append(([out, lse], pull))
        return out

    # The whole pair.

    def differentiate(self, *outputs: Value) -> tuple[Func, Func]:
        self._forward_values = set(self.forward.values())
        for _, op in [(None, op) for op in self.forward.ops]:
            if any(v in self.wants_gradient for v in op.flat_operands()):
                self.wants_gradient.update(op.results)
        self.func = self.backward
        gradients: dict[Value, Value] = {}
        tangents = []
        for y in outputs:
            tangent = self.value(f"d_{y.name}", self.dims[y], None, {"role": "tangent", "of": y.name})
            tangents.append(tangent)
            gradients[y] = tangent
        for results, pull in reversed(self.pulls):
            gs = [gradients.get(r) for r in results]
            if all(g is None for g in gs):
                continue
            for target, gradient in pull(*gs):
                if target in self.wants_gradient:
                    gradients[target] = self.add(gradients[target], gradient) if target in gradients else gradient
        params = [p for p in self.forward.params if p in self.wants_gradient]
        self.backward.returns = [gradients.get(p) for p in params]
        seen = [v for k, v in self.there.items() if k not in self.views]
        order = {p: i for i, p in enumerate(self.forward.params)}
        kept = sorted(
            (v for k, v in self.there.items() if k in order), key=lambda v: list(order).index(self._by_name(v.name))
        )
        saved = [v for v in seen if v.attrs.get("role") == "saved"]
        self.backward.params = kept + saved + tangents
        self.backward.attrs = {
            "kind": Atom("backward"),
            "of": Symbol("block.forward"),
            "results": [f"grad:{p.name}" for p in params],
        }
        by_name = {v.name: v for v in self._forward_values}
        self.forward.returns = [*outputs, *(by_name[v.attrs["of"]] for v in saved)]
        self.forward.attrs = {"kind": Atom("forward"), "results": ["value"] * len(outputs) + ["saved"] * len(saved)}
        return self.forward, self.backward

    def _by_name(self, name: str) -> Value:
        return next(p for p in self.forward.params if p.name == name)


def mlp(b=1, s=8, k=12, n=24, dtype="f64"):
    tape = Tape({"b": Affine(b), "s": s, "k": k, "n": n, "m": n}, dtype)
    x = tape.input("x", "b s k")
    up, down = tape.param("up", "n k"), tape.param("down", "k n")
    h = tape.relu(tape.contract(x, up, "b s n", "h"))
    return tape.differentiate(tape.contract(h, down, "b s k", "y"))


def llama(hidden=16, heads=4, kv_heads=4, d=4, ffn=24, s=8, dtype="f64", rope=True, causal=True):
    """The decoder block: RMSNorm, grouped-query attention with a rope-like product, SwiGLU."""
    sizes = {"b": Affine(1), "s": s, "k": hidden, "h": kv_heads, "g": heads // kv_heads, "d": d, "e": d, "f": ffn}
    tape = Tape(sizes, dtype)
    x = tape.input("x", "b s k")
    table = tape.prelude("cos", "s d") if rope else None
    group = "h g" if heads != kv_heads else "h"
    w = {
        n: tape.param(n, t)
        for n, t in (
            ("norm1.weight", "k"),
            ("wq.weight", f"({group} d) k"),
            ("wk.weight", "(h d) k"),
            ("wv.weight", "(h e) k"),
            ("wo.weight", f"k ({group} e)"),
            ("norm2.weight", "k"),
            ("gate.weight", "f k"),
            ("up.weight", "f k"),
            ("down.weight", "k f"),
        )
    }
    n = tape.rms_norm(x, w["norm1.weight"])
    q = tape.heads(tape.contract(n, w["wq.weight"], f"b s ({group} d)", "q"), group, "d")
    k = tape.heads(tape.contract(n, w["wk.weight"], "b s (h d)", "k"), "h", "d")
    v = tape.heads(tape.contract(n, w["wv.weight"], "b s (h e)", "v"), "h", "e")
    if table is not None:
        q, k = tape.mul(q, table, "q_rope"), tape.mul(k, table, "k_rope")
    o = tape.merge(tape.attention(q, k, v, causal))
    h = tape.add(x, tape.contract(o, w["wo.weight"], "b s k", "o"), "h")
    m = tape.rms_norm(h, w["norm2.weight"])
    act = tape.silu(tape.contract(m, w["gate.weight"], "b s f", "gate"))
    p = tape.mul(act, tape.contract(m, w["up.weight"], "b s f", "up"), "gated")
    return tape.differentiate(tape.add(h, tape.contract(p, w["down.weight"], "b s k", "down"), "out"))
