"""Pass decompose-losses: cross entropy in parts, so that a split class dim falls out of the parts' rules.

    %loss, %lse = nn.cross_entropy(%logits, %target) {ignore_index = -100}
      ->
    %max    = aten.amax(%logits) {dim = [-1]}                               a max over the class dim
    %total  = nn.sum_exp(%logits, %max)                                     a sum over the class dim
    %log    = aten.log(%total)
    %lse    = aten.add.Tensor(%log, %max)
    %picked = nn.pick(%logits, %target) {ignore_index = -100}               a sum too: 0 outside the slice
    %nll    = aten.sub.Tensor(%lse, %picked)
    %ignored = aten.eq.Scalar(%target) {other = -100}
    %loss   = aten.masked_fill.Scalar(%nll, %ignored) {value = 0.0}

Only forward funcs: the derivative is nn.cross_entropy_backward, which reads %lse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from uniap_compiler.ir import Func, Module, Namer, Op, TensorType, Value


@dataclass(frozen=True)
class DecomposeLosses:
    name: ClassVar[str] = "decompose-losses"
    requires: ClassVar[tuple[str, ...]] = ("differentiated",)
    ensures: ClassVar[str | None] = None

    def run(self, module: Module, session: Any) -> str:
        return f"{sum(map(decompose_losses, module.funcs.values()))} losses decomposed"


def decompose_losses(func: Func) -> int:
    """Returns how many."""
    namer = Namer(func)
    ops: list[Op] = []
    count = 0
    for op in func.ops:
        if op.name == "nn.cross_entropy":
            ops += _parts(op, namer)
            count += 1
        else:
            ops.append(op)
    func.ops = ops
    return count


def _parts(op: Op, namer: Namer) -> list[Op]:
    logits, target = op.operands
    loss, lse = op.results
    assert isinstance(logits, Value) and isinstance(target, Value)
    ignore = op.attrs["ignore_index"]

    def value(name: str, dtype: str = loss.type.dtype) -> Value:
        return Value(namer(name), TensorType(loss.type.shape, dtype))

    largest, total, log, picked = value("max"), value("total"), value("log"), value("picked")
    nll, ignored = value("nll"), value("ignored", "i1")
    parts = [
        Op("aten.amax", [logits], [largest], {"dim": [-1]}),
        Op("nn.sum_exp", [logits, largest], [total]),
        Op("aten.log", [total], [log]),
        Op("aten.add.Tensor", [log, largest], [lse]),
        Op("nn.pick", [logits, target], [picked], {"ignore_index": ignore}),
        Op("aten.sub.Tensor", [lse, picked], [nll]),
        Op("aten.eq.Scalar", [target], [ignored], {"other": ignore}),
        Op("aten.masked_fill.Scalar", [nll, ignored], [loss], {"value": 0.0}),
    ]
    for part in parts:
        part.loc = op.loc
    return parts
