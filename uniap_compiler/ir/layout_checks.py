"""Layouts checked op by op, one axis at a time, by rules only.

    %h = nn.contract(%x, %w) {rule = #rule<b k, n k -> b n | sum k>, split = #split<a = k>} : ... @[_, _; sum a]

On one axis an op either splits one factor of its rule (operands and results that have the factor are split in it, the
other operands are whole, the other results follow the rule's clause), or lets a pending sum pass (a `linear` clause),
or computes the same on every device.  A comm op moves its axes from one state to another and leaves the others alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .affine import at
from .attributes import Struct
from .core import Func, Module, Op, TensorType, Value
from .diagnostics import Diagnostic
from .rule_checks import SURROGATE
from .rules import Dims, Rule


@dataclass(frozen=True)
class State:
    """What one axis does to a value: kind whole, split, sum or max; for split the dim and how many blocks lie outside
    it in that dim (None where the mesh is not known)."""

    kind: str = "whole"
    dim: int = -1
    outer: int | None = None

    def __str__(self) -> str:
        if self.kind == "split":
            inside = f", inside {self.outer} blocks" if self.outer not in (None, 1) else ""
            return f"split in dim {self.dim}{inside}"
        return self.kind if self.kind == "whole" else f"a pending {self.kind}"


WHOLE = State()
States = Mapping[str, State]


def states(type: TensorType, mesh: Mapping[str, int]) -> dict[str, State]:
    """The state of every axis that the layout names."""
    found: dict[str, State] = {}
    if type.layout is None:
        return found
    for d, parts in enumerate(type.layout.dims):
        outer: int | None = 1
        for part in parts:
            inside = outer
            for axis in part.axes:
                found[axis] = State("split", d, inside)
                inside = inside * mesh[axis] if inside is not None and axis in mesh else None
            outer = outer * at(part.size, SURROGATE) if outer is not None and part.size is not None else None
    for kind, axis in type.layout.pending:
        found[axis] = State(kind)
    return found


def check_layouts(module: Module, func: Func) -> None:
    """Raises Diagnostic.  A func without any layout is not checked."""
    if all(value.type.layout is None for value in func.values()):
        return
    mesh = mesh_of(module, func)
    known: dict[Value, States] = {}
    for value in func.values():
        if value.type.layout is None:
            op = next((op for op in func.ops if value in op.results), None)
            raise Diagnostic(f"%{value.name} has no layout, and other values of @{func.name} have", op=op, func=func)
        known[value] = states(value.type, mesh)
    for op in func.ops:
        mistake = op_mistake(op, known)
        if mistake is not None:
            notes = [f"its rule is {op.attrs['rule']}"] if "rule" in op.attrs else []
            raise Diagnostic(mistake, op=op, func=func, notes=notes)


def mesh_of(module: Module, func: Func) -> dict[str, int]:
    """axis -> size, from the func's tensor axes and the module's mesh."""
    mesh_op = module.find("plan.mesh")
    sources = [func.attrs.get("tensor_axes"), mesh_op.attrs.get("axes") if mesh_op is not None else None]
    return {
        axis: size
        for source in sources
        if isinstance(source, Struct)
        for axis, size in source.fields
        if isinstance(size, int)
    }


def op_mistake(op: Op, known: Mapping[Value, States]) -> str | None:
    """A sentence about the first axis on which the op's operands and results do not fit."""
    if op.name == "plan.call":
        return None
    operands = [known[v] if v is not None else {} for v in op.flat_operands()]
    results = [known[v] for v in op.results]
    axes = list(dict.fromkeys(axis for states in (*operands, *results) for axis in states))
    if op.name.startswith("comm."):
        return _comm_mistake(op, operands, results, axes)
    rule = op.attrs.get("rule")
    split = op.attrs.get("split")
    if isinstance(split, Struct):
        axes += [axis for axis, _ in split.fields if axis not in axes]
    if not axes:
        return None
    if not isinstance(rule, Rule):
        return f"{op.name} has no rule, so its operands and results must be whole on the axis {axes[0]}"
    for axis in axes:
        here = [s.get(axis, WHOLE) for s in operands]
        there = [s.get(axis, WHOLE) for s in results]
        named = split.get(axis) if isinstance(split, Struct) else None
        if named is not None:
            mistake = factor_mistake(rule, str(named), here, there, axis)
        else:
            mistake = _unnamed_mistake(op, rule, here, there, axis)
        if mistake is not None:
            return mistake
    return None


def _unnamed_mistake(op: Op, rule: Rule, here: list[State], there: list[State], axis: str) -> str | None:
    """No factor is named for the axis: nothing is split, a pending sum may pass, or some factor fits."""
    choices = (*rule.factors(), *(name for name, _ in rule.route))
    if any(s.kind == "split" for s in (*here, *there)):
        if any(factor_mistake(rule, choice, here, there, axis) is None for choice in choices):
            return None
        given, made = ", ".join(map(str, here)), ", ".join(map(str, there))
        return f"no factor of the rule of {op.name} makes of operands ({given}) results ({made}) on the axis {axis}"
    pending = {n for n, s in enumerate(here) if s.kind != "whole"}
    if not pending:
        if all(s.kind == "whole" for s in there):
            return None
        if any(factor_mistake(rule, factor, here, there, axis) is None for factor in rule.factors()):
            return None  # the op reads only what lacks the factor, and reduces over its local part of it
        return f"a result of {op.name} is pending over {axis}, and no operand is"
    return _pending_mistake(op, rule, pending, here, there, axis)


