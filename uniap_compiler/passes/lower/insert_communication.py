"""insert-communication: one func pair per (kind of layer, strategy), with every collective explicit.

    plan.call @block.forward(...) {strategy = #strategy<dp = 2, tp = 2, ...>}
    -> plan.call @block.dp2.tp2.forward(...)

The tensor axes come from the search's pair (`@block.tp2.replicated.forward`, axes t0, t1, ...; the plain pair when tp
is 1) and are renamed to mesh axes: the fastest ones whose sizes multiply to tp.  The remaining axes are data axes and
split the batch by rules (`data_axes.py`).  Types stay global and carry layouts over the stage's mesh; `localize` makes
them local.  Gradients of parameters leave a layer as pending sums over its data axes: they are added up over the
micro-batches first and reduced once per step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from uniap_compiler.ir import Diagnostic, Func, Layout, Module, Namer, Op, Struct, Value

from .data_axes import SPLIT, SUM, WHOLE_ON_DATA, DataAxes
from .mesh import axes_of, stage_mesh
from .rematerialize import rematerialize

if TYPE_CHECKING:
    from uniap_compiler.passes.manager import Session

SELECTIVE = "selective"
"""Attribute of a pattern's backward func: the forward values that it makes again under recompute=selective."""


def pattern_name(kind: str, tp: int, boundary: str) -> str:
    """The func prefix of the search's result for a layer kind; the kind itself when nothing is split."""
    return kind if tp == 1 else f"{kind}.tp{tp}.{boundary}"


def instance_name(kind: str, strategy: Struct) -> str:
    """`block.dp2.tp2`, with `.sequence` where the boundary is sequence-split, `.selective` where backward differs."""
    tail = "".join(f".{key}{strategy[key]}" for key in ("dp", "tp") if strategy[key] != 1)
    if strategy["tp"] != 1 and strategy["boundary"] != "replicated":
        tail += f".{strategy['boundary']}"
    if strategy["recompute"] == "selective":
        tail += ".selective"
    return kind + (tail or ".whole")


@dataclass(frozen=True)
class InsertCommunication:
    name: ClassVar[str] = "insert-communication"
    requires: ClassVar[str] = "planned"
    ensures: ClassVar[str] = "sharded"

    def run(self, module: Module, session: Session) -> str:
        mesh = stage_mesh(module)
        step = module.funcs["step"]
        losses = {value for value, role in zip(step.returns, _roles(step)) if role == "loss"}
        made: dict[str, Func] = {}
        namer = Namer(step)
        forwards: dict[str, dict[str, Value | None]] = {}
        for op in step.ops:
            if op.name != "plan.call" or op.attrs.get("phase") not in ("forward", "backward"):
                continue
            assert op.symbol is not None
            kind, phase = op.symbol.rsplit(".", 1)
            strategy, layer = op.attrs["strategy"], str(op.attrs["layer"])
            assert isinstance(strategy, Struct)
            target = instance_name(kind, strategy)
            if f"{target}.forward" not in made:
                forward, backward = instantiate(module, kind, strategy, mesh, target)
                made[forward.name] = forward
                if backward is not None:
                    made[backward.name] = backward
            old, new = module.funcs[op.symbol], made[f"{target}.{phase}"]
            if phase == "forward":
                forwards[layer] = _retarget_forward(op, old, new, namer)
            else:
                _retarget_backward(op, old, new, forwards[layer])
        keep = [f for f in module.funcs.values() if f.attrs.get("kind") not in ("forward", "backward", "layer", "main")]
        module.funcs = {f.name: f for f in (*keep, *made.values())}
        comm = sum(op.name.startswith("comm.") for f in made.values() for op in f.ops)
        return f"{len(made)} layer funcs, {comm} collectives, loss of {len(losses)} value"


