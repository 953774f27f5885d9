"""`uniap explain BUNDLE`: the plan as tables, from plan.mlir and manifest.json alone.

What it reads of the module at level `planned`:
    plan.plan @plan {stages, micro_batches, schedule, status, objective, bound, simulated, ...}
    plan.stage @stage_0 {memory = <bytes>, ..., forward = <seconds>, ...}          one per stage
    plan.runner_up @NAME {stages, micro_batches, objective, ...}                   the next best
    plan.call ... {layer, phase = "forward", stage, strategy}                      in @step
Numbers are shown by what their names say: bytes in GiB, seconds in milliseconds.
"""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..ir import Attr, Diagnostic, Module, Struct, parse_module

_PLAN_FACTS = ("status", "objective", "bound", "gap", "chosen_objective", "simulated", "bubble", "seconds")
_STRATEGY = ("dp", "tp", "boundary", "shard", "recompute")
_BYTES = (
    "memory", "bytes", "states", "activations", "working", "gathered", "inputs", "parameters", "gradients", "optimizer",
)  # fmt: skip
_COUNTS = ("stages", "micro_batches", "stage", "dp", "tp", "gap", "visited", "devices", "world")


def register(app: typer.Typer) -> None:
    """Add the command `explain` to the application."""
    app.command("explain")(explain_command)


def explain_command(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.", exists=True, file_okay=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Show a bundle's plan: stages, strategy of every layer, memory, time, the solver's answer, the runners-up."""
    if as_json:
        print(json.dumps(describe(bundle)))
    else:
        explain(bundle, wide_console())


def wide_console() -> Console:
    """stdout; a pipe has no width of its own, so tables get one that they fit into."""
    console = Console(emoji=False)
    return console if console.is_terminal else Console(width=120, emoji=False)


def describe(bundle: Path) -> dict[str, Any]:
    """The plan as plain data.  Raises Diagnostic when the folder is not a bundle."""
    try:
        manifest = json.loads((bundle / "manifest.json").read_text(encoding="utf-8"))
        module = parse_module((bundle / "plan.mlir").read_text(encoding="utf-8"), filename=str(bundle / "plan.mlir"))
    except (OSError, ValueError) as error:
        raise Diagnostic(f"{bundle} is not a bundle: {getattr(error, 'strerror', None) or error}") from None
    plan = module.find("plan.plan")
    stages = [op for op in module.ops if op.name == "plan.stage"]
    return {
        "spec": manifest["spec"],
        "fingerprint": manifest["fingerprint"],
        "ranks": manifest["world_size"],
        "stages": manifest["stages"],
        "mesh": manifest["mesh"],
        "global_batch": manifest["global_batch"],
        "micro_batches": manifest["micro_batches"],
        "schedule": manifest["schedule"],
        "dtype": manifest["dtype"],
        "layers": _layers(module),
        "plan": _plain(plan.attrs) if plan is not None else {},
        "stages_in_detail": [{"name": str(op.symbol), **_plain(op.attrs)} for op in stages],
        "runners_up": [_plain(op.attrs) for op in module.ops if op.name == "plan.runner_up"],
    }


def _layers(module: Module) -> list[dict[str, Any]]:
    step = module.funcs.get("step")
    found = []
    for op in step.ops if step is not None else []:
        strategy = op.attrs.get("strategy")
        if op.attrs.get("phase") == "forward" and isinstance(strategy, Struct):
            found.append({"layer": str(op.attrs["layer"]), "stage": op.attrs["stage"], **_plain(strategy.asdict())})
    return found


def _plain(attrs: dict[str, Attr]) -> dict[str, Any]:
    def value(attr: Attr) -> Any:
        if isinstance(attr, Struct):
            return {k: value(v) for k, v in attr.fields}
        if isinstance(attr, (list, tuple)):
            return [value(item) for item in attr]
        return attr if attr is None or isinstance(attr, (bool, int, float)) else str(attr)

    return {k: value(v) for k, v in attrs.items()}


def explain(bundle: Path, console: Console) -> None:
    about = describe(bundle)
    mesh = " x ".join(f"{axis}={size}" for axis, size in about["mesh"]) or "one device"
    of = f" of {about['spec']}" if about["spec"] else ""
    stages = f"{about['stages']} stage{'s' if about['stages'] != 1 else ''} of {mesh}"
    batch = f"global batch {about['global_batch']} in {about['micro_batches']} micro-batches"
    console.print(
        f"[bold]{about['ranks']} ranks[/]{escape(of)}: {stages}, {batch}, {about['schedule']}, {about['dtype']}",
        highlight=False,
    )
    _print_layers(about, console)
    _print_rows("per rank of a stage", about["stages_in_detail"], console)
    _print_facts(about["plan"], console)
    _print_rows("runners-up", about["runners_up"], console)


def _print_layers(about: dict[str, Any], console: Console) -> None:
    """One row per run of layers that share stage and strategy."""
    if not about["layers"]:
        return
    per_stage = about["ranks"] // about["stages"]
    table = Table()
    for column in ("stage", "ranks", "layers", *_STRATEGY):
        table.add_column(column, justify="right" if column in ("stage", "dp", "tp") else "left")
    for key, group in groupby(about["layers"], key=lambda row: (row["stage"], *(row.get(k) for k in _STRATEGY))):
        names = [row["layer"] for row in group]
        stage = key[0]
        shown = names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]} ({len(names)})"
        ranks = f"{stage * per_stage}-{(stage + 1) * per_stage - 1}" if per_stage > 1 else str(stage)
        table.add_row(str(stage), ranks, escape(shown), *("" if v is None else escape(str(v)) for v in key[1:]))
    console.print(table)


