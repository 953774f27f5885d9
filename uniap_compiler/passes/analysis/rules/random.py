"""Random numbers, functions of a scalar key.  Any split is legal: a device knows which places of the whole it draws."""

from __future__ import annotations

from uniap_compiler.ir import Op, Rule

from .spell import make_rule
from .table import rule


@rule("nn.bernoulli", "nn.uniform", "nn.normal")
def draw(op: Op) -> Rule:
    return make_rule(op, [[]], [[(f"d{i}",) for i in range(len(op.results[0].type.shape))]], {})


@rule("nn.random_key")
def key(op: Op) -> Rule:
    return make_rule(op, [[]], [[]], {})
