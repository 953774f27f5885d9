"""From a solution to sharded funcs: ops with `split`, collectives where they are first needed, layouts everywhere.

    %p = nn.contract(%g, %w) {split = #split<t0 = k>, ...} : tensor<Bx64x32xf32> @[_, _, _; sum t0]
    %p.reduced = comm.all_reduce(%p) {axes = ["t0"], op = "sum"} : tensor<Bx64x32xf32> @[_, _, _]

A value is asked for in a layout: it is there already, or it is made from the layout that precedes it in its tree of
collectives.  Views are repeated in every layout in which somebody reads them (they cost nothing).
"""

from __future__ import annotations

from itertools import groupby
from math import prod

from uniap_compiler.ir import Attr, Attrs, Dim, Func, Op, Struct, Symbol, Value

from ..exchange import with_peers
from . import dispatch
from .choices import MAX, WHOLE, State, split_attr
from .graph import BACKWARD, FORWARD, Graph, Step, Tensor, View, result_kinds
from .network import Move, move_between
from .problem import Problem, Solution

SUFFIX = {
    "all_reduce": "reduced",
    "reduce_scatter": "scattered",
    "all_gather": "gathered",
    "all_to_all": "exchanged",
    "slice": "sliced",
    "first": "first",
}


def apply(problem: Problem, solution: Solution, boundary: str) -> tuple[Func, Func]:
    """The sharded pair; the plan's saved values replace the `saved` results and parameters of the original."""
    return _Emitter(problem, solution, boundary).pair()


