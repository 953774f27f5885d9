"""`uniap zoo`: the models that can be named as `zoo:NAME`."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the command `zoo` to the application."""
    app.command("zoo")(zoo_command)


def zoo_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print the table of models as JSON.")] = False,
) -> None:
    """List the models of the zoo: uniap compile zoo:NAME, or zoo:NAME@small with the same structure."""
    from ..zoo import zoo

    if as_json:
        print(json.dumps(zoo()))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for column in ("SPEC", "task", "tokens", "source"):
        table.add_column(column, justify="right" if column == "tokens" else "left")
    for name, row in zoo().items():
        table.add_row(f"zoo:{name}", row["task"], str(row.get("seq", "")), row["source"])
    Console().print(table)
