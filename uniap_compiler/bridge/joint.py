"""The derivative of one func: forward ops as they are, and the ops that torch's autograd runs for it backwards.

    @block(%x {grad = true}, %w {grad = true}) -> (%y)
      -->  @block.forward(%x, %w) -> (%y, %saved...)        @block.backward(%x, %w, %saved..., %d.y) -> (%d.x, %d.w)

The func is run on fake tensors with autograd on, under a Recorder: what is dispatched during the forward run must be
the func's own ops, what is dispatched during `torch.autograd.grad` is the backward.  Because both runs share one table
of values, a backward op names the very forward value that it reads; nothing has to be matched afterwards, as it would
with torch's joint graph, and no private interface of AOTAutograd is used.  docs/capture.md says more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from uniap_compiler.ir import Affine, Func, Loc, Namer, Op, Symbol, Value, at

from .interpret import operand_values, run_op
from .recorder import Recorder
from .schema import TORCH_DTYPES
from .unify import BATCHES, Mismatch, unify

VIEWS = frozenset(
    {
        "aten.view",
        "aten._unsafe_view",
        "aten.reshape",
        "aten.t",
        "aten.transpose.int",
        "aten.permute",
        "aten.expand",
        "aten.unsqueeze",
        "aten.squeeze",
        "aten.squeeze.dim",
        "aten.squeeze.dims",
        "aten.unflatten.int",
        "aten.flatten",
        "aten.alias",
        "aten.detach",
        "aten.view_as",
        "aten.expand_as",
    }
)
"""Ops whose result is the same memory (or, for expand, more of it): recomputed, never saved."""
COPIES = frozenset({"aten.clone"})
PARTS = COPIES | frozenset(
    {
        "aten.slice.Tensor",
        "aten.select.int",
        "aten.split.Tensor",
        "aten.split_with_sizes",
        "aten.narrow",
        "aten.unbind.int",
        "aten.chunk",
    }
)
"""Views of a part, and plain copies: recomputed when what they read is at hand anyway."""


@dataclass
class _Recording:
    """One run at one batch size: a func from forward params to (outputs, gradients)."""

    func: Func
    split: int  # ops before are forward
    outputs: int
    tangents: list[int]  # positions of the outputs that have a tangent


def differentiate(func: Func) -> tuple[Func, Func | None]:
    """(forward, backward); backward is None when nothing needs a gradient.  See the contract in docs/ir.md."""
    first = _record(func, BATCHES[0])
    if any(isinstance(d, Affine) for v in func.values() for d in v.type.shape):
        joint = unify(first.func, _record(func, BATCHES[1]).func)
    else:
        joint = first.func
    return _partition(func, joint, first)


def _record(func: Func, batch: int) -> _Recording:
    namer = Namer(func)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        origin: dict[Any, Loc | None] = {}  # autograd node -> location of its forward op
        phase = {"backward": False}
        locs: dict[Value, Loc | None] = {}

        def locate(operands: list[Value]) -> Loc | None:
            if not phase["backward"]:
                return None
            node = torch._C._current_autograd_node()
            if node in origin:
                return origin[node]
            return next((locs[v] for v in operands if locs.get(v) is not None), None)

        recorder = Recorder(namer, locate)
        params, inputs = [], []
        for p in func.params:
            shape = tuple(at(d, batch) for d in p.type.shape)
            tensor = torch.empty(shape, dtype=TORCH_DTYPES[p.type.dtype])
            if p.attrs.get("grad") is True:
                tensor.requires_grad_()
            value = Value(p.name, _static(p, batch), dict(p.attrs))
            params.append(value)
            inputs.append(tensor)
            recorder.bind(tensor, value)
        env: dict[Value, Any] = dict(zip(func.params, inputs))
        with torch.enable_grad(), recorder:
            for op in func.ops:
                mark = len(recorder.ops)
                results = run_op(op, operand_values(op, env), batch=batch)
                _adopt(op, recorder, mark, results)
                env.update(zip(op.results, results, strict=True))
                for r in results:
                    _register_nodes(r, op.loc, origin)
                for recorded in recorder.ops[mark:]:
                    locs.update((v, op.loc) for v in recorded.results)
            outputs = _distinct([env[v] if v is not None else None for v in func.returns], params, recorder)
            split = len(recorder.ops)
            phase["backward"] = True
            kinds = result_kinds(func)
            wanted = func.attrs.get("grad") or [True] * len(kinds)
            assert isinstance(wanted, list)
            differentiable = [
                i
                for i, v in enumerate(func.returns)
                if v is not None and kinds[i] == "value" and wanted[i] and outputs[i].requires_grad
            ]
            leaves = [t for t in inputs if t.requires_grad]
            tangents: list[Any] = []
            for i in differentiable:
                out = recorder.value_of(outputs[i])
                with _paused(recorder):
                    tangent = torch.empty_like(outputs[i], requires_grad=False)
                value = Value(namer(f"d.{out.name}"), _static(out, batch), {"role": "tangent", "of": out.name})
                params.append(value)
                recorder.bind(tangent, value)
                tangents.append(tangent)
            grads: tuple[Any, ...] = ()
            if leaves and differentiable:
                outs = [outputs[i] for i in differentiable]
                grads = torch.autograd.grad(outs, leaves, tangents, allow_unused=True)
        by_leaf = dict(zip(map(id, leaves), grads))
        returns: list[Value | None] = [recorder.value_of(t) if t is not None else None for t in outputs]
        for t in inputs:
            grad = by_leaf.get(id(t))
            returns.append(recorder.value_of(grad) if grad is not None else None)
        del mode
    return _Recording(
        Func(func.name, params, recorder.ops, returns, dict(func.attrs)), split, len(func.returns), differentiable
    )


def _distinct(outputs: list[Any], params: list[Value], recorder: Recorder) -> list[Any]:
    """Results that are one value (x and x.detach()), or a param, become values of their own.

    A tangent names its result, and a gradient its param: what shares a name would share the gradient too.
    """
    taken = set(params)
    found = []
    for tensor in outputs:
        if tensor is not None and recorder.value_of(tensor) in taken:
            tensor = recorder.twin(tensor)
        if tensor is not None:
            taken.add(recorder.value_of(tensor))
        found.append(tensor)
    return found


def _static(value: Value, batch: int) -> Any:
    return type(value.type)(tuple(at(d, batch) for d in value.type.shape), value.type.dtype)


class _paused:
    """Leaves the recorder for a moment."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def __enter__(self) -> None:
        self.recorder.__exit__(None, None, None)

    def __exit__(self, *_: object) -> None:
        self.recorder.__enter__()


