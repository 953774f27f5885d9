"""The segments of one micro-batch: @stage_i.prelude, @stage_i.forward, @stage_i.backward."""

from __future__ import annotations

from collections.abc import Collection

from uniap_compiler.ir import Func, Layout, Value

from .segment import Segment
from .stage_plan import Call, StagePlan


def whole(value: Value) -> Layout:
    return Layout.replicated(len(value.type.shape))


def prelude(plan: StagePlan, stage: int) -> Func | None:
    """The part of @prelude that this stage reads, on whole inputs."""
    op = next((op for op in plan.step.ops if op.symbol == "prelude"), None)
    if op is None:
        return None
    source = plan.module.funcs["prelude"]
    wanted = [n for n, result in enumerate(op.results) if stage in plan.stages_reading(result)]
    if not wanted:
        return None
    func = source.clone(f"stage_{stage}.prelude")
    func.returns = [func.returns[n] for n in wanted]
    for value in func.values():
        value.type = value.type.with_layout(whole(value))
    _drop_dead(func)
    step_value = dict(zip((p.name for p in source.params), op.flat_operands()))
    roles = []
    for p in func.params:
        origin = step_value[p.name]
        assert origin is not None
        roles.append(_source_role(origin))
    names = [op.results[n].name for n in wanted]
    func.attrs = {"kind": "segment", "stage": stage, "phase": "prelude", "args": roles,
                  "results": [f"prelude:{name}" for name in names]}
    return func


def _drop_dead(func: Func) -> None:
    live = {v for v in func.returns if v is not None}
    for op in reversed(func.ops):
        if live & set(op.results):
            live |= {v for v in op.flat_operands() if v is not None}
    func.ops = [op for op in func.ops if live & set(op.results)]
    func.params = [p for p in func.params if p in live]


def _source_role(value: Value) -> str:
    role = value.attrs.get("role")
    if role == "random":
        return "seed:random"
    if role in ("input", "param", "buffer"):
        return f"{role}:{value.attrs['path']}"
    return f"constant:{value.attrs.get('constant', value.name)}"


class MicroBatch(Segment):
    """A segment that runs layers: resolves the step's values to what this stage holds."""

    def __init__(self, plan: StagePlan, stage: int, phase: str) -> None:
        super().__init__(f"stage_{stage}.{phase}", plan.mesh, stage=stage, phase=phase)
        self.plan, self.stage, self.phase = plan, stage, phase
        self.local: dict[Value, Value] = {}
        """activation of the step -> its value here, in the layout of its definition"""
        self.kept: dict[tuple[Value, Layout], Value] = {}
        """what forward saved for this backward"""

    def resolve(self, value: Value, layout: Layout, call_index: int, param_index: int) -> Value:
        """A value of the step in the layout that a layer wants."""
        resident = self.plan.chosen.get((call_index, param_index))
        if resident is not None:
            stored = self.arg(f"param:{resident.name}", value.type.with_layout(resident.rest))
            return self.to(stored, layout)
        if (value, layout) in self.kept:
            return self.kept[value, layout]
        if value in self.local:
            return self.to(self.local[value], layout)
        if value in self.plan.definition:  # an activation of an earlier stage
            base = self.arg(f"recv:{value.name}", value.type.with_layout(self.plan.layout_of[value]))
            self.local[value] = base
            return self.to(base, layout)
        if "role" in value.attrs:
            return self.to(self.arg(_source_role(value), value.type.with_layout(whole(value))), layout)
        return self.to(self.arg(f"prelude:{value.name}", value.type.with_layout(whole(value))), layout)

    def forget_gathered(self) -> None:
        """Gathered parameter shards are given up after the layer, and gathered again where they are read again."""
        shards = {v for role, v in self.args.items() if role.startswith("param:")}
        self.known = {key: v for key, v in self.known.items() if key[0] not in shards}


def saved_role(call: Call, name: str) -> str:
    return f"saved:{call.layer}.{name}"


