"""README.md of a bundle: how to run exactly this one, for somebody who has only the folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..ir import Module
from ..runtime.launch import torchrun
from .names import comment


def write_readme(manifest: Mapping[str, Any], module: Module) -> str:
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

{_launch(world, manifest["nodes"])}
`python train.py --help` lists learning rate, clipping, checkpoints and metrics.

| | |
|---|---|
| pipeline stages | {stages} of {world // stages} rank{"s" if world // stages != 1 else ""} ({mesh}) |
| global batch | {manifest["global_batch"]} in {manifest["micro_batches"]} micro-batches, {manifest["schedule"]} |
| parameters | {size:,} in {len(manifest["parameters"])} tensors, {manifest["dtype"]} |
| optimizer | {manifest["optimizer"]["kind"]} |
{_predicted(module, manifest)}
`FILE.py:batches` yields, for the global batch:

| tensor | shape | dtype |
|---|---|---|
{inputs}

Where to read: `ranks/rank_0000.py` (place, groups, slices, schedule of one rank), `stages/stage_0.py` (its programme,
with the lines of the model in the comments), `plan.mlir` (what both came from; `uniap explain` shows it).
"""


def _launch(world: int, nodes: int) -> str:
    run = f"    {torchrun(world, nodes)} train.py --data FILE.py:batches --steps 100"
    if nodes == 1:
        return f"""{run}

On several nodes start it on each with `--nnodes`, `--node-rank` and `--master-addr`: {world} processes in all, ranks in
the order of the nodes."""
    return f"""{run}

on every node, with I from 0 to {nodes - 1}; HOST is node 0.  Ranks must be in the order of the nodes: the plan counts
on which of them share one."""


def _predicted(module: Module, manifest: Mapping[str, Any]) -> str:
    """Rows of the table: what the plan was made for, and what it should take there."""
    plan, cluster = module.find("plan.plan"), module.find("plan.cluster")
    seconds = plan.attrs.get("simulated") if plan is not None else None
    memory = [m for op in module.ops if op.name == "plan.stage" and isinstance(m := op.attrs.get("memory"), int)]
    if cluster is None or not isinstance(seconds, float) or not memory:
        return ""
    nodes, each = cluster.attrs["nodes"], cluster.attrs["devices_per_node"]
    rate, most = manifest["global_batch"] / seconds, max(memory) / 2**30
    return (
        f"| planned for | {comment(str(cluster.symbol))}: {nodes} node{'s' if nodes != 1 else ''} of {each} |\n"
        f"| predicted there | {seconds:.3g} s per step, {rate:.3g} samples/s; {most:.2f} GiB per rank |\n"
    )


def _full_shape(record: Mapping[str, Any], manifest: Mapping[str, Any]) -> list[int]:
    """The global batch has micro_batches times the rows of a micro-batch."""
    shape: list[int] = list(record["shape"])
    return [shape[0] * int(manifest["micro_batches"]), *shape[1:]] if shape else shape


def _count(shape: list[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
