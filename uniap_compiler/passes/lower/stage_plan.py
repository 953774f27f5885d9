"""What the partition knows about the step: calls by stage, who reads which value, homes and copies of parameters."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

from uniap_compiler.ir import Diagnostic, Func, Layout, Module, Op, Struct, TensorType, Value
from uniap_compiler.passes.analysis.precision import Precision

from .mesh import axes_of
from .parameters import Resident, reader


@dataclass
class Call:
    """One layer of the step: its forward call, its backward call (None when nothing needs a gradient)."""

    layer: str
    stage: int
    strategy: Struct
    op: Op
    forward: Func
    backward: Func | None
    backward_op: Op | None

    @property
    def recompute(self) -> bool:
        return self.strategy["recompute"] == "full"

    def arguments(self) -> list[tuple[Value, Value]]:
        """(value of the step, parameter of the forward func) pairs."""
        flat = self.op.flat_operands()
        return [(v, p) for v, p in zip(flat, self.forward.params, strict=True) if v is not None]

    def outputs(self) -> list[tuple[Value, Value, str]]:
        """(result in the step, value returned by the forward func, role) triples."""
        roles = self.forward.attrs["results"]
        assert isinstance(roles, (list, tuple))
        return [
            (r, v, str(role))
            for r, v, role in zip(self.op.results, self.forward.returns, roles, strict=True)
            if v is not None
        ]

    def gradients(self) -> list[tuple[str, Value | None]]:
        """(name of a forward parameter, value returned by the backward func) pairs."""
        if self.backward is None:
            return []
        roles = self.backward.attrs["results"]
        assert isinstance(roles, (list, tuple))
        return [(str(r).removeprefix("grad:"), v) for r, v in zip(roles, self.backward.returns, strict=True)]


@dataclass
class StagePlan:
    """The step, cut into stages."""

    module: Module
    step: Func
    mesh: dict[str, int]
    stages: int
    micro_batches: int
    calls: list[Call]
    loss: Value | None
    precision: Precision
    definition: dict[Value, Call] = field(default_factory=dict)
    """activation -> the call that makes it"""
    layout_of: dict[Value, Layout] = field(default_factory=dict)
    """activation -> the layout in which its call returns it"""
    updates: dict[Value, str] = field(default_factory=dict)
    """activation that is a buffer's new value -> the buffer's path"""
    readers: dict[Value, list[tuple[Call, Value]]] = field(default_factory=dict)
    """value of the step -> (call, parameter of the forward func) in order"""
    residents: list[Resident] = field(default_factory=list)
    chosen: dict[tuple[int, int], Resident] = field(default_factory=dict)
    """(index of the call, index of its parameter) -> the resident tensor that it reads"""
    recompute_funcs: dict[str, Func] = field(default_factory=dict)

    @classmethod
    def of(cls, module: Module, mesh: dict[str, int]) -> StagePlan:
        step = module.funcs["step"]
        info = module.find("plan.plan")
        if info is None:
            raise Diagnostic("the module has no plan.plan op", help="run solve-parallelism first")
        stages, micro_batches = info.attrs["stages"], info.attrs["micro_batches"]
        assert isinstance(stages, int) and isinstance(micro_batches, int)
        backward_ops = {str(op.attrs["layer"]): op for op in step.ops if op.attrs.get("phase") == "backward"}
        calls = []
        for op in step.ops:
            if op.attrs.get("phase") != "forward":
                continue
            layer = str(op.attrs["layer"])
            back_op = backward_ops.get(layer)
            stage, strategy = op.attrs["stage"], op.attrs["strategy"]
            assert isinstance(stage, int) and isinstance(strategy, Struct) and op.symbol is not None
            back = module.funcs[str(back_op.symbol)] if back_op is not None else None
            calls.append(Call(layer, stage, strategy, op, module.funcs[op.symbol], back, back_op))
        roles = step.attrs["results"]
        assert isinstance(roles, (list, tuple))
        loss = next((v for v, role in zip(step.returns, roles) if role == "loss"), None)
        plan = cls(module, step, mesh, stages, micro_batches, calls, loss, Precision.of(module))
        plan._index()
        plan._place_parameters()
        return plan

    def _index(self) -> None:
        for call in self.calls:
            for value, param in call.arguments():
                self.readers.setdefault(value, []).append((call, param))
            for result, returned, _ in call.outputs():
                self.definition[result] = call
                assert returned.type.layout is not None
                self.layout_of[result] = returned.type.layout
        roles = self.step.attrs["results"]
        assert isinstance(roles, (list, tuple))
        for final, role in zip(self.step.returns, roles, strict=True):
            if final in self.definition and str(role).startswith("buffer:"):
                self.updates[final] = str(role).removeprefix("buffer:")
        self._check_buffers()

    def _check_buffers(self) -> None:
        """The next micro-batch begins with what this one left: a buffer that is updated lives on one stage."""
        old = {str(p.attrs["path"]): p for p in self.step.params if p.attrs.get("role") == "buffer"}
        for value, path in self.updates.items():
            made = self.definition[value]
            for call, _ in [*self.readers.get(value, []), *self.readers.get(old[path], [])]:
                if call.stage != made.stage:
                    raise Diagnostic(
                        f"the buffer {path} is updated by {made.layer} on stage {made.stage} "
                        f"and read by {call.layer} on stage {call.stage}",
                        help=f"force the layers that share it onto one stage: --force pp=1, or {call.layer}:stage=... "
                        f"and {made.layer}:stage=...",
                    )

    def _place_parameters(self) -> None:
        taken: dict[tuple[Value, int, Layout, str], Resident] = {}
        copies: dict[Value, int] = {}
        for n, call in enumerate(self.calls):
            tensor = axes_of(int(call.strategy["tp"]), self.mesh)  # type: ignore[arg-type]
            data = tuple(a for a in self.mesh if a not in tensor)
            grads = dict(call.gradients())
            for k, (value, param) in enumerate(zip(call.op.flat_operands(), call.forward.params, strict=True)):
                if value is None or value.attrs.get("role") != "param":
                    continue
                layout, shard, path = param.type.layout, str(call.strategy["shard"]), str(value.attrs["path"])
                assert layout is not None
                grad = grads.get(param.name)
                pending = _pending_on(grad, tensor)
                key = (value, call.stage, layout, shard)
                if key in taken:  # a second reader of the same tensor: the accumulator holds both
                    old = taken[key]
                    assert old.gradient is not None
                    pending = tuple(a for a in tensor if a in pending or a in old.gradient.pending_axes())
                    both, _ = reader(old.name, value, call.stage, shard, layout, data, pending, self.mesh)
                    old.gradient = both.gradient
                else:
                    made, state = reader(path, value, call.stage, shard, layout, data, pending, self.mesh)
                    if value not in copies:
                        copies[value] = 0
                        if made.rest != state:
                            self.residents.append(Resident(path, value, call.stage, shard, state))
                        else:
                            copies[value] = -1
                    if copies[value] >= 0:
                        made.name = f"{path}@copy{copies[value]}"
                    copies[value] += 1
                    taken[key] = made
                    self.residents.append(made)
                self.chosen[n, k] = taken[key]
        trained = {id(self.chosen[n, k]) for n, k in self._gradients()}
        for resident in self.residents:  # one that only an argmin reads has no accumulator
            if id(resident) not in trained:
                resident.gradient = None
        for value in self.step.params:  # parameters that no layer reads stay whole on stage 0
            if value.attrs.get("role") == "param" and value not in copies:
                whole = Layout.replicated(len(value.type.shape))
                self.residents.append(Resident(str(value.attrs["path"]), value, 0, "none", whole))

    # Questions that the segments ask.

    def needs_gradient(self, name: str) -> bool:
        """Whether some layer computes a gradient for the parameter."""
        return any(r.gradient is not None for r in self._tensors_of.get(name, ()))

    @cached_property
    def _tensors_of(self) -> dict[str, list[Resident]]:
        """The home of every parameter and its copies."""
        found: dict[str, list[Resident]] = {}
        for resident in self.residents:
            found.setdefault(resident.of, []).append(resident)
        return found

    def _gradients(self) -> list[tuple[int, int]]:
        """(index of the call, index of its parameter) of every gradient that a backward gives."""
        found = []
        for n, call in enumerate(self.calls):
            grads = dict(call.gradients())
            for k, param in enumerate(call.forward.params):
                if (n, k) in self.chosen and grads.get(param.name) is not None:
                    found.append((n, k))
        return found

    def of_stage(self, stage: int) -> list[tuple[int, Call]]:
        return [(n, call) for n, call in enumerate(self.calls) if call.stage == stage]

    def stages_reading(self, value: Value) -> list[int]:
        """The stages whose layers (or preludes) read an input or buffer of the step."""
        stages = {call.stage for call, _ in self.readers.get(value, [])}
        for op in self.step.ops:
            if op.symbol == "prelude" and value in op.flat_operands():
                stages |= {s for r in op.results for s in self.stages_reading(r)}
        return sorted(stages)

    def crossing(self, boundary: int) -> list[Value]:
        """Activations that go from stage `boundary` to `boundary + 1`: made at or before, read after.  Call order."""
        result = []
        for value, call in self.definition.items():
            last = max((c.stage for c, _ in self.readers.get(value, [])), default=-1)
            if value is not self.loss and call.stage <= boundary < last:
                result.append(value)
        return result

    def has_gradient(self, value: Value, after: int) -> bool:
        """Whether a layer on a stage > `after` returns a gradient for this activation."""
        for call, param in self.readers.get(value, []):
            if call.stage > after and dict(call.gradients()).get(param.name) is not None:
                return True
        return False

    def gradient_type(self, r: Resident) -> TensorType:
        """The type of the accumulator of a resident tensor."""
        assert r.gradient is not None
        dtype = self.precision.accumulated(r.value.type.dtype)
        return replace(r.value.type, dtype=dtype, layout=r.gradient)

    def count_copies(self) -> int:
        return sum(not r.is_home for r in self.residents)

    def home(self, name: str) -> Resident:
        return next(r for r in self._tensors_of[name] if r.is_home)

    def copies_of(self, name: str) -> list[Resident]:
        return [r for r in self._tensors_of.get(name, ()) if not r.is_home]


def _pending_on(grad: Value | None, tensor: tuple[str, ...]) -> tuple[str, ...]:
    if grad is None or grad.type.layout is None:
        return ()
    pending = grad.type.layout.pending_axes()
    return tuple(a for a in tensor if a in pending)
