"""The folder: what is in it, what it replaces, that it is the same every time, and that names cannot hurt it."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from uniap_compiler.codegen import bundle as bundle_writer
from uniap_compiler.codegen.bundle import check_output, hash_files, write_bundle
from uniap_compiler.codegen.rank import World, parameters_of, slices_of
from uniap_compiler.ir import Diagnostic, Layout, Module, Op, Part, print_module, split_by
from uniap_compiler.passes.manager import Session
from uniap_compiler.runtime.bundle import Bundle
from uniap_compiler.runtime.simulate import simulate

from .hand_written import random_weights, session, two_stages


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return write_bundle(two_stages(), session(), tmp_path / "build")


def test_a_bundle_is_complete(written: Path) -> None:
    bundle = Bundle(written)
    bundle.check()
    assert sorted(p.name for p in written.iterdir()) == sorted(
        ["README.md", "manifest.json", "plan.mlir", "ranks", "runtime", "stages", "train.py", "weights"]
    )
    assert set(bundle.manifest["files"]) == set(hash_files(written)) - {"manifest.json"}
    assert len(list((written / "ranks").iterdir())) == 8
    assert print_module(two_stages()) == (written / "plan.mlir").read_text()
    assert "torchrun --nproc-per-node 8 train.py" in (written / "README.md").read_text()
    for rank in range(8):
        assert bundle.rank(rank).RANK == rank


def test_how_to_start_it_on_several_nodes(tmp_path: Path) -> None:
    module = two_stages()
    module.ops.insert(0, Op("plan.cluster", symbol="pair", attrs={"nodes": 2, "devices_per_node": 4}))
    plan = module.find("plan.plan")
    assert plan is not None
    plan.attrs["simulated"] = 0.5
    module.ops += [Op("plan.stage", symbol=f"stage_{i}", attrs={"memory": 2**30 * (i + 1)}) for i in range(2)]
    written = write_bundle(module, session(), tmp_path / "build")
    said = (written / "README.md").read_text()
    assert "torchrun --nnodes 2 --nproc-per-node 4 --node-rank I --master-addr HOST train.py" in said
    assert "| pair: 2 nodes of 4 |" in said and "0.5 s per step, 16 samples/s; 2.00 GiB per rank" in said
    assert json.loads((written / "manifest.json").read_text())["nodes"] == 2
    env = {**os.environ, "WORLD_SIZE": "1", "RANK": "0"}
    command = [sys.executable, str(written / "train.py"), "--data", "x.py:y"]
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert "this bundle is for 8 ranks" in run.stderr
    assert "help: torchrun --nnodes 2 --nproc-per-node 4 --node-rank I --master-addr HOST" in run.stderr


def test_the_manifest(written: Path) -> None:
    manifest = json.loads((written / "manifest.json").read_text())
    assert manifest["mesh"] == [["a", 2], ["b", 2]]
    assert (manifest["world_size"], manifest["stages"], manifest["micro_batches"], manifest["global_batch"]) == (
        8,
        2,
        2,
        8,
    )
    assert manifest["optimizer"]["kind"] == "adamw" and manifest["optimizer"]["defaults"]["lr"] == 0.01
    assert manifest["inputs"][0] == {"path": "batch.x", "shape": [4, 4], "dtype": "float64"}
    assert manifest["loss"] == {"dtype": "float64"}
    head = manifest["parameters"]["head.weight"]
    assert head == {
        "shape": [2, 4], "dtype": "float64", "home_stage": 1, "stages": [1], "layout": [[], ["a"]], "grad": True, "aliases": [],  # noqa: E501
    }  # fmt: skip
    assert "head.weight@copy0" not in manifest["parameters"]


def test_patterns_without_decay_become_a_group() -> None:
    from uniap_compiler.codegen.manifest import _optimizer
    from uniap_compiler.ir import struct

    module = two_stages()
    module.attrs["optimizer"] = struct("optimizer", kind="adamw", weight_decay=0.1, no_decay=["*.bias"])
    described = _optimizer(module)
    assert described["defaults"]["weight_decay"] == 0.1 and "no_decay" not in described["defaults"]
    assert described["groups"] == [{"parameters": [f"blocks.{i}.bias" for i in range(3)], "weight_decay": 0.0}]


# -- ranks ----------------------------------------------------------------------------------------------------------


def test_slices() -> None:
    world = World({"a": 2, "b": 3}, 1)
    layout = Layout((split_by("a", "b"), (Part((), 4), Part(("b",), 6)), split_by()))
    assert slices_of([12, 24, 5], layout, world, {"a": 1, "b": 2}) == [
        [[12, 10, 12]],
        [[4, 0, 4], [6, 4, 6]],
        [[5, 0, 5]],
    ]
    with pytest.raises(ValueError, match=r"dim 0 of \[4, 24, 5\] does not divide over 6 devices"):
        slices_of([4, 24, 5], layout, world, {"a": 0, "b": 0})


def test_every_piece_has_one_owner() -> None:
    """The owners' pieces make up every parameter exactly once: what the gradient norm needs."""
    module = two_stages()
    world = World.of(module)
    owned: dict[str, list[list[list[list[int]]]]] = {}
    for rank in range(world.size):
        for name, record in parameters_of(module, world, rank).items():
            if record["owner"]:
                owned.setdefault(name, []).append(record["slices"])
    for op in module.ops:
        if op.name == "plan.parameter" and op.attrs["home"]:
            count = torch.zeros(op.attrs["shape"], dtype=torch.int64)
            for slices in owned[str(op.symbol)]:
                count[tuple(slice(start, stop) for ((_, start, stop),) in slices)] += 1
            assert torch.all(count == 1), op.symbol


