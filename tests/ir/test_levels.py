"""Every promise of a level is broken once in errors/levels.mlir, and is written in docs/ir.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from uniap_compiler.ir.levels import LEVELS, ROWS

ROOT = Path(__file__).parents[2]


def pattern(sentence: str) -> str:
    return re.sub(r"\\\{(func|op)\\\}", r"\\S+", re.escape(sentence))


@pytest.mark.parametrize("sentence", sorted({row.sentence for row in ROWS}))
def test_every_promise_has_a_test(sentence: str) -> None:
    text = (Path(__file__).parent / "errors" / "levels.mlir").read_text()
    assert any(re.fullmatch(pattern(sentence), found) for found in re.findall(r"\{\{(.*)\}\}", text))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.sentence)
def test_every_promise_is_documented(row: object) -> None:
    sentence = row.sentence  # type: ignore[attr-defined]
    words = sentence.replace("{func}", "@F").replace("{op}", "OP")
    assert words in (ROOT / "docs" / "ir.md").read_text()


def test_every_level_is_documented() -> None:
    text = (ROOT / "docs" / "ir.md").read_text()
    places = [text.index(f"| `{level}` |") for level in LEVELS]
    assert places == sorted(places)
