"""Ops of the user's own, from the task file to ranks that have torch and the bundle only."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.end_to_end.plans import check
from tests.end_to_end.test_op_families import CLUSTER
from uniap_compiler import add_rule, driver
from uniap_compiler.capture import TrainingTask, capture, load_task
from uniap_compiler.ir import Diagnostic
from uniap_compiler.passes.analysis.rules import own, table

HERE = Path(__file__).parent
SPEC = f"{HERE / 'task.py'}:task"


@pytest.fixture
def cluster(tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    (tmp_path / "fast.toml").write_text(CLUSTER)
    return tmp_path / "fast.toml"


@pytest.mark.parametrize("force", ["dp=4", "tp=4", "pp=2,dp=2,micro_batches=2", "pp=2,tp=2"])
def test_a_rule_of_ones_own_splits_the_op(force: str, tmp_path: Path, cluster: Path) -> None:
    dump = tmp_path / "dump"
    bundle = driver.compile(
        SPEC, cluster, 8, out=tmp_path / "b", force=force, dtype="float64", dump=dump
    ).bundle
    check(bundle)
    code = (bundle / "stages" / "stage_0.py").read_text()
    assert '["ops/gate_ops.py"], ["mylib::gate", "mylib::gate_backward"])' in code
    if force == "tp=4":  # the hidden dim is split
        assert "torch.ops.mylib.gate.default(" in code and "f64[8, 6, 8]" in code
        # any dump goes on to the same bundle, with the rules and files that lie in it and beside it
        assert "mylib::gate" in (bundle / "plan.mlir").read_text()
        gate = torch.ops.mylib.gate.default
        (start,) = dump.glob("*-outline-layers.mlir")
        again = driver.resume(start, out=tmp_path / "again").bundle
        assert torch.ops.mylib.gate.default is gate, "a copy of the file was imported again"
        assert (again / "stages" / "stage_0.py").read_bytes() == (bundle / "stages" / "stage_0.py").read_bytes()
        assert (again / "ops" / "gate_ops.py").read_bytes() == (HERE / "gate_ops.py").read_bytes()


def test_the_bundle_needs_only_its_own_copy(tmp_path: Path, cluster: Path) -> None:
    driver.compile(SPEC, cluster, 8, out=tmp_path / "b", force="tp=4")
    probe = (
        "import sys, importlib.util; sys.path.insert(0, sys.argv[1]); import b.stages.stage_0, torch;"
        "print(torch.ops.mylib.gate(torch.ones(2), torch.zeros(2)), 'uniap_compiler' in sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-I", "-c", probe, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"}, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.split("\n")[0] == "tensor([0.5000, 0.5000]) False"


def test_without_a_rule_it_is_whole_and_named_once(
    tmp_path: Path, cluster: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    task = load_task(SPEC)
    for name in ("gate", "gate_backward"):
        monkeypatch.delitem(own._TEXTS, f"mylib::{name}")
        monkeypatch.delitem(table._OWN, f"mylib.{name}")
    with caplog.at_level(logging.WARNING, logger="uniap_compiler"):
        check(driver.compile(task, cluster, 8, out=tmp_path / "b", force="tp=4", dtype="float64").bundle, task=task)
    said = [r.getMessage() for r in caplog.records if "mylib" in r.getMessage()]
    assert sum(m.startswith("mylib.gate has no sharding rule") for m in said) == 1, said
    assert any('uniap_compiler.add_rule("mylib::gate", ...)' in m for m in said)
    assert len([m for m in said if m.startswith("no data parallelism")]) <= 2, said
    with pytest.raises(Diagnostic) as error:
        driver.compile(task, cluster, 8, out=tmp_path / "c", force="dp=4")
    text = f"{error.value} {error.value.help} {error.value.notes}"
    assert "mylib.gate" in text and "has no sharding rule, so the batch cannot be split over data axes" in text, text
    assert 'add_rule("mylib::gate' in text


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("b* d, d", "it has no arrow"),
        ("b* d -> b* d", "it spells 1 operands and the op takes 2 tensors"),
        ("b* d, d -> b* d, d", "it spells 2 results and the op has 1"),
        ("b* d, d -> b*", "d is not in the result, and no clause says what becomes of it"),
        ("b* d, d -> b* d | sum x", "'x' is no factor of it"),
        ("b* d, d -> b* d | mean d", "'mean' is no clause"),
    ],
)
def test_a_text_that_cannot_be_the_rule(rule: str, words: str) -> None:
    load_task(SPEC)
    with pytest.raises(Diagnostic, match="cannot be the rule of mylib::gate") as error:
        add_rule("mylib::gate", rule)
    assert words in error.value.message


def test_a_rule_for_what_is_not_there_or_known() -> None:
    with pytest.raises(Diagnostic, match="a rule for 'mylib::gaet', which torch does not know"):
        add_rule("mylib::gaet", "b -> b")
    with pytest.raises(Diagnostic, match="aten::relu has a rule already"):
        add_rule("aten::relu", "b -> b")


def test_a_rule_that_does_not_fit_the_shapes(tmp_path: Path, cluster: Path) -> None:
    task = load_task(SPEC)
    add_rule("mylib::gate", "b d, d -> b d")
    try:
        with pytest.raises(Diagnostic, match="gate does not fit: the rule spells 2 dims for a tensor of 3"):
            driver.compile(task, cluster, 8, out=tmp_path / "b")
    finally:
        add_rule("mylib::gate", "b* d, d -> b* d")


def test_the_file_must_be_named_and_stand_alone(tmp_path: Path) -> None:
    task = load_task(SPEC)
    task.ops = ()
    with pytest.raises(Diagnostic, match="mylib::gate is not an op of torch, and no file") as error:
        capture(task)
    assert "TrainingTask(..., ops=[" in str(error.value.help)
    for text, words in (
        ("import numpy\n", "lonely.py imports numpy"),
        ("from . import neighbour\n", "lonely.py imports its neighbours"),
        ("import torch, os\nraise ValueError('no')\n", "lonely.py cannot be imported: ValueError: no"),
        ("import (\n", "is not valid Python"),
    ):
        (tmp_path / "lonely.py").write_text(text)
        model = torch.nn.Linear(2, 1)
        lonely = TrainingTask(model, torch.randn(4, 2), loss=lambda y, t: y.mean(), ops=[tmp_path / "lonely.py"])
        with pytest.raises(Diagnostic, match=words):
            driver.compile(lonely, "laptop", 8, out=tmp_path / "b")
    absent = TrainingTask(model, torch.randn(4, 2), loss=lambda y, t: y.mean(), ops=["absent.py"])
    with pytest.raises(Diagnostic, match="there is no file .*absent.py"):
        driver.compile(absent, "laptop", 8, out=tmp_path / "b")


def test_rules_of_another_task_stay_out(tmp_path: Path, cluster: Path) -> None:
    """A dump must not ask for ops that its task does not have."""
    load_task(SPEC)
    plain = TrainingTask(torch.nn.Linear(4, 4), torch.randn(8, 4), loss=lambda y, t: y.mean())
    assert "mylib" not in driver.compile(plain, cluster, 8, out=tmp_path / "b").plan
