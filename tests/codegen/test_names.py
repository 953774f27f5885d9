"""Names from a model or from IR text reach Python source as identifiers, literals and comments, never as code."""

import ast
import builtins
import keyword

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniap_compiler.codegen.names import Namespace, comment, identifier, literal

HOSTILE = [
    "class", "print", "match", "__import__", "", "0", "1a", "a.b", "a b", "a;b", "a\nb", "a\n    import os #", "'''", '"""',  # noqa: E501
    "\u212b", "\xe5", "\ufb01", "a\u2028b", "\x00", "\ud800", "eval(input())", "x = 1\n# ", "coding: utf-7", "\\", "None",  # noqa: E501
]  # fmt: skip


@pytest.mark.parametrize("wish", HOSTILE)
def test_hostile_names_become_identifiers(wish: str) -> None:
    name = Namespace().create(wish)
    assert name.isidentifier() and name.isascii()
    assert not keyword.iskeyword(name) and not keyword.issoftkeyword(name) and not hasattr(builtins, name)


@given(st.lists(st.text(max_size=6) | st.sampled_from(["a", "a_1", "a_2", "add_3", "add"]), max_size=20))
def test_names_are_unique(wishes: list[str]) -> None:
    names = Namespace({"torch", "comm"})
    made = [names.create(wish) for wish in wishes]
    assert len(set(made)) == len(made)
    assert not {"torch", "comm"} & set(made)
    for name in made:
        ast.parse(f"{name} = 0")


def test_legal_names_are_kept() -> None:
    names = Namespace()
    assert [names.create(n) for n in ("q", "layers.0.wq", "add_3", "add_3", "q")] == [
        "q", "layers_0_wq", "add_3", "add_1", "q_1",
    ]  # fmt: skip
    assert identifier("block.dp2.tp2.forward") == "block_dp2_tp2_forward"


@given(st.text())
def test_comments_are_one_line(text: str) -> None:
    source = f"x = 1  # {comment(text)}\ny = 2\n"
    tree = ast.parse(source)
    assert [type(node) for node in tree.body] == [ast.Assign, ast.Assign]
    doc = ast.parse(f'"""{comment(text)}."""\n').body
    assert len(doc) == 1 and isinstance(doc[0], ast.Expr) and isinstance(doc[0].value, ast.Constant)


Plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner) | st.tuples(inner, inner),
)


@given(Plain)
def test_literals_evaluate_to_themselves(value: object) -> None:
    assert eval(literal(value), {"float": float}) == value


def test_no_literal_for_objects() -> None:
    with pytest.raises(TypeError, match="no literal for object"):
        literal(object())
