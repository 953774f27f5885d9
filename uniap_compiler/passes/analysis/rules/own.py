"""Rules that a user adds for ops of their own, from the task file.

    uniap_compiler.add_rule("mylib::gate", "b* d, d -> b* d | linear 0")

The text is that of every rule (ir/rules.py, spell.py).  It travels in the module as `rules`, so that dumps can be
continued without the task file.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from uniap_compiler.ir import Diagnostic, Op, Rule

from . import table
from .spell import spell

_TEXTS: dict[str, str] = {}
_CLAUSES = ("sum", "max", "copy", "keep", "offset", "linear")


def add_rule(op: str, rule: str) -> None:
    """op: `namespace::name`, every overload of it.  Says again what was said before: the last one counts.

    Raises Diagnostic when torch does not know the op or the text cannot be a rule of it.
    """
    namespace, colons, base = op.partition("::")
    packet = getattr(getattr(torch.ops, namespace), base, None) if colons and base.isidentifier() else None
    if packet is None:
        raise Diagnostic(
            f"a rule for {op!r}, which torch does not know", help="import the file that registers the op before"
        )
    if op not in _TEXTS and table.has_rule(f"{namespace}.{base}"):
        raise Diagnostic(f"{op} has a rule already, in uniap_compiler/passes/analysis/rules/")
    schemas = [getattr(packet, overload)._schema for overload in packet.overloads() if "out" not in overload]
    mistakes = [_mistake(rule, schema) for schema in schemas]
    if all(mistakes):
        raise Diagnostic(
            f"{rule!r} cannot be the rule of {op}: {mistakes[0]}", notes=[f"torch's schema is {schemas[0]}"],
            help='for example "b* k, n k -> b* n | sum k": docs/own-ops.md',
        )  # fmt: skip
    _TEXTS[op] = rule
    table.replace_entry(f"{namespace}.{base}", _entry(op, rule))


def add_rules(pairs: Iterable[tuple[str, str]]) -> None:
    for op, rule in pairs:
        add_rule(op, rule)


def own_rules() -> list[tuple[str, str]]:
    """Every rule that was added: (op, text)."""
    return sorted(_TEXTS.items())


def _entry(name: str, text: str) -> table.Entry:
    def entry(op: Op) -> Rule:
        try:
            return spell(op, text)
        except (ValueError, KeyError, IndexError) as error:
            shapes = [list(v.type.shape) if v is not None else None for v in op.flat_operands()]
            raise Diagnostic(
                f"the rule of {name} does not fit: {error}", op=op, loc=op.loc,
                notes=[f"the rule is {text!r}, the operands have the shapes {shapes}"],
            ) from None  # fmt: skip

    return entry


def _mistake(text: str, schema: torch.FunctionSchema) -> str:
    """Why the text cannot be a rule for these arguments; empty when it can."""
    signature, *clauses = text.split("|")
    left, arrow, right = signature.partition("->")
    tensors = sum("Tensor" in str(a.type) for a in schema.arguments)
    given = len(left.split(",")) if left.strip() else 0
    if not arrow:
        return "it has no arrow"
    if given != tensors:
        return f"it spells {given} operands and the op takes {tensors} tensors"
    if len(right.split(",")) != len(schema.returns):
        return f"it spells {len(right.split(','))} results and the op has {len(schema.returns)}"
    names, stated = {*_words(left), *_words(right)}, set()
    for clause in clauses:
        kind, *words = clause.split() or [""]
        if kind not in _CLAUSES:
            return f"{kind!r} is no clause"
        if kind == "linear":
            continue
        for word in words:
            if word not in names:
                return f"{word!r} is no factor of it"
        stated |= set(words)
    lost = sorted(set(_words(left)) - set(_words(right)) - stated - {"1"})
    if lost:
        return f"{lost[0]} is not in the result, and no clause says what becomes of it (sum, max, copy or keep)"
    return ""


def _words(text: str) -> list[str]:
    return text.replace(",", " ").replace("(", " ").replace(")", " ").split()
