"""Pass outline-layers: one func per distinct layer; @main becomes calls, in order.

    func @main(...) {
      %cos, %sin = plan.call @prelude(%batch.tokens)
      %h0 = plan.call @embed(%batch.tokens, %embed.weight) {layer = "embed"}
      %h1 = plan.call @block(%h0, %cos, %sin, %layers.0.wq.weight, ...) {layer = "layers.0"}
      %h2 = plan.call @block(%h1, %cos, %sin, %layers.1.wq.weight, ...) {layer = "layers.1"}
      %loss = plan.call @head(%h2, %targets, ...) {layer = "head"}

What depends on the batch and on constants only moves to @prelude, and so do the keys of random ops, which differ from
layer to layer; what is drawn stays, so that a layer draws its own part only.  Two layers are the same func when their
ops, their params (role, name below the layer, grad) and their results agree; `grad` on a func lists the results that
get a tangent.  layer_segments.py says where a layer ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from uniap_compiler.ir import Atom, Func, Module, Namer, Op, Value

from .layer_segments import Segment, segments

STATIC = ("input", "constant", "prelude")


@dataclass(frozen=True)
class OutlineLayers:
    name: ClassVar[str] = "outline-layers"
    requires: ClassVar[tuple[str, ...]] = ("captured",)
    ensures: ClassVar[str] = "layered"

    def run(self, module: Module, session: Any) -> str:
        main = module.funcs.pop("main")
        needs_grad = gradient_values(main)
        early, late, free = _split_prelude(main)
        # a function with an odd name may not hide those that later levels make
        taken = Namer()
        for reserved in ("main", "prelude", "step"):
            taken(reserved)
        new_main = Func("main", main.params, attrs={k: v for k, v in main.attrs.items() if k != "classes"})
        statics = _prelude(module, main, new_main, early, late, free)
        parts = segments(late, {p for p in main.params if p.attrs.get("role") == "param"})
        parts = _loss_last(parts, main)
        by_structure: dict[str, Func] = {}
        layers = _LayerNames(main)
        names = Namer()
        for value in (*main.params, *(r for op in new_main.ops for r in op.results)):
            names(value.name)
        for i, part in enumerate(parts):
            later = {v for p in parts[i + 1 :] for op in p.ops for v in op.flat_operands()}
            func, inputs, outputs = _outline(part, later, main, needs_grad, statics, free)
            outputs = _once(outputs, main)
            key = structure(func)
            if key not in by_structure:
                func.name = taken(layers.func_name(part))
                by_structure[key] = module.add(func)
            layer = layers.layer_name(part)
            _name_results(outputs, layer, main, names)
            new_main.ops.append(Op("plan.call", inputs, outputs, {"layer": layer}, symbol=by_structure[key].name))
        new_main.returns = list(main.returns)
        module.add(new_main)
        listed = ", ".join("@" + f.name for f in by_structure.values())
        return f"{len(parts)} layers, {len(by_structure)} distinct: {listed}"


def gradient_values(main: Func) -> set[Value]:
    """The values that have a gradient: they depend on a trained parameter, and the loss depends on them."""
    active = {p for p in main.params if p.attrs.get("grad") is True}
    for op in main.ops:
        if op.name != "aten.detach" and any(v in active for v in op.flat_operands()):
            active.update(r for r in op.results if r.type.dtype in ("f64", "f32", "bf16", "f16"))
    useful = {main.returns[0]}
    for op in reversed(main.ops):
        if op.name != "aten.detach" and any(r in useful for r in op.results):
            useful.update(op.flat_operands())
    return {v for v in active if v in useful}


def mutated_buffers(main: Func) -> set[str]:
    kinds = main.attrs.get("results")
    assert isinstance(kinds, list)
    return {str(k).removeprefix("buffer:") for k in kinds if str(k).startswith("buffer:")}


def _split_prelude(main: Func) -> tuple[list[Op], list[Op], dict[Value, Op]]:
    """Ops on inputs and constants only; the others; and factory ops without operands, copied to where they are read."""
    mutated = mutated_buffers(main)
    static = {
        p
        for p in main.params
        if p.attrs["role"] in STATIC or (p.attrs["role"] == "buffer" and p.attrs["path"] not in mutated)
    }
    early: list[Op] = []
    late: list[Op] = []
    keys: list[Op] = []
    free: dict[Value, Op] = {}
    returned = set(main.returns)
    for op in main.ops:
        operands = [v for v in op.flat_operands() if v is not None]
        if op.name == "nn.random_key":
            keys.append(op)  # its result is not static: what reads it is late
        elif not operands and not any(r in returned for r in op.results):
            free.update((r, op) for r in op.results)
        elif all(v in static or v in free for v in operands) and not any(r in returned for r in op.results):
            early.append(op)
            static.update(op.results)
        else:
            late.append(op)
    return early + keys, late, free


def _prelude(
    module: Module, main: Func, new_main: Func, early: list[Op], late: list[Op], free: dict[Value, Op]
) -> set[Value]:
    """Adds @prelude and its call; returns the values that it makes."""
    made = {r for op in early for r in op.results}
    read = {v for op in late for v in op.flat_operands() if v in made}
    if not read:
        return set()
    outputs = [r for op in early for r in op.results if r in read]
    inputs = _inputs(early, free)
    builder = _Builder("prelude")
    for v in inputs:
        builder.param(
            v,
            re.sub(r"\W+", "_", str(v.attrs.get("path", v.name))).removeprefix("batch_"),
            {k: a for k, a in v.attrs.items() if k in ("role", "path", "digest")},
        )
    builder.ops(early, free)
    func = builder.finish(outputs, {"kind": "prelude", "results": ["value"] * len(outputs)})
    module.add(func)
    new_main.ops.append(Op("plan.call", inputs, outputs, {"layer": "prelude"}, symbol="prelude"))
    return set(outputs)


def _inputs(ops: list[Op], free: dict[Value, Op]) -> list[Value]:
    """What these ops read and do not make, in order of first reading."""
    made = {r for op in ops for r in op.results}
    reads = dict.fromkeys(v for op in ops for v in op.flat_operands() if v is not None)
    return [v for v in reads if v not in made and v not in free]


def _loss_last(parts: list[Segment], main: Func) -> list[Segment]:
    """Merge what follows the segment that makes the loss into it: the last layer returns the loss."""
    for i, part in enumerate(parts):
        if any(main.returns[0] in op.results for op in part.ops):
            for other in parts[i + 1 :]:
                part.ops += other.ops
            return parts[: i + 1]
    return parts


class _Builder:
    """A func made of copies of ops, with names that depend on nothing but its structure."""

    def __init__(self, name: str) -> None:
        self.func = Func(name)
        self.namer = Namer()
        self.new: dict[Value, Value] = {}

    def param(self, value: Value, wish: str, attrs: dict[str, Any]) -> None:
        self.new[value] = Value(self.namer(wish), value.type, attrs)
        self.func.params.append(self.new[value])

    def ops(self, ops: list[Op], free: dict[Value, Op]) -> None:
        for op in ops:
            for v in op.flat_operands():
                if v in free and v not in self.new:
                    self._copy(free[v])
            self._copy(op)

    def _copy(self, op: Op) -> None:
        for r in op.results:
            base = re.sub(r"^_+", "", op.name.split(".")[1])
            self.new[r] = Value(self.namer(base), r.type)
        copy = Op(op.name, op.operands, [self.new[r] for r in op.results], dict(op.attrs), op.symbol, op.loc)
        copy.replace_operands(self.new.__getitem__)
        self.func.ops.append(copy)

    def finish(self, returns: list[Value], attrs: dict[str, Any]) -> Func:
        self.func.returns = [self.new[v] for v in returns]
        self.func.attrs = attrs
        return self.func


def _outline(
    part: Segment,
    later: set[Value | None],
    main: Func,
    needs_grad: set[Value],
    statics: set[Value],
    free: dict[Value, Op],
) -> tuple[Func, list[Value], list[Value]]:
    """The layer's func, the call's operands and results."""
    kinds = main.attrs["results"]
    assert isinstance(kinds, list)
    kind_of = {v: str(k) for v, k in zip(main.returns, kinds) if str(k) != "loss"}
    made = [r for op in part.ops for r in op.results]
    loss = [v for v in main.returns[:1] if v in made]
    values = [v for v in made if v in later and v not in loss]
    buffers = [v for v in made if v in kind_of]
    outputs = [v for v in [*loss, *values, *buffers] if v is not None]

    inputs = _inputs(part.ops, free)
    prefix = re.sub(r"@\d+", "", part.layer) + "." if part.layer else ""
    ranks = {"activation": 0, "input": 1, "prelude": 2}
    roles = {v: "prelude" if v in statics else str(v.attrs.get("role", "activation")) for v in inputs}
    inputs.sort(key=lambda v: ranks.get(roles[v], 3))
    builder = _Builder("layer")
    several = sum(roles[v] == "activation" for v in inputs) > 1
    count = 0
    for v in inputs:
        attrs: dict[str, Any] = {"role": roles[v]}
        if roles[v] == "activation":
            wish = f"x{count}" if several else "x"
            count += 1
            attrs["grad"] = v in needs_grad
        elif roles[v] == "prelude":
            wish = re.sub(r"_\d+$", "", v.name)
        elif roles[v] == "input":
            wish = re.sub(r"^batch\.", "", v.name)
            wish = wish if not wish[0].isdigit() else f"input_{wish}"
            attrs["path"] = v.attrs["path"]
        else:
            wish = v.name.removeprefix(prefix)
            if roles[v] == "param":
                attrs["grad"] = v in needs_grad
            if roles[v] == "constant":
                attrs["digest"] = v.attrs.get("digest")
        builder.param(v, wish, attrs)
    builder.ops(part.ops, free)
    results = ["value"] * (len(loss) + len(values))
    results += [f"buffer:{kind_of[v].removeprefix('buffer:').removeprefix(prefix)}" for v in buffers]
    grads = [v in needs_grad for v in outputs]
    return builder.finish(outputs, {"kind": "layer", "results": results, "grad": grads}), inputs, outputs


def _once(outputs: list[Value], main: Func) -> list[Value]:
    """A buffer's new value that later layers read too is two results of the call; the second one is the buffer's."""
    result: list[Value] = []
    for v in outputs:
        if v in result:
            twin = Value(v.name, v.type)
            main.returns = [twin if r is v else r for r in main.returns]
            v = twin
        result.append(v)
    return result


def _name_results(outputs: list[Value], layer: str, main: Func, names: Namer) -> None:
    """`%layers.0` for what layer layers.0 gives, `%layers.0.add` where it gives several values, `%loss`."""
    kinds = main.attrs["results"]
    assert isinstance(kinds, list)
    kind_of = {v: str(k) for v, k in zip(main.returns, kinds)}
    several = sum(v not in kind_of for v in outputs) > 1
    for v in outputs:
        if v in kind_of:
            v.name = names(kind_of[v].replace("buffer:", "new."))
        else:
            v.name = names(f"{layer}.{re.sub(r'_[0-9]+$', '', v.name)}" if several else layer)


def structure(func: Func) -> str:
    """Equal for funcs that differ in nothing but their own name and their source lines."""

    def param(p: Value) -> str:
        return f"{p!r} {sorted((k, str(a)) for k, a in p.attrs.items())}"

    lines = [*map(param, func.params)]
    for op in func.ops:
        lines.append(f"{op.results} = {op.name} {op.operands} {sorted((k, repr(a)) for k, a in op.attrs.items())}")
    lines.append(f"return {func.returns} {sorted((k, repr(a)) for k, a in func.attrs.items())}")
    return "\n".join(lines)


class _LayerNames:
    """The func is named after the class for a numbered module (layers.0: Block -> block), else after the module."""

    def __init__(self, main: Func) -> None:
        listed = main.attrs.get("classes") or []
        assert isinstance(listed, list)
        self.classes = dict(str(item).split("=", 1) for item in listed)
        self.layers = Namer()

    def layer_name(self, part: Segment) -> str:
        return self.layers(part.layer or "model")

    def func_name(self, part: Segment) -> str:
        plain = [re.sub(r"@\d+$", "", p) for p in part.path]
        while plain and plain[-1].isdigit() and ".".join(plain) not in self.classes:
            plain.pop()  # a container that is not a module of its own class: layers.0.1 of lists of lists
        if not plain:
            return "model"
        name = plain[-1]
        if name.isdigit():
            name = re.sub(
                r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", self.classes[".".join(plain)]
            ).lower()
        return re.sub(r"\W", "_", name) or "layer"


__all__ = ["Atom", "OutlineLayers", "gradient_values", "mutated_buffers", "structure"]
