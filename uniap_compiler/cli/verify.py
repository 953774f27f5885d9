"""`uniap verify BUNDLE`: the bundle's ranks against the unsharded model; exit 1 names what differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from ..verify import Report, Row

_SHOWN = 12


def register(app: typer.Typer) -> None:
    """Add the command `verify` to the application."""
    app.command("verify")(verify_command)


def verify_command(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.", exists=True, file_okay=False)],
    spec: Annotated[str | None, typer.Option(help="Where the model is, if not where the bundle says.")] = None,
    processes: Annotated[bool, typer.Option("--processes", help="Real processes: torchrun with gloo.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Compare a bundle with the model that it was compiled from: loss, gradients, buffers, parameters."""
    console = Console(stderr=True, emoji=False)
    with console.status("starting") as status:
        from ..verify import verify

        report = verify(bundle, spec=spec, processes=processes, progress=status.update)
    if as_json:
        print(json.dumps(as_dict(report)))
    else:
        from .explain import wide_console

        show(report, wide_console())
    raise typer.Exit(0 if report.ok else 1)


def show(report: Report, console: Console) -> None:
    title = f"{report.ranks} ranks as {report.how} against the unsharded model, {report.dtype}"
    table = Table(title=title, title_justify="left")
    table.add_column("compared")
    table.add_column("tensors", justify="right")
    table.add_column("largest error", justify="right")
    table.add_column("allowed", justify="right")
    table.add_column("where")
    for what, row in report.worst().items():
        count = sum(r.what == what for r in report.rows)
        passes = all(report.passes(r) for r in report.rows if r.what == what)
        style = None if passes else "bold red"
        table.add_row(what, str(count), f"{row.error:.1e}", f"{report.allowed(row):.0e}", escape(row.name), style=style)
    console.print(table)
    failures = report.failures()
    if excused := len(report.excused()):
        console.print(
            f"note: {excused} of {len(report.rows)} are beyond {report.tolerance:.0e}, but no more than rounding "
            "moves the unsharded model itself",
            highlight=False,
        )
    if not failures:
        console.print("[bold green]equal[/]: the bundle computes what the model does")
        return
    for row in failures[:_SHOWN]:
        console.print(f"[bold red]differs[/]: {row.what} of {escape(row.name)}: {escape(_said(row))}", highlight=False)
    if len(failures) > _SHOWN:
        console.print(f"... and {len(failures) - _SHOWN} more")


def _said(row: Row) -> str:
    return row.note or f"error {row.error:.1e}"


def as_dict(report: Report) -> dict[str, Any]:
    def entry(row: Row) -> dict[str, Any]:
        error = row.error if abs(row.error) < float("inf") else None  # JSON has no infinity
        return {"what": row.what, "name": row.name, "error": error, **({"note": row.note} if row.note else {})}

    return {
        "ok": report.ok,
        "dtype": report.dtype,
        "tolerance": report.tolerance,
        "ranks": report.ranks,
        "how": report.how,
        "worst": [entry(row) for row in report.worst().values()],
        "failures": [entry(row) for row in report.failures()],
    }
