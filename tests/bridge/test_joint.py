"""What differentiating one func saves, recomputes and leaves out."""

from __future__ import annotations

import pytest
import torch

from uniap_compiler.bridge.interpret import run, to_graph_module
from uniap_compiler.bridge.joint import differentiate
from uniap_compiler.bridge.shapes import WrongShape, check_shapes
from uniap_compiler.ir import Func, Module, Op, Value, parse_module


def func(text: str) -> Func:
    return next(
        iter(parse_module("// uniap-ir 1\nmodule @m attributes {level = layered} {\n" + text + "\n}").funcs.values())
    )


LAYER = """
func @layer(
    %x: tensor<Bx6x8xf64> {role = "activation", grad = true},
    %mask: tensor<Bx6xf64> {role = "prelude"},
    %w: tensor<8x8xf64> {role = "param", grad = true},
    %frozen: tensor<8xf64> {role = "param", grad = false},
    %unused: tensor<8xf64> {role = "param", grad = true}) -> (tensor<Bx6x8xf64>, tensor<Bx6x8xf64>, tensor<Bx6xf64>)
    attributes {kind = "layer", results = ["value", "value", "value"], grad = [true, false, false]} {
  %a = nn.contract(%x, %w) {equation = "b s k, n k -> b s n"} : tensor<Bx6x8xf64>
  %b = aten.mul.Tensor(%a, %frozen) : tensor<Bx6x8xf64>
  %v = aten.view(%b) {size = [6*B, 8]} : tensor<6*Bx8xf64>
  %t = aten.tanh(%v) : tensor<6*Bx8xf64>
  %s = aten.sigmoid(%v) : tensor<6*Bx8xf64>
  %p = aten.mul.Tensor(%t, %s) : tensor<6*Bx8xf64>
  %y = aten.view(%p) {size = [B, 6, 8]} : tensor<Bx6x8xf64>
  %z = aten.mul.Tensor(%y, %y) : tensor<Bx6x8xf64>
  %m = aten.mul.Tensor(%mask) {other = 2.0} : tensor<Bx6xf64>
  return %y, %z, %m
}"""


def test_partition() -> None:
    forward, backward = differentiate(func(LAYER))
    assert backward is not None
    assert [op.name for op in forward.ops] == [op.name for op in func(LAYER).ops]
    assert forward.attrs["results"] == ["value", "value", "value", "saved", "saved"]
    assert {v.name for v in forward.returns[3:] if v is not None} == {"t", "s"}
    assert backward.attrs["results"] == ["grad:x", "grad:w"]
    roles = {p.name: p.attrs["role"] for p in backward.params}
    assert roles == {"x": "activation", "w": "param", "frozen": "param", "t": "saved", "s": "saved", "d.y": "tangent"}
    assert [p.attrs["of"] for p in backward.params if p.attrs["role"] in ("saved", "tangent")] == ["t", "s", "y"]
    assert not any(op.name in ("aten.tanh", "aten.sigmoid") for op in backward.ops)


def test_values() -> None:
    layer = func(LAYER)
    forward, backward = differentiate(layer)
    assert backward is not None
    inputs = [
        torch.randn(
            [3 if not isinstance(d, int) else d for d in p.type.shape],
            dtype=torch.float64,
            requires_grad=p.attrs.get("grad") is True,
        )
        for p in layer.params
    ]
    y = run(layer, inputs, batch=3)[0]
    tangent = torch.randn(3, 6, 8, dtype=torch.float64)
    assert y is not None
    theirs = torch.autograd.grad(y, [inputs[0], inputs[2]], tangent)
    plain = [t.detach() for t in inputs]
    out = run(forward, plain, batch=3)
    known = dict(zip((p.name for p in forward.params), plain))
    known.update((v.name, t) for v, t in zip(forward.returns, out) if v is not None)  # type: ignore[misc]
    known["d.y"] = tangent
    ours = run(backward, [known[p.name] for p in backward.params], batch=3)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    graph = to_graph_module(backward, 3)
    for a, b in zip(graph(*(known[p.name] for p in backward.params)), ours, strict=True):
        assert torch.equal(a, b)


def test_a_part_of_something_saved_is_not_saved_again() -> None:
    forward, backward = differentiate(
        func("""
func @f(%x: tensor<Bx8xf64> {role = "activation", grad = true}) -> (tensor<Bx4xf64>) attributes {kind = "layer"} {
  %e = aten.exp(%x) : tensor<Bx8xf64>
  %a, %b = aten.split.Tensor(%e) {split_size = 4, dim = 1} : tensor<Bx4xf64>, tensor<Bx4xf64>
  %y = aten.mul.Tensor(%a, %b) : tensor<Bx4xf64>
  return %y
}""")
    )
    assert backward is not None
    assert [v.name for v in forward.returns[1:] if v is not None] == ["e"]
    assert "aten.split.Tensor" in [op.name for op in backward.ops]


def test_a_part_alone_is_saved_alone() -> None:
    forward, backward = differentiate(
        func("""
func @f(%x: tensor<Bx8xf64> {role = "activation", grad = true}) -> (tensor<Bx4xf64>) attributes {kind = "layer"} {
  %e = aten.neg(%x) : tensor<Bx8xf64>
  %a = aten.slice.Tensor(%e) {dim = 1, end = 4} : tensor<Bx4xf64>
  %y = aten.sin(%a) : tensor<Bx4xf64>
  return %y
}""")
    )
    assert backward is not None
    assert [v.name for v in forward.returns[1:] if v is not None] == ["a"]


def test_nothing_to_differentiate() -> None:
    forward, backward = differentiate(
        func("""
func @f(%x: tensor<Bx8xf64> {role = "activation", grad = false}) -> (tensor<Bx8xf64>) attributes {kind = "layer"} {
  %y = aten.sin(%x) : tensor<Bx8xf64>
  return %y
}""")
    )
    assert backward is None and len(forward.returns) == 1


def test_composite_ops_are_taken_apart_once() -> None:
    """An op that torch itself takes apart (aten.silu is a kernel, aten.softmax.int is not) becomes its kernels."""
    forward, backward = differentiate(
        func("""
func @f(%x: tensor<Bx8xf64> {role = "activation", grad = true}) -> (tensor<Bx8xf64>) attributes {kind = "layer"} {
  %y = aten.softmax.int(%x) {dim = -1} : tensor<Bx8xf64>
  return %y
}""")
    )
    assert [op.name for op in forward.ops] == ["aten._softmax"]
    assert backward is not None and [op.name for op in backward.ops] == ["aten._softmax_backward_data"]


def test_wrong_shapes_are_found() -> None:
    layer = func(LAYER)
    check_shapes(layer, 11)
    layer.ops[2].attrs["size"] = [30, 8]
    with pytest.raises(WrongShape, match="aten.view fails at a batch of 11"):
        check_shapes(layer, 11)


def test_calls_need_a_module() -> None:
    layer = func(LAYER)
    x = Value("x", layer.params[0].type)
    caller = Func("g", [x], [Op("plan.call", [x], [], symbol="f")], [])
    with pytest.raises(ValueError, match="a module is needed to call @f"):
        run(caller, [torch.zeros(1)], module=None)
    module = Module("m")
    module.add(Func("f", [Value("x", layer.params[0].type)]))
    assert run(caller, [torch.zeros(1)], module=module) == []
