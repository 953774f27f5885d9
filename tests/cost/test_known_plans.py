"""Three clusters for which the best plan can be told in advance (examples/clusters), with examples/mlp.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cost.captured import ROOT, annotated_mlp
from uniap_compiler.cluster import load_cluster
from uniap_compiler.ir import Module, Struct, parse_module, print_module
from uniap_compiler.passes.manager import Session, run_passes
from uniap_compiler.passes.pipelines import parse_pipeline


@pytest.fixture(scope="module")
def annotated() -> str:
    return annotated_mlp(1024)


@pytest.fixture
def plan(annotated: str) -> Callable[..., Module]:
    def make(name: str, force: str = "") -> Module:
        module = parse_module(annotated)
        if force:
            module.attrs["force"] = force
        session = Session(cluster=load_cluster(ROOT / "examples" / "clusters" / f"{name}.toml"))
        return run_passes(module, parse_pipeline("enumerate-strategies,solve-parallelism"), session)

    return make


def strategies(module: Module) -> list[tuple[int, dict[str, object]]]:
    found = []
    for op in module.funcs["step"].ops:
        if op.attrs.get("phase") == "forward":
            stage, strategy = op.attrs["stage"], op.attrs["strategy"]
            assert isinstance(stage, int) and isinstance(strategy, Struct)
            found.append((stage, dict(strategy.asdict())))
    return found


def seconds(module: Module) -> float:
    op = module.find("plan.plan")
    assert op is not None and op.attrs["status"] == "optimal"
    return float(op.attrs["simulated"])  # type: ignore[arg-type]


def test_fast_links_and_memory_give_pure_data_parallelism(plan: Callable[..., Module]) -> None:
    module = plan("fast-links")
    for stage, strategy in strategies(module):
        assert (stage, strategy["dp"], strategy["tp"], strategy["shard"], strategy["recompute"]) == (
            0,
            4,
            1,
            "none",
            "none",
        )
    assert seconds(module) <= min(seconds(plan("fast-links", force)) for force in ("pp=2", "pp=4", "tp=4"))


def test_slow_links_between_nodes_give_a_pipeline(plan: Callable[..., Module]) -> None:
    module = plan("slow-links")
    found = strategies(module)
    assert {stage for stage, _ in found} == {0, 1}
    assert all(strategy["dp"] == 2 for _, strategy in found)
    assert seconds(plan("slow-links", "pp=1")) > 2 * seconds(module)


def test_small_memory_forces_shards_or_recomputation(plan: Callable[..., Module]) -> None:
    module = plan("small-memory")
    found = [strategy for _, strategy in strategies(module)]
    assert any(s["shard"] != "none" or s["recompute"] != "none" for s in found)
    # The plan of fast-links does not fit here, and what fits without either is slower.
    rows = [op for op in plan("fast-links").ops if op.name == "plan.stage"]
    assert max(float(op.attrs["memory"]) for op in rows) > 16 * 2**20  # type: ignore[arg-type]
    assert seconds(plan("small-memory", "shard=none,recompute=none")) > seconds(module)


def test_levels_round_trip(plan: Callable[..., Module]) -> None:
    module = plan("slow-links")
    text = print_module(module)
    assert print_module(parse_module(text)) == text
