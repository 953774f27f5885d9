"""README.md of a bundle: how to run exactly this one, for somebody who has only the folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .names import comment


def write_readme(manifest: Mapping[str, Any]) -> str:
    world, stages = manifest["world_size"], manifest["stages"]
    mesh = " x ".join(f"{axis}={size}" for axis, size in manifest["mesh"]) or "one device"
    inputs = "\n".join(
        f"| `{comment(i['path'])}` | {_full_shape(i, manifest)} | {i['dtype']} |" for i in manifest["inputs"]
    )
    size = sum(_count(p["shape"]) for p in manifest["parameters"].values())
    spec = f" of `{comment(str(manifest['spec']))}`" if manifest["spec"] else ""
    versions = manifest["versions"]
    return f"""# A training programme for {world} rank{"s" if world != 1 else ""}

Written by uniap-compiler {versions["uniap"]} with torch {versions["torch"]}, out{spec or " of an IR module"}.
Fingerprint `{manifest["fingerprint"][:16]}`.  Running it needs torch and nothing else.

    torchrun --nproc-per-node {world} train.py --data FILE.py:batches --steps 100

On several nodes start it on each with `--nnodes`, `--node-rank` and `--master-addr`: {world} processes in all, ranks in
the order of the nodes.  `python train.py --help` lists learning rate, clipping, checkpoints and metrics.

| | |
|---|---|
| pipeline stages | {stages} of {world // stages} rank{"s" if world // stages != 1 else ""} ({mesh}) |
| global batch | {manifest["global_batch"]} in {manifest["micro_batches"]} micro-batches, {manifest["schedule"]} |
| parameters | {size:,} in {len(manifest["parameters"])} tensors, {manifest["dtype"]} |
| optimizer | {manifest["optimizer"]["kind"]} |

`FILE.py:batches` yields, for the global batch:

| tensor | shape | dtype |
|---|---|---|
{inputs}

Where to read: `ranks/rank_0000.py` (place, groups, slices, schedule of one rank), `stages/stage_0.py` (its programme,
with the lines of the model in the comments), `plan.mlir` (what both came from; `uniap explain` shows it).
"""


def _full_shape(record: Mapping[str, Any], manifest: Mapping[str, Any]) -> list[int]:
    """The global batch has micro_batches times the rows of a micro-batch."""
    shape: list[int] = list(record["shape"])
    return [shape[0] * int(manifest["micro_batches"]), *shape[1:]] if shape else shape


def _count(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
