"""The command `uniap`: finds the sub-command, sets up logging, and shows a user's mistake.

Each sub-command is a file of this folder with `register(app: typer.Typer)`; only the file of the command that was
asked for is imported, so that `uniap solve` starts without torch.  Exit codes: 0 ok, 1 a diagnosed error, 2 usage.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from ..ir.diagnostics import Diagnostic

COMMANDS = ("compile", "verify", "explain", "diff", "sweep", "report", "solve", "profile", "zoo", "opt")
"""In the order of the help page; the file of each has its name."""

_STYLES = {"error: ": "bold red", "  note: ": "bold cyan", "  help: ": "bold green", "  --> ": "blue", "    > ": "bold"}


def application(commands: Sequence[str]) -> typer.Typer:
    """The typer application with these sub-commands."""
    app = typer.Typer(
        help="Compile a torch.nn.Module into explicit, plain-Python training code for a cluster.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    for name in commands:
        module = f"{__package__}.{name}"
        if importlib.util.find_spec(module) is not None:
            importlib.import_module(module).register(app)
    return app


def _options(
    verbose: Annotated[int, typer.Option("--verbose", "-v", count=True, help="Log more (-vv: still more).")] = 0,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=lambda v: _version(v), is_eager=True)
    ] = False,
) -> None:
    if verbose:
        from rich.logging import RichHandler

        log = logging.getLogger("uniap_compiler")
        log.setLevel(logging.DEBUG if verbose > 1 else logging.INFO)
        log.addHandler(RichHandler(console=Console(stderr=True), show_path=False))


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"uniap-compiler {version('uniap-compiler')}")
        raise typer.Exit


def show(diagnostic: Diagnostic, source_root: Path | None = None) -> None:
    """The diagnostic on stderr, with colour where stderr is a terminal."""
    text = Text()
    for line in diagnostic.render(source_root).splitlines():
        prefix = next((p for p in _STYLES if line.startswith(p)), "")
        text.append(prefix, _STYLES.get(prefix)).append(line[len(prefix) :] + "\n")
    Console(stderr=True, highlight=False, emoji=False).print(text, soft_wrap=True, end="")


def main(arguments: Sequence[str] | None = None) -> None:
    """Always ends in SystemExit."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = next((w for w in words if not w.startswith("-")), None)
    app = application([command] if command in COMMANDS else COMMANDS)
    try:
        app(words, prog_name="uniap")
    except Diagnostic as diagnostic:
        show(diagnostic)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
