"""The layer-level problem: what stands in it, that the solver takes it, and what is said when there is none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.cost.chain import chain, cluster
from uniap_compiler import solver
from uniap_compiler.cluster import Cluster, Mesh
from uniap_compiler.ir import Diagnostic
from uniap_compiler.passes.analysis.cost.strategy_cost import Strategy, strategy_cost
from uniap_compiler.passes.solve.force import parse_force
from uniap_compiler.passes.solve.problem import Setting, batches_of, build_problem
from uniap_compiler.passes.solve.simulate_plan import simulate_plan
from uniap_compiler.passes.solve.solve_parallelism import setting_of, solve

ACTIVATION = 16 * 8 * 4  # bytes of one row of what goes from layer to layer


def setting(force: str = "", on: Cluster | None = None, **options: object) -> Setting:
    made = setting_of(chain(on or cluster(), **options))  # type: ignore[arg-type]
    made.force = parse_force(force)
    return made


def test_candidates_are_divisors() -> None:
    problem = build_problem(setting())
    found = [(c.stages, c.micro_batches) for c in problem.candidates]
    assert found == [(1, 1), (1, 2), (1, 4)] + [(d, c) for d in (2, 4) for c in (1, 2, 4, 8)]
    assert batches_of(4, 8, 4) == [1, 2, 4, 8]
    by = {(c.stages, c.micro_batches): {(s.tp, s.dp) for s in c.strategies} for c in problem.candidates}
    assert by[1, 1] == by[1, 2] == {(1, 4), (2, 2)}
    assert by[1, 4] == {(2, 2)}  # two rows do not divide over four devices
    assert by[2, 8] == {(2, 1)}
    assert by[4, 8] == {(1, 1)}


def test_the_solver_accepts_it_and_finds_what_enumeration_finds() -> None:
    for force in ("pp=2,micro_batches=4,shard=none", "pp=4", "pp=1,micro_batches=2,recompute=none,shard=none"):
        made = setting(force, layers=3)
        built = build_problem(made)
        problem = solver.Problem.from_json(built.data)
        answer = solve(built, 30.0, 1)
        best = min(solver.enumerate_plans(problem))
        assert answer.status == "optimal"
        assert answer.plans[0].objective == pytest.approx(best[0], rel=1e-6)


def test_numbers_are_those_of_the_strategies() -> None:
    made = setting()
    problem = build_problem(made)
    index = next(n for n, c in enumerate(problem.candidates) if (c.stages, c.micro_batches) == (2, 4))
    candidate, data = problem.candidates[index], problem.data["candidates"][index]
    k = candidate.strategies.index(Strategy(1, 2, shard="parameters", recompute="full"))
    mesh = Mesh.of(made.cluster, 2, 0)
    cost = strategy_cost(
        made.patterns["mlp", 1, "replicated"].cost, candidate.strategies[k], mesh, made.optimizer, 8, [4]
    )
    assert data["time"]["mlp"][k] == pytest.approx(float(cost.forward[0] + cost.backward[0]))
    assert data["step_time"]["mlp"][k] == pytest.approx(cost.step)
    # Two micro-batches are in flight on the first of two stages, one on the second.
    resident, held = float(cost.resident[0]), float(cost.in_flight[0])
    assert [row[k] for row in data["memory"]["mlp"]] == [resident + 2 * held, resident + held]
    assert data["workspace"]["mlp"][k] == float(cost.workspace[0])
    gpipe = build_problem(replace(made, schedule="gpipe")).data
    assert [row[k] for row in gpipe["candidates"][index]["memory"]["mlp"]] == [resident + 4 * held] * 2
    assert "schedule" not in gpipe and problem.data["schedule"] == "1f1b"


def test_resharding_between_degrees() -> None:
    made = setting("pp=1,micro_batches=1")
    problem = build_problem(made)
    (candidate,) = problem.candidates
    mesh = candidate.meshes[0]
    dp4, tp2 = candidate.classes.index((1, "replicated")), candidate.classes.index((2, "replicated"))
    gather = float(mesh.seconds("all_gather", ("b",), 8 * ACTIVATION / 2))
    # dp=4 -> dp=2,tp=2 gathers forward over the tensor axis; its gradient is sliced, free.  And the other way round.
    np.testing.assert_allclose(candidate.move["mlp>mlp"][dp4, tp2], gather)
    assert candidate.move_back["mlp>mlp"][dp4, tp2] == 0
    assert candidate.move["mlp>mlp"][tp2, dp4] == 0
    np.testing.assert_allclose(candidate.move_back["mlp>mlp"][tp2, dp4], gather)
    table = np.array(problem.data["candidates"][0]["reshard"]["mlp>mlp"])
    np.testing.assert_allclose(table, [[0, gather], [gather, 0]])


def test_transfers_by_boundary() -> None:
    made = setting("pp=4", on=cluster(4, nodes=2, bandwidth=1e6, latency=1e-3))
    problem = build_problem(made)
    candidate = next(c for c in problem.candidates if c.micro_batches == 8)
    inside = 1e-6 + ACTIVATION / 1e8
    between = 1e-3 + ACTIVATION / 1e6
    np.testing.assert_allclose(candidate.pass_on["mlp>mlp"][:, 0, 0], [inside, between, inside])
    np.testing.assert_allclose(candidate.pass_back["mlp>mlp"][:, 0, 0], [inside, between, inside])
    index = problem.candidates.index(candidate)
    assert problem.data["candidates"][index]["transfer"]["mlp>mlp"][0][0] == pytest.approx(2 * between)


def test_stages_that_straddle_nodes_have_their_own_times() -> None:
    # Six devices in two nodes, three stages of two: the middle one crosses the slow link.
    made = setting("pp=3,shard=none,recompute=none", on=cluster(6, nodes=2, bandwidth=1e6, latency=1e-3), batch=6)
    problem = build_problem(made)
    data = problem.data["candidates"][0]
    k = data["strategies"].index(str(Strategy(2, 1)))
    times = [row[k] for row in data["time"]["mlp"]]
    assert times[0] == times[2] < times[1]


def test_forces_become_fixed_choices() -> None:
    made = setting("pp=2;layers.0:tp=2;layers.2:dp=2,shard=optimizer;head:stage=1")
    problem = build_problem(made)
    fixed = {entry["layer"]: entry for entry in problem.data["fixed"]}
    assert all(Strategy.parse(s).tp == 2 for s in fixed[0]["strategies"])
    assert all(Strategy.parse(s).shard == "optimizer" for s in fixed[2]["strategies"])
    assert fixed[3]["stage"] == 1 and 1 not in fixed
    answer = solve(problem, 30.0, 1)
    plan = answer.plans[0]
    chosen = [problem.candidates[plan.candidate].strategies[k] for k in plan.strategy]
    assert (chosen[0].tp, chosen[2].dp, chosen[2].shard) == (2, 2, "optimizer")


def test_a_shard_that_is_forced_means_nothing_without_data_parallelism() -> None:
    problem = build_problem(setting("pp=4,shard=parameters"))
    assert {s.shard for c in problem.candidates for s in c.strategies} == {"none"}


def test_values_that_skip_layers_cost_what_the_candidate_says() -> None:
    made = setting("micro_batches=4", skip=True)
    problem = build_problem(made)
    assert [c.stages for c in problem.candidates] == [1, 2, 4]
    for candidate in problem.data["candidates"]:
        (value,) = candidate["values"]
        assert (value["from"], value["to"]) == (0, [1, 3])
    assert problem.data["candidates"][2]["values"][0]["transfer"] == pytest.approx(2 * (1e-6 + 2 * ACTIVATION / 1e8))
    assert problem.data["candidates"][0]["values"][0]["transfer"] == 0
    answer = solve(problem, 30.0, 3)
    assert answer.status == "optimal" and answer.plans[0].objective >= answer.bound  # type: ignore[operator]
    for plan in answer.plans:
        assert simulate_plan(made, problem, plan).seconds > 0


def test_tied_layers_pay_for_their_copies() -> None:
    tied, plain = setting("pp=2,micro_batches=4", tied=True), setting("pp=2,micro_batches=4")
    assert tied.graph.types == ["mlp", "mlp#1", "mlp#1", "head"]
    assert plain.graph.types == ["mlp", "mlp", "mlp", "head"]
    problem = build_problem(tied)
    (candidate,) = problem.candidates
    k = candidate.strategies.index(Strategy(1, 2))
    states = 2 * 2 * 32 * 8 * 4  # the copies have no optimizer states
    assert candidate.resident["mlp"][k] - candidate.resident["mlp#1"][k] == states
    assert candidate.step["mlp#1"][k] > 0
    alone = build_problem(replace(tied, force=parse_force("pp=1,micro_batches=2")))
    k = alone.candidates[0].strategies.index(Strategy(1, 4))
    assert alone.candidates[0].resident["mlp#1"][k] == 0  # one stage: the home's own memory


@pytest.mark.parametrize(
    ("batch", "force", "words", "help"),
    [
        (6, "dp=4", "a global batch of 6 does not divide over dp=4", "4 and 8"),
        (7, "pp=1", "a global batch of 7 does not divide over 4 devices under --force pp=1", "6 and 8"),
        (8, "layers.0:dp=4;layers.1:dp=1,tp=2", "no plan meets --force", "force fewer things"),
    ],
)
def test_nothing_left(batch: int, force: str, words: str, help: str) -> None:
    with pytest.raises(Diagnostic) as error:
        build_problem(setting(force, batch=batch))
    assert words in error.value.message
    assert help in (error.value.help or "")


def test_uneven_batches_still_have_plans_where_something_divides() -> None:
    problem = build_problem(setting(batch=7))
    assert {c.stages for c in problem.candidates} == {2, 4}  # tp=2 on two stages, one device per stage


def test_an_op_that_keeps_its_batch_leaves_no_data_parallelism() -> None:
    module = chain(cluster())
    for func in module.funcs.values():
        for op in func.ops:
            if op.name == "aten.relu":
                op.attrs["rule"] = replace(op.attrs["rule"], keep=("b",))  # type: ignore[type-var]
    made = setting_of(module)
    problem = build_problem(made)
    mlp = problem.data["candidates"][0]["allowed"]
    for candidate in problem.candidates:
        for k in candidate.allowed["mlp"]:
            assert candidate.strategies[k].dp == 1
    assert mlp
    made.force = parse_force("dp=4")
    with pytest.raises(Diagnostic, match="aten.relu cannot be split in its batch dim"):
        build_problem(made)