def instantiate(
    module: Module, kind: str, strategy: Struct, mesh: dict[str, int], target: str
) -> tuple[Func, Func | None]:
    """Clones of the pattern's pair over mesh axes, with data axes and their collectives."""
    dp, tp = strategy["dp"], strategy["tp"]
    assert isinstance(dp, int) and isinstance(tp, int)
    source = pattern_name(kind, tp, str(strategy["boundary"]))
    if f"{source}.forward" not in module.funcs:
        raise Diagnostic(f"there is no sharded func @{source}.forward for the strategy {strategy}",
                         help="run enumerate-strategies with this tensor degree")
    tensor = axes_of(tp, mesh)
    data = tuple(axis for axis in mesh if axis not in tensor)
    rename = {f"t{n}": axis for n, axis in enumerate(tensor)}
    forward = _renamed(module.funcs[f"{source}.forward"], f"{target}.forward", rename)
    states: dict[str, str] = {}
    shards = DataAxes(forward, data, mesh, states)
    shards._collect_atoms()
    for p in forward.params:
        batch = p.attrs.get("role") in ("activation", "input", "prelude") and shards.has_batch(p) and data
        states[p.name] = SPLIT if batch else WHOLE_ON_DATA
    wanted: list[str | None] = []
    for value, role in zip(forward.returns, _roles(forward), strict=True):
        assert value is not None
        if role == "value" and value.type.shape:
            wanted.append(SPLIT if shards.has_batch(value) and data else WHOLE_ON_DATA)
        else:  # a scalar may be the loss: it stays a pending sum and is only added up for the log
            wanted.append(WHOLE_ON_DATA if role.startswith("buffer") else None)
    shards.run(wanted)
    known = {value.name: shards.states[value] for value in shards.states}
    if f"{source}.backward" not in module.funcs:
        return forward, None
    backward = _renamed(module.funcs[f"{source}.backward"], f"{target}.backward", rename)
    backward.attrs["of"] = forward.name
    back_states: dict[str, str] = {}
    back = DataAxes(backward, data, mesh, back_states)
    for p in backward.params:
        of = str(p.attrs.get("of", p.name)) if p.attrs.get("role") in ("saved", "tangent") else p.name
        state = known[of]
        if p.attrs.get("role") == "tangent" and state == SUM:  # d loss / d (its part on this device) = d loss / d loss
            state = WHOLE_ON_DATA
        back_states[p.name] = state
    wanted = []
    for value, role in zip(backward.returns, _roles(backward), strict=True):
        param = forward.param(role.removeprefix("grad:"))
        if value is None:
            wanted.append(None)
        elif param.attrs.get("role") == "param":
            wanted.append(SUM if data else None)
        else:
            wanted.append(states[param.name])
    back.run(wanted)
    again = backward.attrs.pop(SELECTIVE, ())
    if strategy["recompute"] == "selective":
        assert isinstance(again, (list, tuple))
        return rematerialize(forward, backward, [str(name) for name in again])
    return forward, backward


def _retarget_forward(op: Op, old: Func, new: Func, namer: Namer) -> dict[str, Value | None]:
    """Call `new`, which may save other values than `old`.  Returns the layer's forward values at the call, by name."""
    kept = iter([r for r, role in zip(op.results, _roles(old), strict=True) if role != "saved"])
    op.symbol = new.name
    op.results = []
    known = dict(zip((p.name for p in new.params), op.flat_operands(), strict=True))
    for value, role in zip(new.returns, _roles(new), strict=True):
        assert value is not None
        made = Value(namer(f"{op.attrs['layer']}.{value.name}"), value.type.with_layout(None))
        op.results.append(made if role == "saved" else next(kept))
        known[value.name] = op.results[-1]
    return known


def _retarget_backward(op: Op, old: Func, new: Func, forward: Mapping[str, Value | None]) -> None:
    given = dict(zip((p.name for p in old.params), op.flat_operands(), strict=True))
    op.symbol = new.name
    op.operands = []
    for p in new.params:
        tangent = p.attrs.get("role") == "tangent"
        op.operands.append(given[p.name] if tangent else forward[str(p.attrs.get("of", p.name))])


def _roles(func: Func) -> list[str]:
    roles = func.attrs["results"]
    assert isinstance(roles, (list, tuple))
    return [str(role) for role in roles]


def _renamed(func: Func, name: str, rename: Mapping[str, str]) -> Func:
    """A clone over mesh axes: layouts, `axes` of comm ops and `split` structs renamed."""
    new = func.clone(name)
    for value in new.values():
        layout = value.type.layout or Layout.replicated(len(value.type.shape))
        value.type = value.type.with_layout(layout.renamed(rename))
    for op in new.ops:
        axes = op.attrs.get("axes")
        if isinstance(axes, (list, tuple)):
            op.attrs["axes"] = [rename.get(str(a), str(a)) for a in axes]
        split = op.attrs.get("split")
        if isinstance(split, Struct):
            op.attrs["split"] = Struct(split.name, tuple((rename.get(k, k), v) for k, v in split.fields))
    new.attrs.pop("tensor_axes", None)
    return new

