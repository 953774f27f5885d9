"""A layer as the search sees it: forward and backward ops together, with views folded away.

A backward parameter that stands for a forward value is that value.  A view (one operand, the same atoms in another
order or grouping) is its operand: `%heads = aten.view(%q)` makes %heads a `View` of the tensor %q, and a layout of
one is a layout of the other.  What is left are tensors, steps (ops with their choices) and sinks (what the funcs
return, with the layout that the boundary asks for).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from uniap_compiler.ir import ALIASING_OPS, ITEM_BYTES, Affine, Dim, Func, Layout, Op, Part, Rule, Value, at

from .choices import WHOLE, Choice, State, choice_table, factor_sizes

FORWARD, BACKWARD = 0, 1

Source = Literal["op", "parameter", "given", "whole"]


@dataclass(eq=False, slots=True)
class Tensor:
    """A value whose layout is to be found.

    source "op": made by a step in `phase`.  "parameter": lies in a layout of our choice and can be read in both
    phases.  "given": comes in the layout `state` (activations and tangents).  "whole": on every device (inputs,
    constants, buffers, values of @prelude); any slice of it is free.
    """

    index: int
    value: Value
    source: Source
    phase: int
    dims: tuple[tuple[int, ...], ...]
    sizes: tuple[Dim, ...]
    state: State | None = None

    @property
    def name(self) -> str:
        return self.value.name

    def local_bytes(self, state: State, mesh: tuple[int, ...], batch: int) -> float:
        size = float(ITEM_BYTES[self.value.type.dtype])
        for dim in self.value.type.shape:
            size *= at(dim, batch)
        for axis, s in enumerate(state):
            if isinstance(s, int):
                size /= mesh[axis]
        return size


@dataclass(frozen=True, slots=True)
class View:
    """A value as a tensor seen through views.

    dims: the value's own dims as groups of its atoms; atoms[i]: the tensor's atom that is the value's atom i.
    """

    tensor: Tensor
    dims: tuple[tuple[int, ...], ...]
    atoms: tuple[int, ...]
    op: Op | None = None

    @property
    def sizes(self) -> tuple[Dim, ...]:
        return tuple(self.tensor.sizes[a] for a in self.atoms)

    def inward(self, state: State) -> State:
        """The value's layout as one of the tensor."""
        return tuple(self.atoms[s] if isinstance(s, int) else s for s in state)

    def all_inward(self, states: list[State]) -> list[State]:
        known = {state: self.inward(state) for state in set(states)}
        return [known[state] for state in states]

    def outward(self, state: State) -> State:
        """The tensor's layout as one of the value."""
        return tuple(self.atoms.index(s) if isinstance(s, int) else s for s in state)

    def layout(self, state: State, mesh: tuple[int, ...]) -> Layout:
        """The value's Layout when the tensor is in `state`: `(0, 0)` on dims ((0, 1), (2,)) is `@[t0*t1, _]`."""
        outer, sizes = self.outward(state), self.sizes
        dims = []
        for group in self.dims:
            parts: list[Part] = []
            for atom in group:
                axes = tuple(f"t{i}" for i, s in enumerate(outer) if s == atom)
                last = parts[-1] if parts else None
                if last is not None and last.axes and axes and last.axes < axes and _used_up(last, mesh):
                    # Nothing is left of the major factor on a device, so the split goes on contiguously.
                    parts[-1] = Part(last.axes + axes, _times(last.size, sizes[atom]))
                else:
                    parts.append(Part(axes, sizes[atom]))
            dims.append(tuple(parts))
        pending = tuple((s, f"t{i}") for i, s in enumerate(outer) if isinstance(s, str) and s != WHOLE)
        return Layout(tuple(dims), pending).canonical()

    def local_shapes(
        self, value: Value, states: Iterable[State], mesh: tuple[int, ...], batch: int
    ) -> dict[State, tuple[int, ...]]:
        """What one device has of the value, by the state of the tensor."""
        whole = [at(size, batch) for size in value.type.shape]
        dim_of = {self.atoms[atom]: n for n, group in enumerate(self.dims) for atom in group}
        shapes = {}
        for state in states:
            shape = whole.copy()
            for size, s in zip(mesh, state, strict=True):
                if isinstance(s, int):
                    shape[dim_of[s]] //= size
            shapes[state] = tuple(shape)
        return shapes


