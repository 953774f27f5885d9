"""Order of levels, verification, dumps, reproducers, instruments."""

from __future__ import annotations

import io
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from uniap_compiler.cli import opt
from uniap_compiler.ir import ConstantStore, Diagnostic, Module, Op, TensorType, Value, equal, parse_module
from uniap_compiler.passes import registry
from uniap_compiler.passes.instruments import Diff, Dump, PrintAfter, Stats, Timing
from uniap_compiler.passes.manager import Session, run_passes
from uniap_compiler.passes.pipelines import parse_pipeline

TEXT = """module @m {
  func @f(%x: tensor<4xf32>) -> (tensor<4xf32>) {
    %a = aten.exp(%x) : tensor<4xf32>
    %b = aten.exp(%x) : tensor<4xf32>
    return %b
  }
}
"""


@dataclass(frozen=True)
class Raise:
    """Fails in the way that it is told to, after having changed the module."""

    name: ClassVar[str] = "raise"
    requires: ClassVar[tuple[str, ...]] = ()
    ensures: ClassVar[str | None] = None
    how: str = "diagnostic"

    def run(self, module: Module, session: Session) -> None:
        func = module.funcs["f"]
        if self.how == "invalid":
            stray = Value("stray", TensorType((4,), "f32"))
            func.ops.append(Op("aten.exp", [stray], [Value("y", stray.type)]))
            return
        func.ops.clear()
        if self.how == "bug":
            raise ZeroDivisionError("a bug")
        raise Diagnostic("this cannot be done")


@dataclass(frozen=True)
class Layer:
    name: ClassVar[str] = "layer"
    requires: ClassVar[str] = "captured"
    ensures: ClassVar[str] = "layered"

    def run(self, module: Module, session: Session) -> str:
        return "three layers"


@pytest.fixture
def module() -> Module:
    return parse_module(TEXT)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    real = registry.pass_class
    found = {"raise": Raise, "layer": Layer}
    monkeypatch.setattr(registry, "pass_class", lambda name: found.get(name) or real(name))
    monkeypatch.setattr("uniap_compiler.passes.pipelines.pass_class", registry.pass_class)


def captured() -> Module:
    text = TEXT.replace("@m", "@m attributes {level = captured}").replace("@f", "@main").replace("4xf32", "f32")
    text = text.replace("%x: tensor<f32>", '%x: tensor<f32> {role = "input"}')
    return parse_module(text.replace(") {", ') attributes {results = ["loss"]} {'))


def test_a_wrong_order_is_refused_before_anything_runs(module: Module) -> None:
    before = parse_module(TEXT)
    with pytest.raises(Diagnostic, match="layer needs a module at level captured, and this one does not say its level"):
        run_passes(module, parse_pipeline("cse,layer"))
    assert equal(module, before)
    with pytest.raises(
        Diagnostic, match="layer needs a module at level captured, and layer leaves it at level layered"
    ):
        run_passes(captured(), [Layer(), Layer()])


def test_the_manager_writes_the_level() -> None:
    module = captured()
    with pytest.raises(Diagnostic, match="has only calls"):  # the pass did not do what the level promises
        run_passes(module, [Layer()])
    assert module.attrs["level"] == "layered"
    module = captured()
    run_passes(module, [Layer()], verify_each=False)


def test_the_module_is_verified_after_each_pass(module: Module) -> None:
    with pytest.raises(Diagnostic, match="%stray is used and @f does not define it") as caught:
        run_passes(module, [Raise("invalid"), *parse_pipeline("cse")])
    assert "in the pass raise" in caught.value.notes[-1]


@pytest.mark.parametrize("how", ["diagnostic", "bug", "invalid"])
def test_a_failing_pass_leaves_a_reproducer(module: Module, tmp_path: Path, how: str) -> None:
    session = Session()
    session.constants.add("c", np.zeros(3, dtype=np.float32), "f32")
    with pytest.raises((Diagnostic, ZeroDivisionError)) as caught:
        run_passes(module, [*parse_pipeline("cse"), Raise(how)], session, reproducer=tmp_path / "out")
    path = tmp_path / "out" / "reproducer.mlir"
    text = path.read_text()
    command = shlex.split(text.splitlines()[0].removeprefix("// "))
    assert command == ["uniap-opt", str(path), "-p", "raise" if how == "diagnostic" else f"raise{{how={how}}}"]
    assert text.splitlines()[1] == "// uniap-ir 1"
    assert [op.results[0].name for op in parse_module(text).funcs["f"].ops] == ["a"]  # as cse left it
    assert list(ConstantStore.load(path.parent / "constants.safetensors")) == ["c"]
    notes = getattr(caught.value, "notes", None) or caught.value.__notes__
    assert f"-p {shlex.quote(command[3])}" in notes[-1]
    # and the command does repeat the failure
    if how == "bug":
        with pytest.raises(ZeroDivisionError):
            opt.run(command[1:], io.StringIO(), io.StringIO())
    else:
        errors = io.StringIO()
        assert opt.run(command[1:], io.StringIO(), errors) == 1
        assert caught.value.message in errors.getvalue()  # type: ignore[attr-defined]


