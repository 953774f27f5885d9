"""One compilation from end to end, continued from any of its dumps, and the words for what cannot be continued."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from uniap_compiler import driver
from uniap_compiler.cli.main import main
from uniap_compiler.codegen.bundle import hash_files
from uniap_compiler.ir import Atom, Diagnostic, parse_module, print_module
from uniap_compiler.passes.simplify.differentiate import Differentiate
from uniap_compiler.runtime.weights import save
from uniap_compiler.verify import verify

from .hand_written import HERE, SPEC, session, two_stages


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    """The hand-written module as a dump: its text with the weights beside."""
    module = two_stages()
    module.attrs["after"] = "schedule"
    path = tmp_path / "dumps" / "13-schedule.mlir"
    path.parent.mkdir()
    path.write_text(print_module(module))
    weights = session().weights
    assert weights is not None
    save(path.parent / "weights.safetensors", dict(weights))
    return path


def run(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        main(words)
    captured = capsys.readouterr()
    return int(ended.value.code or 0), re.sub(r"\s+", " ", captured.out + captured.err)


# -- from a dump ----------------------------------------------------------------------------------------------------


def test_a_finished_module_only_needs_its_bundle(dump: Path, tmp_path: Path) -> None:
    compiled = driver.resume(dump, out=tmp_path / "build")
    assert [name for name, _ in compiled.seconds] == ["parse", "codegen"]
    assert verify(compiled.bundle, spec=SPEC).ok


def test_missing_weights(dump: Path, tmp_path: Path) -> None:
    (dump.parent / "weights.safetensors").unlink()
    with pytest.raises(Diagnostic, match=r"the weights are missing: there is no weights\.safetensors beside"):
        driver.resume(dump, out=tmp_path / "build")
    (dump.parent / "weights.safetensors").write_bytes(b"nonsense")
    with pytest.raises(Diagnostic, match="cannot read the weights"):
        driver.resume(dump, out=tmp_path / "build")


def test_missing_constants(dump: Path, tmp_path: Path) -> None:
    text = 'plan.constant @mask {digest = "0", shape = [2], dtype = f32}\n  plan.mesh @mesh'
    dump.write_text(dump.read_text().replace("plan.mesh @mesh", text))
    with pytest.raises(Diagnostic, match="cannot read the constants .*constants.safetensors"):
        driver.resume(dump, out=tmp_path / "build")


def test_options_of_the_search_come_too_late(dump: Path, tmp_path: Path) -> None:
    with pytest.raises(Diagnostic, match="--force comes too late: .* is at level local and its plan is made"):
        driver.resume(dump, out=tmp_path / "build", force="tp=4")
    with pytest.raises(Diagnostic, match="--cluster comes too late"):
        driver.resume(dump, out=tmp_path / "build", cluster="laptop")


def test_a_module_of_no_level(dump: Path, tmp_path: Path) -> None:
    dump.write_text(dump.read_text().replace("level = local, ", ""))
    with pytest.raises(Diagnostic, match="at no level of a compilation: it has no attribute `level`"):
        driver.resume(dump, out=tmp_path / "build")
    with pytest.raises(Diagnostic, match=r"cannot read .*nothing\.mlir: No such file"):
        driver.resume(tmp_path / "nothing.mlir", out=tmp_path / "build")


def test_the_last_pass_says_where_to_go_on() -> None:
    module = two_stages()
    module.attrs["level"], module.attrs["after"] = Atom("local"), "localize"
    assert [p.name for p in driver.remaining_passes(module, Path("x"))][0] == "prefetch-parameters"
    module.attrs["level"] = Atom("planned")
    del module.attrs["after"]
    assert [p.name for p in driver.remaining_passes(module, Path("x"))][0] == "insert-communication"


# -- the plan of a bundle -------------------------------------------------------------------------------------------


def test_plan_of_a_bundle_too_early_or_too_late(dump: Path, tmp_path: Path) -> None:
    bundle = driver.resume(dump, out=tmp_path / "build").bundle
    with pytest.raises(Diagnostic, match="plan.mlir is at level local, past the plan"):
        driver.lower_again(bundle, out=tmp_path / "other", dtype="float32")
    plan = bundle / "plan.mlir"
    plan.write_text(plan.read_text().replace("level = local", "level = annotated"))
    with pytest.raises(Diagnostic, match="is at level annotated, where there is no plan yet"):
        driver.lower_again(bundle, out=tmp_path / "other")
    with pytest.raises(Diagnostic, match="would replace the bundle that has the plan"):
        driver.lower_again(bundle, out=bundle)
    with pytest.raises(Diagnostic, match="has no plan.mlir, so it is not a bundle"):
        driver.lower_again(tmp_path, out=tmp_path / "other")


# -- the command's words --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give one of SPEC, --from and --plan"),
        (["m.py:f", "--from", "x.mlir"], "not SPEC and --from"),
        (["m.py:f"], "a SPEC needs --cluster and --global-batch"),
        (["--from", "x.mlir", "--global-batch", "4"], "--from has its global batch already"),
        (["--plan", "b", "--force", "tp=2"], "--plan keeps the plan, so --force has no effect"),
        (["--from", "x.mlir", "--dtype", "float64"], "--plan takes --dtype"),
    ],
)
def test_usage(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, output = run("compile", *words, capsys=capsys)
    assert code == 2 and said in output.replace("│ ", "")


def test_diagnosed_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "build")
    code, said = run("compile", SPEC, "--cluster", "nowhere", "--global-batch", "8", "--out", out, capsys=capsys)
    assert code == 1 and "there is no cluster 'nowhere'" in said and "Traceback" not in said
    code, said = run("compile", SPEC, "--cluster", "laptop", "--global-batch", "0", "--out", out, capsys=capsys)
    assert code == 1 and "a global batch of 0: it must be at least 1" in said
    code, said = run("compile", "no.py:task", "--cluster", "laptop", "--global-batch", "8", "--out", out, capsys=capsys)
    assert code == 1 and "there is no file no.py" in said
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "notes.txt").write_text("mine")
    code, said = run("compile", "no.py:task", "--cluster", "laptop", "--global-batch", "8", "--out", out, capsys=capsys)
    assert code == 1 and "is not empty and not a bundle" in said, "asked for before any work"


def test_explain_what_is_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = run("explain", str(tmp_path), capsys=capsys)
    assert code == 1 and "is not a bundle: No such file or directory" in said


# -- the whole way --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The MLP for four ranks, with dumps."""
    root = tmp_path_factory.mktemp("whole")
    driver.compile(SPEC, "laptop", 8, out=root / "build", dtype="float64", dump=root / "dumps", force="pp=2,dp=2")
    return root


