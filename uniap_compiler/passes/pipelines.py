"""Pipelines as text, and the named ones.

    outline-layers,differentiate,find-tensor-parallelism{sizes=2,2 boundary="sequence"},dce

Passes are joined by commas; options stand in braces, joined by blanks; the items of a list by commas.  An option's
type is the type of the pass's field.  A value with characters beyond letters, digits and `_ . + - / : @ *` is a JSON
string.  The name of a pipeline stands for its passes.  `print_pipeline(parse_pipeline(text))` is canonical.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Iterable
from typing import Any

from ..ir import Diagnostic
from .manager import Pass
from .registry import pass_class, print_pass

PIPELINES: dict[str, str] = {
    "cleanup": "cse,dce",
    "compile": "canonicalize,pad-classes,outline-layers,differentiate,decompose-losses,shard-rules,"
    "enumerate-strategies,solve-parallelism,lower",
    "lower": "insert-communication,partition-stages,localize,prefetch-parameters,overlap-gradients,"
    "bucket-collectives,schedule",
}

_TOKEN = re.compile(r'\s*(?:([{},=])|("(?:[^"\\]|\\.)*")|([A-Za-z0-9_.+\-/:@*]+))')
_PLAIN = re.compile(r"[A-Za-z0-9_.+\-/:@*]+").fullmatch


def parse_pipeline(text: str) -> list[Pass]:
    """Raises Diagnostic: a syntax error, an unknown pass or option, a value of the wrong type."""
    passes: list[Pass] = []
    for name, options in _Reader(text).items():
        if name in PIPELINES:
            if options:
                raise Diagnostic(f"the pipeline {name} takes no options; its passes do: {PIPELINES[name]}")
            passes += parse_pipeline(PIPELINES[name])
        else:
            passes.append(_make(name, options))
    return passes


def print_pipeline(passes: Iterable[Pass]) -> str:
    return ",".join(map(print_pass, passes))


def print_value(value: Any) -> str:
    """An option's value: true, 3, 0.5, name, "any text", none, 1,2,3."""
    if isinstance(value, (tuple, list)):
        return ",".join(map(print_value, value))
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    text = str(value)
    return text if _PLAIN(text) and text != "none" else json.dumps(text)


class _Reader:
    """Splits the text into names and options; every mistake points at its column."""

    def __init__(self, text: str) -> None:
        self.text, self.place = text, 0

    def items(self) -> list[tuple[str, dict[str, list[str]]]]:
        found: list[tuple[str, dict[str, list[str]]]] = []
        if not self.text.strip():
            return found
        while True:
            name = self.word("the name of a pass")
            options: dict[str, list[str]] = {}
            if self.accept("{"):
                while not self.accept("}"):
                    key = self.word("an option or }")
                    if key in options:
                        raise self.error(f"the option {key} of {name} is given twice")
                    if not self.accept("="):
                        raise self.error(f"expected = after the option {key} of {name}")
                    options[key] = self.values()
            found.append((name, options))
            if self.at_end():
                return found
            if not self.accept(","):
                raise self.error("expected a comma between passes")

    def values(self) -> list[str]:
        """Words as they stand (strings quoted), one per item of the list; [] when nothing follows."""
        values: list[str] = []
        if self.peek() is None or self.peek() in ("{", "}", ",", "="):
            return values
        # `a= b=1`: what follows is the next option's name, and a is the empty list
        ahead = _TOKEN.match(self.text, _end(_TOKEN.match(self.text, self.place)))
        if ahead is not None and ahead[1] == "=":
            return values
        values.append(self.word("a value"))
        while self.accept(","):
            values.append(self.word("a value after the comma"))
        return values

    def peek(self) -> str | None:
        match = _TOKEN.match(self.text, self.place)
        return match[match.lastindex or 0] if match else None

    def accept(self, mark: str) -> bool:
        if self.peek() != mark:
            return False
        self.place = _end(_TOKEN.match(self.text, self.place))
        return True

    def word(self, what: str) -> str:
        match = _TOKEN.match(self.text, self.place)
        if match is None or match[1]:
            raise self.error(f"expected {what}")
        self.place = match.end()
        return match[2] or match[3]

    def at_end(self) -> bool:
        return not self.text[self.place :].strip()

    def error(self, message: str) -> Diagnostic:
        place = self.place + len(self.text[self.place :]) - len(self.text[self.place :].lstrip())
        return Diagnostic(f"{message} in the pipeline", notes=[f"{self.text}\n{' ' * place}^"])


def _end(match: re.Match[str] | None) -> int:
    assert match is not None, "only called after a successful peek"
    return match.end()


def _make(name: str, options: dict[str, list[str]]) -> Pass:
    cls = pass_class(name)
    fields = {f.name for f in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    values = {}
    for key, words in options.items():
        field = key.replace("-", "_")
        if field not in fields:
            has = f"its options are {', '.join(sorted(fields))}" if fields else "it has no options"
            raise Diagnostic(f"the pass {name} has no option {key}", help=has)
        values[field] = _convert(words, hints[field], f"the option {key} of {name}")
    missing = [f.name for f in dataclasses.fields(cls) if _required(f) and f.name not in values]
    if missing:
        raise Diagnostic(f"the pass {name} needs the option {missing[0]}", help=f"write {name}{{{missing[0]}=...}}")
    made: Pass = cls(**values)
    return made


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(words: list[str], hint: Any, what: str) -> Any:
    """The words as a value of the field's type: bool, int, float, str, tuple[X, ...], X | None, Literal."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if words == ["none"] and type(None) in arguments:
            return None
        (hint,) = [a for a in arguments if a is not type(None)]
        return _convert(words, hint, what)
    if origin is tuple:
        return tuple(_convert([word], arguments[0], what) for word in words)
    if len(words) != 1:
        raise Diagnostic(f"{what} takes one value, not {len(words)}")
    (word,) = words
    text = json.loads(word) if word.startswith('"') else word
    if origin is typing.Literal:
        if text not in arguments:
            raise Diagnostic(f"{what} is one of {', '.join(map(str, arguments))}, not {text}")
        return text
    if hint is str:
        return text
    if hint is bool and word in ("true", "false"):
        return word == "true"
    try:
        if hint in (int, float):
            return hint(word)
    except ValueError:
        pass
    raise Diagnostic(f"{what} is {getattr(hint, '__name__', hint)}, not {word}")
