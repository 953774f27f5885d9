"""What stands in the way of data axes is named, with its place and what to do."""

from __future__ import annotations

import pytest

from uniap_compiler.ir import Diagnostic, Loc
from uniap_compiler.passes.analysis.shard_rules import batch_obstacles, check_batch, refine, unruled

from .build import B, func, op, tensor


def test_an_op_without_a_rule_is_refused_on_data_axes() -> None:
    x, y = tensor("x", B, 4), tensor("y", B, 4)
    mystery = op("aten.mystery", [x], y)
    mystery.loc = Loc("model.py", 12, "layers.0")
    f = func("layer.forward", [x], [mystery], [y])
    refine(f)
    assert unruled(f) == [mystery]
    with pytest.raises(Diagnostic) as caught:
        check_batch(f)
    error = caught.value
    assert "aten.mystery has no sharding rule" in error.message
    assert error.loc == mystery.loc and error.help is not None
    assert 'uniap_compiler.add_rule("aten::mystery"' in error.help and "docs/own-ops.md" in error.help


def test_an_op_that_mixes_the_batch_is_refused_on_data_axes() -> None:
    x, y = tensor("x", B, 4), tensor("y", B, 4)
    f = func("layer.forward", [x], [op("aten._softmax", [x], y, dim=0, half_to_float=False)], [y])
    refine(f)
    assert not unruled(f)
    with pytest.raises(Diagnostic, match="aten._softmax cannot be split over the batch: its factor d0 must stay whole"):
        check_batch(f)


def test_an_unknown_op_without_the_batch_is_no_obstacle() -> None:
    x, y = tensor("x", 3, 4), tensor("y", 3, 4)
    f = func("layer.forward", [x], [op("aten.mystery", [x], y)], [y])
    refine(f)
    assert not batch_obstacles(f)
    check_batch(f)
