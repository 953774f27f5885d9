"""overlap-gradients: the last backward of a step reduces gradients while it still computes.

    func @stage_0.backward_last(..., %d.w.sum) {args = [..., "grad:w"], results = ["grad:w", ...]}
      %d.w = plan.call @block.dp4.backward(...)
      %d.w_1 = aten.add.Tensor(%d.w.sum, %d.w)                      the sum over the micro-batches so far
      %h = comm.all_reduce_start(%d.w_1) {group = "a_b", op = "sum"}
      ...                                                           the layers before it
      %d.w_2 = comm.wait(%h)

A copy of @stage_i.backward for the last micro-batch of the table.  Gradients are taken together into buckets, in the
order in which they become ready; what is left for @stage_i.reduce_gradients are gradients of copies.  A stage whose
gradients fit one bucket is left alone: there would be nothing behind which the message could hide.  Gradients that are
reduced in another precision are cast before they start and after they have come.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar

from uniap_compiler.ir import ITEM_BYTES, Func, Module, Namer, Op, Value, at, users

from .bucket_collectives import joined

if TYPE_CHECKING:
    from uniap_compiler.passes.manager import Session

_REDUCTIONS = ("comm.all_reduce", "comm.reduce_scatter")


@dataclass(frozen=True)
class OverlapGradients:
    name: ClassVar[str] = "overlap-gradients"
    requires: ClassVar[str] = "local"
    ensures: ClassVar[str] = "local"

    bucket_bytes: int = 4 << 20
    """A message starts when so many bytes of gradients are ready."""

    def run(self, module: Module, session: Session) -> str:
        info = module.find("plan.plan")
        assert info is not None
        accumulated = info.attrs["micro_batches"] != 1
        messages = 0
        for name in [n for n in module.funcs if n.endswith(".reduce_gradients")]:
            stage = name.removesuffix(".reduce_gradients")
            reduce, backward = module.funcs[name], module.funcs.get(f"{stage}.backward")
            if backward is None:
                continue
            found = _reductions(reduce, backward)
            if sum(_bytes(r.operand) for r in found.values()) <= self.bucket_bytes:
                continue
            last = _Last(backward, found, accumulated, self.bucket_bytes)
            messages += last.messages
            module.funcs = _after(module.funcs, backward.name, last.func)
            _forget(reduce, list(found.values()))
            if not reduce.ops and not reduce.returns:
                del module.funcs[name]
        return f"{messages} messages start inside the last backward"


@dataclass(frozen=True)
class _Reduction:
    """What reduce_gradients does with one accumulator: a single collective, whose result is final, or is when cast."""

    operand: Value
    before: Op | None
    op: Op
    after: Op | None
    role: str

    @property
    def ops(self) -> list[Op]:
        return [op for op in (self.before, self.op, self.after) if op is not None]


def _reductions(reduce: Func, backward: Func) -> dict[str, _Reduction]:
    """Role of an accumulator -> its reduction, for those that nothing else touches."""
    args, results, made = _list(reduce, "args"), _list(reduce, "results"), set(_list(backward, "results"))
    readers = users(reduce)
    found = {}
    for value, role in zip(reduce.params, args, strict=True):
        if role not in made:
            continue
        before, sent = _only(readers, reduce, value, ("aten._to_copy",))
        op, came = _only(readers, reduce, sent, _REDUCTIONS)
        after, result = _only(readers, reduce, came, ("aten._to_copy",))
        if op is not None and not readers[result] and reduce.returns.count(result) == 1:
            found[role] = _Reduction(value, before, op, after, results[reduce.returns.index(result)])
    return found


def _only(
    readers: Mapping[Value, list[Op]], func: Func, value: Value, names: Collection[str]
) -> tuple[Op | None, Value]:
    """The op of one of these names that alone reads the value, and its result; else none, and the value."""
    ops = readers[value]
    if len(ops) != 1 or ops[0].name not in names or value in func.returns:
        return None, value
    return ops[0], ops[0].results[0]


class _Last:
    """Builds @stage_i.backward_last.  func: the result.  messages: how many start inside it."""

    def __init__(self, backward: Func, found: dict[str, _Reduction], accumulated: bool, limit: int) -> None:
        self.func = backward.clone(f"{backward.name}_last")
        self.namer, self.messages = Namer(self.func), 0
        self.waits: list[Op] = []
        self.final: dict[Value, Value] = {}
        """gradient of the last micro-batch -> the reduced sum over all of them"""
        args, results = _list(self.func, "args"), _list(self.func, "results")
        ready = {v: role for v, role in zip(self.func.returns, results, strict=True) if v is not None and role in found}
        waiting: dict[tuple[object, ...], list[tuple[Value, Value, _Reduction]]] = {}
        """per kind of message: (gradient, value to reduce, what reduce_gradients did with it)"""
        ops: list[Op] = []
        for op in self.func.ops:
            ops.append(op)
            for value in [r for r in op.results if r in ready]:
                total = value
                if accumulated:
                    held = Value(self.namer(f"{value.name}.sum"), value.type)
                    self.func.params.append(held)
                    args.append(ready[value])
                    total = Value(self.namer(value.name), value.type)
                    ops.append(Op("aten.add.Tensor", [held, value], [total]))
                how = found[ready[value]]
                if how.before is not None:
                    total = self._again(how.before, total, ops)
                key = (how.op.name, how.op.attrs["group"], how.op.attrs.get("op"), total.type.dtype)
                bucket = waiting.setdefault(key, [])
                bucket.append((value, total, how))
                if sum(_bytes(sent) for _, sent, _ in bucket) >= limit:
                    ops.append(self._start(waiting.pop(key)))
        ops += [self._start(bucket) for bucket in waiting.values()]
        self.func.ops = ops + self.waits
        self.func.returns = [self.final.get(v, v) if v is not None else None for v in self.func.returns]
        self.func.attrs["phase"] = "backward_last"
        self.func.attrs["args"] = list(args)
        self.func.attrs["results"] = [found[role].role if role in found else role for role in results]

    def _again(self, op: Op, operand: Value, ops: list[Op]) -> Value:
        """A copy of a cast."""
        result = Value(self.namer(operand.name), op.results[0].type)
        ops.append(Op(op.name, [operand], [result], dict(op.attrs), loc=op.loc))
        return result

    def _start(self, bucket: list[tuple[Value, Value, _Reduction]]) -> Op:
        """The message of a bucket; its wait is kept for the end of the func."""
        self.messages += 1
        sent = [total for _, total, _ in bucket]
        how = [reduction.op for _, _, reduction in bucket]
        handle = Value(self.namer(f"{sent[0].name}.handle"), sent[0].type)
        results = [Value(self.namer(total.name), op.results[0].type) for total, op in zip(sent, how)]
        self.waits.append(Op("comm.wait", [handle], results))
        for (value, _, reduction), result in zip(bucket, results):
            self.final[value] = self._again(reduction.after, result, self.waits) if reduction.after else result
        message = how[0] if len(how) == 1 else joined(how)
        operands: list[Value | list[Value | None] | None] = [sent[0] if len(sent) == 1 else [*sent]]
        return Op(f"{message.name}_start", operands, [handle], dict(message.attrs))


def _forget(reduce: Func, found: Sequence[_Reduction]) -> None:
    """Take the reductions of these accumulators out of reduce_gradients."""
    operands, ops = {r.operand for r in found}, {op for r in found for op in r.ops}
    gone = {r for op in ops for r in op.results}
    args, results = _list(reduce, "args"), _list(reduce, "results")
    reduce.ops = [op for op in reduce.ops if op not in ops]
    reduce.attrs["args"] = [role for role, p in zip(args, reduce.params, strict=True) if p not in operands]
    reduce.attrs["results"] = [role for role, v in zip(results, reduce.returns, strict=True) if v not in gone]
    reduce.params = [p for p in reduce.params if p not in operands]
    reduce.returns = [v for v in reduce.returns if v not in gone]


def _after(funcs: dict[str, Func], place: str, func: Func) -> dict[str, Func]:
    """The funcs with `func` behind the one called `place`."""
    result: dict[str, Func] = {}
    for name, other in funcs.items():
        result[name] = other
        if name == place:
            result[func.name] = func
    return result


def _list(func: Func, key: str) -> list[str]:
    roles = func.attrs[key]
    assert isinstance(roles, (list, tuple))
    return [str(role) for role in roles]


def _bytes(value: Value) -> int:
    return ITEM_BYTES[value.type.dtype] * prod(at(d, 1) for d in value.type.shape)
