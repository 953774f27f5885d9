"""Full-size models compiled for the paper's machines: seconds per pass, memory of the compiler, the plan.

    python benchmarks/compile_zoo.py [--models llama-7b ...] [--clusters v100-32gb ...] [--json FILE] [--problems DIR]

One process per compilation, from nothing to the finished bundle (`uniap compile zoo:MODEL --cluster CLUSTER ...`), of
models as their configs have them: float32, with dropout.  Where no plan fits, the table has the explanation in its
place.  CPU seconds are the process's own; --problems keeps what the solver was given.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

CLUSTERS = {"v100-32gb": 8, "titan-xp-12gb-2x4": 8, "a100-40gb-pcie": 8, "a100-80gb,nodes=8": 64}
"""Name -> devices; a setting behind the name replaces the preset's."""
MODELS = (
    "bert-huge", "t5-large", "vit-huge", "swin-huge", "llama-7b", "llama-13b", "gpt2-xl", "mixtral-8x7b", "resnet-50",
)  # fmt: skip
ROWS_PER_DEVICE = 8
PARTS = {"capture": ("capture",), "search": ("enumerate-strategies",), "solve": ("solve-parallelism",)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--clusters", nargs="*", default=list(CLUSTERS))
    parser.add_argument("--options", default="", help='of every spec: ",dropout=0"')
    parser.add_argument("--json", type=Path, help="write every figure here")
    parser.add_argument("--problems", type=Path, help="keep the solver's problems in this folder")
    arguments = parser.parse_args()
    runs = [(m, c, ROWS_PER_DEVICE * CLUSTERS[c]) for m in arguments.models for c in arguments.clusters]
    if arguments.models == list(MODELS) and arguments.clusters == list(CLUSTERS):
        runs.append(("gpt3-175b", "a100-80gb,nodes=128", 1536))
    table = Table(*"model cluster batch wall CPU".split(), *PARTS, "GB", "status", "plan", "samples/s",
                  title="seconds, from nothing to the bundle")  # fmt: skip
    figures = []
    for model, cluster, batch in runs:
        found = compile_once(model + arguments.options, cluster, batch, arguments.problems)
        figures.append({"model": model, "cluster": cluster, "batch": batch, **found})
        seconds = found.get("seconds", {})
        parts = [f"{sum(seconds.get(name, 0.0) for name in names):.1f}" for names in PARTS.values()]
        rate = f"{batch / found['step']:.3g}" if "step" in found else ""
        row = [model, cluster, str(batch), f"{found['wall']:.0f}", f"{found['cpu']:.0f}", *parts, f"{found['gb']:.1f}",
               found["status"], found["plan"], rate]  # fmt: skip
        table.add_row(*row)
        print("  ".join(row), file=sys.stderr, flush=True)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(figures, indent=1))
    Console(width=200).print(table)


def compile_once(model: str, cluster: str, batch: int, problems: Path | None) -> dict[str, Any]:
    name, *settings = cluster.split(",")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "cluster.toml"
        place.write_text("\n".join([f'extends = "{name}"', f'name = "{cluster}"', *settings]) + "\n")
        command = [sys.executable, "-m", "uniap_compiler.cli.main", "compile", f"zoo:{model}", "--cluster", str(place),
                   "--global-batch", str(batch), "--out", f"{folder}/bundle", "--json"]  # fmt: skip
        if problems is not None:
            command += ["--write-lp", f"{problems}/{model}-{cluster}".replace(",", "-").replace("=", "")]
        with open(f"{folder}/out", "w+") as out, open(f"{folder}/err", "w+") as err:
            start = time.perf_counter()
            process = subprocess.Popen(command, stdout=out, stderr=err, env={**os.environ, "OMP_NUM_THREADS": "1"})
            _, code, used = os.wait4(process.pid, 0)
            wall = time.perf_counter() - start
            out.seek(0)
            err.seek(0)
            printed, complaint = out.read(), err.read()
    found: dict[str, Any] = {"wall": wall, "cpu": used.ru_utime + used.ru_stime, "gb": used.ru_maxrss * 1024 / 1e9}
    if code:
        lines = [line for line in complaint.splitlines() if "error:" in line or "note:" in line or "help:" in line]
        why = "\n".join(lines or complaint.splitlines()[-3:])
        return found | {"status": "no plan" if lines else "FAILED", "plan": why}
    answer = json.loads(printed.splitlines()[-1])
    plan = answer["plan"]
    about = plan["plan"]
    status = about["status"] if about["status"] == "optimal" else f"{about['status']}, gap {100 * about['gap']:.2g} %"
    return found | {"seconds": answer["seconds"], "status": status, "plan": one_line(plan), "step": about["simulated"]}


def one_line(plan: dict[str, Any]) -> str:
    """`pp 1, c 16: 20 x dp2 tp4 parameters; 14 x dp8 tp1 optimizer`: the strategies, the most frequent first."""
    counted = Counter(map(_strategy, plan["layers"])).most_common()
    shown = [f"{n} x {strategy}" for strategy, n in counted[:4]]
    if len(counted) > 4:
        shown.append(f"{sum(n for _, n in counted[4:])} others")
    return f"pp {plan['stages']}, c {plan['micro_batches']}: " + "; ".join(shown)


def _strategy(layer: dict[str, Any]) -> str:
    extra = [layer[k] for k, usual in (("boundary", "replicated"), ("shard", "none")) if layer[k] != usual]
    if layer["recompute"] != "none":
        extra.append(f"recompute {layer['recompute']}")
    return " ".join([f"dp{layer['dp']} tp{layer['tp']}", *extra])


if __name__ == "__main__":
    main()