def test_the_whole_way(compiled: Path) -> None:
    assert verify(compiled / "build").ok
    names = [p.name for p in sorted((compiled / "dumps").glob("*.mlir"))]
    assert names[0] == "00-capture.mlir" and names[-1].endswith("-schedule.mlir")
    for path in (compiled / "dumps").glob("*.mlir"):
        text = path.read_text()
        assert print_module(parse_module(text)) == text, path.name


def test_every_dump_leads_to_the_same_bundle(compiled: Path, tmp_path: Path) -> None:
    wanted = hash_files(compiled / "build")
    for path in sorted((compiled / "dumps").glob("*.mlir")):
        again = driver.resume(path, out=tmp_path / path.stem).bundle
        assert hash_files(again) == wanted, path.name


def test_the_plan_in_another_dtype(compiled: Path, tmp_path: Path) -> None:
    bundle = driver.lower_again(compiled / "build", out=tmp_path / "f32", dtype="float32").bundle
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["dtype"] == "float32" and manifest["stages"] == 2
    assert verify(bundle).ok


_COMPILE = """
import sys, torch
from uniap_compiler import driver
torch.set_num_threads(2)
driver.compile(sys.argv[1], "laptop", 8, out=sys.argv[2], dtype="float64", force="pp=2,dp=2")
"""


def test_compiling_twice_gives_the_same_bytes(compiled: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "11"}
    command = [sys.executable, "-c", _COMPILE, SPEC, str(tmp_path / "deep" / "er" / "b")]
    subprocess.run(command, check=True, env=environment, cwd=HERE.parents[1])
    assert hash_files(tmp_path / "deep" / "er" / "b") == hash_files(compiled / "build")


def test_explain(compiled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = run("explain", str(compiled / "build"), capsys=capsys)
    assert code == 0 and "4 ranks" in said and "2 stages" in said and "1f1b" in said
    assert "head" in said and "status optimal" in said and "MiB" in said
    code, said = run("explain", str(compiled / "build"), "--json", capsys=capsys)
    about = json.loads(said)
    assert [row["stage"] for row in about["layers"]] == sorted(row["stage"] for row in about["layers"])
    assert {row["dp"] for row in about["layers"]} == {2}


def test_a_bug_of_a_pass_leaves_a_reproducer_beside_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Differentiate, module: object, session: object) -> None:
        raise ZeroDivisionError("not the user's fault")

    monkeypatch.setattr(Differentiate, "run", broken)
    with pytest.raises(ZeroDivisionError):
        driver.compile("examples/mlp.py:task", "laptop", 8, out=tmp_path / "build")
    first = (tmp_path / "build.failed" / "reproducer.mlir").read_text().splitlines()[0]
    assert first.startswith("// uniap-opt ") and first.endswith("-p differentiate")
    monkeypatch.undo()
    with pytest.raises(Diagnostic):
        driver.compile("examples/mlp.py:task", "laptop", 7, out=tmp_path / "other", force="dp=2")
    assert not (tmp_path / "other.failed").exists()
