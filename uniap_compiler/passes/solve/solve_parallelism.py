"""solve-parallelism: one mixed-integer quadratic programme decides stage and strategy of every layer.

    %h1 = plan.call @block.forward(%h0, ...) {layer = "layers.0", phase = "forward", stage = 0,
                                              strategy = #strategy<dp = 2, tp = 2, boundary = "replicated", ...>}
    plan.plan @plan {stages = 2, micro_batches = 4, schedule = "1f1b", status = "optimal", objective = 0.0132, ...}
    plan.mesh @mesh {axes = #axes<a = 2, b = 2>, stages = 2, world = 8}
    plan.stage @stage_0 {memory = 81264640, ...}      plan.runner_up @runner_up_0 {...}

`status`, `objective`, `bound` and `gap` are about the programme's best plan.  Its best few plans are simulated event by
event, and the fastest of them is taken: `chosen_objective` is the programme's number for that one, `simulated` the
simulation's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from uniap_compiler import solver
from uniap_compiler.ir import Diagnostic, Module, Op, Struct
from uniap_compiler.passes.analysis.cost.strategy_cost import Optimizer, Strategy
from uniap_compiler.passes.analysis.precision import Precision
from uniap_compiler.passes.lower.insert_communication import pattern_name

from .alike import plain_pair, translated, translation
from .cluster_op import cluster_of, record_cluster
from .enumerate_strategies import force_of, global_batch
from .infeasible import explain
from .pattern_costs import COSTS, pattern_costs
from .problem import Problem, Setting, batches_of, build_problem
from .simulate_plan import Simulated, simulate_plan
from .step_graph import StepGraph

if TYPE_CHECKING:
    from uniap_compiler.passes.manager import Session

#: The plans beside the best are found to this relative gap: which of them is fastest, the simulation says.
RUNNER_UP_GAP = 1e-3


@dataclass(frozen=True)
class SolveParallelism:
    name: ClassVar[str] = "solve-parallelism"
    requires: ClassVar[str] = "annotated"
    ensures: ClassVar[str] = "planned"

    time_limit: float = 30.0
    """Seconds, unless the session's options say otherwise."""

    top: int = 4
    """How many of the solver's best plans are simulated."""

    def run(self, module: Module, session: Session) -> str:
        if session.cluster is not None:
            record_cluster(module, session.cluster)
        setting = setting_of(module, session)
        problem = build_problem(setting)
        folder, limit = session.options.get("write_lp"), float(session.options.get("time_limit", self.time_limit))
        answer = solve(problem, limit, self.top, Path(folder) if folder is not None else None)
        if answer.status == "infeasible":
            raise explain(setting)
        if not answer.plans:
            raise Diagnostic(
                f"no plan was found within {limit:g} s",
                help="give it longer (--time-limit), or force some of the choices",
            )
        simulated = [simulate_plan(setting, problem, plan) for plan in answer.plans]
        order = sorted(range(len(simulated)), key=lambda n: (simulated[n].seconds, answer.plans[n].objective))
        _write(module, setting, answer, [simulated[n] for n in order])
        best = simulated[order[0]]
        return (
            f"{best.candidate.stages} stages, {best.candidate.micro_batches} micro-batches, "
            f"{1e3 * best.seconds:.3g} ms predicted, {answer.status}"
        )


def setting_of(module: Module, session: Session | None = None) -> Setting:
    """Everything that the problem is built from, read off the module; session: where the pass before left costs."""
    graph, cluster, batch = StepGraph.of(module), cluster_of(module), global_batch(module)
    batches = batches_of(cluster.devices, batch, len(graph.layers))
    left = session.found.get(COSTS) if session is not None else None
    given = module.attrs.get("optimizer")
    fields = given.asdict() if isinstance(given, Struct) else {}
    return Setting(
        graph=graph,
        patterns=left[1] if left and left[0] is module else pattern_costs(module, graph, cluster, batches),
        cluster=cluster,
        optimizer=Optimizer.of(
            str(fields.get("kind", "adamw")), bool(fields.get("momentum", True)), Precision.of(module)
        ),
        global_batch=batch,
        schedule=str(module.attrs.get("schedule") or "1f1b"),
        force=force_of(module),
        name=module.name,
    )


