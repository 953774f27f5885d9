"""`uniap solve PROBLEM.json`: the solver alone, on a layer-level problem."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Backend(StrEnum):
    cbc = "cbc"
    highs = "highs"


def register(app: typer.Typer) -> None:
    """Add the command `solve` to the application."""
    app.command("solve")(solve)


TOP = "How many different plans: the others may take as long as the first one, or 5 s, and never exceed the time limit."


def solve(
    problem: Annotated[Path, typer.Argument(help="A uniap-problem/1 file.", exists=True, dir_okay=False)],
    backend: Annotated[Backend, typer.Option(help="The MIP solver behind python-mip.")] = Backend.cbc,
    time_limit: Annotated[
        float | None, typer.Option(metavar="S", min=0.0, help="Seconds; then the best plan so far, with its gap.")
    ] = None,
    gap: Annotated[float, typer.Option(metavar="G", min=0.0, help="Relative gap that is called optimal.")] = 1e-6,
    top: Annotated[int, typer.Option(metavar="K", min=1, help=TOP)] = 1,
    write_lp: Annotated[
        Path | None, typer.Option(metavar="DIR", file_okay=False, help="Write every MIQP that is solved.")
    ] = None,
    certify: Annotated[bool, typer.Option(help="Recompute every derived value by independent code.")] = False,
    quiet: Annotated[bool, typer.Option(help="No progress on stderr.")] = False,
) -> None:
    """Find the best plan of a layer-level problem: one JSON object on stdout, progress on stderr."""
    from uniap_compiler.solver.command import run_command

    code = run_command(
        str(problem),
        backend=backend.value,
        time_limit=time_limit,
        gap=gap,
        top=top,
        write_lp=None if write_lp is None else str(write_lp),
        certify=certify,
        quiet=quiet,
    )
    raise typer.Exit(code)
