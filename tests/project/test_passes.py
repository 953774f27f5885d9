"""A pass, its file, its class, its test and its documentation share one name."""

from __future__ import annotations

import dataclasses
import re

import pytest

from uniap_compiler.ir import LEVELS
from uniap_compiler.passes.manager import required_levels
from uniap_compiler.passes.registry import PASSES, pass_class

from .source import ROOT, sources

NAMES = list(PASSES)


@pytest.mark.parametrize("name", NAMES)
def test_one_name(name: str) -> None:
    module, _, cls = PASSES[name].partition(":")
    assert module.split(".")[-1] == name.replace("-", "_")
    assert cls == "".join(word.capitalize() for word in name.split("-"))
    found = pass_class(name)
    assert found.name == name
    assert dataclasses.is_dataclass(found) and found.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert set(required_levels(found)) <= set(LEVELS)
    assert found.ensures is None or found.ensures in LEVELS


@pytest.mark.parametrize("name", NAMES)
def test_has_a_test(name: str) -> None:
    assert (ROOT / "tests" / "ir" / f"{name.replace('-', '_')}.mlir").exists()


@pytest.mark.parametrize("name", NAMES)
def test_is_documented(name: str) -> None:
    text = "".join((ROOT / "docs" / file).read_text() for file in ("pipeline.md", "ir.md"))
    assert f"`{name}`" in text


def test_what_is_documented_exists() -> None:
    """The second column of the table in docs/pipeline.md names passes, and the two steps that are none."""
    rows = [
        line.split("|") for line in (ROOT / "docs" / "pipeline.md").read_text().splitlines() if line.startswith("| ")
    ]
    named = {name for row in rows for name in re.findall(r"`([a-z-]+)`", row[2])}
    assert named - {"capture", "codegen"} <= set(PASSES)
    assert len(named) > 10


def test_every_pass_is_registered() -> None:
    """A class with `name`, `requires` and `ensures` is a pass."""
    import ast

    registered = {target.partition(":")[2] for target in PASSES.values()}
    for source in sources():
        for node in source.tree.body:
            if isinstance(node, ast.ClassDef) and source.area in ("passes", "codegen"):
                fields = {
                    t.target.id for t in node.body if isinstance(t, ast.AnnAssign) and isinstance(t.target, ast.Name)
                }
                if {"name", "requires", "ensures"} <= fields:
                    assert node.name in registered, f"{source.path}: {node.name} is not in passes/registry.py"