def test_groups_and_coordinates() -> None:
    world = World({"a": 2, "b": 3}, 2)
    assert world.coordinates(10) == {"a": 1, "b": 1} and world.stage_of(10) == 1
    assert world.groups(["b"]) == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert world.groups(["a"]) == [[0, 3], [1, 4], [2, 5], [6, 9], [7, 10], [8, 11]]
    assert world.groups(["a", "b"]) == [[*range(6)], [*range(6, 12)]]


# -- the same bytes -------------------------------------------------------------------------------------------------

_WRITE = """
import sys, torch
from pathlib import Path
from tests.codegen.hand_written import two_stages, session
from uniap_compiler.codegen.bundle import write_bundle
torch.set_num_threads(int(sys.argv[2]))
write_bundle(two_stages(), session(), Path(sys.argv[1]))
"""


def test_two_compilations_give_the_same_bytes(tmp_path: Path, written: Path) -> None:
    other = tmp_path / "else" / "where" / "other"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", _WRITE, str(other), "2"], check=True, env=environment, cwd=root)
    assert hash_files(other) == hash_files(written)


def test_the_fingerprint_is_of_the_programme_and_not_of_the_weights(tmp_path: Path, written: Path) -> None:
    module = two_stages()
    other = write_bundle(module, Session(weights=random_weights(module)), tmp_path / "other")
    assert Bundle(other).fingerprint == Bundle(written).fingerprint
    module.attrs["global_batch"] = 16
    third = write_bundle(module, session(), tmp_path / "third")
    assert Bundle(third).fingerprint != Bundle(written).fingerprint


# -- what it replaces -----------------------------------------------------------------------------------------------


def test_a_bundle_replaces_a_bundle(written: Path) -> None:
    before = hash_files(written)
    (written / "ranks" / "__pycache__").mkdir()
    (written / "ranks" / "__pycache__" / "x.pyc").write_bytes(b"")
    (written / "metrics.jsonl").write_text("{}\n")
    write_bundle(two_stages(), session(), written)
    assert hash_files(written) == before
    assert [p.name for p in written.parent.iterdir()] == ["build"], "nothing temporary is left"


def test_a_folder_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "build"
    check_output(folder)
    folder.mkdir()
    check_output(folder)  # empty
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(Diagnostic, match="is not empty and not a bundle, so it is not replaced"):
        write_bundle(two_stages(), session(), folder)
    (folder / "manifest.json").write_text('{"format": "something else"}')
    with pytest.raises(Diagnostic, match="choose another folder with --out, or remove this one"):
        check_output(folder)
    assert (folder / "thesis.tex").read_text() == "years of work"
    with pytest.raises(Diagnostic, match="is a file, and a bundle is a folder"):
        check_output(folder / "thesis.tex")


def test_a_bundle_with_a_checkpoint_inside_is_refused(written: Path) -> None:
    (written / "checkpoints").mkdir()
    (written / "checkpoints" / "step_10").write_text("")
    with pytest.raises(Diagnostic, match="that the compiler did not write, so it is not replaced: checkpoints/step_10"):
        write_bundle(two_stages(), session(), written)
    assert (written / "checkpoints" / "step_10").exists()