def result_kinds(func: Func) -> list[str]:
    """The func's `results` attribute, "value" for each when there is none."""
    kinds = func.attrs.get("results")
    return [str(k) for k in kinds] if isinstance(kinds, list) else ["value"] * len(func.returns)


def _adopt(op: Op, recorder: Recorder, mark: int, results: list[Any]) -> None:
    """Give what was recorded for `op` the op's own names and location."""
    recorded = recorder.ops[mark:]
    for value, tensor in zip(op.results, results, strict=True):
        own = recorder.value_of(tensor)
        if any(own in r.results for r in recorded):
            recorder.namer.taken.discard(own.name)
            own.name = value.name
    for r in recorded:
        r.loc = op.loc
        if r.name == op.name:
            for key, attr in op.attrs.items():
                if key not in r.attrs and key in ("rule",):
                    r.attrs[key] = attr


def _register_nodes(tensor: Any, loc: Loc | None, origin: dict[Any, Loc | None]) -> None:
    """This tensor's autograd node, and those behind it that are not known yet, come from `loc`."""
    stack = [tensor.grad_fn] if isinstance(tensor, torch.Tensor) and tensor.grad_fn is not None else []
    while stack:
        node = stack.pop()
        if node is None or node in origin:
            continue
        origin[node] = loc
        stack.extend(n for n, _ in node.next_functions)


