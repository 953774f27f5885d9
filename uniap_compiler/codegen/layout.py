"""Breaking generated lines: a call, a list of names or a tuple that is too long continues on indented lines."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .expressions import Call

WIDTH = 110
"""Columns of generated code; comments may go beyond."""


def fill(items: Iterable[str], indent: str) -> list[str]:
    """`a, b, c,` in as few lines as fit."""
    lines: list[str] = []
    for item in items:
        if lines and len(lines[-1]) + len(item) + 2 <= WIDTH:
            lines[-1] += f" {item},"
        else:
            lines.append(f"{indent}{item},")
    return lines


def assignment(targets: list[str], value: Call | str, indent: str = "    ") -> list[str]:
    """`a, b = f(x, y)`, wrapped where it must be.  No targets: the value alone, as a statement."""
    line = indent + (", ".join(targets) + " = " if targets else "") + str(value)
    if len(line) <= WIDTH:
        return [line]
    left = ", ".join(targets) + " = " if targets else ""
    lines = [indent + left]
    if len(targets) == 1 and not isinstance(value, str) and len(lines[0]) + len(value.head) + 1 > WIDTH:
        return [f"{indent}{left}(", *assignment([], value, indent + "    "), f"{indent})"]  # (name,) = would unpack it
    if len(lines[0]) + (0 if isinstance(value, str) else len(value.head) + 1) > WIDTH:
        lines = [f"{indent}(", *fill(targets, indent + "    "), f"{indent}) = "]
    if isinstance(value, str):
        lines[-1] += value
        return lines
    lines[-1] += value.head + "("
    return [*lines, *_arguments(value.args, indent + "    "), f"{indent}){value.tail}"]


def _arguments(args: list[str], indent: str) -> list[str]:
    """Arguments in as few lines as fit; a list of names that is too long for one line has lines of its own."""
    lines: list[str] = []
    rest: list[str] = []
    for arg in args:
        if len(indent) + len(arg) + 1 > WIDTH and re.fullmatch(r"\[\w+(, \w+)*\]", arg):
            lines += [*fill(rest, indent), f"{indent}[", *fill(arg[1:-1].split(", "), indent + "    "), f"{indent}],"]
            rest = []
        else:
            rest.append(arg)
    return [*lines, *fill(rest, indent)]


def returned(values: list[str], indent: str = "    ") -> list[str]:
    """`return a, b`; always a tuple."""
    if len(values) < 2:
        return [f"{indent}return ({values[0]},)" if values else f"{indent}return ()"]
    line = f"{indent}return {', '.join(values)}"
    if len(line) <= WIDTH:
        return [line]
    return [f"{indent}return (", *fill(values, indent + "    "), f"{indent})"]
