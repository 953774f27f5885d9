"""Embedding tables and losses: the table's rows and the classes (last dim) may be split by devices that know the
offset of their slice; what lies outside of it counts as 0, so the parts add up.
"""

from __future__ import annotations

from uniap_compiler.ir import Op, Rule

from .spell import spell
from .table import rule

RULES = {
    # weight, indices
    "nn.embedding": "v d, b* -> b* d | sum v | offset v | linear 0",
    "nn.embedding_backward": "b* d, b* -> v d | sum b* | offset v | linear 0",
    "aten.embedding": "v d, b* -> b* d | keep v | linear 0",
    "aten.embedding_dense_backward": "b* d, b* -> v d | sum b* | keep v | linear 0",
    # logits, target
    "nn.cross_entropy": "b* v, b* -> b*, b* | keep v",
    "nn.pick": "b* v, b* -> b* | sum v | offset v | linear 0",
    "nn.pick_backward": "b*, b* -> b* v | offset v | linear 0",  # gradient, target
    # logits, max
    "nn.sum_exp": "b* v, b* -> b* | sum v",
    # gradient, logits, target, logsumexp
    "nn.cross_entropy_backward": "b*, b* v, b*, b* -> b* v | offset v | linear 0",
}


@rule(*RULES)
def table(op: Op) -> Rule:
    return spell(op, RULES[op.name])