def solve(problem: Problem, time_limit: float, top: int, write_lp: Path | None = None) -> solver.Result:
    if write_lp is not None:
        write_lp.mkdir(parents=True, exist_ok=True)
        (write_lp / "problem.json").write_text(json.dumps(problem.data, indent=1) + "\n", encoding="utf-8")
    read = solver.Problem.from_json(problem.data)
    return solver.solve(read, time_limit=time_limit, top=top, top_gap=RUNNER_UP_GAP, write_lp=write_lp)


def _write(module: Module, setting: Setting, answer: solver.Result, plans: list[Simulated]) -> None:
    best, candidate = plans[0], plans[0].candidate
    drop = ("plan.plan", "plan.mesh", "plan.stage", "plan.runner_up")
    module.ops = [op for op in module.ops if op.name not in drop]
    axes = candidate.meshes[0].axes
    module.ops.append(
        Op(
            "plan.mesh", symbol="mesh",
            attrs={
                "axes": Struct("axes", tuple(axes.items())), "stages": candidate.stages,
                "world": setting.cluster.devices,
            },
        )
    )  # fmt: skip
    module.ops.append(
        Op(
            "plan.plan",
            symbol="plan",
            attrs={
                "stages": candidate.stages,
                "micro_batches": candidate.micro_batches,
                "schedule": setting.schedule,
                "status": answer.status,
                "objective": answer.plans[0].objective,
                "bound": answer.bound,
                "gap": answer.gap,
                "chosen_objective": best.plan.objective,
                "simulated": best.seconds,
                "bubble": round(best.bubble, 6),
            },
        )
    )
    for i, row in enumerate(best.stages):
        module.ops.append(Op("plan.stage", symbol=f"stage_{i}", attrs={**row}))
    for n, other in enumerate(plans[1:]):
        module.ops.append(Op("plan.runner_up", symbol=f"runner_up_{n}", attrs=_runner_up(setting, other)))
    strategies = {
        layer.name: (best.plan.stage[u], candidate.strategies[best.plan.strategy[u]])
        for u, layer in enumerate(setting.graph.layers)
    }
    for op in module.funcs["step"].ops:
        if op.name == "plan.call" and op.attrs.get("phase") in ("forward", "backward"):
            stage, strategy = strategies[str(op.attrs["layer"])]
            op.attrs["stage"], op.attrs["strategy"] = stage, strategy.attr()
    _keep_patterns(module, setting.graph, {name: strategy for name, (_, strategy) in strategies.items()})


def _keep_patterns(module: Module, graph: StepGraph, strategies: dict[str, Strategy]) -> None:
    """The patterns of the plan stay, written out for each kind of those that are alike; all others go."""
    searched = {name: func for name, func in module.funcs.items() if "tensor_axes" in func.attrs}
    module.funcs = {name: func for name, func in module.funcs.items() if name not in searched}
    for layer in graph.layers:
        strategy, first = strategies[layer.name], graph.like[layer.kind]
        name, source = (pattern_name(kind, strategy.tp, strategy.boundary) for kind in (layer.kind, first))
        if strategy.tp == 1 or f"{name}.forward" in module.funcs:
            continue
        pattern = searched[f"{source}.forward"], searched.get(f"{source}.backward")
        if layer.kind != first:
            words = translation(plain_pair(module, first), plain_pair(module, layer.kind))
            assert words is not None, f"@{layer.kind} is not like @{first}"
            pattern = translated(pattern, words, first, layer.kind)
        for func in pattern:
            if func is not None:
                module.add(func)


def _runner_up(setting: Setting, other: Simulated) -> dict[str, Any]:
    """The plan in short; `layers` names runs of layers that share stage and strategy."""
    plan, candidate = other.plan, other.candidate
    runs: list[str] = []
    for (stage, k), run in groupby(range(len(plan.stage)), key=lambda u: (plan.stage[u], plan.strategy[u])):
        members = list(run)
        names = dict.fromkeys(setting.graph.names[u] for u in (members[0], members[-1]))
        said = str(candidate.strategies[k]).split(",")
        unusual = [word for word in said if word.split("=")[1] not in ("1", "replicated", "none")]
        runs.append(f"stage {stage}: {' ... '.join(names)}: {' '.join(unusual) or 'whole'}")
    return {
        "stages": candidate.stages,
        "micro_batches": candidate.micro_batches,
        "objective": plan.objective,
        "simulated": other.seconds,
        "layers": list(runs),
    }