def _print_facts(plan: dict[str, Any], console: Console) -> None:
    known = [name for name in _PLAN_FACTS if plan.get(name) is not None]
    facts = [f"{name.replace('_', ' ')} {_shown(name, plan[name])}" for name in known]
    for line in _lines(facts, console.width - len("solver: ")):
        console.print(("solver: " if line[0] == facts[0] else "        ") + escape(", ".join(line)), highlight=False)


def _lines(facts: list[str], width: int) -> list[list[str]]:
    """As many facts per line as fit; none is torn apart."""
    lines: list[list[str]] = []
    for fact in facts:
        if lines and len(", ".join([*lines[-1], fact])) <= width:
            lines[-1].append(fact)
        else:
            lines.append([fact])
    return lines


def _print_rows(title: str, rows: list[dict[str, Any]], console: Console) -> None:
    """A table whose columns are the fields of its rows."""
    flat = [{key: _flat(value) for key, value in row.items() if not isinstance(value, dict)} for row in rows]
    columns = list(dict.fromkeys(key for row in flat for key in row))
    if not columns:
        return
    table = Table(title=title, title_justify="left")
    for column in columns:
        text = any(isinstance(row.get(column), str) for row in flat)
        table.add_column(escape(column.replace("_", " ")), justify="left" if text else "right")
    for row in flat:
        table.add_row(*(escape(_shown(column, row[column])) if column in row else "" for column in columns))
    console.print(table)


def _flat(value: object) -> object:
    return "\n".join(map(str, value)) if isinstance(value, list) else value


def _shown(name: str, value: object) -> str:
    """A number with the unit that its name stands for."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    if name in ("gap", "bubble"):
        return f"{100 * value:.2g} %"
    if name in _COUNTS:
        return str(value)
    if any(word in name for word in _BYTES):
        return f"{value / 2**30:.2f} GiB" if value >= 2**27 else f"{value / 2**20:.1f} MiB"
    if name == "seconds":
        return f"{value:.2f} s"
    return f"{1e3 * value:.3g} ms" if isinstance(value, float) else str(value)

