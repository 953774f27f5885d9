"""Random modules for hypothesis: everything that the text can hold, well formed enough to be parsed."""

from __future__ import annotations

from hypothesis import strategies as st

from uniap_compiler.ir import (
    Affine,
    Atom,
    Func,
    Layout,
    Loc,
    Module,
    Op,
    Part,
    Rule,
    Struct,
    Symbol,
    TensorType,
    Value,
    affine,
)  # fmt: skip
from uniap_compiler.ir.text import DTYPES

plain_names = st.from_regex(r"[A-Za-z0-9_.$]{1,12}", fullmatch=True)
names = st.one_of(plain_names, plain_names, st.text(min_size=1, max_size=6), st.just('a"b\\c\n'), st.just("%x: {"))
keys = st.one_of(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), st.sampled_from(["B", "true", "none"]), names)
op_names = st.from_regex(r"[a-z_]{1,6}(\.[A-Za-z0-9_]{1,6}){1,2}", fullmatch=True)
axes = st.sampled_from(["a", "b", "c", "d", "t0", "t1"])
ints = st.integers(-(10**20), 10**20)
affines = st.builds(
    Affine, st.integers(-9, 9).filter(bool), st.integers(-9, 9), st.booleans()
)  # fmt: skip
sizes = st.one_of(st.integers(0, 9999), st.builds(affine, st.integers(1, 9), st.integers(-9, 9)))


@st.composite
def layouts(draw: st.DrawFn, rank: int | None = None) -> Layout:
    rank = draw(st.integers(0, 3)) if rank is None else rank
    free = draw(st.lists(axes, unique=True, max_size=5))

    def part(size: bool) -> Part:
        count = draw(st.integers(0, min(2, len(free))))
        return Part(tuple(free.pop() for _ in range(count)), draw(sizes) if size else None)

    dims = []
    for _ in range(rank):
        count = draw(st.integers(1, 3))
        dims.append(tuple(part(count > 1 or draw(st.booleans())) for _ in range(count)))
    kinds = st.sampled_from(["sum", "max"])
    return Layout(tuple(dims), tuple((draw(kinds), axis) for axis in free[: draw(st.integers(0, 2))]))


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    factors = draw(
        st.lists(
            st.from_regex(r"[a-z][a-z0-9_]{0,2}", fullmatch=True).filter(lambda f: f != "none"), min_size=1, unique=True
        )
    )
    tensor = st.lists(st.lists(st.sampled_from(factors), max_size=3).map(tuple), max_size=3).map(tuple)
    operands = tuple(draw(st.lists(st.one_of(st.none(), tensor), max_size=3)))
    results = tuple(draw(st.lists(tensor, max_size=2)))
    used = list(Rule(operands, results).factors())
    subset = st.lists(st.sampled_from(used), unique=True).map(tuple) if used else st.just(())
    kinds = st.sampled_from(["sum", "max", "copy"])
    reduce = tuple((f, draw(kinds)) for f in draw(subset))
    groups = st.lists(st.integers(0, len(operands) - 1), max_size=2).map(tuple) if operands else st.just(())
    linear = tuple(draw(st.lists(groups, max_size=2)))
    count = draw(st.integers(0, 2)) if len(used) > 1 else 0
    several = st.lists(st.sampled_from(used), min_size=2, unique=True).map(tuple)
    route = tuple((name, draw(several)) for name in ("r", "r'")[:count])
    sized = tuple((f, draw(sizes)) for f in draw(subset))
    return Rule(operands, results, reduce, draw(subset), draw(subset), linear, sized, route)


scalars = st.one_of(
    st.none(), st.booleans(), ints, st.floats(), st.text(max_size=8), names.map(Symbol), affines,
    st.text(max_size=6).map(Atom), st.sampled_from(["f32", "true", "inf", "B", "none"]).map(Atom), layouts(), rules(),
)  # fmt: skip
attributes = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.builds(
            Struct,
            st.from_regex(r"[a-z]{1,6}", fullmatch=True).filter(lambda n: n not in ("rule", "atom")),
            st.dictionaries(keys, inner, max_size=3).map(lambda d: tuple(d.items())),
        ),
    ),
    max_leaves=5,
)
attribute_dicts = st.dictionaries(keys, attributes, max_size=3)
locs = st.one_of(st.none(), st.builds(Loc, st.text(max_size=8), st.integers(0, 10**6), st.one_of(st.just(""), names)))


@st.composite
def types(draw: st.DrawFn) -> TensorType:
    shape = tuple(draw(st.lists(sizes, max_size=3)))
    layout = draw(layouts(len(shape))) if draw(st.booleans()) else None
    return TensorType(shape, draw(st.sampled_from(DTYPES)), layout)


@st.composite
def funcs(draw: st.DrawFn, name: str) -> Func:
    taken = draw(st.lists(names, unique=True, min_size=1, max_size=12))
    values: list[Value] = []

    def new(attrs: bool = False) -> Value:
        value = Value(taken.pop(), draw(types()), draw(attribute_dicts) if attrs else None)
        values.append(value)
        return value

    func = Func(name, attrs=draw(attribute_dicts))
    func.params = [new(True) for _ in range(draw(st.integers(0, min(3, len(taken)))))]
    while taken and draw(st.booleans()):
        value = st.one_of(st.none(), st.sampled_from(values)) if values else st.none()
        operands = draw(st.lists(st.one_of(value, st.lists(value, max_size=2)), max_size=3))
        results = [new() for _ in range(draw(st.integers(0, min(2, len(taken)))))]
        symbol = draw(st.one_of(st.none(), names))
        func.ops.append(Op(draw(op_names), operands, results, draw(attribute_dicts), symbol, draw(locs)))
    func.returns = draw(st.lists(st.one_of(st.none(), st.sampled_from(values)) if values else st.none(), max_size=3))
    return func


@st.composite
def modules(draw: st.DrawFn) -> Module:
    module = Module(draw(names), draw(attribute_dicts))
    for _ in range(draw(st.integers(0, 2))):
        symbol = draw(st.one_of(st.none(), names))
        module.ops.append(Op(draw(op_names), (), (), draw(attribute_dicts), symbol, draw(locs)))
    for name in draw(st.lists(names, unique=True, max_size=2)):
        module.add(draw(funcs(name)))
    return module
