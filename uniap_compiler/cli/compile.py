"""`uniap compile SPEC --cluster laptop --global-batch 64`: the fastest plan, and the bundle that carries it out."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ..zoo import with_options

if TYPE_CHECKING:
    from ..driver import Compiled


_FORCE = "[LAYERS:]key=value,...[;...] with pp, dp, tp, micro_batches, stage, shard, recompute, boundary."


class Schedule(StrEnum):
    one_f_one_b = "1f1b"
    gpipe = "gpipe"


class Dtype(StrEnum):
    float64 = "float64"
    float32 = "float32"
    bfloat16 = "bfloat16"


class ReduceDtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def register(app: typer.Typer) -> None:
    """Add the command `compile` to the application."""
    app.command("compile")(compile_command)


def compile_command(
    spec: Annotated[
        str | None, typer.Argument(
            help="path/to/file.py:factory or package.module:factory, which returns a TrainingTask; zoo:NAME (see "
            "`uniap zoo`); or hf:PATH/config.json, a Hugging Face config.")
    ] = None,
    cluster: Annotated[str | None, typer.Option(help="A preset's name or a TOML file.")] = None,
    global_batch: Annotated[int | None, typer.Option(metavar="N", help="Rows of one step, over all devices.")] = None,
    task: Annotated[str | None, typer.Option(help="What a hf: model is trained for: causal-lm, masked-lm, ...")] = None,
    seq: Annotated[int | None, typer.Option(metavar="N", help="Tokens of a row, for zoo: and hf: models.")] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The bundle's folder.")] = Path("build"),
    force: Annotated[
        str | None,
        typer.Option(metavar="FORCE", help=_FORCE),
    ] = None,
    schedule: Annotated[Schedule | None, typer.Option(help="Of the micro-batches over the stages.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Compute in this precision instead of the model's own.")] = None,
    reduce_dtype: Annotated[
        ReduceDtype | None, typer.Option(help="Gradients travel between devices in this precision.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="PATH", help="A safetensors checkpoint that training starts from.")
    ] = None,
    dump: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the module after every pass.")] = None,
    write_lp: Annotated[Path | None, typer.Option(metavar="DIR", help="Write the problem and solved MIQPs.")] = None,
    time_limit: Annotated[
        float | None,
        typer.Option(metavar="S", min=0.1, help="Seconds for the solver; then its best plan, with bound and gap. [30]"),
    ] = None,
    timing: Annotated[bool, typer.Option("--timing", help="Print the seconds of every pass.")] = False,
    from_: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Go on from a dump instead of a SPEC.")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="Lower a bundle's plan again, with --dtype in that precision.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Compile a model for a cluster into a folder that runs with torchrun."""
    sources = [name for name, value in (("SPEC", spec), ("--from", from_), ("--plan", plan)) if value is not None]
    if len(sources) != 1:
        given = " and ".join(sources)
        raise typer.BadParameter(f"give one of SPEC, --from and --plan{f', not {given}' if given else ''}")
    if spec is not None:
        missing = [n for n, v in (("--cluster", cluster), ("--global-batch", global_batch)) if v is None]
        if missing:
            raise typer.BadParameter(f"a SPEC needs {' and '.join(missing)}")
    elif global_batch is not None:
        raise typer.BadParameter(f"{sources[0]} has its global batch already")
    chosen = {"cluster": cluster, "force": force, "schedule": schedule, "write_lp": write_lp, "time_limit": time_limit}
    if plan is not None and (unused := _given(**chosen)):
        raise typer.BadParameter(f"--plan keeps the plan, so {unused} has no effect")
    if spec is None and (unused := _given(task=task, seq=seq, weights=weights, reduce_dtype=reduce_dtype)):
        raise typer.BadParameter(f"{sources[0]} has its task already, so {unused} has no effect")
    if spec is not None:
        spec = with_options(spec, task=task, seq=seq)
    if from_ is not None and dtype is not None:
        raise typer.BadParameter("--from goes on in the dtype of the dump; --plan takes --dtype")

    compiled = _compile(
        spec, cluster, global_batch, out, force, schedule, dtype, reduce_dtype, weights, dump, write_lp, time_limit,
        from_, plan, as_json,
    )  # fmt: skip
    if as_json:
        print(json.dumps(summary(compiled)))
        return
    from .explain import explain, wide_console

    console = wide_console()
    explain(compiled.bundle, console)
    if timing:
        _print_timing(compiled, console)
    console.print(f"[bold]{compiled.bundle}[/] is ready: see {compiled.bundle / 'README.md'}", highlight=False)


def _given(**options: object) -> str | None:
    return next((f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None), None)


def _compile(
    spec: str | None, cluster: str | None, global_batch: int | None, out: Path, force: str | None,
    schedule: Schedule | None, dtype: Dtype | None, reduce_dtype: ReduceDtype | None, weights: Path | None,
    dump: Path | None, write_lp: Path | None, time_limit: float | None, from_: Path | None, plan: Path | None,
    quiet: bool,
) -> Compiled:
    console = Console(stderr=True, emoji=False)
    chosen = schedule.value if schedule is not None else None
    precision = dtype.value if dtype is not None else None
    with console.status("starting") as status:

        def progress(text: str) -> None:
            if not quiet:
                status.update(text)

        from .. import driver  # torch is imported here: seconds that the status line covers

        if plan is not None:
            return driver.lower_again(plan, out=out, dtype=precision, dump=dump, progress=progress)
        if from_ is not None:
            return driver.resume(
                from_, out=out, cluster=cluster, force=force, schedule=chosen, dump=dump, write_lp=write_lp,
                time_limit=time_limit, progress=progress,
            )
        assert spec is not None and cluster is not None and global_batch is not None
        return driver.compile(
            spec, cluster, global_batch, out=out, force=force, schedule=chosen, dtype=precision, dump=dump,
            write_lp=write_lp, weights=weights, time_limit=time_limit, progress=progress,
            reduce_dtype=reduce_dtype.value if reduce_dtype is not None else None,
        )  # fmt: skip


def summary(compiled: Compiled) -> dict[str, object]:
    """What a script wants to know: the bundle, the plan in short, the seconds."""
    from .explain import describe

    return {
        "bundle": str(compiled.bundle),
        "plan": describe(compiled.bundle),
        "seconds": {name: round(seconds, 4) for name, seconds in compiled.seconds},
    }


def _print_timing(compiled: Compiled, console: Console) -> None:
    from rich.table import Table

    total = sum(seconds for _, seconds in compiled.seconds)
    table = Table(box=None, header_style="bold")
    table.add_column("pass")
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    for name, seconds in compiled.seconds:
        table.add_row(name, f"{seconds:.3f}", f"{100 * seconds / total:.0f} %" if total else "")
    table.add_row("total", f"{total:.3f}", "", style="bold")
    console.print(table)
