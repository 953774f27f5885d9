"""`uniap-opt`: options, streams, exit codes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from uniap_compiler.cli.opt import run
from uniap_compiler.ir import ConstantStore, parse_module
from uniap_compiler.passes.registry import PASSES

TEXT = """module @m {
  func @f(%x: tensor<4xf32>) -> (tensor<4xf32>) {
    %a = aten.exp(%x) : tensor<4xf32>
    %b = aten.exp(%x) : tensor<4xf32>
    return %b
  }
}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "in.mlir"
    path.write_text(TEXT)
    return path


def opt(*arguments: object) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    return run([str(a) for a in arguments], out, err), out.getvalue(), err.getvalue()


def test_no_passes_prints_the_canonical_text(file: Path) -> None:
    code, out, err = opt(file)
    assert (code, out, err) == (0, "// uniap-ir 1\n" + TEXT, "")


def test_streams(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = opt(file, "-p", "cse,dce", "-o", tmp_path / "out.mlir", "--timing", "--stats")
    assert (code, out) == (0, "")
    assert len(parse_module((tmp_path / "out.mlir").read_text()).funcs["f"].ops) == 1
    assert "verification" in err and "1 ops merged" in err
    monkeypatch.setattr("sys.stdin", io.StringIO(TEXT))
    assert opt("-p", "dce")[1].count("aten.exp") == 1


def test_print_after(file: Path) -> None:
    assert opt(file, "-p", "cse,dce", "--print-after")[2].count("// ----- after") == 2
    assert opt(file, "-p", "cse,dce", "--print-after=dce")[2].count("// ----- after") == 1
    assert opt(file, "-p", "cse,dce", "--print-after-change")[2].count("// ----- after cse") == 1


def test_dump_and_stop_after(file: Path, tmp_path: Path) -> None:
    constants = ConstantStore()
    constants.add("c", np.zeros(2), "f64")
    constants.save(tmp_path / "constants.safetensors")
    assert opt(file, "-p", "cse,dce", "--dump", tmp_path / "d", "--stop-after", "cse")[0] == 0
    names = sorted(p.name for p in (tmp_path / "d").iterdir())
    assert names == ["00-input.mlir", "01-cse.mlir", "constants.safetensors"]


def test_split_input(tmp_path: Path) -> None:
    path = tmp_path / "in.mlir"
    path.write_text(TEXT + "// ----- the second\n" + TEXT.replace("%b\n", "%c\n") + "// -----\n" + TEXT)
    code, out, err = opt(path, "--split-input")
    assert code == 1
    assert out.count("// -----\n") == 1 and out.count("module @m") == 2  # what is right is still printed
    assert f"--> {path}:13" in err  # lines are the file's


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["missing.mlir"], 1, "error: cannot read missing.mlir: No such file or directory"),
        (["FILE", "-p", "nonsense"], 1, "error: there is no pass nonsense"),
        (["FILE", "-p", "cse", "--stop-after", "dce"], 1, "error: cannot stop after dce: the pipeline is cse"),
        (["FILE", "-p", "outline-layers"], 1, "needs a module at level captured"),
        (["FILE", "-o", "/nowhere/x"], 1, "error: cannot write /nowhere/x"),
    ],
)
def test_mistakes(file: Path, arguments: list[str], code: int, message: str) -> None:
    found, out, err = opt(*[file if a == "FILE" else a for a in arguments])
    assert (found, out) == (code, "")
    assert message in err and "Traceback" not in err


def test_list_passes() -> None:
    code, out, _ = opt("--list-passes")
    assert code == 0
    lines = out.splitlines()
    assert [line.split("{")[0].split(" ")[0] for line in lines[: len(PASSES)]] == list(PASSES)
    assert lines[0] == "dce  [any -> same]  Remove ops whose results nobody reads."


def test_verify_diagnostics_must_match_line_and_message(tmp_path: Path) -> None:
    path = tmp_path / "in.mlir"

    def check(comment: str) -> int:
        path.write_text(f"module @m {{\n  {comment}\n  func @f(%x) -> () {{\n    return\n  }}\n}}\n")
        return opt(path, "--verify-diagnostics")[0]

    assert check("// expected-error@+1 {{a parameter is written}}") == 0
    assert check("// expected-error@* {{a parameter is written}}") == 0
    assert check("// expected-error {{a parameter is written}}") == 1
    assert check("// expected-error@+2 {{a parameter is written}}") == 1
    assert check("// expected-error@+1 {{something else}}") == 1
    assert check("// expected-error@+1 {{a parameter}} expected-error@+1 {{another}}") == 0  # one comment, one error
    assert check("") == 1
