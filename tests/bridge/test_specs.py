"""With the bridge, the verifier knows how many operands and results an aten op has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from uniap_compiler.bridge.specs import spec_of
from uniap_compiler.ir import Diagnostic, Op, ops, parse_module, verify


@pytest.fixture(autouse=True)
def schemas(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(ops, "_schemas", spec_of)
    yield


def check(line: str) -> None:
    verify(parse_module(f"module @m {{ func @f(%x: tensor<4xf32>, %i: tensor<4xi64>) -> () {{ {line} return }} }}"))


@pytest.mark.parametrize(
    "line",
    [
        "%y = aten.add.Tensor(%x, %x) : tensor<4xf32>",
        "%y = aten.mul.Tensor(%x) {other = 2.0} : tensor<4xf32>",
        "%y = aten.cat([%x, %x]) : tensor<8xf32>",
        "%y = aten.clamp.Tensor(%x, none, %x) : tensor<4xf32>",
        "%v, %k = aten.max.dim(%x) {dim = 0} : tensor<f32>, tensor<i64>",
        "%a, %b = aten.split.Tensor(%x) {split_size = 2} : tensor<2xf32>, tensor<2xf32>",
        "%y = aten.full() {size = [4], fill_value = 1.0} : tensor<4xf32>",
        "%y = aten.no_such_op(%x) : tensor<4xf32>",
    ],
)
def test_right(line: str) -> None:
    check(line)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("%y = aten.add.Tensor(%x) : tensor<4xf32>", "aten.add.Tensor has 1 operands and takes 2"),
        ("%y = aten.relu(%x, %x) : tensor<4xf32>", "aten.relu has 2 operands and takes 1"),
        ("%y = aten.max.dim(%x) {dim = 0} : tensor<f32>", "aten.max.dim has 1 results and takes 2"),
        ("%y = aten.clamp.Tensor() : tensor<4xf32>", "aten.clamp.Tensor has 0 operands and takes 1 to 3"),
    ],
)
def test_wrong(line: str, message: str) -> None:
    with pytest.raises(Diagnostic, match=message):
        check(line)


def test_other_dialects_are_not_torchs() -> None:
    assert spec_of(Op("comm.first")) is None
