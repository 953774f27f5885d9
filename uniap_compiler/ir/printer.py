"""The one textual form of the IR, written.  `parser.parse_module` reads it back: parse(print(m)) equals m.

    // uniap-ir 1
    module @mlp attributes {level = captured} {
      plan.constant @mask {digest = "9f.."}

      func @main(%x: tensor<Bx64xf32> {role = "input"}) -> (tensor<Bx64xf32>) {
        %y = aten.relu(%x) : tensor<Bx64xf32> loc("mlp.py":9 in "up")
        return %y
      }
    }

A name that is not made of letters, digits and `_ . $` is quoted (`%"layers/0 x"`), so every str is a legal name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from .affine import Affine
from .attributes import Atom, Attrs, Struct, Symbol
from .core import Func, Loc, Module, Op, TensorType, Value
from .layouts import Layout
from .rules import Rule

VERSION = 1
HEADER = f"// uniap-ir {VERSION}"
WIDTH = 120

RESERVED = {"true": True, "false": False, "none": None, "inf": float("inf"), "nan": float("nan")}
"""Words in an attribute position that are not atoms."""

_BARE = re.compile(r"[A-Za-z0-9_.$]+").fullmatch
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*").fullmatch
_OPNAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_]+)+").fullmatch


def quote(text: str) -> str:
    """A JSON string on one line; characters that do not print are escaped."""
    return json.dumps(text, ensure_ascii=not text.isprintable())


def value_name(name: str) -> str:
    return f"%{name}" if _BARE(name) else f"%{quote(name)}"


def symbol_name(name: str) -> str:
    return f"@{name}" if _BARE(name) else f"@{quote(name)}"


def print_attr(value: Any) -> str:
    """One attribute value.  Raises TypeError for what is not an attribute."""
    printer = _PRINTERS.get(type(value))
    if printer is None:
        raise TypeError(f"{value!r} of type {type(value).__name__} is not an attribute")
    return printer(value)


def print_attrs(attrs: Attrs) -> str:
    return "{" + ", ".join(f"{_key(k)} = {print_attr(v)}" for k, v in attrs.items()) + "}"


def _key(key: str) -> str:
    return key if _WORD(key) else quote(key)


def _atom(atom: str) -> str:
    plain = _WORD(atom) and atom not in RESERVED and atom != "B"
    return str.__str__(atom) if plain else f"#atom{quote(atom)}"


def _struct(value: Struct) -> str:
    if not _WORD(value.name) or value.name == "rule":
        raise ValueError(f"{value.name!r} cannot name a struct")
    return f"#{value.name}<" + ", ".join(f"{_key(k)} = {print_attr(v)}" for k, v in value.fields) + ">"


def _list(values: list[Any] | tuple[Any, ...]) -> str:
    return "[" + ", ".join(map(print_attr, values)) + "]"


_PRINTERS: dict[type, Callable[[Any], str]] = {
    type(None): lambda _: "none",
    bool: lambda v: "true" if v else "false",
    int: repr,
    float: repr,
    str: quote,
    Atom: _atom,
    Symbol: symbol_name,
    Affine: str,
    Layout: str,
    Rule: str,
    Struct: _struct,
    list: _list,
    tuple: _list,
}


@lru_cache(maxsize=65536)
def print_type(type: TensorType) -> str:
    return str(type)


@lru_cache(maxsize=4096)
def print_loc(loc: Loc) -> str:
    inside = f" in {quote(loc.module)}" if loc.module else ""
    return f"loc({quote(loc.file)}:{loc.line}{inside})"


def print_value(value: Value | None) -> str:
    return "none" if value is None else value_name(value.name)


def print_op(op: Op) -> str:
    """One op on one line, without indentation."""
    if not _OPNAME(op.name):
        raise ValueError(f"{op.name!r} is not an op name: two or more words joined by dots")
    text = op.name if op.symbol is None else f"{op.name} {symbol_name(op.symbol)}"
    if op.results:
        text = ", ".join([value_name(r.name) for r in op.results]) + " = " + text
    if op.operands or op.results:
        text += "(" + ", ".join(map(_operand, op.operands)) + ")"
    if op.attrs:
        text += " " + print_attrs(op.attrs)
    if op.results:
        text += " : " + ", ".join([print_type(r.type) for r in op.results])
    return text if op.loc is None else f"{text} {print_loc(op.loc)}"


def _operand(operand: Any) -> str:
    if isinstance(operand, list):
        return "[" + ", ".join(map(print_value, operand)) + "]"
    return print_value(operand)


def print_func(func: Func, indent: str = "") -> str:
    body = [f"{indent}  {print_op(op)}" for op in func.ops]
    result = f"{indent}  return " + ", ".join(map(print_value, func.returns))
    return "\n".join([_head(func, indent), *body, result.rstrip(), f"{indent}}}"])


def _head(func: Func, indent: str) -> str:
    """On one line where it fits; else one parameter per line, then one result and one attribute per line."""
    params = [
        f"{value_name(p.name)}: {print_type(p.type)}" + (f" {print_attrs(p.attrs)}" if p.attrs else "")
        for p in func.params
    ]
    types = ["none" if v is None else print_type(v.type) for v in func.returns]
    start = f"{indent}func {symbol_name(func.name)}"
    results = f" -> ({', '.join(types)})"
    attrs = f" attributes {print_attrs(func.attrs)}" if func.attrs else ""
    line = f"{start}({', '.join(params)}){results}{attrs} {{"
    if len(line) <= WIDTH:
        return line
    if len(indent) + len(results) + len(attrs) > 2 * WIDTH:
        results = " -> (" + _one_per_line(types, indent) + ")"
        pairs = [f"{_key(key)} = {print_attr(value)}" for key, value in func.attrs.items()]
        attrs = " attributes {" + _one_per_line(pairs, indent) + "}" if pairs else ""
    return f"{start}({_one_per_line(params, indent)}){results}{attrs} {{"


def _one_per_line(items: list[str], indent: str) -> str:
    return "".join(f"\n{indent}    {item}," for item in items)[:-1] + f"\n{indent}" if items else ""


def print_module(module: Module, header: bool = True) -> str:
    """The whole module, ending in a newline."""
    attrs = f" attributes {print_attrs(module.attrs)}" if module.attrs else ""
    if len(attrs) > 2 * WIDTH:
        pairs = [f"{_key(key)} = {print_attr(value)}" for key, value in module.attrs.items()]
        attrs = " attributes {" + _one_per_line(pairs, "") + "}"
    lines = [HEADER] if header else []
    lines.append(f"module {symbol_name(module.name)}{attrs} {{")
    lines.extend(f"  {print_op(op)}" for op in module.ops)
    for i, func in enumerate(module.funcs.values()):
        if i or module.ops:
            lines.append("")
        lines.append(print_func(func, "  "))
    lines.append("}\n")
    return "\n".join(lines)


str_module = print_module
