"""What an op that exchanges tokens in forward keeps for its backward.

    %y, %y.kept = nn.experts(%x, ...) {split = #split<t0 = exchange>, keep = true}
    %dx, ... = nn.experts_backward(%dy, none, ..., %y.kept) {split = #split<t0 = exchange>}

Where both exchange the same tokens over the same axes, the tokens that forward has sent need not be sent again: they
stay where their experts are.  How many those are depends on the router; the type says what they are on average.
"""

from __future__ import annotations

from dataclasses import replace

from uniap_compiler.ir import Op, Rule, TensorType, Value

from .choices import result_state
from .graph import BACKWARD, FORWARD, Graph, Step, Tensor, View, grouped

KEEPS = {"nn.experts": "nn.experts_backward"}
_SENT = 3
"""Leading operands of forward that are about tokens: x, choices, weights; backward has them behind its gradient."""


def links(graph: Graph, choice: list[int]) -> dict[Step, Step]:
    """Forward steps that keep what they sent, each with the backward step that reads it."""
    found = {}
    for step in graph.steps:
        if step.phase != FORWARD or step.op.name not in KEEPS or not _only_routes(step, choice):
            continue
        for other in graph.steps:
            if (
                other.phase == BACKWARD
                and other.op.name == KEEPS[step.op.name]
                and _only_routes(other, choice)
                and [t for t, _ in other.reads[1 : 1 + _SENT]] == [t for t, _ in step.reads[:_SENT]]
                and _same_splits(step, other, choice)
            ):
                found[step] = other
                break
    return found


def _only_routes(step: Step, choice: list[int]) -> bool:
    rule = step.op.attrs["rule"]
    assert isinstance(rule, Rule)
    return all(isinstance(pick, str) and rule.split_by(pick) != (pick,) for pick in step.choices[choice[step.index]])


def _same_splits(step: Step, other: Step, choice: list[int]) -> bool:
    """Routes are named by each rule for itself: what they split is compared."""
    pairs = zip(step.reads[:_SENT], other.reads[1 : 1 + _SENT], strict=True)
    return all(a[choice[step.index]] == b[choice[other.index]] for (_, a), (_, b) in pairs)


def keep(op: Op, step: Step, pick: int, mesh: tuple[int, ...], name: str) -> Value:
    """Forward's op gets a second result: x of every choice, [tokens.., k, h], split as the tokens are."""
    rule = op.attrs["rule"]
    assert isinstance(rule, Rule) and rule.operands[0] is not None and rule.operands[1] is not None
    dims = (*rule.operands[1], rule.operands[0][-1])
    inside = {f for group in dims for f in group}
    said = inside | set(rule.keep) | {f for f, _ in rule.reduce}
    reduce = (*rule.reduce, *((f, "copy") for f in rule.factors() if f not in said))
    kept_rule = replace(rule, results=(*rule.results, dims), reduce=reduce, linear=())
    x, index = step.op.flat_operands()[:2]
    assert x is not None and index is not None
    value = Value(name, TensorType((*index.type.shape, x.type.shape[-1]), x.type.dtype))
    sizes = dict(rule.sizes)
    atoms = tuple(sizes[f] for group in dims for f in group)
    view = View(Tensor(-1, value, "op", FORWARD, grouped(dims), atoms), grouped(dims), tuple(range(len(atoms))))
    value.type = value.type.with_layout(view.layout(result_state(kept_rule, 1, step.choices[pick]), mesh))
    op.attrs |= {"rule": kept_rule, "keep": True}
    op.results.append(value)
    return value


def use(op: Op, kept: Value) -> None:
    """Backward's op reads what was kept in place of x."""
    rule = op.attrs["rule"]
    assert isinstance(rule, Rule) and rule.operands[1] is not None and rule.operands[2] is not None
    dims = (*rule.operands[2], rule.operands[1][-1])
    op.operands = [op.operands[0], None, *op.operands[2:], kept]
    op.attrs["rule"] = replace(rule, operands=(rule.operands[0], None, *rule.operands[2:], dims))
