"""Does a rule fit the op that carries it?"""

from __future__ import annotations

from collections.abc import Sequence

from .affine import at
from .core import Op, Value
from .rules import Dims, Rule

SURROGATE = 1_000_003
"""A large prime in place of the batch: sizes that depend on it are compared at this value."""


def rule_mistake(op: Op, rule: Rule) -> str | None:
    """A sentence, or None: one entry per operand and result, one group per dim, sizes that multiply to the dims."""
    operands = op.flat_operands()
    if len(rule.operands) != len(operands):
        return f"the rule of {op.name} has {len(rule.operands)} operands and the op {len(operands)}"
    if len(rule.results) != len(op.results):
        return f"the rule of {op.name} has {len(rule.results)} results and the op {len(op.results)}"
    sizes = {factor: at(size, SURROGATE) for factor, size in rule.sizes}
    pairs: list[tuple[Value | None, Dims | None]] = [*zip(operands, rule.operands), *zip(op.results, rule.results)]
    for value, dims in pairs:
        if (value is None) != (dims is None):
            shown = "an operand that is none" if value is None else f"%{value.name}"
            return f"the rule of {op.name} and the op do not agree on whether {shown} is there"
        if value is not None and dims is not None and (mistake := _dims_mistake(op, value, dims, sizes)):
            return mistake
    return _clause_mistake(op, rule)


def _dims_mistake(op: Op, value: Value, dims: Dims, sizes: dict[str, int]) -> str | None:
    if len(dims) != len(value.type.shape):
        return f"the rule of {op.name} gives {len(dims)} dims to %{value.name}: {value.type}"
    for dim, group in zip(value.type.shape, dims):
        if not group and dim != 1:
            return f"the rule of {op.name} has a 1 for a dim of size {dim} of %{value.name}"
        if group and all(factor in sizes for factor in group):
            product = 1
            for factor in group:
                product *= sizes[factor]
            if product != at(dim, SURROGATE):
                return f"the factors ({' '.join(group)}) do not multiply to the size {dim} of %{value.name}"
    return None


def _clause_mistake(op: Op, rule: Rule) -> str | None:
    """A factor that some result lacks needs a clause that says what becomes of it."""
    for name, factors in rule.route:
        if name in rule.factors():
            return f"a route of the rule of {op.name} has the name of the factor {name}"
        if any(factor in rule.keep for factor in factors):
            return f"the rule of {op.name} keeps a factor of its route {name} whole"
        for dims in (*rule.operands, *rule.results):
            if dims is not None and sum(_has(dims, factor) for factor in factors) > 1:
                return f"a tensor of {op.name} has several factors of the route {name}"
        if not all(any(_has(dims, factor) for factor in factors) for dims in rule.results):
            return f"a result of {op.name} has no factor of the route {name}"
    reduced = dict(rule.reduce)
    for factor in rule.factors():
        if factor not in reduced and factor not in rule.keep and any(not _has(dims, factor) for dims in rule.results):
            return f"the rule of {op.name} does not say what becomes of the factor {factor}: sum, max, copy or keep"
    return None


def _has(dims: Sequence[Sequence[str]], factor: str) -> bool:
    return any(factor in group for group in dims)
