"""`uniap`: help, usage errors, a user's mistake."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from uniap_compiler.cli import main as cli
from uniap_compiler.ir import Diagnostic, Loc

BROKEN = "module @m {\n  func @f(%x) -> () {\n    return\n  }\n}\n"


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    return int(end.value.code or 0)


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    for command in ("compile", "verify", "solve", "opt"):
        assert command in text


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("uniap-compiler 0.")


@pytest.mark.parametrize("arguments", [["frobnicate"], ["--frobnicate"], ["opt", "--frobnicate"], ["solve"]])
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    assert "sage:" in capsys.readouterr().err


def test_a_mistake_is_shown_without_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "broken.mlir"
    path.write_text(BROKEN)
    done = subprocess.run(
        [sys.executable, "-m", "uniap_compiler.cli.main", "opt", str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        f"error: found ')': a parameter is written %name: tensor<...>\n  --> {path}:2:13\n"
        "   2 |   func @f(%x) -> () {\n     |             ^\n"
    )


def test_a_diagnostic_of_any_command_exits_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def application(_: object) -> typer.Typer:
        app = typer.Typer()
        app.callback()(lambda: None)

        @app.command("fail")
        def fail() -> None:
            long = "very long " * 30
            raise Diagnostic(f"this [is] {long}wrong", loc=Loc("model.py", 3, "up"), notes=["why"], help="do that")

        return app

    monkeypatch.setattr(cli, "application", application)
    assert run("fail") == 1
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert lines[0].startswith("error: this [is] very long") and lines[0].endswith(
        "wrong"
    )  # neither markup nor wrapped
    assert lines[1:] == ["  --> model.py:3 in up", "  note: why", "  help: do that"]


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def application(_: object) -> typer.Typer:
        app = typer.Typer(pretty_exceptions_enable=False)
        app.callback()(lambda: None)
        app.command("fail")(lambda: 1 / 0)
        return app

    monkeypatch.setattr(cli, "application", application)
    with pytest.raises(ZeroDivisionError):
        cli.main(["fail"])
