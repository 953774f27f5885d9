"""Every plan starts from the same weights, and no rank or compiler holds more of them than its own slices."""

from __future__ import annotations

import json
import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from uniap_compiler import TrainingTask, driver, on_meta
from uniap_compiler.capture import initial_values, load_task
from uniap_compiler.ir import Diagnostic
from uniap_compiler.runtime.errors import BundleError
from uniap_compiler.runtime.initial import InitialValues
from uniap_compiler.runtime.simulate import simulate
from uniap_compiler.runtime.weights import save

from .plans import Workshop, check, manifest
from .without_memory import task as make_task

HERE = Path(__file__).parent
SPEC = f"{HERE / 'without_memory.py'}:task"
PLANS = ["dp=4", "tp=4", "pp=2,dp=2,shard=parameters", "pp=2,tp=2", "dp=2,tp=2,shard=optimizer"]
CPU = torch.device("cpu")
Compile = Callable[..., Path]


def start(bundle: Path, weights: Path | None = None) -> dict[str, Tensor]:
    """What all ranks together hold before the first step."""
    found = simulate(bundle, [], steps=0, weights=weights, check=False)
    assert found.disagreement == 0, found.disagreeing
    return found.parameters


def full(task: Any, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    values = initial_values(task.model)
    return {n: v.to(dtype) if isinstance(v, Tensor) else v.values(dtype) for n, v in values.items()}  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def compiled(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Compile:
    """force -> the bundle, compiled once."""
    made: dict[str, Path] = {}

    def compile(force: str) -> Path:
        if force not in made:
            out = tmp_path_factory.mktemp("plan") / "build"
            made[force] = workshop.compile(SPEC, 4, force, out, global_batch=8)
        return made[force]

    return compile


@pytest.mark.parametrize("force", PLANS)
def test_all_plans_start_from_the_same_values(force: str, compiled: Compile) -> None:
    found, wanted = start(compiled(force)), full(make_task())
    assert found
    for name, value in found.items():
        assert torch.equal(value, wanted[name]), name
    assert bool((found["embed.weight"][0] == 0).all())
    assert float(found["blocks.1.qkv.weight"][:32].std()) == pytest.approx(0.2, rel=0.15)


def test_what_the_bundle_holds(compiled: Compile) -> None:
    bundle = compiled("pp=2,dp=2,shard=parameters")
    told = manifest(bundle)["weights"]
    assert told["recipe"] == "weights/recipe.json"
    recipe = json.loads((bundle / told["recipe"]).read_text())
    assert recipe["seed"] == 7 and "embed.weight" in recipe["tensors"] and "head.weight" not in recipe["tensors"]
    values = InitialValues(bundle, manifest(bundle))
    orthogonal = [f"blocks.{n}.out.weight" for n in range(2)]
    assert [name for name in manifest(bundle)["parameters"] if name in values.files] == orthogonal
    tables = [f"blocks.{n}.{table}" for n in range(2) for table in ("cos", "sin")]
    assert told["unused"] == tables, "they became constants of the programme"


@pytest.mark.parametrize("force", ["tp=4", "pp=2,dp=2,shard=parameters"])
def test_verify_starts_from_them_too(force: str, compiled: Compile) -> None:
    check(compiled(force))


def test_mutants(compiled: Compile, tmp_path: Path) -> None:
    """Ranks that number their elements locally, or draw from a seed of their own, are noticed."""
    wanted = full(make_task())
    for n, (old, new) in enumerate([
        ("rows[r, None] + inner[None, c]", "(rows[r, None] * 0 + inner[None, c] - inner[0])"),
        ("_key(seed, options[\"draw\"])", "_key(seed, 0)"),
        ("low, high = arguments\n        return", "low, high = 0.0, 1.0\n        return"),
        ("x = torch.where(inside, _apply(step, x.clone(), place, seed), x)", "x = _apply(step, x, place, seed)"),
    ]):  # fmt: skip
        mutant = tmp_path / f"mutant{n}"
        shutil.copytree(compiled("tp=4"), mutant)
        path = mutant / "runtime/initialise.py"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
        found = simulate(mutant, [], steps=0, check=False).parameters
        assert any(not torch.equal(found[name], wanted[name]) for name in found), old


def test_lowered_again_and_continued(workshop: Workshop, compiled: Compile, tmp_path: Path) -> None:
    wanted = full(make_task())
    again = driver.lower_again(compiled("tp=4"), out=tmp_path / "again", dtype="float32", dump=tmp_path / "dump").bundle
    continued = driver.resume(next((tmp_path / "dump").glob("*-localize.mlir")), out=tmp_path / "continued").bundle
    for bundle in (again, continued):
        found = start(bundle)
        assert all(torch.equal(found[name], wanted[name].float()) for name in found)


def test_on_device_meta(workshop: Workshop, tmp_path: Path) -> None:
    spec = f"{HERE / 'without_memory.py'}:on_device_meta"
    bundle = workshop.compile(spec, 2, "tp=2", tmp_path / "build", global_batch=8)
    found, wanted = start(bundle), full(load_task(spec))
    assert all(torch.equal(found[name], wanted[name]) for name in found)
    check(bundle)


def test_a_model_that_nobody_saw(tmp_path: Path) -> None:
    task = make_task()
    with torch.device("meta"):
        task.model.blocks[1].down = torch.nn.Linear(32, 16)  # type: ignore[union-attr,operator]
    with pytest.raises(Diagnostic, match=r"no initial values for blocks\.1\.down\.weight: its model was built"):
        driver.compile(task, "laptop", 8, out=tmp_path / "build")


# -- checkpoints -------------------------------------------------------------------------------------------------------


def checkpoint(prefix: str = "", without: tuple[str, ...] = (), seed: int = 1) -> dict[str, Tensor]:
    """A state dict of the decoder as people save it: tied names once."""
    torch.manual_seed(seed)
    state = load_task(f"{HERE / 'without_memory.py'}:real").model.state_dict()
    return {prefix + n: x for n, x in state.items() if n not in ("head.weight", *without)}


def in_shards(folder: Path, state: dict[str, Tensor]) -> Path:
    folder.mkdir()
    names, where = sorted(state), {}
    for n in range(3):
        file = f"model-{n + 1:05d}-of-00003.safetensors"
        save(folder / file, {name: state[name] for name in names[n::3]})
        where.update(dict.fromkeys(names[n::3], file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


@pytest.mark.parametrize("force", ["tp=4", "pp=2,dp=2,shard=parameters"])
@pytest.mark.parametrize("prefix", ["", "model.decoder."])
def test_a_checkpoint_at_run_time(force: str, prefix: str, compiled: Compile, tmp_path: Path) -> None:
    state = checkpoint(prefix)
    found = start(compiled(force), in_shards(tmp_path / "shards", state))
    assert all(torch.equal(value, state[prefix + name].double()) for name, value in found.items())
    save(tmp_path / "single.safetensors", {n: x.bfloat16() if x.is_floating_point() else x for n, x in state.items()})
    found = start(compiled(force), tmp_path / "single.safetensors")
    assert all(torch.equal(value, state[prefix + name].bfloat16().double()) for name, value in found.items())


def test_a_checkpoint_at_compile_time(tmp_path: Path) -> None:
    state = checkpoint() | {"blocks.0.steps": torch.tensor(5.0), "head.weight": torch.zeros(24, 16)}
    del state["blocks.1.steps"]
    state["head.weight"].copy_(state["embed.weight"])
    place = in_shards(tmp_path / "shards", state)
    task = make_task()
    task.weights = place
    out = driver.compile(task, "laptop", 8, out=tmp_path / "build", force="tp=4", dump=tmp_path / "dump").bundle
    told = manifest(out)["weights"]
    assert told["checkpoint"] == str(place.resolve()) and "recipe" not in told
    assert all(torch.equal(value, state[name]) for name, value in start(out).items())
    buffers = simulate(out, [], steps=0, check=False).buffers
    assert [float(buffers[f"blocks.{n}.steps"]) for n in range(2)] == [5.0, 0.0]
    report = check_float64(out, tmp_path / "float64", task)
    assert all(torch.equal(value, state[name].double()) for name, value in start(report).items())
    continued = driver.resume(next((tmp_path / "dump").glob("*-localize.mlir")), out=tmp_path / "continued").bundle
    assert all(torch.equal(value, state[name]) for name, value in start(continued).items())
    place.rename(tmp_path / "moved")
    with pytest.raises(BundleError, match=r"compiled with, is not here\n.*--weights PATH"):
        start(out)
    assert start(out, tmp_path / "moved")


def check_float64(bundle: Path, out: Path, task: Any) -> Path:
    again = driver.lower_again(bundle, out=out, dtype="float64").bundle
    check(again, task=task)
    return again


def test_checkpoints_that_do_not_fit(compiled: Compile, tmp_path: Path) -> None:
    bundle = compiled("tp=4")
    state = checkpoint()
    wrong = state | {"blocks.0.up.weight": torch.zeros(32, 17)}
    cases = {
        "lacks blocks.0.down.weight": checkpoint(without=("blocks.0.down.weight",)),
        "also has blocks.2.up.weight": state | {"blocks.2.up.weight": torch.zeros(1)},
        "has blocks.0.up.weight of shape [32, 17], the bundle needs [32, 16]": wrong,
        "has none of the parameters: it has a.b": {"a.b": torch.zeros(2)},
    }
    path = tmp_path / "w.safetensors"
    for message, tensors in cases.items():
        save(path, tensors)
        with pytest.raises(BundleError, match=re.escape(f"the checkpoint {path} {message}")):
            InitialValues(bundle, manifest(bundle), path)
    with pytest.raises(Diagnostic, match="has none of the parameters: it has a.b"):
        driver.compile(make_task(), "laptop", 8, out=tmp_path / "build", weights=path)
    with pytest.raises(BundleError, match="there is no checkpoint"):
        InitialValues(bundle, manifest(bundle), tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="neither model.safetensors.index.json nor model.safetensors in"):
        InitialValues(bundle, manifest(bundle), tmp_path / "empty")
    shards = in_shards(tmp_path / "shards", state)
    (shards / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(BundleError, match="names model-00002-of-00003.safetensors, not there"):
        InitialValues(bundle, manifest(bundle), shards)


class Frozen(torch.nn.Module):
    """Batch norm by fixed statistics, and a mask: nothing that training changes."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 8)
        self.register_buffer("mask", torch.arange(8) % 2 == 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.norm.eval()(self.up(x)) * self.mask.float().exp()).pow(2).mean()


def frozen() -> TrainingTask:
    torch.manual_seed(0)
    return TrainingTask(Frozen(), {"x": torch.randn(8, 8)})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_buffers_that_became_constants(dtype: torch.dtype, tmp_path: Path) -> None:
    """A checkpoint with other values of them would be trained with those of the compilation: it is refused."""
    state = {n: x.to(dtype) if x.is_floating_point() else x for n, x in frozen().model.state_dict().items()}
    good, bad, task = tmp_path / "good.safetensors", tmp_path / "bad.safetensors", frozen()
    save(good, state)
    save(bad, state | {"norm.running_var": torch.full((8,), 2.0, dtype=dtype)})
    task.weights = good
    out = driver.compile(task, "laptop", 8, out=tmp_path / "build", force="dp=2", dtype="float64").bundle
    assert "norm.running_var" in manifest(out)["weights"]["fixed"] and "mask" in manifest(out)["weights"]["fixed"]
    assert start(out, good)
    message = "has other values of norm.running_var than the model when it was compiled"
    with pytest.raises(BundleError, match=message):
        start(out, bad)
    assert InitialValues(out, manifest(out), bad, partial=True)
    with pytest.raises(Diagnostic, match=message):
        driver.compile(frozen(), "laptop", 8, out=tmp_path / "again", weights=bad)


def test_partial_weights(compiled: Compile, tmp_path: Path) -> None:
    """Fine-tuning: a body from a checkpoint, the rest as the model initialises it."""
    bundle = compiled("dp=4")
    state = checkpoint("net.", without=("blocks.0.down.weight",)) | {"net.pooler.weight": torch.zeros(1)}
    save(tmp_path / "w", state)
    values, wanted = InitialValues(bundle, manifest(bundle), tmp_path / "w", partial=True), full(make_task())
    for name, entry in manifest(bundle)["parameters"].items():
        record = {"dtype": "float64", "slices": [[[size, 0, size]] for size in entry["shape"]]}
        found = values.read(name, record, torch.device("cpu"))
        assert torch.equal(found, wanted[name] if name == "blocks.0.down.weight" else state[f"net.{name}"].double())


# -- memory ------------------------------------------------------------------------------------------------------------


def peak() -> int:
    """Bytes, the most that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_compiling_takes_no_memory_for_weights(tmp_path: Path) -> None:
    class Wide(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = torch.nn.Linear(1024, 300_000), torch.nn.Linear(300_000, 1024)

        def forward(self, x: Tensor) -> Tensor:
            return self.down(self.up(x).relu()).square().mean()

    before = peak()
    task = TrainingTask(on_meta(Wide), torch.zeros(4, 1024))
    out = driver.compile(task, "a100-80gb", 16, out=tmp_path / "build", force="tp=8").bundle
    assert peak() - before < 600e6, "the weights are 2.4 GB"
    record = {"dtype": "float32", "slices": [[[300_000, 37_500, 37_508]], [[1024, 0, 1024]]]}
    part = InitialValues(out, manifest(out)).read("up.weight", record, CPU)
    assert float(part.abs().max()) == pytest.approx(1 / 32, rel=1e-3) and peak() - before < 600e6


@pytest.mark.parametrize("padding", [0, 1], ids=["aligned", "not"])
def test_a_slice_of_a_checkpoint_is_all_that_is_read(padding: int, tmp_path: Path) -> None:
    path, rows = tmp_path / "w.safetensors", 1 << 19
    header = json.dumps({"w": {"dtype": "F32", "shape": [rows, 1024], "data_offsets": [0, rows * 4096]}}).encode()
    header += b" " * (-len(header) % 8 + padding)
    with open(path, "wb") as file:  # 2 GiB, and none of it on the disk
        file.write(len(header).to_bytes(8, "little") + header)
        file.seek(1000 * 4096, 1)
        file.write(torch.arange(1024.0).numpy().tobytes())
        file.truncate(8 + len(header) + rows * 4096)
    told = {"parameters": {"w": {"shape": [rows, 1024]}}, "weights": {}}
    before = peak()
    record = {"dtype": "float32", "slices": [[[rows, 512, 1024]], [[1024, 0, 1024]]]}
    found = InitialValues(tmp_path, told, path).read("w", record, CPU)
    assert torch.equal(found[1000 - 512], torch.arange(1024.0)) and int((found != 0).sum()) == 1023
    assert peak() - before < 64e6
