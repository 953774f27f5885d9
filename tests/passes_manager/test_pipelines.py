"""Pipeline text: round trips, types of options, mistakes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uniap_compiler.ir import Diagnostic, Module
from uniap_compiler.passes import pipelines
from uniap_compiler.passes.manager import Session
from uniap_compiler.passes.pipelines import parse_pipeline, print_pipeline


@dataclass(frozen=True)
class Everything:
    name: ClassVar[str] = "everything"
    requires: ClassVar[tuple[str, ...]] = ()
    ensures: ClassVar[str | None] = None

    flag: bool = False
    count: int = 3
    ratio: float = 0.5
    text: str = "plain"
    maybe: str | None = None
    limit: float | None = 1.0
    sizes: tuple[int, ...] = (2, 2)
    words: tuple[str, ...] = ()
    kind: Literal["fast", "slow"] = "fast"

    def run(self, module: Module, session: Session) -> None: ...


@dataclass(frozen=True)
class Needs:
    name: ClassVar[str] = "needs"
    requires: ClassVar[tuple[str, ...]] = ()
    ensures: ClassVar[str | None] = None

    it: int

    def run(self, module: Module, session: Session) -> None: ...


@pytest.fixture(autouse=True, scope="module")
def registered() -> object:
    with pytest.MonkeyPatch.context() as patch:
        real = pipelines.pass_class
        found = {"everything": Everything, "needs": Needs}
        patch.setattr(pipelines, "pass_class", lambda name: found.get(name) or real(name))
        yield


texts = st.one_of(st.text(max_size=6), st.sampled_from(["none", "true", "", "a,b", "a=b", "}", "a b", '"']))
everything = st.builds(
    Everything,
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    texts,
    st.none() | texts,
    st.none() | st.floats(allow_nan=False),
    st.lists(st.integers(), max_size=3).map(tuple),
    st.lists(texts, max_size=3).map(tuple),
    st.sampled_from(["fast", "slow"]),
)


@given(st.lists(everything | st.builds(Needs, st.integers()), max_size=3))
def test_round_trip(passes: list[Everything]) -> None:
    text = print_pipeline(passes)
    assert parse_pipeline(text) == passes
    assert print_pipeline(parse_pipeline(text)) == text


def test_as_people_write_it() -> None:
    text = ' cse , everything{ flag=true  count=-1 sizes=4 words=a,"b c" text="x,y" limit=none } , needs{it=1} '
    assert print_pipeline(parse_pipeline(text)) == (
        'cse,everything{flag=true count=-1 text="x,y" limit=none sizes=4 words=a,"b c"},needs{it=1}'
    )
    assert parse_pipeline("everything{sizes= flag=true}") == [Everything(sizes=(), flag=True)]
    assert parse_pipeline("everything{}") == [Everything()]
    assert parse_pipeline("") == []


def test_the_name_of_a_pipeline_stands_for_its_passes() -> None:
    assert print_pipeline(parse_pipeline("cleanup")) == "cse,dce"
    with pytest.raises(Diagnostic, match="the pipeline cleanup takes no options"):
        parse_pipeline("cleanup{a=1}")


@pytest.mark.parametrize("name", pipelines.PIPELINES)
def test_named_pipelines_parse(name: str) -> None:
    assert parse_pipeline(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dec", "there is no pass dec\n  help: did you mean dce?"),
        ("xyzzy", "there is no pass xyzzy\n  help: the passes are: dce, cse"),
        ("cse dce", "expected a comma between passes in the pipeline\n  note: cse dce\n            ^"),
        ("cse,", "expected the name of a pass"),
        ("cse,,dce", "expected the name of a pass"),
        ("everything{", "expected an option or }"),
        ("everything{flag}", "expected = after the option flag of everything"),
        ("everything{flag=true flag=true}", "the option flag of everything is given twice"),
        ("everything{flags=true}", "the pass everything has no option flags\n  help: its options are count, flag"),
        ("everything{flag=yes}", "the option flag of everything is bool, not yes"),
        ("everything{count=1.5}", "the option count of everything is int, not 1.5"),
        ("everything{count=1,2}", "the option count of everything takes one value, not 2"),
        ("everything{count=}", "the option count of everything takes one value, not 0"),
        ("everything{sizes=1,}", "expected a value after the comma"),
        ("everything{sizes=1,x}", "the option sizes of everything is int, not x"),
        ("everything{kind=odd}", "the option kind of everything is one of fast, slow, not odd"),
        ("dce{a=1}", "the pass dce has no option a\n  help: it has no options"),
        ("needs", "the pass needs needs the option it\n  help: write needs{it=...}"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(Diagnostic) as caught:
        parse_pipeline(text)
    assert message in str(caught.value)
