"""One func -> one function: names, what is deleted when, what travels in lists."""

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import torch

from uniap_compiler.codegen.expressions import Call
from uniap_compiler.codegen.function import Callee, write_layer
from uniap_compiler.codegen.layout import assignment
from uniap_compiler.codegen.packs import find_packs
from uniap_compiler.codegen.stage import write_stage
from uniap_compiler.codegen.wishes import wishes
from uniap_compiler.ir import Func, Module, Op, TensorType, Value, parse_module

from .hand_written import two_stages


def parse(body: str) -> Module:
    return parse_module(f"// uniap-ir 1\nmodule @m attributes {{level = local}} {{\n{body}\n}}", "test.mlir")


def layer(body: str) -> list[str]:
    module = parse(body)
    (func,) = module.funcs.values()
    return write_layer(Callee(func, "f", wishes=wishes(func)), {}, frozenset({"torch"}), ("a", "b"))


def code(lines: list[str]) -> list[str]:
    """Without head, comments and blanks."""
    body = lines[next(i for i, line in enumerate(lines) if '"""' in line) + 1 :]
    return [line.split("  # ")[0].strip() for line in body if not line.strip().startswith("#")]


def test_a_value_takes_over_the_name_of_its_dying_operand() -> None:
    lines = layer("""func @f(%x: tensor<4x4xf32>) -> (tensor<4x4xf32>) {
      %q = aten.relu(%x) : tensor<4x4xf32>
      %q_1 = aten.neg(%q) : tensor<4x4xf32>
      %q_2 = aten.mul.Tensor(%q_1, %q_1) : tensor<4x4xf32>
      %r = aten.add.Tensor(%q_2, %q_1) : tensor<4x4xf32>
      return %r
    }""")
    # q_2 may not take q: its operand is read again.
    assert code(lines) == ["q = torch.relu(x)", "q = -q", "q_2 = q * q", "r = q_2 + q", "return (r,)"]


def test_values_die_at_their_last_use() -> None:
    lines = layer("""func @f(%x: tensor<64x64xf32>) -> (tensor<f32>, none) {
      %a = aten.exp(%x) : tensor<64x64xf32>
      %b = aten.sin(%a) : tensor<64x64xf32>
      %c = aten.cos(%b) : tensor<64x64xf32>
      %s = aten.sum(%c) : tensor<f32>
      %t = aten.neg(%s) : tensor<f32>
      return %t, none
    }""")
    assert code(lines) == [
        "a = torch.exp(x)", "b = torch.sin(a)", "del a", "c = torch.cos(b)", "del b", "s = c.sum()", "del c", "t = -s",
        "return t, None",
    ]  # fmt: skip


def test_small_dead_values_wait_for_the_end_of_their_line() -> None:
    lines = layer("""func @f(%x: tensor<64x64xf32>) -> (tensor<64x64xf32>) {
      %m = aten.mean(%x) : tensor<f32> loc("m.py":3)
      %n = aten.neg(%m) : tensor<f32> loc("m.py":3)
      %o = aten.exp(%n) : tensor<f32> loc("m.py":3)
      %y = aten.mul.Tensor(%x, %o) : tensor<64x64xf32> loc("m.py":4)
      %z = aten.exp(%y) : tensor<64x64xf32> loc("m.py":5)
      return %z
    }""")
    assert code(lines) == [
        "m = x.mean()", "n = -m", "o = torch.exp(n)", "del m, n", "y = x * o", "del o", "z = torch.exp(y)", "return (z,)",  # noqa: E501
    ]  # fmt: skip


def test_unused_results() -> None:
    lines = layer("""func @f(%x: tensor<64x64xf32>) -> (tensor<64x64xf32>) {
      %y, %mean, %rstd = aten.native_layer_norm(%x, none, none) {normalized_shape = [64], eps = 0.1} : tensor<64x64xf32>, tensor<64x1xf32>, tensor<64x1xf32>
      %values, %where = aten.topk(%y) {k = 64} : tensor<64x64xf32>, tensor<64x64xi64>
      return %values
    }""")  # noqa: E501
    assert code(lines) == [
        "y, _, _ = aten.native_layer_norm(x, [64], None, None, eps=0.1)",
        "topk, topk_1 = aten.topk(y, k=64)",
        "return (topk,)",
    ]  # fmt: skip


