"""Every family of ops that users meet: no op lacks a rule, and bundles equal the model under plans that split it.

The quick part looks at the rules of four families and verifies one; the slow part does both for all of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from uniap_compiler import driver
from uniap_compiler.capture import capture
from uniap_compiler.ir import ConstantStore
from uniap_compiler.passes.analysis.shard_rules import batch_obstacles, unruled
from uniap_compiler.passes.manager import Session, run_passes
from uniap_compiler.passes.pipelines import parse_pipeline

from .op_families import families, task
from .plans import check

FAMILIES = families()
QUICK = ("attention",)
RULES_QUICK = ("convolutions", "recurrent", "indexing", "attention")
PLANS = ("pp=1,dp=4", "pp=1,tp=4", "pp=2,dp=2,micro_batches=2", "pp=2,tp=2")
PASSES = "canonicalize,outline-layers,differentiate,canonicalize,decompose-losses,shard-rules"
CLUSTER = """nodes = 1
devices_per_node = 4
[device]
kind = "cpu"
memory = "4 GiB"
memory_bandwidth = "100 MB/s"
[device.flops]
f32 = "100 MFLOP/s"
[links.intra]
bandwidth = "10 GB/s"
latency = "0.5 us"
"""
"""Slow devices and fast links: whatever can be split is worth splitting, small as it is."""


def _quick(names: tuple[str, ...]) -> list[Any]:
    return [pytest.param(f, marks=[] if f in names else pytest.mark.slow) for f in FAMILIES]


@pytest.mark.parametrize("family", _quick(RULES_QUICK))
def test_every_op_has_a_rule_and_splits_over_the_batch(family: str) -> None:
    constants = ConstantStore()
    module = capture(task(list(FAMILIES[family].values())), spec="", constants=constants)
    run_passes(module, parse_pipeline(PASSES), Session(global_batch=8, constants=constants))
    for func in module.funcs.values():
        if func.attrs.get("kind") in ("forward", "backward"):
            assert not unruled(func), [str(op) for op in unruled(func)]
            assert not batch_obstacles(func), [f"{op} {factor}" for op, factor in batch_obstacles(func)]


@pytest.mark.parametrize("family", _quick(QUICK))
def test_family(family: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    (tmp_path / "fast.toml").write_text(CLUSTER)
    entries = list(FAMILIES[family].values())
    dumps = tmp_path / "dumps"
    driver.compile(
        task(entries), tmp_path / "fast.toml", 8, out=tmp_path / "whole", force=PLANS[0], dtype="float64", dump=dumps
    )
    (after_rules,) = dumps.glob("*-shard-rules.mlir")
    for number, plan in enumerate(PLANS):
        out = tmp_path / f"b{number}"
        bundle = driver.resume(after_rules, out=out, cluster=tmp_path / "fast.toml", force=plan).bundle
        check(bundle, task=task(entries))
        code = "".join(path.read_text() for path in sorted((bundle / "stages").glob("stage_*.py")))
        assert "comm." in code
