"""The table from op names to rules, and what happens to an op that is not in it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from functools import cache

from uniap_compiler.ir import Op, Rule

from .spell import Groups, make_rule, result_shape, shape_of

Entry = Callable[[Op], "Rule | Sequence[Rule]"]

FAMILIES = (
    "pointwise", "contraction", "reduction", "views", "indexing", "creation", "norm", "attention", "convolution",
    "pooling", "losses", "random", "experts",
)  # fmt: skip

_TABLE: dict[str, Entry] = {}
_OWN: dict[str, Entry] = {}


def rule(*names: str) -> Callable[[Entry], Entry]:
    """Registers the decorated function for these ops."""

    def register(entry: Entry) -> Entry:
        for name in names:
            if name in _TABLE:
                raise ValueError(f"two rules for {name}")
            _TABLE[name] = entry
        return entry

    return register


def replace_entry(name: str, entry: Entry) -> None:
    """The rule of an op that is not in these files (own.py)."""
    _OWN[name] = entry


@cache
def _load() -> None:
    for family in FAMILIES:
        importlib.import_module(f"{__package__}.{family}")


def packet(name: str) -> str:
    """The op's name without its overload: `aten.add.Tensor` -> `aten.add`."""
    return ".".join(name.split(".")[:2])


def _entry(name: str) -> Entry | None:
    _load()
    from .pointwise import is_pointwise, pointwise

    found = _TABLE.get(name) or _TABLE.get(packet(name)) or _OWN.get(packet(name))
    return found or (pointwise if is_pointwise(name) else None)


def has_rule(name: str) -> bool:
    """False for an op that no table knows: it is replicated on tensor axes and refused on data axes."""
    return _entry(name) is not None


def names() -> list[str]:
    """Every name that has an entry of its own."""
    _load()
    return sorted(_TABLE)


def alternatives(op: Op) -> list[Rule]:
    """The rules of an op, from the most to the least detailed; an unknown op may not be split at all."""
    entry = _entry(op.name)
    if entry is None:
        return [opaque(op)]
    found = entry(op)
    return [found] if isinstance(found, Rule) else list(found)


def opaque(op: Op) -> Rule:
    """Every dim a factor of its own that cannot be split."""
    operands: list[Groups | None] = [
        None if v is None else [(f"x{p}_{i}",) for i in range(len(v.type.shape))]
        for p, v in enumerate(op.flat_operands())
    ]
    results: list[Groups] = [[(f"y{p}_{i}",) for i in range(len(r.type.shape))] for p, r in enumerate(op.results)]
    sizes = {f"x{p}_{i}": n for p, g in enumerate(operands) if g is not None for i, n in enumerate(shape_of(op, p))}
    sizes |= {f"y{p}_{i}": n for p in range(len(results)) for i, n in enumerate(result_shape(op, p))}
    return make_rule(op, operands, results, sizes, keep=tuple(sizes))
