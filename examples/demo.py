"""`make demo`: compile the example model for four CPU ranks, train it, compare it with the unsharded model.

Every step is a command that you can type yourself; this script prints it, runs it, and ends with a short table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
SPEC = "examples/tiny_llama.py:task"
BUNDLE, CHECKED, DUMP = Path("build/demo"), Path("build/demo-float64"), Path("build/demo-ir")
STEPS = 60

console = Console()


def run(title: str, *command: str, quiet: bool = False) -> str:
    """Print and run a command in the project's folder; its output comes back when it is not shown.  Ends on failure."""
    if title:
        console.rule(f"[bold]{title}")
    console.print(f"[dim]$ {' '.join(command)}[/]", highlight=False, soft_wrap=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    program = [str(BIN / command[0]), *command[1:]]
    done = subprocess.run(program, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE if quiet else None)
    if done.returncode:
        console.print(done.stdout or "", highlight=False)
        console.print(f"[bold red]failed[/] with exit code {done.returncode}")
        sys.exit(done.returncode)
    return done.stdout or ""


def main() -> None:
    start = time.perf_counter()
    metrics = BUNDLE.with_suffix(".metrics.jsonl")
    run("1. compile: capture, search, solve, write the bundle", "uniap", "compile", SPEC, "--cluster", "laptop",
        "--global-batch", "16", "--out", str(BUNDLE), "--dump", str(DUMP), "--timing")
    run(f"2. train {STEPS} steps on the text of Python's help", "torchrun", "--standalone", "--nproc-per-node", "4",
        str(BUNDLE / "train.py"), "--data", "examples/tiny_llama.py:batches", "--steps", str(STEPS), "--lr", "3e-3",
        "--clip", "1.0", "--log-every", "5", "--metrics", str(metrics), "--timeout", "120")
    run("3. verify: the same plan in float64 against the unsharded model", "uniap", "compile", "--plan", str(BUNDLE),
        "--dtype", "float64", "--out", str(CHECKED), "--json", quiet=True)
    checked = json.loads(run("", "uniap", "verify", str(CHECKED), "--json", quiet=True))
    show(metrics, checked, time.perf_counter() - start)


def show(metrics: Path, checked: dict[str, object], seconds: float) -> None:
    lines = [json.loads(line) for line in (ROOT / metrics).read_text().splitlines()]
    table = Table(title="summary", title_justify="left", show_header=False)
    table.add_row("loss, first and last step", f"{lines[0]['loss']:.4f}  ->  {lines[-1]['loss']:.4f}")
    worst = {row["what"]: row for row in checked["worst"]}  # type: ignore[attr-defined]
    for what, row in worst.items():
        table.add_row(f"largest difference: {what}", f"{row['error']:.1e} ({row['name']})")
    table.add_row("time per step (median)", f"{median(line['seconds'] for line in lines):.3f} s")
    table.add_row("the whole demo", f"{seconds:.0f} s")
    table.add_row("look next at: the IR after every pass", str(DUMP))
    table.add_row("what stage 0 runs", str(BUNDLE / "stages/stage_0.py"))
    table.add_row("one rank's place, slices, schedule", str(BUNDLE / "ranks/rank_0003.py"))
    table.add_row("the plan again", f"uniap explain {BUNDLE}")
    console.print(table)


if __name__ == "__main__":
    main()