def test_a_failure_leaves_the_old_bundle(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = hash_files(written)

    def fail(*_: object) -> str:
        raise RuntimeError("disk full")

    monkeypatch.setattr(bundle_writer, "write_rank", fail)
    with pytest.raises(RuntimeError, match="disk full"):
        write_bundle(two_stages(), session(), written)
    assert hash_files(written) == before
    assert [p.name for p in written.parent.iterdir()] == ["build"]


def test_missing_weights(tmp_path: Path) -> None:
    module, given = two_stages(), session()
    assert given.weights is not None
    given.weights = {k: v for k, v in given.weights.items() if k != "blocks.1.up"}
    with pytest.raises(Diagnostic, match=r"no initial weights for blocks\.1\.up\n.*weights\.safetensors beside it"):
        write_bundle(module, given, tmp_path / "build")
    assert not (tmp_path / "build").exists()


# -- hostile names --------------------------------------------------------------------------------------------------

EVIL = 'x"""\nimport os; os.system("touch pwned") #'


def hostile() -> Module:
    """Every name of the module carries code; the programme is the same."""
    module = two_stages()

    def evil(name: str) -> str:
        return f"{name}{EVIL}"

    renamed = {op.symbol: evil(str(op.symbol)) for op in module.ops if op.name in ("plan.parameter", "plan.input")}
    for op in module.ops:
        if op.symbol in renamed:
            op.symbol = renamed[op.symbol]
        if op.name == "plan.parameter":
            op.attrs["of"] = evil(str(op.attrs["of"]))
        if op.name == "sched.stage":
            op.attrs["table"] = [[r[0], evil(r[1]), r[2]] if len(r) == 3 else r for r in op.attrs["table"]]
    module.attrs["spec"] = EVIL
    for func in module.funcs.values():
        for value in func.values():
            value.name = evil(value.name)
        for key in ("args", "results"):
            if func.attrs["kind"] == "segment":
                func.attrs[key] = [evil(r) if ":" in r and not r.startswith("seed") else r for r in func.attrs[key]]
        for op in func.ops:
            rename_op(op, evil)
    funcs = list(module.funcs.values())
    for func in funcs:
        func.name = func.name if func.name.startswith("stage_") else evil(func.name)
    module.funcs = {f.name: f for f in funcs}
    return module


def rename_op(op: Op, evil: object) -> None:
    from uniap_compiler.ir import Loc

    assert callable(evil)
    if op.symbol is not None:
        op.symbol = evil(op.symbol)
    if "layer" in op.attrs:
        op.attrs["layer"] = evil(op.attrs["layer"])
    op.loc = Loc(EVIL, 1, EVIL)


def test_hostile_names_are_harmless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    x, t = (torch.randn(8, n, dtype=torch.float64, generator=generator) for n in (4, 2))
    results = []
    for n, module in enumerate((two_stages(), hostile())):
        weights = {
            str(o.symbol): w
            for o, w in zip(
                [o for o in module.ops if o.name == "plan.parameter"], random_weights_in_order(module), strict=True
            )
        }
        build = write_bundle(module, Session(weights=weights), tmp_path / f"build{n}")
        manifest = json.loads((build / "manifest.json").read_text())
        paths = [i["path"] for i in manifest["inputs"]]
        results.append(simulate(build, [dict(zip(paths, (x, t), strict=True))]))
    assert results[0].losses == results[1].losses
    for a, b in zip(results[0].gradients.values(), results[1].gradients.values(), strict=True):
        assert torch.equal(a, b)
    assert not (tmp_path / "pwned").exists()


def random_weights_in_order(module: Module) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    parameters = [op for op in module.ops if op.name == "plan.parameter"]
    return [torch.randn(op.attrs["shape"], dtype=torch.float64, generator=generator) for op in parameters]


def test_no_pickle_and_only_torch(written: Path) -> None:
    """Generated files import torch and the runtime; nothing of the compiler."""
    for path in written.rglob("*.py"):
        text = path.read_text()
        assert "uniap_compiler." not in text.replace("uniap_compiler.runtime", ""), path
        for line in text.splitlines():
            if path.parent.name in ("stages", "ranks") and line.startswith(("import ", "from ")):
                assert line in ("import torch", "from ..runtime import kernels as nn") or line.startswith(
                    "from ..stages"
                )
    digest = hashlib.sha256((written / "stages/stage_0.py").read_bytes()).hexdigest()
    assert json.loads((written / "manifest.json").read_text())["files"]["stages/stage_0.py"] == digest
