"""Three clusters for which the best plan can be told in advance (examples/clusters), each as a bundle that is right.

The plan is made in float32 and asserted in the shipped manifest; the same plan is lowered again in float64 and verified
to 1e-10.  (Why each plan is best, and what the others would cost: tests/cost/test_known_plans.py.)
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from uniap_compiler import driver
from uniap_compiler.cli.explain import describe
from uniap_compiler.cluster import Cluster, load_cluster

from .plans import MLP, ROOT, SMALL_LLAMA, Workshop, check, manifest, strategies

BATCH = 1024


@pytest.fixture(scope="module")
def bundles(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    (after_rules,) = workshop.dumps(MLP, MLP, "float32", BATCH).glob("*-shard-rules.mlir")
    folder = tmp_path_factory.mktemp("best")
    clusters = {name: ROOT / "examples" / "clusters" / f"{name}.toml" for name in EXPECTED}
    return {
        name: driver.resume(after_rules, cluster=cluster, out=folder / name).bundle
        for name, cluster in clusters.items()
    }


def data_parallel(stages: set[int], layers: list[dict[str, Any]]) -> None:
    assert stages == {0}
    assert all((s["dp"], s["tp"], s["shard"], s["recompute"]) == (4, 1, "none", "none") for s in layers)


def pipeline(stages: set[int], layers: list[dict[str, Any]]) -> None:
    assert stages == {0, 1}
    assert all((s["dp"], s["tp"]) == (2, 1) for s in layers)


def sharded(stages: set[int], layers: list[dict[str, Any]]) -> None:
    assert any(s["shard"] != "none" or s["recompute"] != "none" for s in layers)


EXPECTED = {"fast-links": data_parallel, "slow-links": pipeline, "small-memory": sharded}


@pytest.mark.parametrize("cluster", EXPECTED)
def test_the_best_plan_is_found_and_right(cluster: str, bundles: dict[str, Path], out: Path) -> None:
    bundle = bundles[cluster]
    layers = strategies(bundle)
    EXPECTED[cluster]({stage for stage, _ in layers.values()}, [strategy for _, strategy in layers.values()])
    assert manifest(bundle)["world_size"] == 4 and manifest(bundle)["dtype"] == "float32"
    again = driver.lower_again(bundle, out=out, dtype="float64").bundle
    assert strategies(again) == layers and manifest(again)["dtype"] == "float64"
    check(again)


def test_only_the_small_memory_is_short(bundles: dict[str, Path]) -> None:
    """The plan of fast links would not fit there."""
    module = driver.read_module(bundles["fast-links"] / "plan.mlir")
    needed = max(float(str(op.attrs["memory"])) for op in module.ops if op.name == "plan.stage")
    limit = driver.find_cluster(ROOT / "examples" / "clusters" / "small-memory.toml").memory
    assert needed > limit


def test_memory_in_between_gives_selective_recomputation(workshop: Workshop, out: Path) -> None:
    """On one device that lacks some bytes for saving everything: cheaper than to run whole layers again."""
    (after_rules,) = workshop.dumps(SMALL_LLAMA, SMALL_LLAMA, "float64", 8).glob("*-shard-rules.mlir")

    def plan(name: str, memory: float, force: str = "") -> Path:
        cluster = Cluster.from_dict(load_cluster("laptop").to_dict() | {"devices_per_node": 1})
        cluster = replace(cluster, device=replace(cluster.device, memory=memory), memory_reserve=0)
        force = "micro_batches=1" + force
        return driver.resume(after_rules, cluster=cluster, out=out.with_name(name), force=force).bundle

    def stage(bundle: Path) -> dict[str, Any]:
        return dict(describe(bundle)["stages_in_detail"][0])

    plenty = stage(plan("none", 2.0**30))["memory"]
    little = stage(plan("full", 2.0**30, ",recompute=full"))["memory"]
    chosen = plan("chosen", 0.5 * (plenty + little))
    assert stage(chosen)["memory"] <= 0.5 * (plenty + little)
    kinds = {strategy["recompute"] for _, strategy in strategies(chosen).values()}
    assert "selective" in kinds and "full" not in kinds
    check(chosen)