@dataclass(eq=False, slots=True)
class Step:
    """An op, its choices, and for each choice the layouts (of tensors) that it reads and makes."""

    index: int
    op: Op
    phase: int
    choices: list[Choice]
    reads: list[tuple[Tensor, list[State]]]
    makes: list[tuple[Tensor, list[State]]]


@dataclass(eq=False, slots=True)
class Sink:
    """A returned value.  gradient_of: the parameter whose layout at rest decides; else it is wanted in `state`."""

    view: View
    value: Value
    phase: int
    position: int
    state: State | None = None
    gradient_of: Tensor | None = None


@dataclass(eq=False, slots=True)
class Graph:
    forward: Func
    backward: Func
    mesh: tuple[int, ...]
    tensors: list[Tensor]
    steps: list[Step]
    sinks: list[Sink]
    views: dict[Value, View]

    def size(self) -> int:
        """About how many columns its programme has: the pairs of a tensor's states, for each of its readers."""
        states: dict[Tensor, set[State]] = {}
        readers: Counter[Tensor] = Counter()
        for step in self.steps:
            for tensor, there in (*step.reads, *step.makes):
                states.setdefault(tensor, set()).update(there)
            readers.update(tensor for tensor, _ in step.reads)
        networks = sum(len(there) ** 2 * readers[t] for t, there in states.items() if t.source != "whole")
        return networks + sum(len(step.choices) for step in self.steps)


def _used_up(part: Part, mesh: tuple[int, ...]) -> bool:
    return part.size == prod(mesh[int(axis[1:])] for axis in part.axes)


def _times(a: Dim | None, b: Dim) -> Dim:
    assert isinstance(a, int)
    return b * a


def boundary_state(
    tensor_dims: tuple[tuple[int, ...], ...],
    sizes: tuple[Dim, ...],
    shape: tuple[Dim, ...],
    mesh: tuple[int, ...],
    boundary: str,
) -> State:
    """Of an activation between layers.

    With a batch: whole, or split in its sequence (dim 1 of a batch-first value).  Without one, such as a table of
    position biases [1, heads, s, s] that all layers read: split in the first dim that divides, under any boundary.
    """
    whole: State = (WHOLE,) * len(mesh)
    if len(shape) < 3:
        return whole
    if not any(isinstance(size, Affine) for size in shape):
        return next((s for atoms in tensor_dims if (s := _split_dim(atoms, sizes, mesh))), whole)
    if boundary != "sequence" or not isinstance(shape[0], Affine) or isinstance(shape[1], Affine):
        return whole
    return _split_dim(tensor_dims[1], sizes, mesh) or whole


def _split_dim(atoms: tuple[int, ...], sizes: tuple[Dim, ...], mesh: tuple[int, ...]) -> State | None:
    """One dim over all axes, major atoms first; None where it does not divide."""
    state: list[int] = []
    for atom in atoms:
        left = sizes[atom]
        while len(state) < len(mesh) and isinstance(left, int) and left % mesh[len(state)] == 0:
            left //= mesh[len(state)]
            state.append(atom)
        if left != 1:
            break
    return tuple(state) if len(state) == len(mesh) else None


