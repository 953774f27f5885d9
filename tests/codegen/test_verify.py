"""verify accepts the right bundle and names the parameter of a wrong one."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from uniap_compiler import driver
from uniap_compiler.cli.main import main
from uniap_compiler.codegen.bundle import write_bundle
from uniap_compiler.codegen.manifest import sha256_file
from uniap_compiler.ir import Diagnostic
from uniap_compiler.verify import Report, check_fresh, compare_tensors, verify

from .hand_written import HERE, SPEC, session, two_stages


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return write_bundle(two_stages(), session(), tmp_path / "build")


def edit(bundle: Path, name: str, change: Callable[[str], str]) -> None:
    """Change a file and the hash of it: a compiler that was wrong, not a hand in the bundle."""
    path = bundle / name
    text = change(path.read_text())
    assert text != path.read_text(), "the mutation did nothing"
    path.write_text(text)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"][name] = sha256_file(path)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def run(bundle: Path, *options: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(bundle), "--spec", SPEC, *options])
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out + captured.err


def test_the_hand_written_programme_is_the_model(written: Path) -> None:
    report = verify(written, spec=SPEC)
    assert report.ok, report.failures()
    assert {row.what for row in report.rows} == {
        "loss", "gradient", "parameter after 3 steps of sgd", "parameter after 3 steps of adamw",
    }  # fmt: skip
    assert sum(row.what == "gradient" for row in report.rows) == 10
    assert sum(row.what == "loss" for row in report.rows) == 6
    assert max(row.error for row in report.rows) < 1e-12


def test_the_command(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = run(written, capsys=capsys)
    assert code == 0 and "equal: the bundle computes what the model does" in said and "1e-10" in said
    code, said = run(written, "--json", capsys=capsys)
    assert json.loads(said[said.index("{") :])["ok"] is True and code == 0


@pytest.mark.slow
def test_real_processes(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = run(written, "--processes", capsys=capsys)
    assert code == 0 and "8 ranks as gloo processes" in said


def drop(line: str) -> Callable[[str], str]:
    """Leave out the first collective of that spelling: its operand stays."""
    return lambda text: re.sub(rf"comm\.\w+\(({line}), [^)]*\)", r"\1", text, count=1)


STAGE_0, STAGE_1, RANK_3 = "stages/stage_0.py", "stages/stage_1.py", "ranks/rank_0003.py"
MUTANTS: dict[str, tuple[str, Callable[[str], str], str]] = {
    "drop a gradient's all-reduce": (STAGE_0, drop("d_up1"), r"blocks\.1\.up"),
    "drop a forward all-reduce": (STAGE_0, drop("y"), "copies on different ranks|loss"),
    "drop a backward all-reduce": (STAGE_0, drop("d_x"), r"blocks\.0\."),
    "halve a gradient": (STAGE_1, lambda t: t.replace(
        "return d_x, d_weight", "return d_x, d_weight / 2"), r"head\.weight"),
    "scale a gradient by 1 + 1e-8": (STAGE_0, lambda t: t.replace(
        "d_bias = d_h.sum([0])", "d_bias = d_h.sum([0]) * (1 + 1e-8)"), r"blocks\.\d\.bias"),
    "shift a slice": (RANK_3, lambda t: t.replace(
        '"blocks.1.bias": {"shape": [3], "dtype": "float64", "slices": [[[6, 3, 6]]]',
        '"blocks.1.bias": {"shape": [3], "dtype": "float64", "slices": [[[6, 2, 5]]]'), r"blocks\.1\.bias"),
    "read the first rows on every rank": (STAGE_1, lambda t: t.replace(
        'targets = comm.slice(targets, "a", dim=0)', "targets = targets[:2]"), "loss"),
    "forget to gather the head": (STAGE_1, lambda t: t.replace(
        'comm.all_gather(head_weight, "a", dim=1)', "torch.cat([head_weight, head_weight], dim=1)"), r"loss|head\.weight"),  # noqa: E501
    "average instead of adding": (STAGE_0, lambda t: t.replace(
        'comm.all_reduce(d_bias0, "a")', 'comm.all_reduce(d_bias0, "a") / 2'), r"blocks\.0\.bias"),
}  # fmt: skip


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(mutant: str, written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, change, words = MUTANTS[mutant]
    edit(written, name, change)
    code, said = run(written, capsys=capsys)
    assert code == 1, said
    assert re.search(f"differs.*({words})", said), said


def test_a_skipped_micro_batch_is_caught(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every rank leaves out micro-batch 1 and says nothing."""
    for rank in range(8):
        edit(written, f"ranks/rank_{rank:04d}.py", lambda text: re.sub(r"\n    \[.*, 1\],", "", text))
    code, said = run(written, capsys=capsys)
    assert code == 1 and "the bundle's ranks fail: the schedule leaves values that nobody took" in said, said


