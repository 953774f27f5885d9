"""parse(print(x)) is x, for random modules, types, layouts, rules, and for the corners."""

from __future__ import annotations

import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uniap_compiler.ir import (
    Affine,
    Atom,
    Func,
    Layout,
    Module,
    Op,
    Part,
    Rule,
    Struct,
    TensorType,
    Value,
    difference,
    equal,
    parse_module,
    print_module,
)  # fmt: skip
from uniap_compiler.ir.text import parse_layout, parse_rule, parse_type

from . import strategies

SLOW = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@SLOW
@given(strategies.modules())
def test_modules(module: Module) -> None:
    text = print_module(module)
    again = parse_module(text)
    assert difference(module, again) is None
    assert print_module(again) == text


@given(strategies.layouts())
def test_layouts(layout: Layout) -> None:
    assert parse_layout(str(layout)) == layout


@given(strategies.rules())
def test_rules(rule: Rule) -> None:
    assert parse_rule(str(rule)) == rule


@given(strategies.types())
def test_types(type: TensorType) -> None:
    text = str(type.with_layout(None))
    assert parse_type(text, type.layout) == type


def with_attr(value: object) -> Module:
    module = Module("m")
    module.ops.append(Op("plan.x", attrs={"a": value}))  # type: ignore[dict-item]
    return module


CORNERS = [
    *(math.inf, -math.inf, math.nan, -0.0, 0.0, 1, 1.0, True, None, [], [[]]),
    *("none", Atom("none"), Atom("B"), "\u00e9\u2028\ud800", Affine(1), Affine(-1, 2), Affine(64, 0, True)),
]


@pytest.mark.parametrize("value", CORNERS)
def test_values(value: object) -> None:
    module = with_attr(value)
    assert difference(module, parse_module(print_module(module))) is None


def test_equal_can_tell() -> None:
    """equal() finds what a printer could lose."""
    for a, b in [
        (1, 1.0),
        (1, True),
        (0.0, -0.0),
        ("f32", Atom("f32")),
        ([1], [1, 2]),
        (None, "none"),
        (math.nan, 0.0),
    ]:
        assert not equal(with_attr(a), with_attr(b))
    assert equal(with_attr(math.nan), with_attr(math.nan))
    assert equal(with_attr((1, 2)), with_attr([1, 2]))
    x, y = (Value(n, TensorType((4,), "f32")) for n in "xy")

    def module(operand: Value, type: TensorType = x.type) -> Module:
        m = Module("m")
        m.add(Func("f", [x, y], [Op("aten.exp", [operand], [Value("r", type)])], [operand]))
        return m

    assert equal(module(x), module(x))
    assert not equal(module(x), module(y))
    assert not equal(module(x), module(x, TensorType((4,), "f64")))
    assert not equal(module(x), module(x, TensorType((4,), "f32", Layout(((Part(("a",)),),)))))


def test_what_is_no_attribute_does_not_print() -> None:
    with pytest.raises(TypeError, match="not an attribute"):
        print_module(with_attr(object()))
    with pytest.raises(ValueError, match="cannot name a struct"):
        print_module(with_attr(Struct("a b", ())))
    module = Module("m")
    module.ops.append(Op("nodot"))
    with pytest.raises(ValueError, match="not an op name"):
        print_module(module)


@SLOW
@given(st.text(alphabet=st.sampled_from(list('module @f{}()%x:,=->[]#"tensor<4xf32>\n rul|'))))
def test_any_text_is_a_module_or_a_diagnostic(text: str) -> None:
    from uniap_compiler.ir import Diagnostic

    for candidate in (text, f"module @m {{ {text} }}", f"module @m {{ func @f() -> () {{ {text} return }} }}"):
        try:
            parse_module(candidate)
        except Diagnostic as diagnostic:
            assert diagnostic.loc is not None and diagnostic.message
