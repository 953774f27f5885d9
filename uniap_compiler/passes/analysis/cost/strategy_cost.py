"""A layer's strategy, and what it adds to the cost of the tensor pattern: data parallelism, shards, recomputation.

    shard         once per step                          every micro-batch
    none          all-reduce gradients
    optimizer     reduce-scatter gradients, gather       -
    gradients     gather                                 reduce-scatter gradients
    parameters    -                                      gather twice, reduce-scatter gradients

All vectors run over micro-batch counts; the seconds of a micro-batch and those of a step stay apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from uniap_compiler.cluster import Cluster, Mesh
from uniap_compiler.ir import Struct, struct

from ..precision import Precision
from .layer_cost import DATA, LayerCost, Parameter
from .op_cost import Vector

PRECISION = Precision()
"""The usual one: master weights, gradients reduced as they are added up."""

SHARDS = ("none", "optimizer", "gradients", "parameters")
RECOMPUTES = ("none", "selective", "full")
BOUNDARIES = ("replicated", "sequence")

BUCKET = 16 * 2.0**20
"""Bytes of one message of what happens once per step, as in runtime/comm.py."""

GRADIENT_BUCKET = 4 * 2.0**20
"""The same for reductions of gradients, as in passes/lower/overlap_gradients.py."""


@dataclass(frozen=True, order=True)
class Strategy:
    """tp * dp devices of a stage; boundary: how activations between layers lie on the tensor axes."""

    tp: int
    dp: int
    boundary: str = "replicated"
    shard: str = "none"
    recompute: str = "none"

    def __str__(self) -> str:
        return f"dp={self.dp},tp={self.tp},boundary={self.boundary},shard={self.shard},recompute={self.recompute}"

    def attr(self) -> Struct:
        return struct(
            "strategy", dp=self.dp, tp=self.tp, boundary=self.boundary, shard=self.shard, recompute=self.recompute
        )

    @staticmethod
    def parse(text: str) -> Strategy:
        """The inverse of str()."""
        fields = dict(pair.split("=") for pair in text.split(","))
        return Strategy(int(fields["tp"]), int(fields["dp"]), fields["boundary"], fields["shard"], fields["recompute"])


@dataclass(frozen=True)
class Optimizer:
    """states: tensors beside the parameter; passes: how often an update reads or writes one of the parameter's size.

    precision: of gradients; a parameter with a master weight is updated in float32, and rounded from it.
    """

    states: int
    passes: float
    launches: int
    precision: Precision = PRECISION

    @staticmethod
    def of(kind: str, momentum: bool = True, precision: Precision = PRECISION) -> Optimizer:
        """Fused updates (runtime/optimizer.py) read what they need and write what changes; the norm reads once more."""
        if kind == "adamw":
            return Optimizer(2, 8.0, 2, precision)
        return Optimizer(1, 6.0, 2, precision) if momentum else Optimizer(0, 4.0, 2, precision)


@dataclass
class StrategyCost:
    """By micro-batch count.  in_flight: bytes per micro-batch in flight; resident: bytes that stay through the step."""

    forward: Vector
    backward: Vector
    step: Vector
    in_flight: Vector
    resident: Vector
    workspace: Vector


def overlapped(compute: Vector, communication: Vector, kappa: float) -> Vector:
    """Both at once: the larger, and the part kappa of the smaller that is lost."""
    return np.maximum(compute, communication) + kappa * np.minimum(compute, communication)


def strategy_cost(
    layer: LayerCost,
    strategy: Strategy,
    mesh: Mesh,
    optimizer: Optimizer,
    global_batch: int,
    micro_batches: Iterable[int],
    *,
    copies: frozenset[str] = frozenset(),
    free: frozenset[str] = frozenset(),
    prefetch: bool = True,
    layers: float = 0.0,
) -> StrategyCost:
    """copies: tied parameters whose home is another layer; free: those that lie in the home's own memory.

    prefetch: the emitted code gathers a layer's parameters while the one before computes (pass prefetch-parameters).
    layers: like this one that a stage has, about: what happens once per step is sent together for all of them (passes
    overlap-gradients and bucket-collectives); 0: one collective per parameter, nothing beside it.
    """
    counts = np.asarray(list(micro_batches), dtype=np.int64)
    local = global_batch // counts // strategy.dp
    if (local * strategy.dp * counts != global_batch).any():
        told = f"{strategy} and {counts.tolist()} micro-batches"
        raise ValueError(f"a batch of {global_batch} does not divide over {told}")
    at = np.searchsorted(layer.batches, local)
    if (at >= len(layer.batches)).any() or (layer.batches[at] != local).any():
        raise ValueError(f"the layer was not evaluated for the local batches {local.tolist()}")
    cluster, tensor, data = mesh.cluster, mesh.tensor_axes(strategy.tp), mesh.data_axes(strategy.tp)
    assert tensor is not None and mesh.size(data) == strategy.dp, f"{strategy} does not fill {mesh.sizes}"
    axes = {DATA: data} | {f"t{n}": (axis,) for n, axis in enumerate(tensor)}
    recompute = strategy.recompute == "full"

    forward = layer.forward_seconds + layer.communication_seconds("forward", mesh, axes)
    backward = layer.backward_seconds + layer.communication_seconds("backward", mesh, axes)
    if recompute:
        backward = backward + layer.recompute_seconds + layer.communication_seconds("recompute", mesh, axes)
    forward, backward = forward[at], backward[at]

    state = _Shards(layer.parameters, strategy, mesh, axes, optimizer, copies, free, layers * len(layer.parameters))
    kappa = cluster.overlap if prefetch else 1.0
    forward = overlapped(forward, np.full_like(forward, state.gather_forward), kappa)
    backward = overlapped(backward, np.full_like(backward, state.gather_backward), kappa) + state.scatter
    backward = backward + state.casts
    # Gradients are reduced beside the last micro-batch's backward (pass overlap-gradients).
    hidden = overlapped(backward, np.full_like(backward, state.reduce), cluster.overlap if layers else 1.0) - backward
    accumulating = np.where(counts > 1, 1.0, 0.0)
    backward = backward + accumulating * state.accumulate

    # The gradients of a micro-batch are added to the accumulators when the stage's backward is through: both exist.
    resident = state.kept + state.gradients * (1.0 + accumulating)
    working = (
        np.maximum(layer.forward_peak[at], layer.backward_peak[at] + (layer.saved[at] if recompute else 0.0))
        + state.gathered * (2.0 if prefetch else 1.0)
        + state.unscattered
    )  # the next layer is as large as this one
    return StrategyCost(
        forward=forward,
        backward=backward,
        step=state.step + hidden,
        in_flight=(layer.inputs if recompute else layer.saved)[at],
        resident=resident,
        workspace=np.maximum(working, state.step_workspace),
    )


class _Shards:
    """Sums over a layer's parameters for one way of sharding them."""

    def __init__(
        self,
        parameters: Iterable[Parameter],
        strategy: Strategy,
        mesh: Mesh,
        axes: dict[str, tuple[str, ...]],
        optimizer: Optimizer,
        copies: frozenset[str],
        free: frozenset[str],
        together: float,
    ) -> None:
        cluster = mesh.cluster
        self.kept = self.gradients = self.gathered = self.unscattered = self.step_workspace = 0.0
        self.accumulate = self.casts = self.step = 0.0
        gathers, again, scatters = _Calls(mesh), _Calls(mesh), _Calls(mesh)
        reduces, refreshes = _Calls(mesh, together, GRADIENT_BUCKET), _Calls(mesh, together, BUCKET)
        data, dp, precision = axes[DATA], strategy.dp, optimizer.precision
        for p in parameters:
            size = p.bytes
            gradient, sent = (p.bytes_in(f(p.dtype)) for f in (precision.accumulated, precision.reduced))
            master = precision.has_master(p.dtype)
            split = strategy.shard != "none" and p.splits(dp)
            always = split and strategy.shard == "parameters"
            scattered = split and strategy.shard in ("gradients", "parameters")
            home = size / dp if split else size
            if always:
                gathers.add("all_gather", data, size)
                if p.in_backward or strategy.recompute == "full":
                    again.add("all_gather", data, size)
                self.gathered += size
            if p.name not in free:
                self.kept += home if always else size
            if p.gradient is None:
                continue
            pending = tuple(a for name in p.gradient for a in axes[name])
            accumulator = gradient / dp if scattered else gradient
            self.accumulate += _pointwise(cluster, 3 * accumulator)
            self.casts += _cast(cluster, size, sent if scattered else gradient)
            if scattered:
                scatters.add("reduce_scatter", data, sent)
                self.unscattered += max(size, sent)
                self.casts += _cast(cluster, sent / dp, gradient / dp)
            if p.name in free:
                continue
            self.gradients += accumulator
            self.step_workspace = max(self.step_workspace, 2 * gradient)
            sent_home, final = (sent / dp, gradient / dp) if split else (sent, gradient)
            if p.name in copies:  # the gradient goes to the home, the new value comes back
                self.step += float(mesh.send_seconds(sent_home)) + float(mesh.send_seconds(home))
                continue
            if sent != gradient and (pending or data and not scattered):
                self.step += _cast(cluster, accumulator, sent_home if scattered else sent)
                self.step += _cast(cluster, sent_home, final)
            if split and not scattered:
                reduces.add("reduce_scatter", data, sent)
            reduces.add("all_reduce", pending if split else (*pending, *data), sent_home)
            if split and not always:
                refreshes.add("all_gather", data, size)
                self.kept += home  # the optimizer works on a shard of its own
            self.kept += (optimizer.states + master) * final
            self.step += _pointwise(cluster, optimizer.passes * final, optimizer.launches)
            if master:
                self.step += _cast(cluster, final, home)
        self.gather_forward, self.gather_backward, self.scatter = gathers.seconds, again.seconds, scatters.seconds
        self.reduce = reduces.seconds
        self.step += refreshes.seconds


class _Calls:
    """Collectives on parameters.  together: how many tensors of a stage travel as one message of up to `bucket` bytes,
    packed and (the pieces of all-reduced ones are views) unpacked; each pays its share of the latency (0: each is a
    message of its own)."""

    def __init__(self, mesh: Mesh, together: float = 0.0, bucket: float = BUCKET) -> None:
        self.mesh, self.together, self.bucket = mesh, together, bucket
        self.seconds = 0.0

    def add(self, kind: str, over: tuple[str, ...], size: float) -> None:
        alpha, beta = self.mesh.alpha_beta(kind, over)
        if not beta:
            return
        if self.together:
            alpha *= min(1.0, max(size / self.bucket, 1.0 / self.together))
            self.seconds += _pointwise(self.mesh.cluster, (2 if kind == "all_reduce" else 4) * size)
        self.seconds += alpha + beta * size


def _cast(cluster: Cluster, source: float, result: float) -> float:
    """Of a tensor to another dtype, by its bytes in both; nothing when these are equal."""
    return _pointwise(cluster, source + result) if source != result else 0.0


def _pointwise(cluster: Cluster, moved: float, launches: int = 1) -> float:
    return launches * cluster.launch() + moved / cluster.memory_bandwidth()