class _Builder:
    def __init__(self, forward: Func, backward: Func, mesh: tuple[int, ...], boundary: str, mixed: bool) -> None:
        self.graph = Graph(forward, backward, mesh, [], [], [], {})
        self.boundary, self.mixed = boundary, mixed
        self.whole: State = (WHOLE,) * len(mesh)
        self.named = {v.name: v for v in forward.values()}
        self.stands_for = {p: self._forward_value(p) for p in backward.params if p.attrs["role"] != "tangent"}
        self.dims = self._all_dims()

    def _forward_value(self, param: Value) -> Value:
        name = str(param.attrs.get("of", param.name))
        if name not in self.named:
            raise ValueError(
                f"@{self.graph.backward.name}: %{param.name} stands for no value of @{self.graph.forward.name}"
            )
        return self.named[name]

    def _all_dims(self) -> dict[Value, tuple[tuple[tuple[int, ...], ...], tuple[Dim, ...]]]:
        """The atoms of every value, as the rules of the ops that mention it give them."""
        found: dict[Value, tuple[tuple[Dim, ...], ...]] = {}
        for func in (self.graph.forward, self.graph.backward):
            for op in func.ops:
                rule = op.attrs.get("rule")
                if not isinstance(rule, Rule):
                    continue
                sizes = rule_sizes(op, rule)
                for value, dims in zip(
                    (*op.flat_operands(), *op.results), (*rule.operands, *rule.results), strict=True
                ):
                    if value is None or dims is None:
                        continue
                    value = self.stands_for.get(value, value)
                    groups = tuple(tuple(sizes[f] for f in group) for group in dims)
                    if found.setdefault(value, groups) != groups:
                        raise ValueError(
                            f"%{value.name} of @{func.name} has the atoms {found[value]} and, in {op.name}, {groups}: "
                            "the rules are not refined"
                        )
        result = {}
        for func in (self.graph.forward, self.graph.backward):
            for value in func.values():
                if value not in self.stands_for:
                    groups = found.get(value, tuple((n,) if n != 1 else () for n in value.type.shape))
                    result[value] = (grouped(groups), tuple(size for group in groups for size in group))
        return result

    def tensor(self, value: Value, source: Source, phase: int, state: State | None = None) -> Tensor:
        dims, sizes = self.dims[value]
        tensor = Tensor(len(self.graph.tensors), value, source, phase, dims, sizes, state)
        self.graph.tensors.append(tensor)
        self.graph.views[value] = View(tensor, dims, tuple(range(len(sizes))))
        return tensor

    def boundary_of(self, value: Value) -> State:
        dims, sizes = self.dims[value]
        return boundary_state(dims, sizes, value.type.shape, self.graph.mesh, self.boundary)

    def build(self) -> Graph:
        graph = self.graph
        for param in graph.forward.params:
            role = param.attrs["role"]
            if role == "param":
                self.tensor(param, "parameter", FORWARD)
            elif role == "activation":
                self.tensor(param, "given", FORWARD, self.boundary_of(param))
            else:
                self.tensor(param, "whole", FORWARD)
        self._steps(graph.forward, FORWARD)
        kinds = result_kinds(graph.forward)
        for param in graph.backward.params:
            if param in self.stands_for:
                graph.views[param] = graph.views[self.stands_for[param]]
            else:
                self.tensor(param, "given", BACKWARD, self._tangent_state(param, kinds))
        self._steps(graph.backward, BACKWARD)
        for i, (value, kind) in enumerate(zip(graph.forward.returns, kinds, strict=True)):
            if value is not None and kind != "saved":
                state = self.boundary_of(value) if kind == "value" else self.whole
                graph.sinks.append(Sink(graph.views[value], value, FORWARD, i, graph.views[value].inward(state)))
        for i, (value, kind) in enumerate(zip(graph.backward.returns, result_kinds(graph.backward), strict=True)):
            if value is not None:
                graph.sinks.append(self._gradient(value, kind, i))
        return graph

    def _tangent_state(self, param: Value, kinds: list[str]) -> State:
        for value, kind in zip(self.graph.forward.returns, kinds, strict=True):
            if value is not None and kind == "value" and value.name == param.attrs["of"]:
                return self.boundary_of(param)
        return self.whole

    def _gradient(self, value: Value, kind: str, position: int) -> Sink:
        param = self.graph.forward.param(kind.removeprefix("grad:"))
        view, of = self.graph.views[value], self.graph.views[param].tensor
        if of.source == "parameter":
            return Sink(view, value, BACKWARD, position, gradient_of=of)
        state = self.boundary_of(value) if of.source == "given" else self.whole
        return Sink(view, value, BACKWARD, position, view.inward(state))

    def _steps(self, func: Func, phase: int) -> None:
        graph = self.graph
        for op in func.ops:
            rule = op.attrs.get("rule")
            rule = rule if isinstance(rule, Rule) else None
            if rule is not None and (atoms := view_atoms(op, rule)) is not None:
                operand = op.flat_operands()[0]
                assert operand is not None
                base = graph.views[operand]
                dims = grouped(rule.results[0])
                graph.views[op.results[0]] = View(base.tensor, dims, tuple(base.atoms[a] for a in atoms), op)
                continue
            makes = [self.tensor(result, "op", phase) for result in op.results]
            choices: list[Choice] = [(None,) * len(graph.mesh)]
            wanted, made = [[self.whole]] * len(op.flat_operands()), [[self.whole]] * len(makes)
            if rule is not None:
                sizes = tuple(rule_sizes(op, rule).items())
                choices, wanted, made = choice_table(rule, sizes, graph.mesh, self.mixed)
            reads: list[tuple[Tensor, list[State]]] = []
            for value, states in zip(op.flat_operands(), wanted, strict=True):
                if value is not None:
                    reads.append((graph.views[value].tensor, graph.views[value].all_inward(states)))
            graph.steps.append(Step(len(graph.steps), op, phase, choices, reads, list(zip(makes, made, strict=True))))


