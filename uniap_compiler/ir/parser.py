"""Text -> Module.  The grammar is ir.lark; this file builds the objects while lark parses.

    module = parse_module(path.read_text(), filename=str(path))

Mistakes in the text are Diagnostics that show the line and a caret.  An op may read a value that is defined further
down: the verifier says so with more context.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

from lark import Lark, Token, Transformer, UnexpectedInput, v_args
from lark.exceptions import UnexpectedEOF, UnexpectedToken

from . import text as read
from .attributes import Atom, Attrs, Struct, Symbol
from .core import Func, Loc, Module, Op, TensorType, Value
from .diagnostics import Diagnostic
from .layouts import Layout
from .printer import RESERVED, VERSION, symbol_name, value_name
from .syntax_examples import EXAMPLES

GRAMMAR = Path(__file__).with_name("ir.lark")
_HEADER = re.compile(r"\s*//\s*uniap-ir\s+(\S+)")


class _Mistake(Exception):
    """A mistake on a known line; parse_module turns it into a Diagnostic."""

    def __init__(self, message: str, line: int, column: int | None = None) -> None:
        super().__init__(message)
        self.message, self.line, self.column = message, line, column


def _reader(function: Callable[[str], Any]) -> Callable[[Any, Token], Any]:
    """A terminal's callback: the function's ValueError gets the token's place."""

    def callback(self: Any, token: Token) -> Any:
        try:
            return function(token.value)
        except ValueError as error:
            raise _Mistake(str(error), token.line or 0, token.column) from None

    return callback


class _Build(Transformer[Any, Any]):
    """Methods are named after the rules and terminals of ir.lark.  Stateless: an op travels with its line."""

    VALUE = _reader(read.parse_name)
    SYMBOL = _reader(lambda token: Symbol(read.parse_name(token)))
    LAYOUT = _reader(read.parse_layout)
    LOC = _reader(read.parse_loc)
    NUMBER = _reader(read.parse_number)
    STRING = _reader(read.unquote)
    ATOM = _reader(lambda token: Atom(read.unquote(token[5:])))
    RULE = _reader(read.parse_rule)

    @v_args(inline=True)
    def word(self, word: Token) -> Any:
        return RESERVED[word] if word in RESERVED else Atom(word)

    def none(self, _: Any) -> None:
        return None

    def list(self, items: Any) -> Any:
        return items

    ref_list = results = operands = op_types = types = params = list

    @v_args(inline=True)
    def pair(self, key: Token | str, value: Any) -> tuple[Token | str, Any]:
        return key, value

    def attrs(self, pairs: Any) -> Attrs:
        attrs: Attrs = {}
        for key, value in pairs:
            if key in attrs:
                line, column = (key.line or 0, key.column) if isinstance(key, Token) else (0, None)
                raise _Mistake(f"the attribute {key} is given twice", line, column)
            attrs[sys.intern(key.value) if isinstance(key, Token) else key] = value
        return attrs

    @v_args(inline=True)
    def attributes(self, attrs: Attrs | None) -> Attrs:
        return attrs if attrs is not None else {}

    def struct(self, items: Any) -> Struct:
        fields = self.attrs(items[1:])
        return Struct(items[0].value[1:-1], tuple(fields.items()))

    @v_args(inline=True)
    def type(self, tensor: Token, layout: Layout | None) -> TensorType:
        try:
            return read.parse_type(tensor.value, layout)
        except ValueError as error:
            raise _Mistake(str(error), tensor.line or 0, tensor.column) from None

    @v_args(inline=True)
    def head(self, results: Any, name: Token, symbol: Symbol | None, operands: Any) -> Any:
        return results, name, symbol, operands

    @v_args(inline=True)
    def tail(self, attrs: Attrs | None, types: Any, loc: Loc | None) -> Any:
        return attrs, types, loc

    @v_args(inline=True)
    def op(self, head: Any, tail: Any) -> tuple[Op, int]:
        names, name, symbol, operands = head
        attrs, types, loc = tail
        names, types = names or (), types or ()
        if len(names) != len(types):
            raise _Mistake(f"{name} has {len(names)} results and {len(types)} types", name.line)
        results = [Value(n, t) for n, t in zip(names, types)]
        callee = str(symbol) if symbol is not None else None
        return Op(sys.intern(name.value), operands or (), results, attrs, callee, loc), name.line

    @v_args(inline=True)
    def param(self, name: str, type: TensorType, attrs: Attrs | None) -> Value:
        return Value(name, type, attrs)

    def return_(self, items: Any) -> Any:
        return [items[0].line or 0, *items[1:]]

    @v_args(inline=True)
    def func(
        self, keyword: Token, name: Symbol, params: Any, types: Any, attrs: Attrs, *rest: Any
    ) -> tuple[Func, dict[object, int]]:
        lines: dict[object, int] = dict(rest[:-1])
        func = Func(str(name), params, (op for op, _ in rest[:-1]), (), attrs)
        first, (last, *returned) = keyword.line or 0, rest[-1]
        table: dict[str, Value] = {}
        for value in func.values():
            if value.name in table:
                place = next((lines[op] for op in func.ops if value in op.results), first)
                raise _Mistake(f"{value_name(value.name)} is defined twice in func {symbol_name(func.name)}", place)
            table[value.name] = value

        def find(name: str | None, line: int) -> Value | None:
            if name is None:
                return None
            if name not in table:
                raise _Mistake(f"{value_name(name)} is not defined in func {symbol_name(func.name)}", line)
            return table[name]

        for op, line in rest[:-1]:
            op.operands = [[find(n, line) for n in o] if isinstance(o, list) else find(o, line) for o in op.operands]
        func.returns = [find(n, last) for n in returned]
        found = [None if v is None else v.type for v in func.returns]
        if found != types:
            shown = ", ".join("none" if t is None else str(t) for t in found)
            raise _Mistake(f"{symbol_name(func.name)} returns ({shown}), which is not what its head says", last)
        lines[func] = first
        return func, lines

    @v_args(inline=True)
    def start(self, name: Symbol, attrs: Attrs, *items: Any) -> tuple[Module, dict[object, int]]:
        module = Module(str(name), attrs)
        lines: dict[object, int] = {}
        for item, where in items:
            if isinstance(item, Func):
                if item.name in module.funcs:
                    raise _Mistake(f"func {symbol_name(item.name)} is defined twice", where[item])
                module.add(item)
                lines.update(where)
            else:
                if any(v is not None for v in item.flat_operands()):
                    raise _Mistake(f"{item.name} stands in the module and has operands", where)
                module.ops.append(item)
                lines[item] = where
        return module, lines