def _partition(func: Func, joint: Func, recording: _Recording) -> tuple[Func, Func | None]:
    """Cut the joint func into forward and backward; what backward reads of forward is saved or recomputed."""
    split, outputs = recording.split, recording.outputs
    n = len(func.params)
    params, tangents = joint.params[:n], joint.params[n:]
    forward_ops, backward_ops = joint.ops[:split], joint.ops[split:]
    grads = joint.returns[outputs:]

    live: set[Value] = {g for g in grads if g is not None}
    kept: list[Op] = []
    for op in reversed(backward_ops):
        if any(r in live for r in op.results):
            kept.append(op)
            live.update(v for v in op.flat_operands() if v is not None)
    kept.reverse()

    own = {r for op in kept for r in op.results} | set(tangents)
    producer = {r: op for op in forward_ops for r in op.results}
    needed = [v for v in _reads(kept, grads) if v not in own]
    recomputed, saved = _plan_saves(needed, producer, set(params))

    forward = Func(
        f"{func.name}.forward",
        params,
        forward_ops,
        [*joint.returns[:outputs], *saved],
        {
            **{k: a for k, a in func.attrs.items() if k != "grad"},
            "kind": "forward",
            "results": [*result_kinds(func), *["saved"] * len(saved)],
        },
    )
    forward = forward.clone()
    results = [f"grad:{p.name}" for p, g in zip(params, grads) if g is not None]
    if not results:
        return forward, None

    body = [op for op in forward_ops if op in recomputed] + kept
    reads = set(_reads(body, grads))
    backward_params = [p for p in params if p in reads]
    roles = {v: {"role": "saved", "of": v.name} for v in saved}
    roles.update({t: dict(t.attrs) for t in tangents})
    roles.update({p: {k: a for k, a in p.attrs.items() if k != "grad"} for p in backward_params})
    new = {v: Value(v.name, v.type, roles[v]) for v in (*backward_params, *saved, *tangents)}
    ops = []
    for op in body:
        for r in op.results:
            new[r] = Value(r.name, r.type)
        copy = Op(op.name, op.operands, [new[r] for r in op.results], dict(op.attrs), op.symbol, op.loc)
        copy.replace_operands(new.__getitem__)
        ops.append(copy)
    attrs = {"kind": "backward", "of": Symbol(f"{func.name}.forward"), "results": results}
    backward = Func(
        f"{func.name}.backward",
        [new[v] for v in (*backward_params, *saved, *tangents)],
        ops,
        [new[g] for g in grads if g is not None],
        attrs,
    )
    _name_gradients(backward)
    return forward, backward


def _reads(ops: list[Op], returns: list[Value | None]) -> list[Value]:
    """Every value that is read, in order of first reading."""
    values = [v for op in ops for v in op.flat_operands()] + list(returns)
    return list(dict.fromkeys(v for v in values if v is not None))


def _plan_saves(needed: list[Value], producer: dict[Value, Op], params: set[Value]) -> tuple[set[Op], list[Value]]:
    """The forward ops that backward repeats (views, and constants made of nothing), and the values that are saved."""
    recomputed: set[Op] = set()
    saved: list[Value] = []
    parts: list[Value] = []

    def visit(v: Value) -> None:
        if v in params or v in saved:
            return
        op = producer[v]
        operands = [o for o in op.flat_operands() if o is not None]
        if op.name in VIEWS or not operands:
            recomputed.add(op)
            for o in operands:
                visit(o)
        elif op.name in PARTS:
            parts.append(v)
        else:
            saved.append(v)

    for v in needed:
        visit(v)
    for v in parts:
        chain: list[Op] = []
        whole = v
        while whole not in params and whole not in saved and producer[whole].name in VIEWS | PARTS:
            chain.append(producer[whole])
            whole = next(o for o in producer[whole].flat_operands() if o is not None)
        if whole in params or whole in saved:
            recomputed.update(chain)
        elif v not in saved:
            saved.append(v)
    return recomputed, saved


def _name_gradients(backward: Func) -> None:
    """`%d.w` for the gradient of `%w`, where an op of backward made it."""
    made = {r for op in backward.ops for r in op.results}
    taken = {v.name for v in backward.values()}
    results = backward.attrs["results"]
    assert isinstance(results, list)
    for value, result in zip(backward.returns, results):
        name = "d." + str(result).removeprefix("grad:")
        if value in made and name not in taken and value is not None and not value.name.startswith("d."):
            value.name = name
            taken.add(name)


__all__ = ["Mismatch", "differentiate", "result_kinds"]
