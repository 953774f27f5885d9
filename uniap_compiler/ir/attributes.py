"""What may stand in an attribute dictionary, beside bool, int, float, str, None, Affine, Layout, Rule and lists.

`Atom` is a bare word (`f32`, `contiguous_format`), `Symbol` a reference `@block`, `Struct` a named record
`#strategy<dp = 2, tp = 2>`.  None prints as `none`, True as `true`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Union

from .affine import Affine
from .layouts import Layout
from .rules import Rule


class Atom(str):
    """A bare word; compares equal to the same str."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Atom({str.__repr__(self)})"


class Symbol(str):
    """The name of a func or module-level op, without its `@`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Symbol({str.__repr__(self)})"


@dataclass(frozen=True, slots=True)
class Struct:
    """`#name<key = value, ...>`; fields keep their order.  Lists inside become tuples: a struct can be hashed."""

    name: str
    fields: tuple[tuple[str, Attr], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", tuple((key, _frozen(value)) for key, value in self.fields))

    def __getitem__(self, key: str) -> Attr:
        for name, value in self.fields:
            if name == key:
                return value
        raise KeyError(key)

    def get(self, key: str, default: Attr = None) -> Attr:
        return dict(self.fields).get(key, default)

    def asdict(self) -> dict[str, Attr]:
        return dict(self.fields)


def _frozen(value: Attr) -> Attr:
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


Attr = Union[None, bool, int, float, str, Affine, Layout, Rule, Struct, "Sequence[Attr]"]
Attrs = dict[str, Attr]


def struct(struct_name: str, **fields: Attr) -> Struct:
    return Struct(struct_name, tuple(fields.items()))
