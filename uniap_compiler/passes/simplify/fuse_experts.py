"""A mixture of experts that gathers the matrices of every choice becomes one op, which does not.

    %w1 = aten.index.Tensor(%gate_up, [%choice])            [tokens * k, 2 i, h]: as large as it looks
    %u = nn.contract(%w1, %rows) {equation = "r m k, r k -> r m"}
    %a = silu(first half of %u) * second half of %u
    %w2 = aten.index.Tensor(%down, [%choice])
    %y = nn.contract(%w2, %a) {equation = "r m k, r k -> r m"}
    %z = sum over the k choices of %y * %weights
    ->
    %z = nn.experts(%x, %choice, %weights, %gate_up, %down) {activation = "silu(gate) * up"}

Found from the last sum backwards, by what the ops compute and not by where they come from: any regrouping of tokens and
choices, weights in either order, biases, any pointwise activation.  What does not fit stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from uniap_compiler.ir import Affine, Attr, Attrs, Dim, Func, Namer, Op, TensorType, Value, at

SAME_ORDER = frozenset(
    "aten." + name
    for name in "view _unsafe_view reshape unsqueeze squeeze squeeze.dim squeeze.dims clone alias contiguous".split()
)
"""Elements in the same order, in another shape."""

CALLS = {
    "aten.silu": "silu", "aten.relu": "relu", "aten.sigmoid": "sigmoid", "aten.tanh": "tanh", "aten.exp": "exp",
}  # fmt: skip
INFIX = {"aten.mul": "*", "aten.add": "+", "aten.sub": "-", "aten.div": "/"}
LONGEST = 400
"""Letters of an activation; values that are used twice are spelled twice."""

SURROGATE = 1_000_003


def fuse_experts(func: Func) -> int:
    """Returns how many mixtures became one op.  What they leave unread is for `dce`."""
    found = 0
    finder = _Finder(func)
    for op in list(func.ops):
        match = finder.mixture(op)
        if match is not None:
            place = func.ops.index(op)
            func.ops[place : place + 1] = match
            found += 1
    return found


class _NoMatch(Exception):
    pass


def _need(condition: object) -> None:
    if not condition:
        raise _NoMatch


@dataclass
class _Routed:
    """One product with the matrices of the chosen experts.  rows: its other operand, with the choices or without."""

    op: Op
    weight: Value
    transposed: bool
    choice: Value
    rows: Value
    dtype: Attr
    chosen: bool
    bias: Value | None = None


class _Finder:
    def __init__(self, func: Func) -> None:
        self.producer = {r: op for op in func.ops for r in op.results}
        self.namer = Namer(func)

    def mixture(self, last: Op) -> list[Op] | None:
        """The ops that stand for `last` when it is the sum over the choices of a mixture of experts."""
        try:
            return self._mixture(last)
        except _NoMatch:
            return None

    def _mixture(self, last: Op) -> list[Op]:
        outputs, weights, shape = self._weighted_sum(last)
        down = self._routed(outputs)
        _need(down.chosen)
        words = _Activation(self, down)
        text = words.spell(down.rows)
        up = words.up
        _need(up is not None and len(text) <= LONGEST)
        assert up is not None
        _need(self._base(up.choice) is self._base(down.choice) and up.dtype == down.dtype)
        tokens, k = shape[:-2], shape[-2]
        _, m, n = self._matrix_shape(up)
        _, o, i = self._matrix_shape(down)
        _need(o == shape[-1] and m == (i * 2 if words.gated else i))
        x = self._tokens(up, [*tokens, n], k)

        self.ops: list[Op] = []
        self.loc = up.op.loc
        cast = up.dtype if up.dtype is not None else down.dtype
        matrices = []
        for part in (up, down):
            matrices.append(self._cast(self._turned(part), cast))
        if cast is not None:
            x = self._cast(x, cast)
        index = self._shaped(down.choice, [*tokens, k])
        attrs: Attrs = {"activation": text[1:-1] if text.startswith("(") else text}
        if words.interleaved:
            attrs["interleaved"] = True
        operands = [
            self._shaped(x, [*tokens, n]), index, self._shaped(weights, [*tokens, k]), *matrices,
            self._cast(up.bias, cast) if up.bias is not None else None,
        ]  # fmt: skip
        result = last.results[0]
        y = result if down.bias is None else Value(self.namer("experts"), result.type)
        self.ops.append(Op("nn.experts", operands, [y], attrs, None, self.loc))
        if down.bias is not None:
            self._add_bias(y, result, index, operands[2], self._cast(down.bias, cast))
        return self.ops

    # -- the parts ------------------------------------------------------------------------------------------------

    def _weighted_sum(self, op: Op) -> tuple[Value, Value, list[Dim]]:
        """What is weighted, the weights, and the shape [tokens.., k, o] of the products."""
        if op.name == "nn.contract":
            *terms, out = _terms(op)
            for side in (0, 1):
                y, w = op.operands[side], op.operands[1 - side]
                assert isinstance(y, Value) and isinstance(w, Value)
                term = terms[side]
                if len(term) > 2 and terms[1 - side] == term[:-1] and out == [*term[:-2], term[-1]]:
                    return y, w, list(y.type.shape)
            raise _NoMatch
        _need(op.name == "aten.sum.dim_IntList" and not op.attrs.get("keepdim") and op.attrs.get("dtype") is None)
        (product,) = op.operands
        assert isinstance(product, Value)
        shape = list(product.type.shape)
        dims = op.attrs.get("dim")
        _need(isinstance(dims, list) and len(shape) > 2 and len(dims) == 1)
        assert isinstance(dims, list) and isinstance(dims[0], int)
        _need(dims[0] % len(shape) == len(shape) - 2)
        times = self.producer.get(self._base(product))
        _need(times is not None and times.name == "aten.mul.Tensor" and len(times.operands) == 2)
        assert times is not None
        a, b = times.operands
        assert isinstance(a, Value) and isinstance(b, Value)
        y, w = (a, b) if len(b.type.shape) and b.type.shape[-1] == 1 else (b, a)
        _need(y.type.shape == times.results[0].type.shape and _count(w) == _count_of(shape[:-1]))
        return y, w, shape

    def _routed(self, value: Value) -> _Routed:
        """The product behind a value [rows.., m], with the bias that was added."""
        value = self._base(value)
        op = self.producer.get(value)
        if op is not None and op.name == "aten.add.Tensor" and len(op.operands) == 2 and "alpha" not in op.attrs:
            for a, b in (op.operands, op.operands[::-1]):
                assert isinstance(a, Value) and isinstance(b, Value)
                picked = self._picked(b)
                if picked is not None and len(picked[0].type.shape) == 2 and a.type.shape == b.type.shape:
                    routed = self._routed(a)
                    _need(routed.bias is None and self._base(picked[1]) is self._base(routed.choice))
                    routed.bias = picked[0]
                    return routed
            raise _NoMatch
        _need(op is not None and op.name == "nn.contract")
        assert op is not None
        terms = _terms(op)
        for side in (0, 1):
            found = self._side(op, side, terms)
            if found is not None:
                return found
        raise _NoMatch

    def _side(self, op: Op, side: int, terms: tuple[list[str], list[str], list[str]]) -> _Routed | None:
        """The contraction as a routed one, its operand `side` being the gathered matrices."""
        gathered, rows = op.operands[side], op.operands[1 - side]
        assert isinstance(gathered, Value) and isinstance(rows, Value)
        term, other, out = terms[side], terms[1 - side], terms[2]
        picked = self._picked(gathered)
        if picked is None or len(picked[0].type.shape) != 3 or len(term) < 3:
            return None
        sizes = dict(zip(other, rows.type.shape, strict=True))
        lead, (p, q) = term[:-2], term[-2:]
        inner, outer = (q, p) if q in other else (p, q)
        own = [d for d in other if d not in lead and d != inner]  # dims of size one
        if outer in other or inner in out or inner not in other or any(sizes[d] != 1 for d in own):
            return None
        if [d for d in out if d not in own] != [*lead, outer]:
            return None
        chosen = [d for d in lead if d in other]
        if chosen != lead and chosen != lead[:-1] or [d for d in other if d not in own] != [*chosen, inner]:
            return None
        if len(picked[1].type.shape) != len(lead):
            return None
        return _Routed(op, picked[0], inner == p, picked[1], rows, picked[2], chosen == lead)

    def _picked(self, value: Value) -> tuple[Value, Value, Attr] | None:
        """table and index of `table[index]` along the first dim, and the dtype that the result was cast to."""
        op = self.producer.get(value)
        dtype: Attr = None
        if op is not None and op.name == "aten._to_copy" and op.attrs.keys() <= {"dtype"}:
            dtype = op.attrs.get("dtype")
            op = self.producer.get(op.operands[0]) if isinstance(op.operands[0], Value) else None
        if op is None:
            return None
        if op.name in ("aten.index.Tensor", "nn.embedding", "aten.embedding"):
            table, index = op.flat_operands()[:2]
            if len(op.flat_operands()) == 2 and table is not None and index is not None and index.type.dtype == "i64":
                return table, index, dtype
        if op.name == "aten.index_select" and op.attrs.get("dim") == 0:
            table, index = op.flat_operands()
            assert table is not None and index is not None
            return table, index, dtype
        return None

    def _tokens(self, up: _Routed, shape: list[Dim], k: Dim) -> Value:
        """x [tokens.., h], of which the rows of the first product are k copies each."""
        rows = up.rows
        source = self.producer.get(rows)
        if source is not None and source.name == "aten._to_copy" and isinstance(source.operands[0], Value):
            rows = source.operands[0]  # autocast: the cast is made of x instead
        if not up.chosen:
            _need(_count(rows) == _count_of(shape))
            return rows
        rows = self._base(rows)
        op = self.producer.get(rows)
        _need(op is not None)
        assert op is not None
        x = op.operands[0]
        _need(isinstance(x, Value))
        assert isinstance(x, Value)
        if op.name == "aten.expand":  # [tokens.., 1, h] -> [tokens.., k, h]
            _need(x.type.shape[-2:] == (1, shape[-1]) and rows.type.shape == (*x.type.shape[:-2], k, shape[-1]))
        else:
            _need(op.name == "aten.repeat_interleave.self_int" and op.attrs.get("dim") == 0)
            _need(op.attrs["repeats"] == k)
        _need(_count(x) == _count_of(shape))
        return x

    # -- small things -----------------------------------------------------------------------------------------------

    def _base(self, value: Value) -> Value:
        """The value of which this one is another shape."""
        while (op := self.producer.get(value)) is not None and op.name in SAME_ORDER:
            (inner,) = op.operands
            assert isinstance(inner, Value)
            value = inner
        return value

    def _matrix_shape(self, part: _Routed) -> tuple[Dim, Dim, Dim]:
        e, a, b = part.weight.type.shape
        return (e, b, a) if part.transposed else (e, a, b)

    def _turned(self, part: _Routed) -> Value:
        if not part.transposed:
            return part.weight
        attrs: Attrs = {"dim0": 1, "dim1": 2}
        return self._emit("aten.transpose.int", part.weight, self._matrix_shape(part), attrs)

    def _cast(self, value: Value, dtype: Attr) -> Value:
        if dtype is None or dtype == value.type.dtype:
            return value
        return self._emit("aten._to_copy", value, value.type.shape, {"dtype": dtype}, str(dtype))

    def _shaped(self, value: Value, shape: list[Dim]) -> Value:
        """The value in this shape, which it may have had already on the way."""
        while list(value.type.shape) != shape:
            op = self.producer.get(value)
            if op is None or op.name not in SAME_ORDER:
                break
            (inner,) = op.operands
            assert isinstance(inner, Value)
            value = inner
        if list(value.type.shape) == shape:
            return value
        return self._emit("aten.view", value, tuple(shape), {"size": list(shape)})

    def _emit(self, name: str, value: Value, shape: tuple[Dim, ...], attrs: Attrs, dtype: str = "") -> Value:
        result = Value(self.namer(name.split(".")[1].lstrip("_")), TensorType(shape, dtype or value.type.dtype))
        self.ops.append(Op(name, [value], [result], attrs, None, self.loc))
        return result

    def _add_bias(self, y: Value, result: Value, index: Value, weights: Value | None, bias: Value) -> None:
        """The weighted biases of the chosen experts: they do not belong into the sum over a split inner dim."""
        assert weights is not None
        rows = Value(self.namer("bias"), TensorType((*index.type.shape, bias.type.shape[1]), bias.type.dtype))
        self.ops.append(Op("nn.embedding", [bias, index], [rows], {}, None, self.loc))
        lead = [f"t{n}" for n in range(len(index.type.shape) - 1)]
        term = " ".join(lead)
        equation = f"{term} c o, {term} c -> {term} o"
        total = Value(self.namer("bias"), result.type)
        if bias.type.dtype != weights.type.dtype:
            rows = self._cast(rows, result.type.dtype)
            weights = self._cast(weights, result.type.dtype)
        self.ops.append(Op("nn.contract", [rows, weights], [total], {"equation": equation}, None, self.loc))
        self.ops.append(Op("aten.add.Tensor", [y, total], [result], {}, None, self.loc))


class _Activation:
    """The pointwise ops between the two products as an expression in u, or in gate and up."""

    def __init__(self, finder: _Finder, down: _Routed) -> None:
        self.finder, self.down = finder, down
        self.up: _Routed | None = None
        self.gated = self.interleaved = False

    def spell(self, value: Value, depth: int = 0) -> str:
        finder = self.finder
        value = finder._base(value)
        op = finder.producer.get(value)
        _need(op is not None and depth < 40)
        assert op is not None
        packet = ".".join(op.name.split(".")[:2])
        if op.name == "nn.contract" or self._is_bias(op):
            self._leaf(value, gated=False)
            return "u"
        if (part := self._part(op, value)) is not None:
            return part
        first = op.operands[0] if op.operands else None
        _need(isinstance(first, Value))
        assert isinstance(first, Value)
        if op.name in CALLS:
            return f"{CALLS[op.name]}({self.spell(first, depth + 1)})"
        if op.name == "aten.gelu":
            name = "gelu_tanh" if op.attrs.get("approximate") == "tanh" else "gelu"
            return f"{name}({self.spell(first, depth + 1)})"
        if op.name in ("aten.clamp", "aten.clamp_min", "aten.clamp_max"):
            low, high = op.attrs.get("min"), op.attrs.get("max")
            _need(len(op.flat_operands()) == 1 and all(v is None or _number(v) for v in (low, high)))
            return f"clamp({self.spell(first, depth + 1)}, {low}, {high})"
        if op.name == "aten.pow.Tensor_Scalar" and _number(op.attrs["exponent"]):
            return f"({self.spell(first, depth + 1)} ** {op.attrs['exponent']})"
        if op.name == "aten.neg":
            return f"(-{self.spell(first, depth + 1)})"
        _need(packet in INFIX and op.attrs.keys() <= {"other"})
        left = self.spell(first, depth + 1)
        if len(op.operands) == 2:
            second = op.operands[1]
            assert isinstance(second, Value)
            _need(_count(second) == _count(first))
            right = self.spell(second, depth + 1)
        else:
            _need(_number(op.attrs["other"]))
            right = str(op.attrs["other"])
        return f"({left} {INFIX[packet]} {right})"

    def _is_bias(self, op: Op) -> bool:
        values = [v for v in op.operands if isinstance(v, Value)]
        return op.name == "aten.add.Tensor" and any(self.finder._picked(v) for v in values)

    def _leaf(self, value: Value, gated: bool) -> None:
        routed = self.finder._routed(value)
        _need(self.up is None or (self.up.op is routed.op and self.gated == gated))
        self.up, self.gated = routed, gated

    def _part(self, op: Op, value: Value) -> str | None:
        """gate or up: one half of the last dim, or its even or odd elements."""
        if op.name not in ("aten.split.Tensor", "aten.split_with_sizes", "aten.slice.Tensor"):
            return None
        whole = op.operands[0]
        assert isinstance(whole, Value)
        size = whole.type.shape[-1]
        rank = len(whole.type.shape)
        dim = op.attrs.get("dim", 0)
        _need(isinstance(size, int) and size % 2 == 0 and isinstance(dim, int) and dim % rank == rank - 1)
        assert isinstance(size, int)
        _need(value.type.shape[-1] == size // 2)
        if op.name != "aten.slice.Tensor":
            _need(len(op.results) == 2)
            first, pairs = op.results[0] is value, False
        else:
            start, pairs = op.attrs.get("start") or 0, op.attrs.get("step", 1) == 2
            _need(start in ((0, 1) if pairs else (0, size // 2)) and op.attrs.get("step", 1) in (1, 2))
            first = start == 0
        _need(self.up is None or self.interleaved == pairs)
        self.interleaved = pairs
        self._leaf(whole, gated=True)
        return "gate" if first else "up"


def _terms(op: Op) -> tuple[list[str], list[str], list[str]]:
    left, _, out = str(op.attrs["equation"]).partition("->")
    a, _, b = left.partition(",")
    return a.split(), b.split(), out.split()


def _number(value: Attr) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _count(value: Value) -> int:
    return _count_of(value.type.shape)


def _count_of(shape: list[Dim] | tuple[Dim, ...]) -> int:
    return prod(at(d, SURROGATE) if isinstance(d, Affine) else d for d in shape)
