"""Every model of the zoo, small, under every kind of plan: the largest error against the unsharded model.

    python benchmarks/parity.py [--models llama-7b ...] [--plans dp tp ...] [--dropout 0] [--dtype float64]

One row per model, one column per plan; a cell is the worst error over loss, gradients of every parameter, buffers and
parameters after three steps of SGD and of AdamW (`uniap verify`), or why there is none.  Exit code 1 when one is wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from uniap_compiler import driver
from uniap_compiler.ir import Diagnostic
from uniap_compiler.verify import Report, verify
from uniap_compiler.zoo import zoo

RANKS, ROWS = 4, 8
PLANS = {
    "dp": "pp=1,dp=4",
    "tp": "pp=1,tp=4",
    "sharded": "pp=1,dp=4,shard=parameters",
    "dp x tp": "pp=1,dp=2,tp=2",
    "pp": "pp=4,micro_batches=4",
    "pp x tp, sequence": "pp=2,tp=2,boundary=sequence,micro_batches=2",
    "recompute": "pp=1,dp=2,tp=2,recompute=full",
    "selective": "pp=1,dp=2,tp=2,recompute=selective",
    "own choice": "",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=list(zoo()))
    parser.add_argument("--plans", nargs="*", default=list(PLANS), choices=list(PLANS))
    parser.add_argument("--dropout", type=float, default=0.0, help="of every layer that has one")
    parser.add_argument("--dtype", default="float64")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    arguments = parser.parse_args()
    table = Table("model", *arguments.plans, title=f"largest error, {arguments.dtype}, dropout {arguments.dropout:g}")
    figures: dict[str, dict[str, float | str]] = {}
    wrong = 0
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            cells = parity(name, arguments.plans, arguments.dropout, arguments.dtype, Path(folder))
        figures[name] = {plan: error if error is not None else why for plan, (error, why) in cells.items()}
        table.add_row(name, *(why or f"{error:.1e}" for error, why in cells.values()))
        wrong += sum(bool(why) for _, why in cells.values())
    Console(width=max(120, 24 * (len(arguments.plans) + 1))).print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=1))
    sys.exit(1 if wrong else 0)


def parity(
    name: str, plans: list[str], dropout: float, dtype: str, folder: Path
) -> dict[str, tuple[float | None, str]]:
    """plan -> (its largest error, what is wrong with it)."""
    spec = f"{name if ':' in name else f'zoo:{name}@small'},dropout={dropout:g}"
    clusters = {n: folder / f"ranks{n}.toml" for n in (1, RANKS)}
    for n, path in clusters.items():
        path.write_text(f'extends = "laptop"\nname = "ranks{n}"\ndevices_per_node = {n}\n')
    dumps = folder / "dumps"
    try:
        driver.compile(spec, clusters[1], ROWS, out=folder / "one", dtype=dtype, dump=dumps)
    except Diagnostic as error:
        _say(name, "capture", error.render())
        return {plan: (None, "not captured") for plan in plans}
    (start,) = dumps.glob("*-shard-rules.mlir")
    cells: dict[str, tuple[float | None, str]] = {}
    for plan in plans:
        out = folder / plan.replace(" ", "_")
        began = time.perf_counter()
        try:
            driver.resume(start, out=out, cluster=clusters[RANKS], force=PLANS[plan] or None)
            compiled = time.perf_counter()
            report = verify(out)
        except Diagnostic as error:
            cells[plan] = (None, "refused")
            _say(name, plan, error.render())
            continue
        error = max(row.error for row in report.rows)
        cells[plan] = (error, "" if report.ok and not _drifted(report) else f"WRONG {error:.1e}")
        seconds = f"{compiled - began:.1f} s to compile, {time.perf_counter() - compiled:.1f} s to verify"
        _say(name, plan, f"{error:.1e}, {seconds}" + "".join(f"\n    {r.what} of {r.name}: {r.error:.1e} {r.note}"
                                                          for r in report.failures()[:3]))
    return cells


def _drifted(report: Report) -> bool:
    """In float64 every number must agree, whatever rounding becomes."""
    return report.least == "float64" and bool(report.excused())


def _say(name: str, plan: str, text: str) -> None:
    print(f"{name}, {plan}: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