def test_a_micro_batch_counted_twice_is_caught(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Micro-batch 0 goes through the last stage where micro-batch 1 should."""
    edit(
        written,
        STAGE_1,
        lambda text: text.replace("(comm, h3, head_weight, targets)", "(comm, h3 * 0 + h3[:1], head_weight, targets)"),
    )
    code, said = run(written, capsys=capsys)
    assert code == 1 and re.search(r"differs.*(loss|blocks|head)", said), said


def test_a_forgotten_tied_gradient_is_caught(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The head on the second stage is the embedding on the first: its gradient is added up there."""
    spec = f"{HERE / 'tied.py'}:task"
    bundle = driver.compile(spec, "laptop", 8, out=tmp_path / "build", dtype="float64", force="pp=2,dp=2").bundle
    assert verify(bundle).ok
    edit(bundle, STAGE_0, lambda text: re.sub(r"(d_embed_weight = d_embed_weight) \+ .*", r"\1", text))
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(bundle)])
    assert ended.value.code == 1
    assert re.search(r"differs: gradient of embed\.weight", capsys.readouterr().out)


def test_a_bundle_changed_by_hand(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written / STAGE_0
    path.write_text(path.read_text() + "\n# a thought\n")
    code, said = run(written, capsys=capsys)
    assert code == 1 and "stages/stage_0.py was changed by hand" in said and "Traceback" not in said


def test_a_stale_bundle(tmp_path: Path) -> None:
    source = tmp_path / "model.py"
    source.write_text("x = 1\n")
    manifest = {"spec": "model.py:task", "spec_sha256": sha256_file(source)}
    check_fresh(manifest, source)
    source.write_text("x = 2\n")
    with pytest.raises(Diagnostic, match="the bundle is stale: .*model.py has changed since it was compiled"):
        check_fresh(manifest, source)


def test_the_model_is_not_here(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Diagnostic, match="compiled from mlp.py, which is not here\n.*give --spec"):
        verify(written)


def test_another_model(written: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text(
        Path(SPEC.partition(":")[0])
        .read_text()
        .replace("nn.Linear(4, 2,", "nn.Linear(4, 3,")
        .replace("torch.randn(8, 2)", "torch.randn(8, 3)")
    )
    with pytest.raises(Diagnostic, match=r"head\.weight has shape \[3, 4\], in the bundle \[2, 4\]"):
        verify(written, spec=f"{other}:task")
    other.write_text(other.read_text().replace("self.head", "self.tail"))
    with pytest.raises(Diagnostic, match=r"it has no head\.weight"):
        verify(written, spec=f"{other}:task")


CHAOTIC = """
import torch
from torch import nn

from uniap_compiler import TrainingTask


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x):
        return torch.sin(3e3 * self.b(torch.tanh(self.a(x)))).mean()


def task():
    torch.manual_seed(0)
    return TrainingTask(Net(), {"x": torch.randn(8, 64)})
"""


def test_a_model_that_amplifies_rounding(tmp_path: Path) -> None:
    """After a step of SGD it is elsewhere; the first gradients have no excuse, nor have steps that are not chaotic."""
    (tmp_path / "chaotic.py").write_text(CHAOTIC)
    spec = f"{tmp_path / 'chaotic.py'}:task"
    bundle = driver.compile(spec, "laptop", 8, out=tmp_path / "build", force="tp=4", dtype="float64").bundle
    report = verify(bundle)
    excused = report.excused()
    assert report.ok and excused and max(row.error for row in excused) > 1e-8
    assert not any(row.first or "adamw" in row.what for row in excused)

    edit(bundle, "stages/stage_0.py", lambda text: text.replace("d_mul * 3000.0 ", "d_mul * 3000.00003 "))
    wrong = verify(bundle)
    assert not wrong.ok and any(row.what == "gradient" for row in wrong.failures()) and not wrong.excused()


def test_a_wrong_step_of_an_ordinary_model_has_no_excuse(written: Path) -> None:
    change = "{key: settings[key] for key in", '{key: 0.90001 if key == "momentum" else settings[key] for key in'
    edit(written, "runtime/optimizer.py", lambda text: text.replace(*change))
    report = verify(written, spec=SPEC)
    assert {row.what for row in report.failures()} == {"loss", "parameter after 3 steps of sgd"}


def test_the_error_measure() -> None:
    def error(a: list[float], b: list[float]) -> float:
        big = {"big": torch.tensor([1.0, -1000.0])}
        rows = compare_tensors("gradient", {**big, "x": torch.tensor(a)}, {**big, "x": torch.tensor(b)})
        return next(row.error for row in rows if row.name == "x")

    assert error([2.0, 1.0], [2.0, 1.5]) == pytest.approx(0.25)  # of its own largest
    assert error([1e-9, 0.0], [0.0, 0.0]) == pytest.approx(1e-9)  # a true zero: of a thousandth of the largest of all
    report = Report("float64", 1e-10)
    nan: dict[str, Any] = {"x": torch.tensor([float("nan")])}
    report.rows += compare_tensors("gradient", nan, {"x": torch.tensor([1.0])})
    assert not report.ok and report.failures()
    missing = compare_tensors("gradient", {}, {"x": torch.tensor([1.0])})
    assert missing[0].note == "the bundle has none"
    shapes = compare_tensors("gradient", {"x": torch.zeros(2)}, {"x": torch.zeros(3)})
    assert shapes[0].note == "shapes [2] and [3]"
