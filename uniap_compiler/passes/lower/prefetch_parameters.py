"""prefetch-parameters: gather the parameters of the next layer while this one computes.

    %w_1 = comm.all_gather(%w) {group = "a"}         %h = comm.all_gather_start(%w) {group = "a"}    one layer earlier
    %h1 = plan.call @block.forward(%h0, %w_1)  ->    ...
                                                     %w_1 = comm.wait(%h)
                                                     %h1 = plan.call @block.forward(%h0, %w_1)

Only gathers of stored shards in @stage_i.forward and @stage_i.backward move; a start goes no further than one layer
ahead, so at most two layers' parameters are gathered at a time (the working set that the memory model counts).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from uniap_compiler.ir import Func, Module, Namer, Op, Value

if TYPE_CHECKING:
    from uniap_compiler.passes.manager import Session


@dataclass(frozen=True)
class PrefetchParameters:
    name: ClassVar[str] = "prefetch-parameters"
    requires: ClassVar[str] = "local"
    ensures: ClassVar[str] = "local"

    def run(self, module: Module, session: Session) -> str:
        moved = 0
        for func in module.funcs.values():
            if func.attrs.get("phase") in ("forward", "backward") and func.attrs.get("kind") == "segment":
                moved += prefetch(func)
        return f"{moved} gathers start one layer ahead"


def prefetch(func: Func) -> int:
    """Split gathers of parameter shards into a start and a wait; returns how many."""
    args = func.attrs["args"]
    assert isinstance(args, (list, tuple))
    shards = {p for p, role in zip(func.params, args, strict=True) if str(role).startswith("param:")}
    namer = Namer(func)
    layers: list[list[Op]] = [[]]  # ops up to and including one plan.call
    starts: list[list[Op]] = [[]]
    for op in func.ops:
        operands = op.flat_operands()
        if op.name == "comm.all_gather" and operands[0] in shards:
            handle = Value(namer(f"{op.results[0].name}.handle"), op.results[0].type)
            starts[-1].append(Op("comm.all_gather_start", operands, [handle], op.attrs, loc=op.loc))
            layers[-1].append(Op("comm.wait", [handle], op.results, loc=op.loc))
        else:
            layers[-1].append(op)
        if op.name == "plan.call":
            layers.append([])
            starts.append([])
    ops: list[Op] = list(starts[0])
    for n, layer in enumerate(layers):
        if n + 1 < len(layers):
            ops += starts[n + 1]
        ops += layer
    func.ops = ops
    return sum(map(len, starts))
