"""What a diagnostic looks like."""

from __future__ import annotations

from pathlib import Path

from uniap_compiler.ir import Diagnostic, Loc, parse_module

TEXT = """module @m {
  func @f(%x: tensor<4xf32>) -> (tensor<4xf32>) {
    %v0 = aten.exp(%x) : tensor<4xf32>
    %v1 = aten.exp(%v0) : tensor<4xf32>
    %v2 = aten.exp(%v1) : tensor<4xf32>
    %v3 = aten.exp(%v2) : tensor<4xf32>
    %v4 = aten.exp(%v3) : tensor<4xf32> loc("model.py":2 in "up")
    %v5 = aten.exp(%v4) : tensor<4xf32>
    return %v5
  }
}
"""


def test_the_whole_picture(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("def f(x):\n    return x.exp()\n")
    func = parse_module(TEXT).funcs["f"]
    diagnostic = Diagnostic("it is wrong", op=func.ops[4], func=func, notes=["because\nof this"], help="do that")
    assert (
        diagnostic.render(tmp_path)
        == """\
error: it is wrong
  --> model.py:2 in up
   2 |     return x.exp()
  in func @f:
      ...
      %v1 = aten.exp(%v0) : tensor<4xf32>
      %v2 = aten.exp(%v1) : tensor<4xf32>
      %v3 = aten.exp(%v2) : tensor<4xf32>
    > %v4 = aten.exp(%v3) : tensor<4xf32> loc("model.py":2 in "up")
      %v5 = aten.exp(%v4) : tensor<4xf32>
      return %v5
  note: because
        of this
  help: do that"""
    )


def test_a_source_that_is_not_there() -> None:
    func = parse_module(TEXT).funcs["f"]
    text = str(Diagnostic("it is wrong", op=func.ops[4], func=func))
    assert "--> model.py:2 in up\n  in func @f:" in text


def test_the_module_is_never_printed() -> None:
    body = "".join(f"    %v{n + 1} = aten.exp(%v{n}) : tensor<4xf32>\n" for n in range(500))
    func = parse_module(f"module @m {{\n func @f(%v0: tensor<4xf32>) -> () {{\n{body} return\n }}\n}}").funcs["f"]
    assert len(Diagnostic("it is wrong", op=func.ops[250], func=func).render().splitlines()) < 15


def test_long_lines_are_cut() -> None:
    text = Diagnostic("x", loc=Loc("f", 1), source="y" * 10_000, column=9000).render()
    assert max(map(len, text.splitlines())) < 300


def test_an_op_outside_of_a_func() -> None:
    module = parse_module("module @m {\n plan.x {a = 1}\n}")
    assert "> plan.x {a = 1}" in Diagnostic("it is wrong", op=module.ops[0]).render()
