"""Everything that reaches generated source goes through here: identifiers, literals, comments.

    %layers.0.wq.weight     ->  layers_0_wq_weight          %class     ->  class_
    @block.dp2.tp2.forward  ->  block_dp2_tp2_forward       a string   ->  its repr     a comment  ->  one line

A name from IR text or from the user's model can therefore never become code: an identifier keeps only ASCII letters,
digits and underscores (Python folds other letters, so two different names could meet), a literal is a repr, and a
comment loses its line ends and everything else that does not print.
"""

from __future__ import annotations

import builtins
import keyword
import re

_FORBIDDEN = frozenset(keyword.kwlist) | frozenset(keyword.softkwlist) | frozenset(dir(builtins))
_DTYPES = {
    "f64": "float64", "f32": "float32", "bf16": "bfloat16", "f16": "float16",
    "i64": "int64", "i32": "int32", "i16": "int16", "i8": "int8", "u8": "uint8", "i1": "bool",
}  # fmt: skip


def identifier(wish: str) -> str:
    """A legal Python identifier as near to `wish` as possible; not necessarily unique."""
    name = re.sub(r"[^A-Za-z0-9_]+", "_", wish).strip("_") or "value"
    if name[0].isdigit():
        name = "v" + name
    return name + "_" if name in _FORBIDDEN else name


class Namespace:
    """Unique identifiers of one scope.  The wish is kept when it is legal and free, else it gets a number."""

    def __init__(self, reserved: frozenset[str] | set[str] = frozenset()) -> None:
        self._taken = set(reserved)
        self._next: dict[str, int] = {}

    def create(self, wish: str) -> str:
        base = name = identifier(wish)
        match = re.fullmatch(r"(.*[^_\d])_(\d+)", base)
        if name in self._taken and match:
            base = match[1]  # add_3 becomes add_4, not add_3_1
        n = self._next.get(base, 0)
        while name in self._taken or name in _FORBIDDEN:
            n += 1
            name = f"{base}_{n}"
        self._next[base] = n
        self._taken.add(name)
        return name

    def taken(self) -> frozenset[str]:
        return frozenset(self._taken)


def literal(value: object) -> str:
    """A Python literal of None, bool, int, float, str, or lists, tuples and dicts of them."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(k)}: {literal(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(literal, value)) + ("," if len(value) == 1 else "") + ")"
    if isinstance(value, list):
        if all(type(item) is int for item in value):
            return repr(value)
        return "[" + ", ".join(map(literal, value)) + "]"
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return f'float("{value}")'
    if isinstance(value, str):
        return string(value)
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    raise TypeError(f"no literal for {type(value).__name__}: {value!r}")


def string(text: str) -> str:
    """repr, in double quotes where that needs no escaping; ASCII, so that a file's encoding never matters."""
    quoted = ascii(str(text))
    return f'"{quoted[1:-1]}"' if quoted[0] == "'" and '"' not in quoted and "\\" not in quoted else quoted


def comment(text: str) -> str:
    """One line that prints; also safe between triple quotes."""
    line = "".join(c if c.isprintable() and c.isascii() else " " for c in text)
    return " ".join(line.replace("\\", "/").replace('"', "'").split())


def dtype(name: str) -> str:
    """f32 -> torch.float32."""
    return f"torch.{_DTYPES[name]}"
