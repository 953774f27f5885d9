"""recompute=selective: backward makes cheap forward values again instead of having them saved.

    @block.forward(%x, %w) -> (%y, %h, %a)            @block.backward(%h, %a, %g)
      %h = nn.contract(%x, %w)                          %da = aten.mul.Tensor(%g, %a)
      %a = aten.silu(%h)                                ...
    and again = {a}
    @block.forward(%x, %w) -> (%y, %h)                @block.backward(%h, %g)
                                                        %a = aten.silu(%h)
                                                        %da = aten.mul.Tensor(%g, %a)

The ops are copies of forward's, attributes included, so on every device they give the very same values; each stands
where its first reader needs it, so that no more of them live at a time than must.  What they read and what is not made
again is saved, or is a parameter.  Which values are worth it, `passes/analysis/cost/selective.py` says.
"""

from __future__ import annotations

from collections.abc import Collection

from uniap_compiler.ir import ALIASING_OPS, Func, Namer, Op, Value


def rematerialize(forward: Func, backward: Func, again: Collection[str]) -> tuple[Func, Func]:
    """Clones of a pair whose backward makes the forward values named in `again` itself; names of others are ignored."""
    return _Pair(forward.clone(), backward.clone(), frozenset(again)).run()


class _Pair:
    def __init__(self, forward: Func, backward: Func, again: frozenset[str]) -> None:
        self.forward, self.backward = forward, backward
        self.producer = {r.name: op for op in forward.ops for r in op.results if r.name in again}
        self.values = {v.name: v for v in forward.values()}
        self.namer = Namer(backward)
        self.params: list[Value] = []
        self.saved: dict[str, Value] = {}
        self.tangents: list[Value] = []
        self.have: dict[str, Value] = {}
        """forward value -> where backward has it"""
        self.dropped: dict[Value, str] = {}
        """parameter of backward -> the forward value that it stood for"""
        self.pending: dict[Value, Op] = {}
        """views of what is made again: they wait for their first reader, too"""
        self.ops: list[Op] = []

    def run(self) -> tuple[Func, Func]:
        for p in self.backward.params:
            role, of = p.attrs.get("role"), str(p.attrs.get("of", p.name))
            if role == "saved" and of in self.producer:
                self.dropped[p] = of
                self.namer.taken.discard(p.name)
            elif role == "tangent":
                self.tangents.append(p)
            else:
                self.have[of] = p
                if role == "saved":
                    self.saved[of] = p
                else:
                    self.params.append(p)
        waiting = set(self.dropped)
        for op in self.backward.ops:
            if op.name in ALIASING_OPS and waiting.intersection(op.flat_operands()):
                waiting.update(op.results)
                self.pending.update(dict.fromkeys(op.results, op))
            else:
                self._emit(op)
        self.backward.returns = [self._get(v) if v is not None else None for v in self.backward.returns]
        self.backward.ops = self.ops
        self.backward.params = [*self._in_order(self.params), *self.saved.values(), *self.tangents]
        self._save()
        return self.forward, self.backward

    def _emit(self, op: Op) -> None:
        op.replace_operands(self._get)
        self.ops.append(op)

    def _get(self, value: Value) -> Value:
        """A value that an op of backward reads."""
        if value in self.dropped:
            return self._again(self.dropped[value])
        op = self.pending.get(value)
        if op is not None:
            for result in op.results:
                del self.pending[result]
            self._emit(op)
        return value

    def _again(self, name: str) -> Value:
        """A forward value in backward: made again, a parameter, or saved."""
        if name in self.have:
            return self.have[name]
        op = self.producer.get(name)
        value = self.values[name]
        if op is None:
            self.have[name] = self._param(value) if value in self.forward.params else self._saved(value)
            return self.have[name]
        operands = [
            [self._again(v.name) if v is not None else None for v in operand]
            if isinstance(operand, list)
            else self._again(operand.name)
            if operand is not None
            else None
            for operand in op.operands
        ]
        results = [Value(self.namer(r.name), r.type) for r in op.results]
        self.have.update(zip((r.name for r in op.results), results, strict=True))
        self.ops.append(Op(op.name, operands, results, dict(op.attrs), op.symbol, op.loc))
        return self.have[name]

    def _saved(self, value: Value) -> Value:
        self.saved[value.name] = Value(self.namer(value.name), value.type, {"role": "saved", "of": value.name})
        return self.saved[value.name]

    def _param(self, value: Value) -> Value:
        """One more parameter of forward that backward reads: it is called the same in both."""
        if value.name in self.namer.taken:
            for other in (*self.backward.values(), *(r for op in self.ops for r in op.results)):
                if other.name == value.name:
                    other.name = self.namer(other.name)
        self.namer.taken.add(value.name)
        self.params.append(Value(value.name, value.type, {key: a for key, a in value.attrs.items() if key != "grad"}))
        return self.params[-1]

    def _in_order(self, params: list[Value]) -> list[Value]:
        order = {p.name: n for n, p in enumerate(self.forward.params)}
        return sorted(params, key=lambda p: order[p.name])

    def _save(self) -> None:
        """Forward returns what backward still has saved, and makes nothing else that nobody reads."""
        roles = self.forward.attrs["results"]
        assert isinstance(roles, (list, tuple))
        kept = [(v, role) for v, role in zip(self.forward.returns, roles, strict=True) if role != "saved"]
        self.forward.returns = [*(v for v, _ in kept), *(self.values[name] for name in self.saved)]
        self.forward.attrs["results"] = [*(role for _, role in kept), *["saved"] * len(self.saved)]
        live = set(self.forward.returns)
        for op in reversed(self.forward.ops):
            if live.intersection(op.results):
                live.update(op.flat_operands())
        self.forward.ops = [op for op in self.forward.ops if live.intersection(op.results)]