def test_names_of_the_file_are_not_shadowed() -> None:
    lines = layer("""func @f(%torch: tensor<4xf32>, %comm.x: tensor<4xf32>) -> (tensor<4xf32>) {
      %class = aten.add.Tensor(%torch, %comm.x) : tensor<4xf32>
      return %class
    }""")
    assert code(lines) == ["class_ = torch_1 + comm_x", "return (class_,)"]


def run(source: str) -> dict[str, Any]:
    """The generated file as a namespace, with torch.ops for collectives left out."""
    from uniap_compiler.runtime import kernels

    space: dict[str, Any] = {"nn": kernels}
    exec(compile(source.replace("from ..runtime import kernels as nn", ""), "stage_0.py", "exec"), space)
    return space


def test_a_layer_gives_up_what_was_saved_for_it() -> None:
    """At the last contraction of the backward nothing of what was saved is alive, and no other layer has to wait."""
    module = two_stages()
    space = run(write_stage(module, 0, 2, ("a", "b")))
    shapes = [v.type.shape for v in module.funcs["stage_0.backward"].params]
    alive: list[list[str]] = []
    saved: dict[str, weakref.ref[torch.Tensor]] = {}

    def all_reduce(x: torch.Tensor, group: str) -> torch.Tensor:
        gc.collect()
        alive.append([role for role, ref in saved.items() if ref() is not None])
        return x

    args = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    for role, x in zip(space["ARGS"]["backward"], args, strict=True):
        if role.startswith("saved:"):
            saved[role] = weakref.ref(x)
    del x
    space["backward"](SimpleNamespace(all_reduce=all_reduce), args)
    assert args == []
    first = [role for role in saved if "blocks.0" in role]
    assert alive == [first, []], "blocks.1 comes first and frees its own; then blocks.0"


def test_packs_agree_between_callers_and_callees() -> None:
    module = two_stages()
    stages = [f for name, f in module.funcs.items() if name.startswith("stage_0.")]
    bodies = {name: f for name, f in module.funcs.items() if name.startswith("block.")}
    packs = find_packs(stages, bodies)
    assert packs.params == {"block.dp2.tp2.backward": [(2, 5)]}
    assert [[v.name for v in pack] for pack in packs.of["stage_0.forward"]] == [
        ["x0", "relu0", "mask0"], ["x1", "relu1", "mask1"], ["blocks.0.up", "blocks.0.bias", "blocks.0.down"],
        ["blocks.1.up", "blocks.1.bias", "blocks.1.down"],
    ]  # fmt: skip
    assert [[v.name for v in pack] for pack in packs.of["stage_0.backward"]] == [
        ["x1", "relu1", "mask1"], ["x0", "relu0", "mask0"], ["up1.grad", "bias1.grad", "down1.grad"],
        ["up0.grad", "bias0.grad", "down0.grad"],
    ]  # fmt: skip


def test_recompute_hands_lists_from_call_to_call() -> None:
    """Results of one call that only another call reads; and a caller whose values come from elsewhere."""
    t = TensorType((2,), "f32")

    def values(*names: str) -> list[Value]:
        return [Value(n, t) for n in names]

    (x,) = values("x")
    a, b, c = values("a", "b", "c")
    again = Func("f.recompute", [x], [
        Op("aten.neg", [x], [a]), Op("aten.exp", [x], [b]), Op("aten.sin", [x], [c]),
    ], [a, b, c], {"kind": "recompute"})  # fmt: skip
    p, q, r, g = values("p", "q", "r", "g")
    s, u, w = values("s", "u", "w")
    back = Func("f.backward", [p, q, r, g], [
        Op("aten.add.Tensor", [p, q], [s]), Op("aten.add.Tensor", [s, r], [u]), Op("aten.add.Tensor", [u, g], [w]),
    ], [w], {"kind": "backward"})  # fmt: skip
    y, grad = values("y", "grad")
    k, l, m = values("k", "l", "m")
    (out,) = values("out")
    stage = Func("stage_0.backward", [y, grad], [
        Op("plan.call", [y], [k, l, m], {"layer": "f"}, "f.recompute"),
        Op("plan.call", [k, l, m, grad], [out], {"layer": "f"}, "f.backward"),
    ], [out], {"args": ["saved:y", "recv_grad:z"], "results": ["grad:w"]})  # fmt: skip
    module = Module("m")
    for func in (again, back, stage):
        module.add(func)
    text = write_stage(module, 0, 1, ("a",))
    assert "(*saved_f,) = f_recompute(comm, y)" in text and "f_backward(comm, saved_f, d_grad)" in text
    space = run(text)
    y0, g0 = torch.randn(2), torch.randn(2)
    (found,) = space["backward"](None, [y0, g0])
    assert torch.equal(found, -y0 + y0.exp() + y0.sin() + g0)