setattr(_Build, "return", _Build.return_)  # the rule's name is a Python keyword


@lru_cache(maxsize=1)
def lark() -> Lark:
    return Lark(GRAMMAR.read_text(encoding="utf-8"), parser="lalr", transformer=_Build())


def parse_module(text: str, filename: str = "<text>", lines: dict[object, int] | None = None) -> Module:
    """Raises Diagnostic.  lines: when given, is filled with the line of every Op and Func."""
    _check_version(text, filename)
    try:
        parsed: Any = lark().parse(text)
        module, where = parsed
    except _Mistake as error:
        line = error.line or 1
        raise _at(error.message, filename, text, line, error.column) from None
    except UnexpectedInput as error:
        _syntax_error(error, text, filename)
    if lines is not None:
        lines.update(where)
    assert isinstance(module, Module)
    return module


def _check_version(text: str, filename: str) -> None:
    """A header may stand in the comments on top; text without one is taken as this version."""
    for number, line in enumerate(text.splitlines(), 1):
        match = _HEADER.match(line)
        if match and match[1] != str(VERSION):
            message = f"the text is uniap-ir version {match[1]}, and this uniap reads version {VERSION}"
            help = "continue with the uniap that wrote it, or compile again with this one"
            raise Diagnostic(message, loc=Loc(filename, number), source=line, help=help)
        if match or not line.lstrip().startswith("//") and line.strip():
            return


def _at(message: str, filename: str, text: str, line: int, column: int | None) -> Diagnostic:
    all_lines = text.split("\n")
    source = all_lines[line - 1] if 0 < line <= len(all_lines) else ""
    return Diagnostic(message, loc=Loc(filename, line), column=column, source=source)


def _syntax_error(error: UnexpectedInput, text: str, filename: str) -> NoReturn:
    message = _explain(error)
    line, column = error.line, error.column
    if isinstance(error, UnexpectedEOF) or (isinstance(error, UnexpectedToken) and error.token.type == "$END"):
        line = text.rstrip().count("\n") + 1
        column = len(text.rstrip().rsplit("\n", 1)[-1]) + 1
    raise _at(message, filename, text, line, column) from None


def _explain(error: UnexpectedInput) -> str:
    """A sentence: what was found, and the label of the example that fails most alike."""
    position, accepts, kind = _failure(error)
    alike = [(a == accepts, k == kind, label) for p, a, k, label in _examples() if p == position]
    label = max(alike, key=lambda item: item[:2])[2] if alike else None
    token = error.token if isinstance(error, UnexpectedToken) else getattr(error, "char", "")
    found = "the text ends" if kind == "$END" else f"found {str(token)!r}"
    return f"{found}: {label}" if label else f"{found}, which cannot stand here"


@lru_cache(maxsize=1)
def _examples() -> list[tuple[object, frozenset[str], str, str]]:
    """How each example fails, and its label.  (lark's own match_examples compares stack depths instead of states.)"""
    table = []
    for label, examples in EXAMPLES.items():
        for example in examples:
            try:
                lark().parse(example)
            except UnexpectedInput as error:
                table.append((*_failure(error), label))
            else:
                raise AssertionError(f"the example {example!r} is not an error")
    return table


def _failure(error: UnexpectedInput) -> tuple[object, frozenset[str], str]:
    """The parser's state, the terminals that it would accept, and the kind of what it found."""
    position: object = getattr(error.state, "position", error.state)
    if isinstance(error, UnexpectedToken):
        return position, frozenset(error.accepts or ()), error.token.type
    return position, frozenset(), "character"
