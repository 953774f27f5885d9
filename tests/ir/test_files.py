"""Every *.mlir here says in `// RUN:` lines how it is tested; the commands run in this process.

    // RUN: uniap-opt %s -p dce | filecheck %s
    // RUN: not uniap-opt %s 2>&1 | filecheck %s --check-prefix=ERROR

Understood: uniap-opt, filecheck, a pipe, `not` (the command must exit 1), `2>&1`, `\\` at the end of a line, %s (this
file), %t (an empty folder).
"""

from __future__ import annotations

import io
import re
import shlex
from pathlib import Path

import pytest
from filecheck.finput import FInput
from filecheck.matcher import Matcher
from filecheck.options import parse_argv_options
from filecheck.parser import Parser

from uniap_compiler.cli import opt

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("**/*.mlir"))
_RUN = re.compile(r"^//\s*RUN:\s*(.*)$", re.MULTILINE)


def run_lines(text: str) -> list[str]:
    return "\n".join(_RUN.findall(text)).replace("\\\n", " ").splitlines()


def execute(line: str, path: Path, folder: Path) -> None:
    """Raises AssertionError with what the command wrote."""
    words = shlex.split(line.replace("%s", str(path)).replace("%t", str(folder)))
    both = "2>&1" in words
    words = [w for w in words if w != "2>&1"]
    command, _, checks = " ".join(map(shlex.quote, words)).partition(" '|' ")
    text, errors = _uniap_opt(shlex.split(command), both)
    if checks:
        _filecheck(shlex.split(checks), text, errors)


def _uniap_opt(words: list[str], both: bool) -> tuple[str, str]:
    wanted = 0
    if words[0] == "not":
        wanted, words = 1, words[1:]
    assert words[0] == "uniap-opt", f"RUN lines start with uniap-opt or not: {words}"
    out, err = io.StringIO(), io.StringIO()
    code = opt.run(words[1:], out, err)
    text = err.getvalue() + out.getvalue() if both else out.getvalue()
    assert code == wanted, f"uniap-opt exits {code}\n{err.getvalue()}{out.getvalue()}"
    return text, err.getvalue()


def _filecheck(words: list[str], text: str, errors: str) -> None:
    assert words[0] == "filecheck"
    options = parse_argv_options(words)
    matcher = Matcher(options, FInput("uniap-opt", FInput.canonicalize_line_ends(text)), Parser.from_opts(options))
    matcher.stderr = report = io.StringIO()
    code = matcher.run()
    assert code == 0, f"{report.getvalue()}\n--- the text\n{text}\n--- standard error\n{errors}"


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(HERE)) for p in FILES])
def test_file(path: Path, tmp_path: Path) -> None:
    lines = run_lines(path.read_text(encoding="utf-8"))
    assert lines, f"{path} has no RUN line"
    for number, line in enumerate(lines):
        folder = tmp_path / str(number)
        folder.mkdir()
        execute(line, path, folder)


def test_the_runner_can_fail(tmp_path: Path) -> None:
    path = tmp_path / "x.mlir"
    path.write_text("// CHECK: aten.exp\nmodule @m {\n}\n")
    with pytest.raises(AssertionError, match="aten.exp"):
        execute("uniap-opt %s | filecheck %s", path, tmp_path)
    with pytest.raises(AssertionError, match="exits 0"):
        execute("not uniap-opt %s", path, tmp_path)
    path.write_text("module @m {\n// expected-error {{nothing}}\n}\n")
    with pytest.raises(AssertionError, match="did not come"):
        execute("uniap-opt %s --verify-diagnostics", path, tmp_path)
    path.write_text("module @m {\n  a.b(%x)\n}\n")
    with pytest.raises(AssertionError, match="not expected"):
        execute("uniap-opt %s --verify-diagnostics", path, tmp_path)
