"""Forward values that backward makes itself: which ops are copied, where they stand, what is saved instead."""

from __future__ import annotations

from tests.cost.mlp import B, layout, mlp, pointwise, value
from uniap_compiler.ir import Func, Op, print_module
from uniap_compiler.ir.core import Module
from uniap_compiler.passes.lower.rematerialize import rematerialize


def text(*funcs: Func) -> str:
    module = Module("m")
    for func in funcs:
        module.add(func)
    return print_module(module)


def test_the_op_is_copied_with_its_attributes_to_its_first_reader() -> None:
    forward, backward = mlp()
    given = text(forward, backward)
    new_forward, new_backward = rematerialize(forward, backward, ["a"])
    assert text(forward, backward) == given  # the pair itself is as it was
    assert [v.name for v in new_forward.returns if v] == ["y", "h"]
    assert new_forward.attrs["results"] == ["value", "saved"]
    assert [(p.name, p.attrs["role"]) for p in new_backward.params] == [
        ("x", "activation"), ("up.weight", "param"), ("down.weight", "param"), ("h", "saved"), ("g", "tangent"),
    ]  # fmt: skip
    assert [op.name for op in new_backward.ops] == ["aten.relu", *(op.name for op in backward.ops)]
    assert new_backward.ops[0].attrs == forward.ops[1].attrs
    assert new_backward.ops[1].operands[1] is new_backward.ops[0].results[0]
    assert new_backward.ops[3].operands[1] is new_backward.ops[0].results[0]  # once, for both readers


def test_all_of_it_needs_no_saved_value() -> None:
    forward, backward = rematerialize(*mlp(), ["h", "a"])
    assert [v.name for v in forward.returns if v] == ["y"]
    assert [op.results[0].name for op in backward.ops] == ["h", "a", "dw2", "da", "dh", "dw1", "dx"]
    assert [p.name for p in backward.params] == ["x", "up.weight", "down.weight", "g"]


def test_a_parameter_that_only_the_copy_reads() -> None:
    """s = relu(h) * scale: backward did not read `scale`, and had a value of its own called so."""
    forward, backward = mlp()
    scale = value("scale", (B, 16, 32), layout(3), role="param", path="scale", grad="false")
    s = value("s", (B, 16, 32), layout(3))
    forward.params.append(scale)
    forward.ops.insert(2, pointwise("aten.mul.Tensor", [forward.ops[1].results[0], scale], s, "b s n"))
    forward.ops[3].operands[0] = s
    forward.returns[1] = s
    backward.params[3].attrs["of"] = backward.params[3].name = "s"
    backward.ops[0].results[0].name = "scale"
    _, new = rematerialize(forward, backward, ["s"])
    assert [p.name for p in new.params] == ["x", "up.weight", "down.weight", "scale", "a", "g"]
    assert new.param("scale").attrs == {"role": "param", "path": "scale"}
    names = [v.name for v in new.values()]
    assert len(names) == len(set(names))
    assert [op.name for op in new.ops][:2] == ["aten.mul.Tensor", "nn.contract"]


def test_a_view_waits_with_what_it_shows_and_dead_ops_leave_forward() -> None:
    forward, backward = mlp()
    spare = value("spare", (B, 16, 32), layout(3))
    forward.ops.insert(2, pointwise("aten.exp", [forward.ops[1].results[0]], spare, "b s n"))
    forward.returns.append(spare)
    forward.attrs["results"] = ["value", "saved", "saved"]
    saved = value("spare", (B, 16, 32), layout(3), role="saved", of="spare")
    backward.params.insert(4, saved)
    view = value("view", (B, 16, 32), layout(3))
    backward.ops.insert(0, Op("aten.view", [saved], [view], {"size": [1]}))
    backward.ops[3].operands[1] = view
    new_forward, new = rematerialize(forward, backward, ["spare"])
    assert [op.results[0].name for op in new.ops] == ["dw2", "da", "spare", "view", "dh", "dw1", "dx"]
    assert "spare" not in {v.name for v in new_forward.values()}