class _Emitter:
    def __init__(self, problem: Problem, solution: Solution, boundary: str) -> None:
        self.graph: Graph = problem.graph
        self.solution, self.boundary = solution, boundary
        self.mesh = self.graph.mesh
        self.whole: State = (WHOLE,) * len(self.mesh)
        self.step_of: dict[Op, Step] = {step.op: step for step in self.graph.steps}
        self.tensors: dict[tuple[Tensor, int, State], Value] = {}
        self.views: dict[tuple[Value, int, State], Value] = {}
        self.params: tuple[dict[Tensor, Value], dict[Tensor, Value]] = ({}, {})
        self.saved: list[tuple[Value, Value]] = []
        self.links = dispatch.links(self.graph, solution.choice)
        self.kept: dict[Step, Value] = {}
        """backward step -> what its forward op keeps for it"""
        self.ops: tuple[list[Op], list[Op]] = ([], [])
        self.names = [{v.name for v in func.values()} for func in (self.graph.forward, self.graph.backward)]
        self.used: tuple[set[str], set[str]] = (set(), set())

    def pair(self) -> tuple[Func, Func]:
        forward, backward = self.graph.forward, self.graph.backward
        prefix = f"{forward.name.removesuffix('.forward')}.tp{prod(self.mesh)}.{self.boundary}"
        axes = Struct("axes", tuple((f"t{i}", size) for i, size in enumerate(self.mesh)))
        common: Attrs = {"tensor_axes": axes, "boundary": self.boundary}

        for tensor in self.graph.tensors:
            if tensor.source != "op" and tensor.phase == FORWARD:
                self._param(tensor, FORWARD)
        returns, kinds = self._forward(forward)
        outputs = [v for v, kind in zip(forward.returns, result_kinds(forward), strict=True) if kind != "saved"]
        renamed: dict[str, Attr] = {v.name: w.name for v, w in zip(outputs, returns) if v is not None and w is not None}
        sharded_forward = Func(
            f"{prefix}.forward",
            [self.params[FORWARD][self.graph.views[p].tensor] for p in forward.params],
            self.ops[FORWARD],
            returns,
            {**forward.attrs, **common, "results": kinds},
        )

        for param in backward.params:
            if param.attrs["role"] == "tangent":
                tangent = self._param(self.graph.views[param].tensor, BACKWARD)
                tangent.attrs["of"] = renamed[str(param.attrs["of"])]
        gradients = self._backward(backward)
        self._forget_unread(sharded_forward, gradients)
        needed = self.params[BACKWARD]
        here = [self.graph.views[p].tensor for p in forward.params]
        tangents = [self.graph.views[p].tensor for p in backward.params if p.attrs["role"] == "tangent"]
        params = [needed[t] for t in here if t in needed] + [p for _, p in self.saved] + [needed[t] for t in tangents]
        sharded_backward = Func(
            f"{prefix}.backward",
            params,
            self.ops[BACKWARD],
            gradients,
            {**backward.attrs, **common, "of": Symbol(sharded_forward.name)},
        )
        return sharded_forward, sharded_backward

    def _forward(self, func: Func) -> tuple[list[Value | None], list[Attr]]:
        for op in func.ops:
            if op in self.step_of:
                self._step(self.step_of[op])
        wanted = {sink.position: sink for sink in self.graph.sinks if sink.phase == FORWARD}
        returns: list[Value | None] = []
        kinds: list[Attr] = []
        for i, kind in enumerate(result_kinds(func)):
            if kind == "saved":
                continue
            sink = wanted.get(i)
            state = sink.state if sink is not None else None
            returns.append(self.get(sink.value, FORWARD, state) if sink is not None and state is not None else None)
            kinds.append(kind)
        for tensor in self.graph.tensors:
            for arc in self.solution.trees.get((tensor, FORWARD), {}).values():
                if arc.move.kind == "save":
                    self._save(tensor, arc.target[1])
        returns += [value for value, _ in self.saved]
        kinds += ["saved"] * len(self.saved)
        return returns, kinds

    def _save(self, tensor: Tensor, state: State) -> None:
        """Keep the tensor for backward: an activation that lies there anyway is just a parameter of both funcs."""
        value = self.get(tensor.value, FORWARD, state)
        if tensor.source != "op" and state == tensor.state:
            self._param(tensor, BACKWARD)
            return
        self.tensors[tensor, BACKWARD, state] = self._saved(value)

    def _saved(self, value: Value) -> Value:
        """Backward's parameter for a value that forward returns for it."""
        param = Value(value.name, value.type, {"role": "saved", "of": value.name})
        self.used[BACKWARD].add(value.name)
        self.saved.append((value, param))
        return param

    def _forget_unread(self, forward: Func, gradients: list[Value | None]) -> None:
        """What was to be saved for an op that reads what its forward op keeps instead."""
        read = {v for op in self.ops[BACKWARD] for v in op.flat_operands()} | set(gradients)
        for value, param in list(self.saved):
            if param not in read:
                place = len(forward.returns) - len(self.saved) + self.saved.index((value, param))
                assert forward.returns[place] is value
                self.saved.remove((value, param))
                del forward.returns[place]
                results = forward.attrs["results"]
                assert isinstance(results, list)
                del results[place]

    def _backward(self, func: Func) -> list[Value | None]:
        for op in func.ops:
            if op in self.step_of:
                self._step(self.step_of[op])
        returns: list[Value | None] = [None] * len(func.returns)
        for sink in self.graph.sinks:
            if sink.phase == BACKWARD:
                state = sink.state if sink.state is not None else self.solution.gradients[sink]
                returns[sink.position] = self.get(sink.value, BACKWARD, state)
        return returns

    def _param(self, tensor: Tensor, phase: int) -> Value:
        state = self._root(tensor)
        view = self.graph.views[tensor.value]
        type = tensor.value.type.with_layout(view.layout(state, self.mesh))
        param = Value(tensor.name, type, dict(tensor.value.attrs))
        self.params[phase][tensor] = self.tensors[tensor, phase, state] = param
        self.used[phase].add(param.name)
        return param

    def _root(self, tensor: Tensor) -> State:
        if tensor.state is not None:
            return tensor.state
        return self.solution.rest.get(tensor, self.whole)

    def _step(self, step: Step) -> None:
        k = self.solution.choice[step.index]
        reads = iter(step.reads)
        kept = self.kept.get(step)

        def read(value: Value) -> Value:
            _, states = next(reads)
            return value if value is unread else self.get(value, step.phase, states[k])

        op = Op(step.op.name, step.op.operands, (), dict(step.op.attrs), step.op.symbol, step.op.loc)
        unread = op.operands[1] if kept is not None else None
        op.replace_operands(read)
        if kept is not None:
            dispatch.use(op, kept)
        op.attrs["split"] = split_attr(step.choices[k])
        op = with_peers(op, {f"t{n}": size for n, size in enumerate(self.mesh)})
        for tensor, states in step.makes:
            layout = self.graph.views[tensor.value].layout(states[k], self.mesh)
            result = Value(self._name(tensor.name, step.phase), tensor.value.type.with_layout(layout))
            self.tensors[tensor, step.phase, states[k]] = result
            op.results.append(result)
        if step in self.links:
            value = dispatch.keep(op, step, k, self.mesh, self._name(f"{step.op.results[0].name}.kept", FORWARD))
            self.kept[self.links[step]] = self._saved(value)
        self.ops[step.phase].append(op)

    def get(self, value: Value, phase: int, state: State) -> Value:
        """The value, its tensor being in `state`, in the func of `phase`; emits what is still missing for that."""
        view = self.graph.views[value]
        if view.op is None:
            return self._tensor(view.tensor, phase, state)
        key = (view.op.results[0], phase, state)
        if key not in self.views:
            inner = view.op.flat_operands()[0]
            assert inner is not None
            op = Op(view.op.name, [self.get(inner, phase, state)], (), dict(view.op.attrs), None, view.op.loc)
            rule = op.attrs["rule"]
            names = [f for group in rule.results[0] for f in group]  # type: ignore[union-attr]
            op.attrs["split"] = split_attr(tuple(names[s] if isinstance(s, int) else None for s in view.outward(state)))
            origin = view.op.results[0]
            type = origin.type.with_layout(view.layout(state, self.mesh))
            op.results.append(Value(self._name(origin.name, phase), type))
            self.ops[phase].append(op)
            self.views[key] = op.results[0]
        return self.views[key]

    def _tensor(self, tensor: Tensor, phase: int, state: State) -> Value:
        key = (tensor, phase, state)
        if key in self.tensors:
            return self.tensors[key]
        if tensor.source in ("parameter", "whole") and state == self._root(tensor):
            return self._param(tensor, phase)
        if tensor.source == "whole":
            before = _step_before(state)
            move = move_between(before, state)
        else:
            arc = self.solution.trees[tensor, phase if tensor.source == "parameter" else tensor.phase][phase, state]
            before, move = arc.source[1], arc.move
        assert move is not None and move.kind != "save", (tensor.name, phase, state)
        self.tensors[key] = self._move(tensor, phase, self._tensor(tensor, phase, before), before, state, move)
        return self.tensors[key]

    def _move(self, tensor: Tensor, phase: int, value: Value, before: State, after: State, move: Move) -> Value:
        view = self.graph.views[tensor.value]
        attrs: Attrs = {"axes": [f"t{axis}" for axis in move.axes]}
        if move.kind == "all_reduce":
            attrs["op"] = "max" if before[move.axes[0]] == MAX else "sum"
        elif move.kind == "all_to_all":
            assert move.split is not None and move.joined is not None
            attrs |= _place(view, before, move.split, self.mesh, "split_")
            attrs |= _place(view, after, move.joined, self.mesh, "concat_")
        elif move.split is not None:
            attrs |= _place(view, before, move.split, self.mesh, "")
        elif move.joined is not None:
            attrs |= _place(view, after, move.joined, self.mesh, "")
        name = self._name(f"{tensor.name}.{SUFFIX[move.kind]}", phase)
        result = Value(name, value.type.with_layout(view.layout(after, self.mesh)))
        loc = next((op.loc for op in self.ops[phase] if value in op.results), None)
        self.ops[phase].append(Op(f"comm.{move.kind}", [value], [result], attrs, None, loc))
        return result

    def _name(self, wish: str, phase: int) -> str:
        """The wish, or wish_1, ...; the names of the originals of both funcs are kept for them."""
        name, n = wish, 0
        if wish not in self.names[phase] or wish in self.used[phase]:
            while name in self.used[phase] or name in self.names[0] or name in self.names[1]:
                n += 1
                name = f"{wish}_{n}"
        self.used[phase].add(name)
        return name


def _place(view: View, state: State, atom: int, mesh: tuple[int, ...], prefix: str) -> Attrs:
    """`dim` and, where the atom is not the major one of its dim, `outer`: how many runs of it a device has there.

    outer counts on one device: atoms that the tensor axes split count with their local size; data axes act through B.
    """
    dim = next(i for i, group in enumerate(view.dims) if atom in group)
    outer: Dim = 1
    for other in view.dims[dim]:
        if other == atom:
            break
        size = view.sizes[other]
        for axis, s in enumerate(state):
            if s == other and isinstance(size, int):
                size //= mesh[axis]
        outer = size * outer if isinstance(outer, int) else outer * size  # type: ignore[operator]
    attrs: Attrs = {f"{prefix}dim": dim}
    if outer != 1:
        attrs[f"{prefix}outer"] = outer
    return attrs


def _step_before(state: State) -> State:
    """The state with the last run of equal axes whole: a slice of slices starts from the whole tensor."""
    runs = [list(run) for _, run in groupby(range(len(state)), key=lambda i: state[i])]
    last = [run for run in runs if state[run[0]] != WHOLE][-1]
    return tuple(WHOLE if i in last else s for i, s in enumerate(state))
