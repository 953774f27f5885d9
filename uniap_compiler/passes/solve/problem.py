"""The layer-level problem: every number that the solver needs, from the layers' costs.

    problem = build_problem(setting)
    problem.data            {"format": "uniap-problem/1", "candidates": [...]}        for uniap_compiler.solver
    problem.candidates[3]   the same numbers with forward and backward apart, for the simulation

A candidate is a number of stages D (a divisor of the devices, at most the number of layers) and of micro-batches c (a
divisor of the batch).  Its strategies are those whose data-parallel degree divides the micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from uniap_compiler.cluster import Cluster, Mesh
from uniap_compiler.ir import Diagnostic, Layout
from uniap_compiler.passes.analysis.cost.layer_cost import DATA, LayerCost
from uniap_compiler.passes.analysis.cost.op_cost import Vector
from uniap_compiler.passes.analysis.cost.reshard_cost import on_mesh, reshard_seconds, send_seconds
from uniap_compiler.passes.analysis.cost.strategy_cost import (
    RECOMPUTES,
    SHARDS,
    Optimizer,
    Strategy,
    StrategyCost,
    strategy_cost,
)

from .force import Force, admits, check_degrees
from .simulate_schedule import in_flight
from .step_graph import Crossing, StepGraph

Class = tuple[int, str]
"""(tp, boundary): what decides how a layer's activations lie on the mesh."""


@dataclass(frozen=True)
class Pattern:
    """One layer kind on tensor axes of these sizes (t0, t1, ...).  no_data: why its batch cannot be split, if so.

    selective: the cost with recompute=selective, None where nothing is worth making again.
    """

    sizes: tuple[int, ...]
    cost: LayerCost
    no_data: Diagnostic | None = None
    selective: LayerCost | None = None


@dataclass
class Setting:
    """patterns: (kind, tp, boundary) -> cost; tp = 1 has the boundary "replicated"."""

    graph: StepGraph
    patterns: Mapping[tuple[str, int, str], Pattern]
    cluster: Cluster
    optimizer: Optimizer
    global_batch: int
    schedule: str = "1f1b"
    force: Force = field(default_factory=Force)
    name: str = ""

    def choices(self, layer: int) -> dict[str, int | str]:
        """What is forced on a layer.  Recomputation means nothing to one that has no backward."""
        chosen = self.force.for_layer(self.graph.names[layer])
        if self.graph.layers[layer].backward is None:
            chosen.pop("recompute", None)
        return chosen


@dataclass
class Candidate:
    """One (stages, micro_batches).  Tables by layer type or by pair of types; [stage, strategy] or [class, class].

    move, move_back: resharding on the stage; pass_on, pass_back: on the way to the next stage, by boundary.
    skips: for each value that skips layers its `move` and `pass_on`, both directions added.
    """

    stages: int
    micro_batches: int
    meshes: list[Mesh]
    strategies: list[Strategy]
    layout: list[int]
    classes: list[Class]
    allowed: dict[str, list[int]]
    forward: dict[str, Vector]
    backward: dict[str, Vector]
    step: dict[str, Vector]
    resident: dict[str, Vector]
    in_flight: dict[str, Vector]
    workspace: dict[str, Vector]
    move: dict[str, Vector]
    move_back: dict[str, Vector]
    pass_on: dict[str, Vector]
    pass_back: dict[str, Vector]
    skips: list[tuple[Crossing, Vector, float]]

    def memory(self, kind: str, schedule: str) -> Vector:
        """Bytes by [stage, strategy], micro-batches in flight counted, working set not."""
        held = [in_flight(schedule, self.stages, self.micro_batches, i) for i in range(self.stages)]
        return self.resident[kind][None, :] + np.outer(held, self.in_flight[kind])


@dataclass
class Problem:
    data: dict[str, Any]
    candidates: list[Candidate]


def _admits(choices: Mapping[str, int | str], strategy: Strategy) -> bool:
    """As `admits`; a shard that is asked for where nothing can be sharded is none."""
    if strategy.dp == 1:
        choices = {key: value for key, value in choices.items() if key != "shard"}
    return admits(choices, strategy)


def divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def batches_of(devices: int, global_batch: int, layers: int) -> list[int]:
    """Every local batch that some candidate gives a device, ascending."""
    found = set()
    for stages in divisors(devices):
        if stages <= layers:
            for dp in divisors(devices // stages):
                found |= {global_batch // c // dp for c in divisors(global_batch) if global_batch // c % dp == 0}
    return sorted(found)


def build_problem(setting: Setting) -> Problem:
    """Raises Diagnostic when no candidate is left: the batch does not divide, or what is forced contradicts itself."""
    graph = setting.graph
    check_degrees(setting.force, graph.names, setting.cluster.devices, setting.global_batch)
    candidates = [candidate for stages in _stages(setting) for candidate in _Builder(setting, stages).candidates()]
    if not candidates:
        raise _nothing_left(setting)
    return Problem(_data(setting, candidates), candidates)


def _stages(setting: Setting) -> list[int]:
    pp, layers = setting.force.pp, len(setting.graph.layers)
    if pp is None and setting.graph.shared_buffers and not any("stage" in setting.choices(u) for u in range(layers)):
        return [1]  # the format cannot say that layers belong together; who forces stages is told what is wrong
    return [d for d in divisors(setting.cluster.devices) if d <= layers and (pp is None or d == pp)]


class _Builder:
    """All candidates with one number of stages: tables are vectors over micro-batch counts until the end."""

    def __init__(self, setting: Setting, stages: int) -> None:
        self.setting, self.stages = setting, stages
        self.meshes = [Mesh.of(setting.cluster, stages, i) for i in range(stages)]
        profiles = [mesh.profile() for mesh in self.meshes]
        self.profile_of = [profiles.index(p) for p in profiles]  # the first stage with the same links
        self.mesh = self.meshes[0]
        self.devices = self.mesh.devices
        graph = setting.graph
        self.example = {kind: graph.types.index(kind) for kind in dict.fromkeys(graph.types)}
        self.counts = [c for c in divisors(setting.global_batch) if setting.force.micro_batches in (None, c)]
        self.chosen = [setting.choices(u) for u in range(len(graph.layers))]
        self.forced_selective = {
            kind for kind, c in zip(graph.types, self.chosen, strict=True) if c.get("recompute") == "selective"
        }
        """types of layers that are told to: where nothing is worth making again, selective is none"""
        self.strategies = self._strategies()
        self.known: dict[tuple[str, Strategy, int], tuple[StrategyCost, dict[int, int]]] = {}
        """(type, strategy, stage) -> cost, and the place of each micro-batch count in its vectors"""
        self.batches = np.array([setting.global_batch / c for c in self.counts])
        self.moves: dict[tuple[object, ...], tuple[Vector, Vector]] = {}

    def candidates(self) -> list[Candidate]:
        found = []
        for c in self.counts:
            batch = self.setting.global_batch // c
            here = [s for s in self.strategies if batch % s.dp == 0]
            classes = list(dict.fromkeys((s.tp, s.boundary) for s in here))
            allowed = {kind: [k for k, s in enumerate(here) if self._cost(kind, s)] for kind in self.example}
            for choices, kind in zip(self.chosen, self.setting.graph.types, strict=True):
                if not any(_admits(choices, here[k]) for k in allowed[kind]):
                    break  # a layer without a strategy
            else:
                found.append(self._candidate(c, here, classes, allowed))
        return found

    def _strategies(self) -> list[Strategy]:
        """Those that some layer may take, with data degrees that divide some micro-batch."""
        result = []
        for tp in divisors(self.devices):
            sizes = self.mesh.tensor_axes(tp)
            if sizes is None:
                continue
            dp = self.devices // tp
            for boundary in ("replicated",) if tp == 1 else ("replicated", "sequence"):
                for shard in SHARDS if dp > 1 else ("none",):
                    for recompute in RECOMPUTES:
                        strategy = Strategy(tp, dp, boundary, shard, recompute)
                        known = any(self._cost(kind, strategy) for kind in self.example)
                        if known and any(_admits(choices, strategy) for choices in self.chosen):
                            result.append(strategy)
        return result

    def _cost(self, kind: str, strategy: Strategy) -> LayerCost | None:
        layer = self.setting.graph.layers[self.example[kind]]
        pattern = self.setting.patterns.get((layer.kind, strategy.tp, strategy.boundary))
        axes = self.mesh.tensor_axes(strategy.tp)
        if pattern is None or axes is None or pattern.sizes != tuple(self.mesh.axes[a] for a in axes):
            return None
        if layer.backward is None and strategy.recompute != "none" or pattern.no_data and strategy.dp > 1:
            return None
        if strategy.recompute == "selective" and pattern.selective is None:
            return pattern.cost if kind in self.forced_selective else None
        return pattern.selective if strategy.recompute == "selective" else pattern.cost

    def _strategy_cost(self, kind: str, strategy: Strategy, mesh: Mesh, counts: tuple[int, ...]) -> StrategyCost:
        cost = self._cost(kind, strategy)
        assert cost is not None
        u = self.example[kind]
        copies = self.setting.graph.copies[u]
        free = set()
        for name, (home, there) in copies.items():
            other = self.setting.patterns.get((self.setting.graph.layers[home].kind, strategy.tp, strategy.boundary))
            if self.stages == 1 and other is not None and other.cost.layouts[there] == cost.layouts[name]:
                free.add(name)
        return strategy_cost(
            cost, strategy, mesh, self.setting.optimizer, self.setting.global_batch, counts,
            copies=frozenset(copies), free=frozenset(free),
            layers=max(1.0, len(self.setting.graph.layers) / self.stages),
        )  # fmt: skip

    def _known(self, kind: str, strategy: Strategy, stage: int) -> tuple[StrategyCost, dict[int, int]]:
        """The cost on a stage, for all micro-batch counts that the strategy divides."""
        key = (kind, strategy, self.profile_of[stage])
        if key not in self.known:
            counts = tuple(c for c in self.counts if self.setting.global_batch // c % strategy.dp == 0)
            cost = self._strategy_cost(kind, strategy, self.meshes[key[2]], counts)
            self.known[key] = (cost, {c: n for n, c in enumerate(counts)})
        return self.known[key]

    def _candidate(
        self, c: int, strategies: list[Strategy], classes: list[Class], allowed: dict[str, list[int]]
    ) -> Candidate:
        K, D = len(strategies), self.stages
        names = ("forward", "backward", "step", "resident", "in_flight", "workspace")
        tables: dict[str, dict[str, Vector]] = {name: {} for name in names}
        for kind in self.example:
            for name in names:
                tables[name][kind] = np.zeros((D, K) if name in ("forward", "backward") else K)
            for k in allowed[kind]:
                for i in range(D):
                    cost, place = self._known(kind, strategies[k], i)
                    tables["forward"][kind][i, k] = cost.forward[place[c]]
                    tables["backward"][kind][i, k] = cost.backward[place[c]]
                for name in names[2:]:
                    tables[name][kind][k] = getattr(cost, name)[place[c]]
        n = self.counts.index(c)
        move, back, pass_on, pass_back = self._edges(classes, n)
        return Candidate(
            D, c, self.meshes, strategies, [classes.index((s.tp, s.boundary)) for s in strategies], classes, allowed,
            tables["forward"], tables["backward"], tables["step"], tables["resident"], tables["in_flight"],
            tables["workspace"], move, back, pass_on, pass_back, self._skips(classes, n),
        )  # fmt: skip

    # Values between layers.

    def _edges(self, classes: list[Class], n: int) -> tuple[dict[str, Vector], ...]:
        """n: the place of the micro-batch count."""
        types, Q, D = self.setting.graph.types, len(classes), self.stages
        move: dict[str, Vector] = {}
        back: dict[str, Vector] = {}
        pass_on: dict[str, Vector] = {}
        pass_back: dict[str, Vector] = {}
        for u in range(len(types) - 1):
            pair = f"{types[u]}>{types[u + 1]}"
            if pair in move:
                continue
            move[pair], back[pair] = np.zeros((Q, Q)), np.zeros((Q, Q))
            pass_on[pair], pass_back[pair] = np.zeros((max(D - 1, 0), Q, Q)), np.zeros((max(D - 1, 0), Q, Q))
            for crossing in self.setting.graph.between(u):
                for a, of in enumerate(classes):
                    sent = np.array([self._send(crossing, of, j)[n] for j in range(D - 1)])
                    for b, to in enumerate(classes):
                        here, there = (way[n] for way in self._move(crossing, u + 1, of, to))
                        move[pair][a, b] += here
                        back[pair][a, b] += there
                        pass_on[pair][:, a, b] += sent + here
                        pass_back[pair][:, a, b] += sent + there if crossing.gradient else 0.0
        return move, back, pass_on, pass_back

    def _layout(self, kind: str, which: Class, value: int | str) -> Layout | None:
        """On the mesh: of a returned value (its position) or of a parameter (its name)."""
        pattern = self.setting.patterns.get((kind, *which))
        tensor = self.mesh.tensor_axes(which[0])
        if pattern is None or tensor is None:
            return None
        axes = {DATA: self.mesh.data_axes(which[0])} | {f"t{n}": (axis,) for n, axis in enumerate(tensor)}
        cost = pattern.cost
        return on_mesh(cost.returned[value] if isinstance(value, int) else cost.layouts[value], axes)

    def _move(self, crossing: Crossing, reader: int, of: Class, to: Class) -> tuple[Vector, Vector]:
        """Seconds of the value, and of its gradient back, on the slowest stage, by micro-batch count."""
        key = ("move", crossing.source, crossing.result, reader, of, to)
        if key not in self.moves:
            layers = self.setting.graph.layers
            name = next(name for v, name in crossing.readers if v == reader)
            now = self._layout(layers[crossing.source].kind, of, crossing.result)
            then = self._layout(layers[reader].kind, to, name)
            forward = back = np.zeros_like(self.batches)
            if now is not None and then is not None:
                for stage in set(self.profile_of):
                    mesh, type = self.meshes[stage], crossing.value.type
                    forward = np.maximum(forward, reshard_seconds(type, now, then, mesh, self.batches))
                    if crossing.gradient:
                        back = np.maximum(back, reshard_seconds(type, then, now, mesh, self.batches))
            self.moves[key] = (forward, back)
        return self.moves[key]

    def _send(self, crossing: Crossing, of: Class, boundary: int) -> Vector:
        """Seconds of sending what a layer made to the next stage, by micro-batch count."""
        key = ("send", crossing.source, crossing.result, of, boundary)
        if key not in self.moves:
            layout = self._layout(self.setting.graph.layers[crossing.source].kind, of, crossing.result)
            seconds = np.zeros_like(self.batches)
            if layout is not None:
                seconds = send_seconds(crossing.value.type, layout, self.meshes[boundary], self.batches)
            self.moves[key] = (seconds, seconds)
        return self.moves[key][0]

    def _skips(self, classes: list[Class], n: int) -> list[tuple[Crossing, Vector, float]]:
        """The format has one transfer per value: the mean over classes, on the slowest boundary."""
        found = []
        for crossing in self.setting.graph.crossings:
            if not crossing.skips:
                continue
            table = np.zeros((len(classes), len(classes)))
            for a, of in enumerate(classes):
                for b, to in enumerate(classes):
                    both = [self._move(crossing, v, of, to) for v, _ in crossing.readers]
                    table[a, b] = max(float(there[n] + back[n]) for there, back in both)
            ways = 2 if crossing.gradient else 1
            boundaries = range(self.stages - 1)
            sent = [max((float(self._send(crossing, of, j)[n]) for j in boundaries), default=0.0) for of in classes]
            found.append((crossing, table, ways * float(np.mean(sent))))
        return found


def _data(setting: Setting, candidates: list[Candidate]) -> dict[str, Any]:
    """The JSON object of the format."""
    graph = setting.graph
    data: dict[str, Any] = {"format": "uniap-problem/1", "name": setting.name, "memory": setting.cluster.memory}
    if setting.schedule == "1f1b":
        data["schedule"] = "1f1b"
    data["layers"] = list(graph.types)
    fixed = _fixed(setting, candidates)
    if fixed:
        data["fixed"] = fixed
    data["candidates"] = [_candidate_data(candidate, setting.schedule) for candidate in candidates]
    return data


def _fixed(setting: Setting, candidates: list[Candidate]) -> list[dict[str, Any]]:
    every = list(dict.fromkeys(s for candidate in candidates for s in candidate.strategies))
    fixed = []
    for u in range(len(setting.graph.layers)):
        choices = setting.choices(u)
        entry: dict[str, Any] = {"layer": u}
        if "stage" in choices:
            entry["stage"] = choices["stage"]
        admitted = [str(s) for s in every if _admits(choices, s)]
        if len(admitted) < len(every):
            entry["strategies"] = admitted
        if len(entry) > 1:
            fixed.append(entry)
    return fixed


def _candidate_data(candidate: Candidate, schedule: str) -> dict[str, Any]:
    def by_stage(table: Vector) -> Any:
        """One row where all stages are equal."""
        return table[0].tolist() if (table == table[0]).all() else table.tolist()

    def slowest(table: Vector) -> Any:
        return (table.max(axis=0) if len(table) else table.sum(axis=0)).tolist()

    kinds = list(candidate.forward)
    values = [
        {"from": c.source, "to": [v for v, _ in c.readers], "reshard": table.tolist(), "transfer": seconds}
        for c, table, seconds in candidate.skips
    ]
    return {
        "stages": candidate.stages,
        "micro_batches": candidate.micro_batches,
        "strategies": [str(s) for s in candidate.strategies],
        "layout": candidate.layout,
        "allowed": candidate.allowed,
        "time": {kind: by_stage(candidate.forward[kind] + candidate.backward[kind]) for kind in kinds},
        "memory": {kind: candidate.memory(kind, schedule).tolist() for kind in kinds},
        "reshard": {pair: (candidate.move[pair] + candidate.move_back[pair]).tolist() for pair in candidate.move},
        "transfer": {pair: slowest(candidate.pass_on[pair] + candidate.pass_back[pair]) for pair in candidate.pass_on},
        "step_time": {kind: candidate.step[kind].tolist() for kind in kinds},
        "workspace": {kind: candidate.workspace[kind].tolist() for kind in kinds},
        **({"values": values} if values else {}),
    }


def _nothing_left(setting: Setting) -> Diagnostic:
    """Why no (stages, micro-batches) has a strategy for every layer."""
    for pattern in setting.patterns.values():
        if pattern.no_data is not None:
            return pattern.no_data
    batch, devices = setting.global_batch, setting.cluster.devices
    # The smallest data degree that each number of stages leaves every layer.
    needs = set()
    for stages in _stages(setting):
        builder = _Builder(setting, stages)
        degrees = []
        for choices, kind in zip(builder.chosen, setting.graph.types, strict=True):
            options = [s.dp for s in builder.strategies if builder._cost(kind, s) and _admits(choices, s)]
            degrees.append(min(options, default=0))
        if 0 not in degrees:
            needs.add(int(np.lcm.reduce(degrees)) * (setting.force.micro_batches or 1))
    if needs:
        near = sorted({n for parts in needs for n in (batch // parts * parts, batch // parts * parts + parts) if n})
        nearest = sorted(sorted(near, key=lambda n: abs(n - batch))[:2])
        return Diagnostic(
            f"a global batch of {batch} does not divide over {devices} devices"
            + (f" under --force {setting.force.text}" if setting.force.text else ""),
            help=f"the nearest that {'do are' if len(nearest) > 1 else 'does is'} {' and '.join(map(str, nearest))}",
        )
    return Diagnostic(
        f"no plan meets --force {setting.force.text!r}"
        if setting.force.text
        else f"no number of stages gives every layer a strategy on {devices} devices",
        notes=["every layer needs the same number of stages: pp = devices / (dp * tp)"],
        help="force fewer things at once; --force pp=..., dp=..., tp=... hold for all layers",
    )