def forward(plan: StagePlan, stage: int) -> Func | None:
    seg = MicroBatch(plan, stage, "forward")
    saved: dict[str, Value] = {}
    buffers: dict[str, Value] = {}
    for n, call in plan.of_stage(stage):
        operands = _operands(seg, plan, n, call)
        outputs = call.outputs()
        wishes = [r.name for r, _, _ in outputs]
        results = seg.call(call.forward, operands, call.layer, wishes)
        by_name: dict[str, Value] = {}
        for (result, returned, _), value in zip(outputs, results, strict=True):
            by_name[returned.name] = value
            seg.local[result] = value
            if result in plan.updates:
                buffers[plan.updates[result]] = value
        seg.forget_gathered()
        if call.backward is None:
            continue
        for value, param in _kept_inputs(plan, n, call):
            layout = _kept_layout(call, param)
            key = _kept_role(plan, value, layout)
            saved.setdefault(key, seg.resolve(value, layout, n, _index(call, param)))
        if not call.recompute:
            for p in call.backward.params:
                if p.attrs.get("role") == "saved":
                    saved[saved_role(call, str(p.attrs.get("of", p.name)))] = by_name[str(p.attrs.get("of", p.name))]
    for value in plan.crossing(stage):
        seg.give(f"send:{value.name}", seg.resolve(value, plan.layout_of[value], -1, -1))
    for role, value in saved.items():
        seg.give(role, value)
    for name, value in buffers.items():
        seg.give(f"buffer:{name}", value)
    if plan.loss is not None and plan.loss in seg.local:
        seg.give("loss", _share(seg, seg.local[plan.loss]))
    return seg.done()


def _share(seg: Segment, loss: Value) -> Value:
    """This device's share of the loss: over the stage's mesh the shares sum to it."""
    layout = loss.type.layout
    assert layout is not None
    pending = tuple(("sum", axis) for axis in seg.order)
    return seg.to(loss, Layout(layout.dims, pending))


def _operands(
    seg: MicroBatch, plan: StagePlan, n: int, call: Call, names: Collection[str] | None = None
) -> list[Value | None]:
    """What a call of the layer's forward func is given; names: only for these of its parameters."""
    operands: list[Value | None] = []
    for k, (value, param) in enumerate(zip(call.op.flat_operands(), call.forward.params, strict=True)):
        if names is not None and param.name not in names:
            continue
        if value is None:
            operands.append(None)
            continue
        assert param.type.layout is not None
        operands.append(seg.resolve(value, param.type.layout, n, k))
    return operands


def _index(call: Call, param: Value) -> int:
    return next(k for k, p in enumerate(call.forward.params) if p.name == param.name)


def _step_value(call: Call, name: str) -> Value:
    value = call.op.flat_operands()[next(k for k, p in enumerate(call.forward.params) if p.name == name)]
    assert value is not None
    return value


def _kept_inputs(plan: StagePlan, n: int, call: Call) -> list[tuple[Value, Value]]:
    """(value of the step, parameter) pairs that backward reads of the forward pass: the layer's own inputs, and
    buffers as they were before some layer changed them."""
    assert call.backward is not None
    params = {p.name: p for p in call.backward.params if p.attrs.get("role") not in ("saved", "tangent")}
    if call.recompute:
        params |= {p.name: p for p in _recompute_func(plan, call).params}
    kept = []
    for p in params.values():
        value = _step_value(call, p.name)
        changes = value.attrs.get("role") == "buffer" and value.attrs["path"] in plan.updates.values()
        if changes or value in plan.definition and plan.chosen.get((n, _index(call, p))) is None:
            kept.append((value, p))
    return kept


def _kept_layout(call: Call, param: Value) -> Layout:
    assert param.type.layout is not None
    return param.type.layout


def _tag(plan: StagePlan, value: Value, layout: Layout) -> str:
    return "" if layout == plan.layout_of.get(value, whole(value)) else f".{layout}"


def _kept_role(plan: StagePlan, value: Value, layout: Layout) -> str:
    """An activation may be called as a value that some layer saves: `encoder.mul` is a result, and a value inside."""
    role = f"saved:{value.name}{_tag(plan, value, layout)}"
    inside = {
        saved_role(call, str(p.attrs.get("of", p.name)))
        for call in plan.calls
        if call.backward is not None and not call.recompute
        for p in call.backward.params
        if p.attrs.get("role") == "saved"
    }
    while role in inside:
        role += ".result"
    return role


