"""solve-parallelism on a small chain: what it writes, what it says when nothing fits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cost.chain import chain, cluster
from uniap_compiler.cluster import Cluster
from uniap_compiler.ir import Diagnostic, Module, Op, Struct
from uniap_compiler.passes.manager import Session
from uniap_compiler.passes.solve.cluster_op import cluster_of, record_cluster
from uniap_compiler.passes.solve.enumerate_strategies import EnumerateStrategies
from uniap_compiler.passes.solve.solve_parallelism import SolveParallelism


def solved(module: Module) -> Module:
    SolveParallelism().run(module, Session())
    return module


def ops(module: Module, name: str) -> list[Op]:
    return [op for op in module.ops if op.name == name]


def calls(module: Module, phase: str = "forward") -> dict[str, tuple[int, Struct]]:
    return {
        str(op.attrs["layer"]): (op.attrs["stage"], op.attrs["strategy"])  # type: ignore[misc]
        for op in module.funcs["step"].ops
        if op.attrs["phase"] == phase
    }


def test_every_call_has_its_stage_and_strategy() -> None:
    module = solved(chain(cluster(), force="pp=2,dp=2,shard=optimizer"))
    forward = calls(module)
    assert forward == calls(module, "backward")
    assert [stage for stage, _ in forward.values()] == sorted(stage for stage, _ in forward.values())
    assert {stage for stage, _ in forward.values()} == {0, 1}
    for _, strategy in forward.values():
        fields = strategy.asdict()
        assert (fields["dp"], fields["tp"], fields["boundary"], fields["shard"]) == (2, 1, "replicated", "optimizer")


def test_the_plan_is_in_the_module() -> None:
    module = solved(chain(cluster(), force="pp=2"))
    (plan,), (mesh,) = ops(module, "plan.plan"), ops(module, "plan.mesh")
    assert (plan.attrs["stages"], plan.attrs["schedule"], plan.attrs["status"]) == (2, "1f1b", "optimal")
    assert 8 % plan.attrs["micro_batches"] == 0  # type: ignore[operator]
    assert plan.attrs["gap"] <= 1e-6 and plan.attrs["bound"] <= plan.attrs["objective"]  # type: ignore[operator]
    assert plan.attrs["simulated"] > 0  # type: ignore[operator]
    assert mesh.attrs == {"axes": Struct("axes", (("a", 2),)), "stages": 2, "world": 4}
    stages = ops(module, "plan.stage")
    assert [op.symbol for op in stages] == ["stage_0", "stage_1"]
    for op in stages:
        a = op.attrs
        assert a["memory"] == a["states"] + a["activations"] + a["working"]  # type: ignore[operator]
        assert 0 < a["memory"] <= 2**30  # type: ignore[operator]
    solved(module)  # once more: rows are replaced
    assert len(ops(module, "plan.plan")) == len(ops(module, "plan.mesh")) == 1


def test_gpipe() -> None:
    force = "pp=2,micro_batches=8,tp=2,recompute=none;layers.1:stage=0;layers.2:stage=1"
    module = chain(cluster(), force=force)
    module.attrs["schedule"] = "gpipe"
    more = ops(solved(module), "plan.stage")[0].attrs["activations"]
    less = ops(solved(chain(cluster(), force=force)), "plan.stage")[0].attrs["activations"]
    assert more == 4 * less  # type: ignore[operator]


def test_what_does_not_fit_is_explained_in_gib() -> None:
    gib = 2**30
    # 2 KiB of weights per layer: 16 bytes per 4-byte weight are 8 KiB.  A device with 1 MiB holds some 100 layers.
    module = chain(cluster(1, memory=2**20), layers=160, patterns=False, batch=8)
    with pytest.raises(Diagnostic) as error:
        SolveParallelism().run(module, Session())
    text = str(error.value)
    assert "no plan fits: 0.0" in text and "GiB are missing on every device of the only stage" in text
    assert "stage 0 (layers.0 ... head) needs 0.00" in text
    assert "2 such devices instead of 1" in text
    states = 160 * 4 * 2048
    assert f"{(states - 2**20) / gib:.3f}"[:5] in error.value.message
    # With what it says is needed, it fits.
    needed = float(text.split(" needs ")[1].split()[0]) * gib + 2e5
    again = chain(
        cluster(1, memory=needed), layers=160, patterns=False, batch=8, force="micro_batches=8,recompute=full"
    )
    assert solved(again).find("plan.plan") is not None


def test_a_force_that_does_not_fit_is_blamed() -> None:
    module = chain(cluster(4, memory=2**20), layers=160, patterns=False, batch=8, force="dp=4,shard=none")
    with pytest.raises(Diagnostic, match="GiB are missing") as error:
        SolveParallelism().run(module, Session())
    assert "compiling without --force" in (error.value.help or "")


def test_the_cluster_travels_in_the_module() -> None:
    module = chain(cluster())
    other = cluster(8, nodes=2, bandwidth=1e7, overhead=1e-3)
    SolveParallelism().run(module, Session(cluster=other))
    assert cluster_of(module) == other
    record_cluster(module, cluster())
    assert len(ops(module, "plan.cluster")) == 1
    module.ops = []
    with pytest.raises(Diagnostic, match="no plan.cluster op"):
        cluster_of(module)
    record_cluster(module, cluster())
    module.ops[0].attrs["nodes"] = 0
    with pytest.raises(Diagnostic, match="plan.cluster: nodes: expected an integer"):
        cluster_of(module)


def test_write_lp_keeps_the_problem(tmp_path: Path) -> None:
    SolveParallelism().run(chain(cluster(), force="pp=2"), Session(options={"write_lp": tmp_path}))
    assert json.loads((tmp_path / "problem.json").read_text())["format"] == "uniap-problem/1"


@pytest.mark.parametrize(("options", "limit"), [({}, 7.0), ({"time_limit": 3.0}, 3.0)])
def test_the_time_limit_of_the_session_comes_first(
    options: dict[str, float], limit: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    from uniap_compiler import solver

    whole, seen = solver.solve, []

    def solve(problem: solver.Problem, **given: Any) -> solver.Result:
        seen.append(given["time_limit"])
        return whole(problem, **given)

    monkeypatch.setattr(solver, "solve", solve)
    SolveParallelism(time_limit=7.0).run(chain(cluster()), Session(options=options))
    assert seen == [limit]


@pytest.mark.parametrize(
    ("force", "tensor"),
    [
        ("", {2, 4}),
        ("dp=4", set()),
        ("pp=4", set()),
        ("tp=4", {4}),
        ("pp=2", {2}),
        ("layers.0:tp=2;layers.1:dp=4", {2, 4}),
        ("dp=4;layers.0:tp=2,dp=2", {2}),
    ],
)
def test_only_patterns_that_some_plan_may_take_are_searched(force: str, tensor: set[int]) -> None:
    from uniap_compiler.passes.solve.force import parse_force
    from uniap_compiler.passes.solve.step_graph import StepGraph

    module = chain(cluster())
    found = EnumerateStrategies()._wanted(StepGraph.of(module), parse_force(force), cluster(), 8)
    assert {tp for _, tp, _, _ in found} == tensor


def test_tensor_axes_stay_inside_a_node_unless_forced() -> None:
    from uniap_compiler.passes.solve.force import parse_force
    from uniap_compiler.passes.solve.step_graph import StepGraph

    on: Cluster = cluster(4, nodes=2)
    graph = StepGraph.of(chain(on))

    def degrees(force: str, **options: bool) -> set[int]:
        return {tp for _, tp, _, _ in EnumerateStrategies(**options)._wanted(graph, parse_force(force), on, 8)}

    assert degrees("") == {2}
    assert degrees("tp=4") == {4}
    assert degrees("", across_nodes=True) == {2, 4}
