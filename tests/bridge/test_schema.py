"""Torch calls and IR ops are translated into each other by the op's schema."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from uniap_compiler.bridge.schema import find_overload, join_arguments, op_name, split_arguments, type_of
from uniap_compiler.ir import Affine, Value

aten = torch.ops.aten
X, Y = torch.randn(4, 3), torch.randn(4, 3)

CASES: list[tuple[Any, tuple[Any, ...], dict[str, Any], str, int, dict[str, Any]]] = [
    (aten.add.Tensor, (X, Y), {}, "aten.add.Tensor", 2, {}),
    (aten.add.Tensor, (X, Y), {"alpha": 2}, "aten.add.Tensor", 2, {"alpha": 2}),
    (aten.mul.Tensor, (X, 2.0), {}, "aten.mul.Tensor", 1, {"other": 2.0}),
    (aten.sum.dim_IntList, (X, [1]), {"dtype": None}, "aten.sum.dim_IntList", 1, {"dim": [1]}),
    (aten.sum.dim_IntList, (X, [1], True), {}, "aten.sum.dim_IntList", 1, {"dim": [1], "keepdim": True}),
    (aten.relu.default, (X,), {}, "aten.relu", 1, {}),
    (aten.cat.default, ([X, Y], -1), {}, "aten.cat", 1, {"dim": -1}),
    (
        aten.native_layer_norm.default,
        (X, [3], None, None, 1e-5),
        {},
        "aten.native_layer_norm",
        3,
        {"normalized_shape": [3], "eps": 1e-5},
    ),
    (
        aten._to_copy.default,
        (X,),
        {"dtype": torch.float64, "device": torch.device("cpu")},
        "aten._to_copy",
        1,
        {"dtype": "f64"},
    ),
    (
        aten.clone.default,
        (X,),
        {"memory_format": torch.contiguous_format},
        "aten.clone",
        1,
        {"memory_format": "contiguous_format"},
    ),
    (
        aten.full.default,
        ([2, 3], float("inf")),
        {"dtype": torch.float32, "pin_memory": False},
        "aten.full",
        0,
        {"size": [2, 3], "fill_value": float("inf"), "dtype": "f32"},
    ),
    (aten.index.Tensor, (X, [None, torch.tensor([0, 2])]), {}, "aten.index.Tensor", 2, {}),
]


@pytest.mark.parametrize("overload, args, kwargs, name, operands, attrs", CASES)
def test_both_ways(overload: Any, args: Any, kwargs: Any, name: str, operands: int, attrs: dict[str, Any]) -> None:
    values: dict[int, Value] = {}
    tensors: dict[Value, torch.Tensor] = {}

    def value_of(t: torch.Tensor) -> Value:
        v = values.setdefault(id(t), Value(f"v{len(values)}", type_of(t)))
        tensors[v] = t
        return v

    ops, found = split_arguments(overload, args, kwargs, value_of)
    assert (op_name(overload), len(ops), found) == (name, operands, attrs)

    def back(o: Any) -> Any:
        return [back(v) for v in o] if isinstance(o, list) else None if o is None else tensors[o]

    again, args2, kwargs2 = join_arguments(name, [back(o) for o in ops], found, None)
    assert again is overload
    torch.testing.assert_close(again(*args2, **kwargs2), overload(*args, **kwargs))


def test_batch_dependent_numbers_are_evaluated() -> None:
    _, args, _ = join_arguments("aten.view", [X], {"size": [Affine(2), -1]}, 6)
    assert args[1] == [12, -1]
    _, args, _ = join_arguments("aten.mul.Scalar", [X], {"other": Affine(64, 0, inverse=True)}, 2)
    assert args[1] == 1 / 128
    with pytest.raises(ValueError, match="depends on the batch"):
        join_arguments("aten.view", [X], {"size": [Affine(2)]}, None)


def test_mistakes() -> None:
    with pytest.raises(KeyError, match="torch has no op 'aten.no_such_op'"):
        find_overload("aten.no_such_op")
    with pytest.raises(ValueError, match="needs the attribute 'dim0'"):
        join_arguments("aten.transpose.int", [X], {}, None)
    with pytest.raises(ValueError, match="fewer operands"):
        join_arguments("aten.relu", [X, Y], {}, None)
    with pytest.raises(NotImplementedError, match="complex64"):
        type_of(torch.zeros(2, dtype=torch.complex64))


def test_the_mask_of_attention_decides_the_overload() -> None:
    one, _, _ = join_arguments("nn.attention_backward", [X] * 7, {"causal": False, "scale": 1.0}, None)
    two, _, _ = join_arguments(
        "nn.attention_backward", [X] * 7, {"causal": False, "scale": 1.0, "mask_grad": True}, None
    )
    assert (len(one._schema.returns), len(two._schema.returns)) == (3, 4)
    assert op_name(one) == op_name(two) == "nn.attention_backward"
