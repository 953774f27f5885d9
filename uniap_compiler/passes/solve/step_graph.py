"""What the solver has to know of @step: its layers in order, the values between them, and shared parameters.

    %h1 = plan.call @block.forward(%h0, %layers.0.wq.weight, ...) {layer = "layers.0", phase = "forward"}

is layer "layers.0" of kind "block", which reads %h0 of the layer before.  Two layers have one TYPE when they cost the
same under every strategy: kinds that are alike, the same role in sharing parameters, the same values for the next
layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from uniap_compiler.ir import Diagnostic, Func, Module, Op, Value
from uniap_compiler.passes.analysis.cost.layer_cost import roles

from .alike import alike


@dataclass(frozen=True, eq=False)
class Layer:
    """One forward call; backward is None when nothing of the layer needs a gradient."""

    index: int
    name: str
    kind: str
    op: Op
    forward: Func
    backward: Func | None

    def gradients(self) -> set[str]:
        """The forward parameters that backward returns a gradient for."""
        if self.backward is None:
            return set()
        pairs = zip(roles(self.backward), self.backward.returns, strict=True)
        return {role.removeprefix("grad:") for role, value in pairs if value is not None}


@dataclass(frozen=True, eq=False)
class Crossing:
    """A value that one layer makes and others read: (layer, position of the result), [(layer, forward parameter)]."""

    value: Value
    source: int
    result: int
    readers: tuple[tuple[int, str], ...]
    gradient: bool

    @property
    def skips(self) -> bool:
        """Whether a layer beyond the next one reads it."""
        return any(v > self.source + 1 for v, _ in self.readers)


@dataclass
class StepGraph:
    layers: list[Layer]
    crossings: list[Crossing]
    copies: list[dict[str, tuple[int, str]]] = field(default_factory=list)
    """per layer: its parameters whose home is an earlier layer -> (that layer, the parameter's name there)"""
    types: list[str] = field(default_factory=list)
    """per layer"""
    like: dict[str, str] = field(default_factory=dict)
    """kind -> the first kind that costs the same (alike.py)"""
    shared_buffers: list[str] = field(default_factory=list)
    """buffers that change and that several layers read or update: these layers belong on one stage"""

    @property
    def names(self) -> list[str]:
        return [layer.name for layer in self.layers]

    def kinds(self) -> list[str]:
        return list(dict.fromkeys(layer.kind for layer in self.layers))

    def between(self, u: int) -> list[Crossing]:
        """The values that only the next layer reads, from layer u."""
        return [c for c in self.crossings if c.source == u and not c.skips]

    @staticmethod
    def of(module: Module) -> StepGraph:
        """Raises Diagnostic when the module has no @step."""
        step = module.funcs.get("step")
        if step is None:
            raise Diagnostic("the module has no func @step", help="run the pass differentiate first")
        backward = {
            str(op.attrs["layer"]): module.funcs[str(op.symbol)]
            for op in step.ops
            if op.name == "plan.call" and op.attrs.get("phase") == "backward"
        }
        layers: list[Layer] = []
        for op in step.ops:
            if op.name == "plan.call" and op.attrs.get("phase") == "forward":
                name, symbol = str(op.attrs["layer"]), str(op.symbol)
                kind = symbol.removesuffix(".forward")
                layers.append(Layer(len(layers), name, kind, op, module.funcs[symbol], backward.get(name)))
        if not layers:
            raise Diagnostic("@step calls no layer", func=step)
        graph = StepGraph(layers, _crossings(layers))
        graph.copies = _copies(layers)
        graph.like = alike(module, graph.kinds())
        graph.types = _types(graph)
        graph.shared_buffers = _shared_buffers(step, layers)
        return graph


def _crossings(layers: list[Layer]) -> list[Crossing]:
    readers: dict[Value, list[tuple[int, str]]] = {}
    for layer in layers:
        for value, param in zip(layer.op.flat_operands(), layer.forward.params, strict=True):
            if value is not None:
                readers.setdefault(value, []).append((layer.index, param.name))
    found = []
    for layer in layers:
        for n, (result, role) in enumerate(zip(layer.op.results, roles(layer.forward), strict=True)):
            later = tuple((v, name) for v, name in readers.get(result, []) if v > layer.index)
            if role == "value" and later:
                gradient = any(name in layers[v].gradients() for v, name in later)
                found.append(Crossing(result, layer.index, n, later, gradient))
    return found


def _copies(layers: list[Layer]) -> list[dict[str, tuple[int, str]]]:
    home: dict[Value, tuple[int, str]] = {}
    copies: list[dict[str, tuple[int, str]]] = []
    for layer in layers:
        here: dict[str, tuple[int, str]] = {}
        for value, param in zip(layer.op.flat_operands(), layer.forward.params, strict=True):
            if value is None or param.attrs.get("role") != "param":
                continue
            if value in home:
                here[param.name] = home[value]
            else:
                home[value] = (layer.index, param.name)
        copies.append(here)
    return copies


def _shared_buffers(step: Func, layers: list[Layer]) -> list[str]:
    touching: dict[Value, set[int]] = {}
    for layer in layers:
        for value in (*layer.op.flat_operands(), *layer.op.results):
            if value is not None:
                touching.setdefault(value, set()).add(layer.index)
    old = {str(p.attrs.get("path", p.name)): p for p in step.params if p.attrs.get("role") == "buffer"}
    found = []
    for value, role in zip(step.returns, roles(step), strict=True):
        path = role.removeprefix("buffer:")
        if value is not None and role.startswith("buffer:") and path in old:
            if len(touching.get(value, set()) | touching.get(old[path], set())) > 1:
                found.append(path)
    return found


def _types(graph: StepGraph) -> list[str]:
    """`block`, and `block#1`, ... for layers of that kind that cost something else."""
    known: dict[str, list[tuple[object, object]]] = {}
    names = []
    for u, layer in enumerate(graph.layers):
        copies = tuple(sorted(graph.copies[u]))
        values = tuple((c.result, tuple(name for _, name in c.readers), c.gradient) for c in graph.between(u))
        kind = graph.like[layer.kind]
        keys = known.setdefault(kind, [])
        last = u == len(graph.layers) - 1  # what it hands on does not matter: nobody is next
        n = next((n for n, key in enumerate(keys) if key[0] == copies and (last or key[1] == values)), len(keys))
        if n == len(keys):
            keys.append((copies, values))
        names.append(kind if n == 0 else f"{kind}#{n}")
    return names
