"""Generated code against torch: one rank against eager autograd, data parallel ranks against DDP, in one run.

    python benchmarks/step_time.py [--model examples/mlp.py] [--ranks 1 2 4] [--rounds 3] [--steps 20]

The two sides alternate, so that a machine whose speed wanders slows both; a row gives the median step of each side,
over all rounds and without the first five steps, and the ratio of the two (below 1: the generated code is faster).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
WARM = 5


def run(command: list[str]) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    if done.returncode:
        sys.exit(f"failed: {' '.join(command)}\n{done.stdout}\n{done.stderr}")


def launcher(ranks: int) -> list[str]:
    if ranks == 1:
        return [sys.executable]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]


def seconds(path: Path) -> list[float]:
    return [json.loads(line)["seconds"] for line in path.read_text().splitlines()][WARM:]


def compare(model: str, ranks: int, batch: int, rounds: int, steps: int, folder: Path) -> tuple[float, float, float]:
    """Median seconds of a step of the bundle and of torch, and the median of the rounds' ratios."""
    cluster, bundle, metrics = folder / f"ranks{ranks}.toml", folder / f"bundle{ranks}", folder / "metrics.jsonl"
    cluster.write_text(f'extends = "laptop"\nname = "ranks{ranks}"\ndevices_per_node = {ranks}\n')
    run([sys.executable, "-m", "uniap_compiler.cli.main", "compile", f"{model}:task", "--cluster", str(cluster),
         "--global-batch", str(batch), "--force", f"pp=1,dp={ranks},micro_batches=1,shard=none,recompute=none",
         "--out", str(bundle), "--json"])
    common = ["--data", f"{model}:batches", "--steps", str(steps), "--metrics", str(metrics)]
    ours, theirs, ratios = [], [], []
    for _ in range(rounds):
        run([*launcher(ranks), str(bundle / "train.py"), *common, "--log-every", "0"])
        a = seconds(metrics)
        run([*launcher(ranks), "benchmarks/eager_training.py", f"{model}:task", "--global-batch", str(batch), *common])
        b = seconds(metrics)
        ours += a
        theirs += b
        ratios.append(median(a) / median(b))
    return median(ours), median(theirs), median(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["examples/mlp.py", "examples/tiny_llama.py"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--global-batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    table = Table(title="seconds per step", title_justify="left")
    for column in ("model", "ranks", "against", "bundle", "torch", "ratio"):
        table.add_column(column)
    with tempfile.TemporaryDirectory() as name:
        for model in options.model:
            for ranks in options.ranks:
                folder = Path(name) / f"{Path(model).stem}{ranks}"
                folder.mkdir()
                a, b, ratio = compare(model, ranks, options.global_batch, options.rounds, options.steps, folder)
                against = "eager" if ranks == 1 else "DDP"
                table.add_row(model, str(ranks), against, f"{a:.4f}", f"{b:.4f}", f"{ratio:.2f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
