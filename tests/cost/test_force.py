"""FORCE strings: what they say, and what is said about impossible ones."""

from __future__ import annotations

import pytest

from uniap_compiler.ir import Diagnostic
from uniap_compiler.passes.analysis.cost.strategy_cost import Strategy
from uniap_compiler.passes.solve.force import admits, check_degrees, parse_force

LAYERS = ["embed", "layers.0", "layers.1", "head"]


def test_clauses() -> None:
    force = parse_force("pp=2,dp=2,shard=parameters; layers.*:recompute=full ;layers.1:stage=1,dp=1")
    assert (force.pp, force.micro_batches) == (2, None)
    assert force.for_layer("embed") == {"dp": 2, "shard": "parameters"}
    assert force.for_layer("layers.1") == {"dp": 1, "shard": "parameters", "recompute": "full", "stage": 1}
    assert parse_force("").clauses == ()
    assert parse_force("micro_batches=4").micro_batches == 4


def test_admits() -> None:
    assert admits({"tp": 2, "boundary": "sequence"}, Strategy(2, 2, "sequence"))
    assert not admits({"tp": 2, "boundary": "sequence"}, Strategy(2, 2, "replicated"))
    assert admits({"boundary": "sequence"}, Strategy(1, 4))
    assert not admits({"shard": "none"}, Strategy(1, 4, shard="optimizer"))
    assert admits({"stage": 1}, Strategy(1, 4))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dp", "'dp' in --force is not key=value"),
        ("dp=", "is not key=value"),
        ("dp=two", "dp in --force takes an integer from 1 on, not 'two'"),
        ("dp=0", "dp in --force takes an integer from 1 on, not '0'"),
        ("dp=2,dp=4", "dp is given twice"),
        (
            "ddp=2",
            "--force does not know 'ddp': its keys are pp, dp, tp, micro_batches, stage, shard, recompute, boundary",
        ),
        ("shard=param", "shard in --force is one of none, optimizer, gradients, parameters, not 'param'"),
        ("recompute=some", "recompute in --force is one of none, selective, full, not 'some'"),
        ("layers.0:pp=2", "pp in --force holds for the whole model: it cannot be chosen for 'layers.0'"),
    ],
)
def test_bad_text(text: str, words: str) -> None:
    with pytest.raises(Diagnostic) as error:
        parse_force(text)
    assert words in error.value.message


@pytest.mark.parametrize(
    ("text", "words", "help"),
    [
        ("pp=3", "pp=3 is not possible: 4 devices divide into 1, 2 and 4 stages", "the nearest is pp=2"),
        ("dp=3", "dp=3 is not possible for layer embed", "the nearest is dp=4"),
        ("dp=4,tp=2", "dp=4,tp=2 is not possible for layer embed: pp * dp * tp must be",
         "the nearest is dp=2,tp=2"),
        ("pp=2,layers.0", "is not key=value", None),
        ("pp=2,dp=4", "pp=2,dp=4 is not possible for layer embed", "the nearest is pp=2,dp=2"),
        ("micro_batches=3", "micro_batches=3 does not divide the global batch of 8",
         "the nearest is micro_batches=2; or a global batch of 6 and 9"),
        ("dp=4,micro_batches=4", "a global batch of 8 does not divide over dp=4 and micro_batches=4",
         "the nearest that does is 16"),
        ("blocks.0:tp=2", "'blocks.0' in --force matches no layer", None),
        ("layer.0:tp=2", "'layer.0' in --force matches no layer", "did you mean layers.0?"),
        ("pp=2;head:stage=2", "stage=2 is not possible for layer head: stages count from 0 to 1",
         "the nearest is stage=1"),
    ],
)  # fmt: skip
def test_impossible(text: str, words: str, help: str | None) -> None:
    with pytest.raises(Diagnostic) as error:
        check_degrees(parse_force(text), LAYERS, 4, 8)
    assert words in error.value.message
    assert help is None or help in (error.value.help or "")


def test_more_stages_than_layers() -> None:
    with pytest.raises(Diagnostic, match="the model has only 4 layers, and every stage needs one") as error:
        check_degrees(parse_force("pp=8"), LAYERS, 8, 8)
    assert error.value.help == "the nearest is pp=4"


def test_possible_forces_pass() -> None:
    for text in ("", "pp=2,dp=2", "tp=4", "layers.0:tp=4;layers.1:dp=4", "dp=2,micro_batches=4", "pp=4;head:stage=3"):
        check_degrees(parse_force(text), LAYERS, 4, 8)
