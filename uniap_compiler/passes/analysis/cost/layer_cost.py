"""What one layer costs under one tensor pattern, for a whole vector of local batches at once.

    cost = layer_cost(forward, backward, {"t0": 2}, batches=[1, 2, 4], cluster)
    cost.forward_seconds          # [3] seconds of arithmetic
    cost.communications           # every comm op: phase, kind, axes, bytes by batch
    cost.saved                    # [3] bytes kept for backward, per micro-batch in flight
    cost.parameters               # local shapes at rest, with or without gradient

The funcs are the ones that are emitted: collectives over tensor axes come from the search, collectives over the data
axes (all of them are one axis, `data`, here) from the lowering's own rules.  Nothing here knows how large the data
axis is: a strategy adds that by formula (`strategy_cost.py`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from uniap_compiler.cluster import Cluster, Mesh
from uniap_compiler.ir import ITEM_BYTES, Func, Layout, Op, Value

from ..exchange import exchanges, routed_axes
from .liveness import peak_bytes, storage
from .op_cost import Dims, Roofline, Size, Vector, local_bytes, local_dims

DATA = "data"
"""The axis that stands for all data axes of a strategy."""

FREE = frozenset({"comm.slice", "comm.first", "comm.wait"})
"""comm ops that move nothing between devices."""


@dataclass(frozen=True)
class Communication:
    """All collectives of one kind over the same axes in one phase.  size: bytes of their operands, by batch."""

    phase: str
    kind: str
    axes: tuple[str, ...]
    count: int
    size: Vector

    def seconds(self, mesh: Mesh, axes: Mapping[str, tuple[str, ...]]) -> Vector:
        """axes: what each axis name (t0, t1, data) stands for on the mesh."""
        real = tuple(axis for name in self.axes for axis in axes[name])
        whole = self.size * mesh.size(real) if self.kind == "all_gather" else self.size
        return mesh.seconds(self.kind, real, whole) + (self.count - 1) * mesh.seconds(self.kind, real, 0.0)


@dataclass(frozen=True)
class Parameter:
    """One parameter tensor of a layer as a device keeps it when no data axis splits it.

    shape: local; splittable: whether each dim may also be split over data axes.  gradient: None without one, else the
    tensor axes over which the layer leaves it as a pending sum.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    splittable: tuple[bool, ...]
    gradient: tuple[str, ...] | None
    in_backward: bool

    @property
    def bytes(self) -> float:
        return self.bytes_in(self.dtype)

    def bytes_in(self, dtype: str) -> float:
        return float(np.prod(self.shape, dtype=np.float64)) * ITEM_BYTES[dtype]

    def splits(self, parts: int) -> bool:
        """Whether some dim divides into `parts` more parts."""
        return parts > 1 and any(ok and size % parts == 0 for ok, size in zip(self.splittable, self.shape, strict=True))


@dataclass
class LayerCost:
    """Seconds and bytes by local batch; see the module's docstring.

    recompute_seconds: what of forward has to run again for backward; inputs: bytes that are kept then instead of
    `saved`.  forward_peak, backward_peak: the working set beside parameters, what is saved, and the gradients of
    parameters.
    """

    batches: Vector
    forward_seconds: Vector
    backward_seconds: Vector
    recompute_seconds: Vector
    communications: list[Communication]
    saved: Vector
    inputs: Vector
    forward_peak: Vector
    backward_peak: Vector
    parameters: list[Parameter]
    layouts: dict[str, Layout] = field(default_factory=dict)
    """forward parameter -> its layout over t0, t1, ... and `data`"""
    returned: list[Layout] = field(default_factory=list)
    """the layouts of what forward returns"""
    _priced: dict[tuple[object, ...], Vector] = field(default_factory=dict, repr=False, compare=False)

    def communication_seconds(self, phase: str, mesh: Mesh, axes: Mapping[str, tuple[str, ...]]) -> Vector:
        key = (phase, mesh.first, mesh.sizes, tuple(sorted(axes.items())))
        if key not in self._priced:
            total = np.zeros_like(self.batches)
            for communication in self.communications:
                if communication.phase == phase:
                    total = total + communication.seconds(mesh, axes)
            self._priced[key] = total
        return self._priced[key]


def roles(func: Func) -> list[str]:
    given = func.attrs["results"]
    assert isinstance(given, (list, tuple))
    return [str(role) for role in given]


