"""The funcs of the stages fit together: values pass between them by role, so a role has one type.

    @stage_0.forward            results = ["saved:h1", "send:h4"]
    @stage_0.backward           args = ["param:w", "saved:h1", "recv_grad:h4"], results = ["grad:w"]
    @stage_0.reduce_gradients   args = ["grad:w"], results = ["grad:w"]        accumulated -> final

What leaves one func is what enters the other, layout included: a lost collective at the end of a func shows here.  The
final gradient has the layout of its parameter, and the loss is the sum over all devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .attributes import Struct
from .core import Func, Module, Value
from .diagnostics import Diagnostic
from .layouts import Layout

_NEIGHBOUR = {"recv": ("send", -1), "recv_grad": ("send_grad", +1)}


@dataclass(frozen=True)
class Port:
    """One parameter or result of a segment."""

    func: Func
    stage: int
    phase: str
    role: str
    value: Value
    is_result: bool

    @property
    def key(self) -> tuple[object, ...]:
        """Ports with equal keys have equal types."""
        kind, _, name = self.role.partition(":")
        if kind in _NEIGHBOUR:
            sender, step = _NEIGHBOUR[kind]
            return sender, name, self.stage + step
        if kind == "input":
            return kind, name
        if kind == "grad" and self.phase == "reduce_gradients" and self.is_result:
            return "final gradient", name, self.stage
        return kind, name, self.stage


def ports(module: Module) -> Iterator[Port]:
    for func in module.funcs.values():
        stage, phase = func.attrs.get("stage"), str(func.attrs.get("phase"))
        for names, values, is_result in (
            (func.attrs.get("args"), func.params, False),
            (func.attrs.get("results"), func.returns, True),
        ):
            if "args" in func.attrs and isinstance(stage, int) and isinstance(names, (list, tuple)):
                for role, value in zip(names, values):
                    if value is not None:
                        yield Port(func, stage, phase, str(role), value, is_result)


def check_segments(module: Module, level: str) -> None:
    """Raises Diagnostic."""
    first: dict[tuple[object, ...], Port] = {}
    for port in ports(module):
        other = first.setdefault(port.key, port)
        if other.value.type != port.value.type:
            raise Diagnostic(
                f"{port.role} is {port.value.type} in @{port.func.name} and {other.value.type} in @{other.func.name}",
                func=port.func,
                notes=["funcs of the stages pass values by role, so a role has one type"],
            )
    if level == "staged":
        _check_final(module, first)


def _check_final(module: Module, first: dict[tuple[object, ...], Port]) -> None:
    parameters = {op.symbol: op.attrs.get("layout") for op in module.ops if op.name == "plan.parameter"}
    mesh = module.find("plan.mesh")
    axes = mesh.attrs.get("axes") if mesh is not None else None
    accumulated = {p.key for p in ports(module) if p.phase == "reduce_gradients" and not p.is_result}
    for port in first.values():
        kind, _, name = port.role.partition(":")
        if kind == "loss":
            _check_loss(port, axes)
        wanted = parameters.get(name)
        final = kind == "grad" and (port.key[0] == "final gradient" or port.key not in accumulated)
        if (kind == "param" or final) and isinstance(wanted, Layout) and port.value.type.layout != wanted:
            raise Diagnostic(
                f"{port.role} of @{port.func.name} is {port.value.type}, and the parameter lies at {wanted}",
                func=port.func,
            )


def _check_loss(port: Port, axes: object) -> None:
    layout = port.value.type.layout
    if port.is_result and isinstance(axes, Struct) and layout is not None:
        missing = [axis for axis, _ in axes.fields if axis not in layout.pending_axes()]
        if missing:
            raise Diagnostic(
                f"the loss that @{port.func.name} returns is whole over {missing[0]}: the sum over devices counts it "
                "more than once",
                func=port.func,
            )