def _recompute_func(plan: StagePlan, call: Call) -> Func:
    """The forward func again, returning only what its backward saved."""
    name = call.forward.name.removesuffix(".forward") + ".recompute"
    if name not in plan.recompute_funcs:
        assert call.backward is not None
        func = call.forward.clone(name)
        wanted = {str(p.attrs.get("of", p.name)) for p in call.backward.params if p.attrs.get("role") == "saved"}
        func.returns = [v for v in func.returns if v is not None and v.name in wanted]
        func.returns = list(dict.fromkeys(func.returns))
        params = list(func.params)
        _drop_dead(func)
        read = {v for op in func.ops for v in op.flat_operands()} | set(func.returns)
        func.params = [p for p in params if p in read]  # nothing is gathered that only the output needs
        func.attrs = {"kind": "recompute", "of": call.forward.name, "results": ["saved"] * len(func.returns)}
        plan.recompute_funcs[name] = func
    return plan.recompute_funcs[name]


def backward(plan: StagePlan, stage: int) -> Func | None:
    seg = MicroBatch(plan, stage, "backward")
    gradient: dict[Value, Value] = {}
    sums: dict[str, Value] = {}
    for value in plan.crossing(stage):
        if plan.has_gradient(value, stage):
            gradient[value] = seg.arg(f"recv_grad:{value.name}", value.type.with_layout(plan.layout_of[value]))
    for n, call in reversed(plan.of_stage(stage)):
        if call.backward is None:
            continue
        for value, param in _kept_inputs(plan, n, call):
            layout = _kept_layout(call, param)
            role = _kept_role(plan, value, layout)
            seg.kept[value, layout] = seg.arg(role, value.type.with_layout(layout))
        saved = _saved(seg, plan, n, call)
        operands: list[Value | None] = []
        for p in call.backward.params:
            operands.append(_backward_operand(seg, plan, n, call, p, saved, gradient))
        if all(p.attrs.get("role") != "tangent" for p in call.backward.params):
            continue
        results = iter(seg.call(call.backward, operands, call.layer, _gradient_names(call)))
        seg.forget_gathered()
        for name, returned in call.gradients():
            if returned is None:
                continue
            result = next(results)
            value, k = _step_value(call, name), _index(call, call.forward.param(name))
            resident = plan.chosen.get((n, k))
            if resident is not None:
                assert resident.gradient is not None
                dtype = result.type.dtype
                part = seg.reduced(result, resident.gradient, plan.precision.reduced(dtype))
                part = seg.cast(part, plan.precision.accumulated(dtype))
                old = sums.get(resident.name)
                sums[resident.name] = part if old is None else seg.add(old, part, f"{resident.name}.grad")
            elif value in plan.definition:
                part = seg.to(result, plan.layout_of[value])
                known = gradient.get(value)
                gradient[value] = part if known is None else seg.add(known, part, f"{value.name}.grad")
    for value in plan.crossing(stage - 1):
        if plan.has_gradient(value, stage - 1):
            seg.give(f"send_grad:{value.name}", gradient[value])
    for name, value in sums.items():
        seg.give(f"grad:{name}", value)
    return seg.done()


def _gradient_names(call: Call) -> list[str]:
    return [f"{call.layer}.{name}.grad" for name, _ in call.gradients()]


def _saved(seg: MicroBatch, plan: StagePlan, n: int, call: Call) -> dict[str, Value]:
    """name of the forward value -> saved value here, recomputed where the strategy says so."""
    assert call.backward is not None
    wanted = [p for p in call.backward.params if p.attrs.get("role") == "saved"]
    if not call.recompute:
        return {
            str(p.attrs.get("of", p.name)): seg.arg(saved_role(call, str(p.attrs.get("of", p.name))), p.type)
            for p in wanted
        }
    func = _recompute_func(plan, call)
    if not func.returns:
        return {}
    operands = _operands(seg, plan, n, call, {p.name for p in func.params})
    results = seg.call(func, operands, call.layer, [v.name for v in func.returns if v is not None])
    return {v.name: r for v, r in zip(func.returns, results, strict=True) if v is not None}


def _backward_operand(
    seg: MicroBatch, plan: StagePlan, n: int, call: Call, p: Value, saved: dict[str, Value],
    gradient: dict[Value, Value],
) -> Value:
    assert p.type.layout is not None
    role, of = p.attrs.get("role"), str(p.attrs.get("of", p.name))
    if role == "saved":
        return seg.to(saved[of], p.type.layout)
    if role == "tangent":
        result = next(r for r, returned, _ in call.outputs() if returned.name == of)
        if result is plan.loss:
            return seg.arg("seed:loss", p.type)
        if result not in gradient:
            return seg.zeros(p.type, f"{result.name}.grad")
        return seg.to(gradient[result], p.type.layout)
    return seg.resolve(_step_value(call, p.name), p.type.layout, n, _index(call, p))