def test_dump(module: Module, tmp_path: Path) -> None:
    session = Session()
    session.constants.add("c", np.zeros(3, dtype=np.float32), "f32")
    (tmp_path / "07-old.mlir").write_text("from an earlier run")
    (tmp_path / "notes.txt").write_text("mine")
    run_passes(module, parse_pipeline("cse,dce"), session, instruments=[Dump(tmp_path, "capture")])
    files = sorted(p.name for p in tmp_path.iterdir())
    assert files == ["00-capture.mlir", "01-cse.mlir", "02-dce.mlir", "constants.safetensors", "notes.txt"]
    assert equal(parse_module((tmp_path / "00-capture.mlir").read_text()), parse_module(TEXT))
    assert equal(parse_module((tmp_path / "02-dce.mlir").read_text()), module)
    assert list(ConstantStore.load(tmp_path / "constants.safetensors")) == ["c"]


def test_continuing_from_a_dump_gives_the_same(module: Module, tmp_path: Path) -> None:
    run_passes(module, parse_pipeline("cse,dce"), instruments=[Dump(tmp_path)])
    middle = parse_module((tmp_path / "01-cse.mlir").read_text())
    assert equal(run_passes(middle, parse_pipeline("dce")), module)


def test_a_failed_pass_in_the_dump(module: Module, tmp_path: Path) -> None:
    with pytest.raises(Diagnostic):
        run_passes(module, [*parse_pipeline("cse"), Raise()], instruments=[Dump(tmp_path)])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00-input.mlir", "01-cse.mlir", "02-raise.failed.txt"]


def test_stop_after(module: Module) -> None:
    run_passes(module, parse_pipeline("cse,dce"), stop_after="cse")
    assert len(module.funcs["f"].ops) == 1
    with pytest.raises(Diagnostic, match="cannot stop after nothing: the pipeline is cse"):
        run_passes(module, parse_pipeline("cse"), stop_after="nothing")


def test_prints(module: Module) -> None:
    named, changed, diff, stats = io.StringIO(), io.StringIO(), io.StringIO(), io.StringIO()
    instruments = [
        PrintAfter(named.write, {"dce"}),
        PrintAfter(changed.write, changed=True),
        Diff(diff.write),
        Stats(stats.write),
    ]
    run_passes(module, parse_pipeline("dce,cse,dce"), instruments=instruments)
    assert named.getvalue().count("// ----- after dce") == 2 and "after cse" not in named.getvalue()
    assert changed.getvalue().count("// -----") == 1  # dce removes %a; then nothing changes
    assert "-    %a = aten.exp(%x)" in diff.getvalue() and diff.getvalue().count("+++") == 1
    assert stats.getvalue().splitlines() == [
        "input: 1 funcs, 2 ops",
        "dce: 1 funcs, 1 ops (-1); 1 ops removed",
        "cse: 1 funcs, 1 ops (+0); 0 ops merged",
        "dce: 1 funcs, 1 ops (+0); 0 ops removed",
        "       1  aten.exp",
    ]


def test_timing(module: Module) -> None:
    timing = Timing()
    with timing.measure("capture"):
        pass
    run_passes(module, parse_pipeline("cse,dce"), instruments=[timing])
    assert [name for name, _ in timing.rows] == ["capture", "cse", "dce", "verification"]
    assert timing.table().splitlines()[-1].startswith("total")


def test_a_location_is_shown_with_its_source(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("import torch\ny = x.bad()\n")

    @dataclass(frozen=True)
    class Complain(Raise):
        def run(self, module: Module, session: Session) -> None:
            func = module.funcs["f"]
            raise Diagnostic("no", op=func.ops[0], func=func)

    module = parse_module(TEXT.replace("tensor<4xf32>\n", 'tensor<4xf32> loc("model.py":2)\n'))
    for where in ("session", "spec"):
        session = Session(source_root=tmp_path if where == "session" else None)
        if where == "spec":
            module.attrs["spec"] = f"{tmp_path}/model.py:task"
        with pytest.raises(Diagnostic, match=r"2 \| y = x.bad\(\)"):
            run_passes(module, [Complain()], session)
        assert session.constants is not None