def test_a_call_may_take_over_the_name_of_its_operand() -> None:
    t = TensorType((64, 64), "f32")
    x, y = Value("x", t), Value("y", t)
    inner = Func("f", [x], [Op("aten.exp", [x], [y])], [y], {"kind": "forward"})
    h, h1, h2, loss = Value("h", t), Value("h_1", t), Value("h_2", t), Value("loss", TensorType((), "f32"))
    stage = Func("stage_0.forward", [h], [
        Op("plan.call", [h], [h1], {"layer": "f.0"}, "f"), Op("plan.call", [h1], [h2], {"layer": "f.1"}, "f"),
        Op("aten.sum", [h2], [loss]),
    ], [loss], {"args": ["input:batch.x"], "results": ["loss"]})  # fmt: skip
    module = Module("m")
    module.add(inner)
    module.add(stage)
    space = run(write_stage(module, 0, 1, ()))
    value = torch.randn(64, 64)
    (found,) = space["forward"](None, [value])
    assert torch.equal(found, value.exp().exp().sum())


def test_unwanted_results_of_a_call_are_given_up_at_once() -> None:
    """With recomputation the forward's saved values are not kept."""
    t = TensorType((64, 64), "f32")
    x, y, s = Value("x", t), Value("y", t), Value("s", t)
    inner = Func("f", [x], [Op("aten.sin", [x], [s]), Op("aten.exp", [s], [y])], [y, s], {"kind": "forward"})
    h, h1, h2 = Value("h", t), Value("h1", t), Value("h2", t)
    s1, s2 = Value("s1", t), Value("s2", t)
    stage = Func("stage_0.forward", [h], [
        Op("plan.call", [h], [h1, s1], {"layer": "f.0"}, "f"), Op("plan.call", [h1], [h2, s2], {"layer": "f.1"}, "f"),
    ], [h2, s2], {"args": ["input:batch.x"], "results": ["send:h", "saved:s"]})  # fmt: skip
    module = Module("m")
    module.add(inner)
    module.add(stage)
    text = write_stage(module, 0, 1, ())
    assert "    h1 = f(comm, h)[0]" in text and "    h2, s2 = f(comm, h1)" in text
    value = torch.randn(64, 64)
    assert torch.equal(run(text)["forward"](None, [value])[0], value.sin().exp().sin().exp())


def test_one_long_name_is_not_unpacked() -> None:
    """`(name,) = value` in three lines would take the value apart."""
    name, source = "a" * 60, "b" * 60
    lines = assignment([name], Call(f"{source}.to", ["torch.float64"]))
    assert max(map(len, lines)) <= 110 and lines[0] == f"    {name} = ("
    space: dict[str, Any] = {"torch": torch}
    exec("\n".join([f"def f({source}):", *lines, f"    return {name}"]), space)
    assert space["f"](torch.ones(1)).dtype == torch.float64


def test_long_lines_are_broken() -> None:
    names = [f"a_rather_long_name_{n}" for n in range(8)]
    lines = assignment(names, Call("comm.all_reduce_many", [f"[{', '.join(names)}]", '"a"']))
    assert max(map(len, lines)) <= 110
    assert lines[0] == "    (" and "    ) = comm.all_reduce_many(" in lines
    space: dict[str, Any] = {"comm": SimpleNamespace(all_reduce_many=lambda x, group: x[::-1])}
    head = ["def f(" + ", ".join(names) + "):", *lines, "    return " + ", ".join(names)]
    exec("\n".join(head), space)
    assert space["f"](*range(8)) == tuple(range(8))[::-1]