def _pending_mistake(
    op: Op, rule: Rule, pending: set[int], here: list[State], there: list[State], axis: str
) -> str | None:
    first = min(pending)
    if not rule.linear or any(s.kind == "max" for s in here):
        return f"operand {first} of {op.name} is {here[first]} over {axis}, and the op takes complete values only"
    present = {n for n, dims in enumerate(rule.operands) if dims is not None}
    if not any(pending == set(clause) & present for clause in rule.linear):
        shown = " or ".join("{" + ", ".join(map(str, clause)) + "}" for clause in rule.linear)
        return (
            f"the operands {sorted(pending)} of {op.name} are pending over {axis}, and the op takes exactly the "
            f"operands {shown} pending, the others complete"
        )
    wrong = next((n for n, s in enumerate(there) if s.kind != "sum"), None)
    if wrong is not None:
        return (
            f"operand {first} of {op.name} is a pending sum over {axis}, so result {wrong} is one, not {there[wrong]}"
        )
    return None


def factor_mistake(rule: Rule, factor: str, here: list[State], there: list[State], axis: str) -> str | None:
    """A sentence when operands and results are not what splitting the factor over the axis makes of them."""
    routed = rule.split_by(factor)
    if routed != (factor,):
        return _route_mistake(rule, factor, routed, here, there, axis)
    if factor not in rule.factors():
        return f"the op splits a factor {factor} over {axis}, which its rule does not have"
    if factor in rule.keep:
        return f"the op splits {factor} over {axis}, and its rule keeps that factor whole"
    sizes = {name: at(size, SURROGATE) for name, size in rule.sizes}
    for n, (state, dims) in enumerate(zip(here, rule.operands)):
        if dims is not None and not _fits(state, dims, factor, sizes, WHOLE):
            return f"splitting {factor} over {axis} does not fit operand {n}, which is {state}"
    kind = dict(rule.reduce).get(factor, "copy")
    absent = State(kind) if kind in ("sum", "max") else WHOLE
    for n, (state, dims) in enumerate(zip(there, rule.results)):
        if not _fits(state, dims, factor, sizes, absent):
            return f"splitting {factor} over {axis} does not make result {n} {state}"
    return None


def _route_mistake(
    rule: Rule, name: str, factors: tuple[str, ...], here: list[State], there: list[State], axis: str
) -> str | None:
    """A route splits every tensor in the one of its factors that the tensor has."""
    sizes = {factor: at(size, SURROGATE) for factor, size in rule.sizes}
    for what, states, tensors in (("operand", here, rule.operands), ("result", there, rule.results)):
        for n, (state, dims) in enumerate(zip(states, tensors)):
            if dims is None:
                continue
            factor = next((f for f in factors if any(f in group for group in dims)), name)
            if not _fits(state, dims, factor, sizes, WHOLE):
                return f"the route {name} over {axis} does not fit {what} {n}, which is {state}"
    return None


def _fits(state: State, dims: Dims, factor: str, sizes: Mapping[str, int], absent: State) -> bool:
    """Is the value split in the factor, or in the state of values that lack it?"""
    d = next((d for d, group in enumerate(dims) if factor in group), None)
    if d is None:
        return state.kind == absent.kind
    if state.kind != "split" or state.dim != d:
        return False
    before = dims[d][: dims[d].index(factor)]
    if state.outer is None or not all(name in sizes for name in (*before, factor)):
        return True
    low = 1
    for name in before:
        low *= sizes[name]
    return low <= state.outer < low * sizes[factor]


# What a comm op makes of its axes: (state before, its dim's attribute) -> (state after, its dim's attribute).
_COMM: dict[str, tuple[tuple[str, str | None], tuple[str, str | None]]] = {
    "comm.all_reduce": (("pending", None), ("whole", None)),
    "comm.reduce_scatter": (("pending", None), ("split", "dim")),
    "comm.all_gather": (("split", "dim"), ("whole", None)),
    "comm.all_to_all": (("split", "concat_dim"), ("split", "split_dim")),
    "comm.slice": (("whole", None), ("split", "dim")),
    "comm.first": (("whole", None), ("sum", None)),
}


def _comm_mistake(op: Op, operands: list[States], results: list[States], axes: list[str]) -> str | None:
    if op.name not in _COMM:
        return None  # send, receive and the like do not change a layout
    operand, result = op.flat_operands()[0], op.results[0]
    assert operand is not None
    if (operand.type.shape, operand.type.dtype) != (result.type.shape, result.type.dtype):
        return f"{op.name} does not change the shape or dtype, and its result is {result.type}"
    moved = op.attrs.get("axes")
    if not isinstance(moved, (list, tuple)) or not moved:
        return f"the attribute axes of {op.name} is a list of axes"
    if op.name == "comm.all_to_all" and op.attrs.get("split_dim") == op.attrs.get("concat_dim"):
        return "comm.all_to_all is between two dims: within one, gather and slice"
    for axis in dict.fromkeys([*axes, *map(str, moved)]):
        before, after = operands[0].get(axis, WHOLE), results[0].get(axis, WHOLE)
        if axis not in moved:
            if before != after:
                return f"{op.name} moves {list(moved)}, and its operand is {before} over {axis}, its result {after}"
            continue
        for state, (kind, attr), what in zip((before, after), _COMM[op.name], ("takes an operand", "makes a result")):
            wanted = str(op.attrs.get("op", "sum")) if kind == "pending" else kind
            if state.kind != wanted or attr is not None and state.dim != op.attrs[attr]:
                where = f"split in dim {op.attrs[attr]}" if attr else str(State(wanted))
                return f"{op.name} {what} that is {where} over {axis}, not {state}"
    return None
