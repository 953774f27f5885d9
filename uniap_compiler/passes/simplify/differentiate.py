"""Pass differentiate: forward and backward per distinct layer, and @step, which calls all of them.

    func @step(...) -> (tensor<f32>, ...) attributes {results = ["loss", "grad:embed.weight", ...]} {
      %h0, %s0 = plan.call @embed.forward(...) {layer = "embed", phase = "forward"}
      %loss, %s1 = plan.call @head.forward(%h0, ...) {layer = "head", phase = "forward"}
      %d.loss = aten.full {size = [], fill_value = 1.0, dtype = f32}
      %d.h0, %d.head.weight = plan.call @head.backward(..., %s1, %d.loss) {layer = "head", phase = "backward"}
      %d.embed.weight = plan.call @embed.backward(..., %s0, %d.h0) {layer = "embed", phase = "backward"}

bridge/joint.py derives one layer.  Where a value has several users their gradients are added in @step; a parameter
without a gradient returns `none`, not zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from uniap_compiler.bridge.joint import differentiate
from uniap_compiler.bridge.unify import Mismatch
from uniap_compiler.ir import Atom, Diagnostic, Func, Module, Namer, Op, Value

from .canonicalize import canonicalize


@dataclass(frozen=True)
class Differentiate:
    name: ClassVar[str] = "differentiate"
    requires: ClassVar[tuple[str, ...]] = ("layered",)
    ensures: ClassVar[str] = "differentiated"

    def run(self, module: Module, session: Any) -> str:
        pairs: dict[str, tuple[Func, Func | None]] = {}
        for func in [f for f in module.funcs.values() if f.attrs.get("kind") == "layer"]:
            try:
                pairs[func.name] = differentiate(func)
            except Mismatch as error:
                raise Diagnostic(
                    f"the derivative of @{func.name} changes with the batch size",
                    op=error.op,
                    func=func,
                    notes=[str(error)],
                ) from None
        main = module.funcs.pop("main")
        for name, (forward, backward) in pairs.items():
            del module.funcs[name]
            module.add(forward)
            if backward is not None:
                canonicalize(backward)
                module.add(backward)
        step = module.add(_step(main, pairs))
        kinds = step.attrs["results"]
        assert isinstance(kinds, list)
        if all(v is None for v, k in zip(step.returns, kinds) if str(k).startswith("grad:")):
            raise Diagnostic(
                "the loss depends on no parameter that is trained", func=step, help="look for a detach() or no_grad()"
            )
        return f"{len(pairs)} layers differentiated, {sum(b is not None for _, b in pairs.values())} with a backward"


def _step(main: Func, pairs: dict[str, tuple[Func, Func | None]]) -> Func:
    step = Func("step", [Value(p.name, p.type, dict(p.attrs)) for p in main.params])
    namer = Namer(step)
    new: dict[Value, Value] = dict(zip(main.params, step.params))
    calls: list[tuple[Op, dict[str, Value], dict[str, Value]]] = []
    # the call in main; the callee's params and outputs, and what it saved, by name, as values of @step
    for op in main.ops:
        operands = [new[v] if v is not None else None for v in op.flat_operands()]
        if op.symbol not in pairs:
            new.update((r, Value(namer(r.name), r.type)) for r in op.results)
            step.ops.append(
                Op(op.name, operands, [new[r] for r in op.results], {**op.attrs, "phase": "prelude"}, op.symbol, op.loc)
            )
            continue
        forward = pairs[op.symbol][0]
        new.update((r, Value(namer(r.name), r.type)) for r in op.results)
        saved = [
            Value(namer(f"{op.attrs['layer']}.{v.name}"), v.type)
            for v in forward.returns[len(op.results) :]
            if v is not None
        ]
        results = [*(new[r] for r in op.results), *saved]
        step.ops.append(Op(op.name, operands, results, {**op.attrs, "phase": "forward"}, forward.name, op.loc))
        known = dict(zip((p.name for p in forward.params), (o for o in operands if o is not None), strict=True))
        named = [(v.name, r) for v, r in zip(forward.returns, results, strict=True) if v is not None]
        known.update(named[: len(op.results)])
        calls.append((op, known, dict(named[len(op.results) :])))

    loss = new[main.returns[0]]  # type: ignore[index]
    gradients: dict[Value, Value] = {}
    gradients[loss] = Value(namer(f"d.{loss.name}"), loss.type)
    step.ops.append(
        Op("aten.full", [], [gradients[loss]], {"size": [], "fill_value": 1.0, "dtype": Atom(loss.type.dtype)})
    )
    for op, known, stored in reversed(calls):
        backward = pairs[str(op.symbol)][1]
        if backward is not None:
            _call_backward(step, namer, op, backward, known, stored, gradients)

    kinds = main.attrs["results"]
    assert isinstance(kinds, list)
    trained = [p for p in step.params if p.attrs.get("grad") is True]
    step.returns = [*(new[v] if v is not None else None for v in main.returns), *(gradients.get(p) for p in trained)]
    step.attrs = {**main.attrs, "kind": "step", "results": [*kinds, *(f"grad:{p.attrs['path']}" for p in trained)]}
    return step


def _call_backward(
    step: Func,
    namer: Namer,
    op: Op,
    backward: Func,
    known: dict[str, Value],
    stored: dict[str, Value],
    gradients: dict[Value, Value],
) -> None:
    operands: list[Value] = []
    tangents = [p for p in backward.params if p.attrs.get("role") == "tangent"]
    if not any(known[str(p.attrs["of"])] in gradients for p in tangents):
        return
    for p in backward.params:
        if p.attrs.get("role") != "tangent":
            operands.append(stored[str(p.attrs["of"])] if p.attrs.get("role") == "saved" else known[p.name])
            continue
        value = known[str(p.attrs["of"])]
        if value not in gradients:  # no later layer has a gradient for this result: it contributes nothing
            zeros = Value(namer(f"d.{value.name}"), value.type)
            step.ops.append(
                Op("aten.zeros", [], [zeros], {"size": list(value.type.shape), "dtype": Atom(value.type.dtype)})
            )
            gradients[value] = zeros
        operands.append(gradients[value])
    kinds = backward.attrs["results"]
    assert isinstance(kinds, list)
    targets = [known[str(k).removeprefix("grad:")] for k in kinds]
    results = [Value(namer(f"d.{t.name}"), t.type) for t in targets]
    step.ops.append(
        Op("plan.call", operands, results, {"layer": op.attrs["layer"], "phase": "backward"}, backward.name, op.loc)
    )
    for target, result in zip(targets, results):
        if target in gradients:
            total = Value(namer(f"d.{target.name}"), target.type)
            step.ops.append(Op("aten.add.Tensor", [gradients[target], result], [total]))
            gradients[target] = total
        else:
            gradients[target] = result
