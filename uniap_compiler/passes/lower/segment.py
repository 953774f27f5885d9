"""A stage func under construction: parameters by role, values by (key, layout), resharding on demand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from uniap_compiler.ir import Atom, Attr, Func, Layout, Loc, Namer, Op, Rule, TensorType, Value

from .reshard import emit


class Segment:
    """Builds one stage func.  `args` and `results` are role strings, one per parameter and per return."""

    def __init__(self, name: str, mesh: dict[str, int], **attrs: Attr) -> None:
        self.func = Func(name, attrs={"kind": "segment", **attrs})
        self.order = list(mesh)
        self.namer = Namer()
        self.args: dict[str, Value] = {}
        self.results: list[str] = []
        self.known: dict[tuple[Value, Layout], Value] = {}

    def arg(self, role: str, type: TensorType) -> Value:
        """The parameter bound to `role`, made at the first request."""
        if role not in self.args:
            assert type.layout is not None, role
            value = Value(self.namer(role.split(":", 1)[1]), type)
            self.func.params.append(value)
            self.args[role] = value
        return self.args[role]

    def to(self, value: Value, layout: Layout, loc: Loc | None = None) -> Value:
        """`value` in another layout; the same request gives the same result."""
        assert value.type.layout is not None
        if value.type.layout == layout:
            return value
        key = (value, layout)
        if key not in self.known:
            self.known[key] = emit(value, layout, self.order, self.func.ops, self.namer, loc)
        return self.known[key]

    def call(self, callee: Func, operands: Sequence[Value | None], layer: str, wishes: Sequence[str]) -> list[Value]:
        """plan.call with results typed like the callee's returns; None returns make no result."""
        results = [
            Value(self.namer(wish), v.type) for v, wish in zip(callee.returns, wishes, strict=True) if v is not None
        ]
        self.func.ops.append(Op("plan.call", list(operands), results, {"layer": layer}, symbol=callee.name))
        return results

    def op(self, name: str, operands: Sequence[Value], type: TensorType, wish: str, **attrs: Attr) -> Value:
        result = Value(self.namer(wish), type)
        self.func.ops.append(Op(name, list(operands), [result], dict(attrs)))
        return result

    def add(self, a: Value, b: Value, wish: str) -> Value:
        """a + b, both in one layout."""
        dims = tuple((f"d{n}",) for n in range(len(a.type.shape)))
        sizes = tuple((f"d{n}", size) for n, size in enumerate(a.type.shape))
        rule = Rule((dims, dims), (dims,), linear=((0, 1),), sizes=sizes)
        assert a.type.layout == b.type.layout, f"{a} and {b} differ in layout"
        return self.op("aten.add.Tensor", [a, b], a.type, wish, rule=rule)

    def cast(self, value: Value, dtype: str) -> Value:
        """`value` in another floating-point dtype, pending sums included."""
        if value.type.dtype == dtype:
            return value
        dims = tuple((f"d{n}",) for n in range(len(value.type.shape)))
        sizes = tuple((f"d{n}", size) for n, size in enumerate(value.type.shape))
        rule = Rule((dims,), (dims,), linear=((0,),), sizes=sizes)
        type = replace(value.type, dtype=dtype)
        return self.op("aten._to_copy", [value], type, value.name, dtype=Atom(dtype), rule=rule)

    def reduced(self, value: Value, layout: Layout, dtype: str) -> Value:
        """A gradient in another layout, sent in this dtype."""
        return value if value.type.layout == layout else self.to(self.cast(value, dtype), layout)

    def zeros(self, type: TensorType, wish: str) -> Value:
        return self.op("aten.full", [], type, wish, size=list(type.shape), fill_value=0.0, dtype=Atom(type.dtype))

    def give(self, role: str, value: Value) -> None:
        self.results.append(role)
        self.func.returns.append(value)

    def done(self) -> Func | None:
        """The func; None when it returns nothing."""
        if not self.func.returns:
            return None
        self.func.attrs["args"] = list(self.args)
        self.func.attrs["results"] = list(self.results)
        return self.func