def rule_sizes(op: Op, rule: Rule) -> dict[str, Dim]:
    values = (*op.flat_operands(), *op.results)
    return factor_sizes(rule, [v.type.shape if v is not None else None for v in values])


def grouped(groups: Sequence[Sequence[object]]) -> tuple[tuple[int, ...], ...]:
    """The same groups, of running numbers: (("h", "d"), ("k",)) gives ((0, 1), (2,))."""
    numbers = iter(range(sum(map(len, groups))))
    return tuple(tuple(next(numbers) for _ in group) for group in groups)


def view_atoms(op: Op, rule: Rule) -> tuple[int, ...] | None:
    """For a pure regrouping, the operand's atom for each of the result's atoms; None for every other op."""
    operands = op.flat_operands()
    if op.name not in ALIASING_OPS or len(operands) != 1 or len(op.results) != 1 or rule.keep or rule.reduce:
        return None
    if rule.operands[0] is None:
        return None
    inner = [f for group in rule.operands[0] for f in group]
    outer = [f for group in rule.results[0] for f in group]
    return tuple(map(inner.index, outer)) if sorted(inner) == sorted(outer) else None


def result_kinds(func: Func) -> list[str]:
    """The func's `results` attribute, one entry per returned value."""
    kinds = func.attrs.get("results")
    if not isinstance(kinds, (list, tuple)) or len(kinds) != len(func.returns):
        raise ValueError(f"@{func.name} needs one entry of `results` per returned value")
    return [str(kind) for kind in kinds]


def boundary_states(forward: Func, backward: Func, mesh: tuple[int, ...], boundary: str) -> list[State]:
    """Of what comes from another layer or goes to one (the gradient of what comes is like it)."""
    builder = _Builder(forward, backward, mesh, boundary, mixed=True)
    values = [p for p in (*forward.params, *backward.params) if p.attrs["role"] in ("activation", "tangent")]
    values += [v for v, kind in zip(forward.returns, result_kinds(forward), strict=True) if v and kind == "value"]
    return [builder.boundary_of(v) for v in values if v in builder.dims]


def build_graph(forward: Func, backward: Func, mesh: tuple[int, ...], boundary: str, mixed: bool = True) -> Graph:
    """mixed: whether the axes of an op may split different factors (`enumerate_choices`)."""
    return _Builder(forward, backward, mesh, boundary, mixed).build()
