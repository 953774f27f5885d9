"""The tables of sharding rules, one file per family of ops.

    @rule("nn.pick")
    def pick(op: Op) -> Rule:
        return spell(op, "b* v, b* -> b* | sum v | offset v | linear 0")

A name without overload covers every overload that has no entry of its own.  An entry returns one rule, or several
from the most to the least detailed when the details may clash with those of another op (`alternatives`).
To add an op: write its rule in the family's file, and a case in tests/rules/.
"""

from .table import alternatives, has_rule, rule

__all__ = ["alternatives", "has_rule", "rule"]