def layer_cost(
    forward: Func, backward: Func | None, sizes: Mapping[str, int], batches: Sequence[int], cluster: Cluster
) -> LayerCost:
    """sizes: of the tensor axes.  batches: local, that is, of one data-parallel device."""
    batch = np.asarray(batches, dtype=np.float64)
    kept = kept_values(forward, backward)
    again = recomputed_ops(forward, kept)
    roofline = Roofline(cluster)
    seconds: dict[str, Size] = {"forward": 0.0, "backward": 0.0, "recompute": 0.0}
    found: dict[tuple[str, str, tuple[str, ...]], tuple[int, Size]] = {}
    for phase, func in (("forward", forward), ("backward", backward)):
        for op in func.ops if func is not None else ():
            phases = [phase, "recompute"] if op in again else [phase]
            if op.name.startswith("comm.") and op.name not in FREE:
                (operand,) = [v for v in op.flat_operands() if v is not None]
                size = local_bytes(operand.type, sizes, batch)
                for each in phases:
                    key = (each, op.name.removeprefix("comm.").removesuffix("_start"), comm_axes(op))
                    count, total = found.get(key, (0, 0.0))
                    found[key] = (count + 1, total + size)
                continue
            operands: list[Dims | None] = [
                local_dims(v.type, sizes, batch) if v is not None else None for v in op.flat_operands()
            ]
            results = [local_dims(v.type, sizes, batch) for v in op.results]
            spent = roofline.op_seconds(op, operands, results)
            for each in phases:
                seconds[each] = seconds[each] + spent
                for size in exchanges(op, operands):
                    key = (each, "all_to_all", routed_axes(op))
                    count, total = found.get(key, (0, 0.0))
                    found[key] = (count + 1, total + size)

    def vector(size: Size) -> Vector:
        return np.broadcast_to(np.asarray(size, dtype=np.float64), batch.shape).copy()

    inputs = held_inputs(forward, kept) if backward is not None else []
    return LayerCost(
        batches=batch,
        forward_seconds=vector(seconds["forward"]),
        backward_seconds=vector(seconds["backward"]),
        recompute_seconds=vector(seconds["recompute"]),
        communications=[Communication(*key, count, vector(total)) for key, (count, total) in found.items()],
        saved=vector(sum_bytes(forward, kept, sizes, batch)),
        inputs=vector(sum_bytes(forward, inputs, sizes, batch)),
        forward_peak=vector(_forward_peak(forward, kept, sizes, batch, cluster.device.kind)),
        backward_peak=vector(_backward_peak(forward, backward, sizes, batch, cluster.device.kind)),
        parameters=_parameters(forward, backward, sizes),
        layouts={p.name: p.type.layout or Layout.replicated(len(p.type.shape)) for p in forward.params},
        returned=[
            v.type.layout or Layout.replicated(len(v.type.shape)) if v is not None else Layout.replicated(0)
            for v in forward.returns
        ],
    )


def comm_axes(op: Op) -> tuple[str, ...]:
    axes = op.attrs["axes"]
    assert isinstance(axes, (list, tuple))
    return tuple(str(axis) for axis in axes)


def kept_values(forward: Func, backward: Func | None) -> list[Value]:
    """Forward values that live until backward: what it saves, and the layer's inputs that backward reads."""
    if backward is None:
        return []
    named = {v.name: v for v in forward.values()}
    kept = [named[str(p.attrs.get("of", p.name))] for p in backward.params if p.attrs.get("role") != "tangent"]
    return [v for v in dict.fromkeys(kept) if v not in forward.params or _of_micro_batch(v, forward)]


def _of_micro_batch(param: Value, forward: Func) -> bool:
    """Whether a parameter of forward has a value of its own for each micro-batch: an activation, or a buffer that this
    very layer changes (backward needs the value that forward has read)."""
    return param.attrs.get("role") == "activation" or f"buffer:{param.name}" in roles(forward)


def held_inputs(forward: Func, kept: Sequence[Value]) -> list[Value]:
    """What recompute=full keeps instead: the layer's activations, and changing buffers that are read again."""
    read = {v for op in recomputed_ops(forward, kept) for v in op.flat_operands()} | set(kept)
    inputs = [p for p in forward.params if _of_micro_batch(p, forward)]
    return [p for p in inputs if p.attrs.get("role") == "activation" or p in read]


def recomputed_ops(forward: Func, kept: Sequence[Value], among: Collection[Op] | None = None) -> set[Op]:
    """The ops that have to run again when only the layer's inputs are kept; among: only these may."""
    needed, ops = set(kept), set()
    for op in reversed(forward.ops):
        if any(result in needed for result in op.results) and (among is None or op in among):
            ops.add(op)
            needed.update(v for v in op.flat_operands() if v is not None)
    return ops


def sum_bytes(func: Func, values: Sequence[Value], sizes: Mapping[str, int], batch: Size) -> Size:
    """Each memory once, parameters not at all."""
    base = storage(func)
    persistent = {p for p in func.params if not _of_micro_batch(p, func)}
    total: Size = 0.0
    for value in dict.fromkeys(base[v] for v in values):
        if value not in persistent:
            total = total + local_bytes(value.type, sizes, batch)
    return total


def _forward_peak(forward: Func, kept: Sequence[Value], sizes: Mapping[str, int], batch: Size, kind: str) -> Size:
    elsewhere = [p for p in forward.params if p.attrs.get("role") != "activation"]
    return peak_bytes(forward, sizes, batch, [*elsewhere, *kept], kind)


def _backward_peak(forward: Func, backward: Func | None, sizes: Mapping[str, int], batch: Size, kind: str) -> Size:
    if backward is None:
        return 0.0
    elsewhere = [p for p in backward.params if p.attrs.get("role") != "tangent"]
    for value, role in zip(backward.returns, roles(backward), strict=True):
        if value is not None and forward.param(role.removeprefix("grad:")).attrs.get("role") == "param":
            elsewhere.append(value)
    return peak_bytes(backward, sizes, batch, elsewhere, kind)


def _parameters(forward: Func, backward: Func | None, sizes: Mapping[str, int]) -> list[Parameter]:
    gradients: dict[str, Value] = {}
    read = {p.name for p in backward.params} if backward is not None else set()
    if backward is not None:
        for value, role in zip(backward.returns, roles(backward), strict=True):
            if value is not None:
                gradients[role.removeprefix("grad:")] = value
    parameters = []
    for p in forward.params:
        if p.attrs.get("role") != "param":
            continue
        layout = p.type.layout or Layout.replicated(len(p.type.shape))
        pending = None
        if p.name in gradients:
            left = gradients[p.name].type.layout
            pending = tuple(a for a in left.pending_axes() if a in sizes) if left is not None else ()
        shape = tuple(round(float(np.max(d))) for d in local_dims(p.type, sizes, 1.0))
        parameters.append(
            Parameter(
                name=p.name,
                shape=shape,
                dtype=p.type.dtype,
                splittable=tuple(len(dim) == 1 for dim in layout.dims),
                gradient=pending,
                in_backward=p.name in read,
            )
        )
    return parameters
