"""From a model and a forced plan to a bundle, with what is the same for many plans done once.

bundle = workshop.compile(MLP, 4, "pp=2,dp=2", out, schedule="gpipe")
check(bundle)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from uniap_compiler import driver
from uniap_compiler.capture import TrainingTask
from uniap_compiler.verify import Report, verify

ROOT = Path(__file__).parents[2]
MLP = f"{ROOT / 'examples' / 'mlp.py'}:task"
SMALL_LLAMA = f"{ROOT / 'examples' / 'tiny_llama.py'}:small"
LLAMA = f"{ROOT / 'examples' / 'tiny_llama.py'}:task"
GLOBAL_BATCH = 12
"""Divides over 2, 3, 4 and 6 ranks and into micro-batches of two rows or more."""


class Workshop:
    """Keeps the dump after `shard-rules` of every model that was asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._dumps: dict[tuple[str, str, int], Path] = {}

    def cluster(self, devices: int) -> Path:
        """The laptop with another number of ranks."""
        path = self.folder / f"laptop{devices}.toml"
        path.write_text(f'extends = "laptop"\ndevices_per_node = {devices}\n')
        return path

    def dumps(self, name: str, task: TrainingTask | str, dtype: str, global_batch: int) -> Path:
        """The folder of dumps of a compilation for one rank."""
        key = (name, dtype, global_batch)
        if key not in self._dumps:
            folder = self.folder / f"model{len(self._dumps)}"
            out, dump = folder / "build", folder / "dumps"
            driver.compile(task, self.cluster(1), global_batch, out=out, dtype=dtype, dump=dump)
            self._dumps[key] = dump
        return self._dumps[key]

    def compile(
        self, task: TrainingTask | str, devices: int, force: str, out: Path, *, name: str = "",
        schedule: str | None = None, dtype: str = "float64", global_batch: int = GLOBAL_BATCH, dump: Path | None = None,
    ) -> Path:  # fmt: skip
        """name: of the model, where the task is an object and not a SPEC."""
        dumps = self.dumps(name or str(task), task, dtype, global_batch)
        (after_rules,) = dumps.glob("*-shard-rules.mlir")
        return driver.resume(
            after_rules, out=out, cluster=self.cluster(devices), force=force or None, schedule=schedule, dump=dump
        ).bundle


def check(bundle: Path, *, task: TrainingTask | None = None, processes: bool = False) -> Report:
    """The bundle equals the unsharded model, to the tolerance of its dtype, in everything that verify compares."""
    report = verify(bundle, task=task, processes=processes)
    assert report.ok, "\n".join(f"{r.what} of {r.name}: {r.error:.2e} {r.note}" for r in report.failures()[:12])
    assert report.least != "float64" or not report.excused(), report.excused()[:3]
    kinds = {row.what for row in report.rows}
    for kind in ("loss", "gradient", "parameter after 3 steps of sgd", "parameter after 3 steps of adamw"):
        assert kind in kinds, f"{kind} was not compared"
    return report


def manifest(bundle: Path) -> dict[str, Any]:
    return dict(json.loads((bundle / "manifest.json").read_text()))


def strategies(bundle: Path) -> dict[str, tuple[int, dict[str, Any]]]:
    """Layer -> its stage and strategy, from the plan that the bundle carries."""
    module = driver.read_module(bundle / "plan.mlir")
    found = {}
    for op in module.funcs["step"].ops:
        if op.attrs.get("phase") == "forward":
            stage, strategy = op.attrs["stage"], op.attrs["strategy"]
            found[str(op.attrs["layer"])] = (int(stage), dict(strategy.asdict()))  # type: ignore[arg-type,union-attr]
    return found
