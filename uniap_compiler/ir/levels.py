"""The levels of a module, and what each promises: one table of (selector, check, sentence).

captured         one func @main of aten and nn ops
layered          one func per distinct layer; @main is calls
differentiated   a forward and a backward func per layer; @step calls them
annotated        every op of them has a sharding rule
planned          every call has a stage and a strategy
sharded          one func pair per layer and strategy, collectives explicit, layouts over the mesh
staged           one func per stage and phase
local            the shapes that one device holds, no layouts
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .affine import Affine
from .attributes import Struct
from .core import Func, Module, Op
from .ops import OPS, is_own
from .rules import Rule

LEVELS = ("captured", "layered", "differentiated", "annotated", "planned", "sharded", "staged", "local")


@dataclass(frozen=True)
class Place:
    """Where a check looks: the module, a func of it, or an op of the func."""

    module: Module
    func: Func | None = None
    op: Op | None = None

    @property
    def f(self) -> Func:
        assert self.func is not None
        return self.func

    @property
    def o(self) -> Op:
        assert self.op is not None
        return self.op


@dataclass(frozen=True)
class Row:
    """At the levels first..last, every place that `select` picks must satisfy `holds`; else `sentence` is the error."""

    first: str
    last: str
    on: str
    select: Callable[[Place], bool]
    holds: Callable[[Place], bool]
    sentence: str

    def places(self, module: Module) -> Iterator[Place]:
        if self.on == "module":
            yield Place(module)
        elif self.on == "func":
            yield from (Place(module, func) for func in module.funcs.values())
        else:
            yield from (Place(module, func, op) for func in module.funcs.values() for op in func.ops)


def always(_: Place) -> bool:
    return True


def kind(*kinds: str) -> Callable[[Place], bool]:
    return lambda p: p.f.attrs.get("kind") in kinds


def named(*names: str) -> Callable[[Place], bool]:
    return lambda p: p.f.name in names


def _call(p: Place) -> bool:
    return p.o.name == "plan.call"


def _layer_call(p: Place) -> bool:
    return _call(p) and p.f.name == "step" and p.o.attrs.get("phase") in ("forward", "backward")


def _callee(p: Place) -> Func | None:
    return p.module.funcs.get(p.o.symbol or "")


def _roles(*roles: str) -> Callable[[Place], bool]:
    return lambda p: all(v.attrs.get("role") in roles for v in p.f.params)


def _one_kind_per_result(p: Place) -> bool:
    results = p.f.attrs.get("results")
    return results is None or isinstance(results, (list, tuple)) and len(results) == len(p.f.returns)


def _first_is_loss(p: Place) -> bool:
    results = p.f.attrs.get("results")
    if not isinstance(results, (list, tuple)) or list(results[:1]) != ["loss"] or not p.f.returns:
        return False
    loss = p.f.returns[0]
    return loss is not None and loss.type.shape == ()


def _acyclic(p: Place) -> bool:
    """No func calls itself, directly or through others."""
    calls = {f.name: [op.symbol for op in f.ops if op.name == "plan.call"] for f in p.module.funcs.values()}
    done: set[str] = set()

    def ends(name: str, path: tuple[str, ...]) -> bool:
        if name in path:
            return False
        if name not in done and name in calls:
            if not all(ends(str(callee), (*path, name)) for callee in calls[name]):
                return False
            done.add(name)
        return True

    return all(ends(name, ()) for name in calls)


def _forward_of(p: Place) -> Func | None:
    return p.module.funcs.get(str(p.f.attrs.get("of")))


def _knows_forward_values(p: Place) -> bool:
    """Saved values, tangents and kept parameters of a backward func are values of its forward func."""
    forward = _forward_of(p)
    if forward is None:
        return False
    types = {v.name: v.type for v in forward.values()}
    for param in p.f.params:
        name = str(param.attrs.get("of", param.name))
        known = types.get(name)
        if known is None or (known.shape, known.dtype) != (param.type.shape, param.type.dtype):
            return False
    return True


def _gradients_of_parameters(p: Place) -> bool:
    forward, results = _forward_of(p), p.f.attrs.get("results")
    if forward is None or not isinstance(results, (list, tuple)):
        return False
    types = {v.name: v.type for v in forward.params}
    for role, value in zip(results, p.f.returns):
        param = types.get(str(role).removeprefix("grad:"))
        if not str(role).startswith("grad:") or param is None or value is not None and value.type.shape != param.shape:
            return False
    return True


def _in_place(op: Op) -> bool:
    base = op.name.split(".")[1]
    return op.name.startswith("aten.") and base.endswith("_") and not base.startswith("__")


def _no_layouts(p: Place) -> bool:
    return all(v.type.layout is None for v in p.f.values())


def _fixed_sizes(p: Place) -> bool:
    return not any(isinstance(d, Affine) for v in p.f.values() for d in v.type.shape)


def _segment(p: Place) -> bool:
    return "args" in p.f.attrs


def _one_role_per_parameter(p: Place) -> bool:
    args = p.f.attrs["args"]
    return isinstance(args, (list, tuple)) and len(args) == len(p.f.params)


def _dialects(*names: str) -> Callable[[Place], bool]:
    """Ops of these dialects; where torch's may stand, a user's own may too."""
    prefixes = tuple(f"{name}." for name in names)
    return lambda p: p.o.name.startswith(prefixes) or "aten" in names and is_own(p.o.name)


ROWS = (
    Row("captured", "local", "func", always, _one_kind_per_result, "{func} does not name every result in `results`"),
    Row("captured", "local", "module", always, _acyclic, "the calls form a cycle"),
    Row("captured", "annotated", "op", always, lambda p: not _in_place(p.o), "{op} changes its operand in place"),
    # captured
    Row("captured", "captured", "module", always, lambda p: list(p.module.funcs) == ["main"], "@main is the only func"),
    Row("captured", "captured", "op", always, _dialects("aten", "nn"), "{op} is neither an aten nor an nn op"),
    # layered
    Row("layered", "layered", "module", always, lambda p: "main" in p.module.funcs, "the func @main is missing"),
    Row("layered", "layered", "op", lambda p: p.f.name == "main", _call, "@main has only calls, not {op}"),
    Row(
        "layered", "layered", "op", lambda p: p.f.name != "main", lambda p: not _call(p), "the layer {func} has a call"
    ),
    Row(
        "layered",
        "layered",
        "op",
        lambda p: p.f.name == "main",
        lambda p: "layer" in p.o.attrs,
        "a call of a layer does not name its `layer`",
    ),
    Row(
        "captured",
        "layered",
        "func",
        named("main"),
        _roles("input", "param", "buffer", "constant", "random"),
        "a parameter of {func} has no `role`: input, param, buffer, constant or random",
    ),
    Row(
        "captured", "layered", "func", named("main"), _first_is_loss, "the first result of {func} is not a scalar loss"
    ),
    Row(
        "layered",
        "layered",
        "func",
        kind("layer", "prelude"),
        _roles("activation", "input", "param", "buffer", "constant", "prelude", "random"),
        "a parameter of {func} has no `role`: activation, input, param, buffer, constant, prelude or random",
    ),
    # differentiated and later: @step
    Row("differentiated", "sharded", "module", always, lambda p: "step" in p.module.funcs, "the func @step is missing"),
    Row(
        "differentiated",
        "sharded",
        "func",
        named("step"),
        _first_is_loss,
        "the first result of {func} is not a scalar loss",
    ),
    Row(
        "differentiated",
        "sharded",
        "op",
        _layer_call,
        lambda p: (callee := _callee(p)) is not None and callee.attrs.get("kind") == p.o.attrs["phase"],
        "a call's `phase` is not the `kind` of the func that it calls",
    ),
    Row(
        "differentiated",
        "sharded",
        "func",
        kind("backward"),
        lambda p: _forward_of(p) is not None,
        "`of` of {func} names no forward func",
    ),
    Row(
        "differentiated",
        "annotated",
        "func",
        kind("backward"),
        _knows_forward_values,
        "a parameter of {func} stands for no value of its forward func",
    ),
    Row(
        "differentiated",
        "sharded",
        "func",
        kind("backward"),
        _gradients_of_parameters,
        "a result of {func} is not the gradient of a parameter of its forward func",
    ),
    # annotated and later: rules
    Row(
        "annotated",
        "planned",
        "op",
        lambda p: kind("forward", "backward")(p) and not _dialects("comm", "plan")(p),
        lambda p: isinstance(p.o.attrs.get("rule"), Rule),
        "{op} has no sharding rule",
    ),
    # planned: the plan
    Row(
        "planned",
        "planned",
        "op",
        _layer_call,
        lambda p: isinstance(p.o.attrs.get("stage"), int),
        "a call of @step has no `stage`",
    ),
    Row(
        "planned",
        "planned",
        "op",
        _layer_call,
        lambda p: isinstance(p.o.attrs.get("strategy"), Struct),
        "a call of @step has no `strategy`",
    ),
    # staged and local: funcs of a stage
    Row("staged", "local", "func", _segment, _one_role_per_parameter, "{func} does not name every parameter in `args`"),
    Row("local", "local", "func", always, _no_layouts, "{func} still has layouts"),
    Row("local", "local", "func", always, _fixed_sizes, "{func} still has sizes that depend on the batch"),
    Row("local", "local", "op", always, _dialects("aten", "nn", "comm", "plan"), "{op} cannot be generated"),
    Row(
        "local",
        "local",
        "op",
        lambda p: p.o.name in OPS and p.o.name.startswith("comm.") and p.o.name != "comm.wait",
        lambda p: isinstance(p.o.attrs.get("group"), str),
        "{op} does not name its process `group`",
    ),
)

TABLES: dict[str, tuple[Row, ...]] = {
    level: tuple(r for r in ROWS if LEVELS.index(r.first) <= n <= LEVELS.index(r.last))
    for n, level in enumerate(LEVELS)
}
