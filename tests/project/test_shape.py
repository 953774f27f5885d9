"""The shape of the source: short files, no utils, no base class with one child, docstrings, a strict grammar, pins."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import defaultdict

import pytest
from lark import Lark

from uniap_compiler.ir.parser import GRAMMAR
from uniap_compiler.ir.syntax_examples import EXAMPLES

from .source import ROOT, Source, sources

MOST_LINES = 450
SOURCES = sources()
IDS = [str(s.path.relative_to(ROOT)) for s in SOURCES]


@pytest.mark.parametrize("source", SOURCES, ids=IDS)
def test_file(source: Source) -> None:
    assert len(source.text.splitlines()) <= MOST_LINES, "split the file"
    assert "util" not in source.path.stem, "say what it is for"
    empty = not source.text.strip()
    assert empty or ast.get_docstring(source.tree), "a module docstring says what the file is for"


def test_no_base_class_with_one_child() -> None:
    classes = {node.name for s in SOURCES for node in ast.walk(s.tree) if isinstance(node, ast.ClassDef)}
    children: dict[str, list[str]] = defaultdict(list)
    for source in SOURCES:
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ClassDef):
                for base in node.bases:
                    name = (
                        base.id if isinstance(base, ast.Name) else base.attr if isinstance(base, ast.Attribute) else ""
                    )
                    if name in classes:
                        children[name].append(node.name)
    calls = {
        n.func.id for s in SOURCES for n in ast.walk(s.tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
    }
    lonely = {name: found for name, found in children.items() if len(found) == 1 and name not in calls}
    exceptions = {name for name in lonely if name.endswith(("Error", "Exception"))}
    assert set(lonely) - exceptions == set(), lonely


def test_the_grammar_is_strict() -> None:
    """No two terminals collide where both may stand, and no rule is ambiguous."""
    Lark(GRAMMAR.read_text(), parser="lalr", strict=True)


def test_the_examples_of_syntax_errors_are_errors() -> None:
    from uniap_compiler.ir.parser import _examples

    assert len(_examples()) == sum(map(len, EXAMPLES.values()))


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {re.split(r"[>=<\[ ]", d)[0] for d in [*project["dependencies"], *project["optional-dependencies"]["dev"]]}
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    assert {name.lower() for name in wanted} <= pinned


def test_commands_exist() -> None:
    from importlib import import_module

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for target in project["scripts"].values():
        module, _, function = target.partition(":")
        assert callable(getattr(import_module(module), function))
