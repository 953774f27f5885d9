"""Numbers at two batch sizes as one number in B."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniap_compiler.bridge.unify import BATCHES, Mismatch, unify, unify_attr, unify_number
from uniap_compiler.ir import Affine, Func, Op, TensorType, Value, affine


@given(st.integers(-1000, 1000), st.integers(-1000, 1000))
def test_lines_are_found(coef: int, offset: int) -> None:
    a, b = (coef * n + offset for n in BATCHES)
    if a != b:
        assert unify_number(a, b) == affine(coef, offset)
        assert unify_number(float(a), float(b)) == affine(coef, offset)


@given(st.integers(1, 10**6), st.integers(0, 100))
def test_inverses_are_found(coef: int, offset: int) -> None:
    a, b = (1.0 / (coef * n + offset) for n in BATCHES)
    assert unify_number(a, b) == Affine(coef, offset, inverse=True)


@pytest.mark.parametrize("a, b", [(2, 3), (5.5, 7.5), (5**0.5, 7**0.5), (True, False), ("x", "y"), ([1], [1, 2])])
def test_other_numbers_are_refused(a: object, b: object) -> None:
    with pytest.raises(Mismatch):
        unify_attr(a, b)


def recording(batch: int, name: str = "aten.relu", rows: int | None = None) -> Func:
    x = Value("x", TensorType((batch, 4), "f32"))
    y = Value("y", TensorType((rows or batch, 4), "f32"))
    return Func("f", [x], [Op(name, [x], [y], {"k": [batch * 3, -1]})], [y, None])


def test_funcs() -> None:
    func = unify(*(recording(b) for b in BATCHES))
    assert func.params[0].type.shape == (Affine(1), 4)
    assert func.ops[0].attrs == {"k": [Affine(3), -1]} and func.returns[1] is None
    with pytest.raises(Mismatch, match="aten.relu at batch 5, aten.tanh at batch 7") as caught:
        unify(recording(5), recording(7, "aten.tanh"))
    assert caught.value.op is not None and caught.value.op.name == "aten.relu"
    with pytest.raises(Mismatch, match="no multiple of the batch"):
        unify(recording(5), recording(7, rows=6))
