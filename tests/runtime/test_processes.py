"""The hand-written bundle with real gloo processes: the same numbers, save and resume, and what goes wrong in words."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from uniap_compiler.runtime import checkpoint, data, weights
from uniap_compiler.runtime.bundle import Bundle
from uniap_compiler.runtime.data import flatten
from uniap_compiler.runtime.errors import BundleError
from uniap_compiler.runtime.simulate import simulate

from .tiny_bundle import batch, write

REPO = Path(__file__).parents[2]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
ENV.pop("WORLD_SIZE", None)


def train(roots, *argv, limit=60, **job):
    """Ranks as forks of one process; what they said, their exit codes, when they ended."""
    request = {"roots": [str(r) for r in roots], "argv": [str(a) for a in argv], "limit": limit, **job}
    run = subprocess.run(
        [sys.executable, "-m", "tests.runtime.fork_ranks", json.dumps(request)],
        capture_output=True, text=True, timeout=limit + 20, env=ENV, cwd=REPO,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    about = json.loads(run.stdout.splitlines()[-1])
    about["out"], about["err"] = run.stdout, run.stderr
    return about


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_like_simulation(root, metrics, steps, micro_batches, clip):
    expected = simulate(root, [flatten(*batch(micro_batches, i)) for i in range(steps)], clip=clip)
    found = lines(metrics)
    assert [line["step"] for line in found] == list(range(1, steps + 1))
    assert [line["loss"] for line in found] == pytest.approx(expected.losses, rel=1e-12)
    assert [line["grad_norm"] for line in found] == pytest.approx(expected.grad_norms, rel=1e-12)
    assert all(line["samples_per_second"] > 0 and line["seconds"] > 0 for line in found)
    return expected


def test_gloo_collectives():
    run = subprocess.run(
        [sys.executable, "-m", "tests.runtime.fork_ranks", "{}"],
        capture_output=True,
        text=True,
        timeout=100,
        env=ENV,
        cwd=REPO,
    )
    assert json.loads(run.stdout.splitlines()[-1])["codes"] == [0, 0, 0, 0], run.stderr


def test_torchrun(tmp_path):
    """The real thing: torchrun, and nothing but the bundle's own runtime imported."""
    root = write(tmp_path / "my bundle.v1", "1f1b", 4)
    (tmp_path / "data.py").write_text(
        (tmp_path / "data.py").read_text().replace("from tests.runtime.tiny_bundle", "from tiny")
    )
    (tmp_path / "tiny.py").write_text(
        "import torch\nROWS = 4\ndef batch("
        + (REPO / "tests/runtime/tiny_bundle.py").read_text().split("def batch(")[1].split("\n\n\n")[0]
    )
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['uniap_compiler'] = None\n")
    before = sorted(p for p in root.rglob("*"))
    run = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4",
            str(root / "train.py"), "--data", f"{tmp_path / 'data.py'}:batches", "--steps", "3", "--clip", "1.0",
            "--timeout", "30", "--metrics", str(tmp_path / "m.jsonl"),
        ],
        capture_output=True, text=True, timeout=120, env={**ENV, "PYTHONPATH": str(tmp_path)}, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "step 3/3  loss" in run.stdout
    assert "Warning" not in run.stderr, run.stderr
    assert_like_simulation(root, tmp_path / "m.jsonl", 3, 4, 1.0)
    assert sorted(root.rglob("*")) == before, "a run leaves the bundle as it was"


@pytest.mark.parametrize(("schedule", "micro_batches"), [pytest.param("gpipe", 3, marks=pytest.mark.slow), ("1f1b", 6)])
def test_save_and_resume_are_exact(tmp_path, schedule, micro_batches):
    root = write(tmp_path / "b", schedule, micro_batches)
    options = ("--data", f"{tmp_path / 'data.py'}:batches", "--timeout", "30", "--clip", "1.0", "--log-every", "0")
    whole = train(
        [root] * 4, *options, "--steps", "5", "--save", tmp_path / "whole", "--metrics", tmp_path / "whole.jsonl"
    )
    assert whole["codes"] == [0] * 4, whole["err"]
    assert_like_simulation(root, tmp_path / "whole.jsonl", 5, micro_batches, 1.0)
    parts = ("--save", tmp_path / "parts", "--save-every", "2", "--metrics", tmp_path / "parts.jsonl")
    assert train([root] * 4, *options, "--steps", "2", *parts)["codes"] == [0] * 4
    assert train([root] * 4, *options, "--steps", "5", *parts, "--resume", tmp_path / "parts")["codes"] == [0] * 4
    a, b = lines(tmp_path / "whole.jsonl"), lines(tmp_path / "parts.jsonl")
    assert [(x["loss"], x["grad_norm"]) for x in a] == [(x["loss"], x["grad_norm"]) for x in b]
    assert [p.name for p in sorted((tmp_path / "parts").iterdir())] == [
        "step_00000002",
        "step_00000004",
        "step_00000005",
    ]
    for rank in range(4):
        one, two = (
            torch.load(tmp_path / which / f"step_00000005/rank_{rank:04d}.pt", weights_only=True)
            for which in ("whole", "parts")
        )
        assert one["position"] == two["position"] == 5
        assert one["tensors"].keys() == two["tensors"].keys()
        assert not any("@copy" in role for role in one["tensors"]), "derived values are not saved"
        for role, x in one["tensors"].items():
            assert torch.equal(x, two["tensors"][role]), role
        for name, state in one["state"].items():
            for key, x in state.items():
                assert torch.equal(torch.as_tensor(x), torch.as_tensor(two["state"][name][key])), (name, key)
    # The whole model in one file, by one process that is no rank.
    full = simulate(root, [flatten(*batch(micro_batches, i)) for i in range(5)], clip=1.0)
    exported = tmp_path / "out" / "model.safetensors"
    run = subprocess.run(
        [sys.executable, str(root / "train.py"), "--resume", str(tmp_path / "parts"), "--export", str(exported)],
        capture_output=True, text=True, timeout=60, env=ENV,
    )  # fmt: skip
    assert run.returncode == 0 and str(exported) in run.stdout, run.stderr
    found = load_file(exported)
    assert found.keys() == {*full.parameters, *full.buffers}
    for name, x in (full.parameters | full.buffers).items():
        assert found[name].dtype == x.dtype and torch.allclose(found[name], x, rtol=1e-12, atol=1e-12), name
    (tmp_path / "parts/step_00000005/rank_0002.pt").unlink()
    with pytest.raises(BundleError, match="has no rank_0002.pt"):
        checkpoint.export(tmp_path / "parts/step_00000005", Bundle(root), exported)
    # Another bundle refuses this checkpoint, and a folder without a complete one is refused too.
    other = write(tmp_path / "other" / "b", schedule, micro_batches, fingerprint="e" * 64)
    said = alone(other, *options, "--resume", tmp_path / "parts", **WORLD)
    assert "belongs to another bundle (fingerprint ffffffffffff, this one is eeeeeeeeeeee)" in said
    (tmp_path / "none/step_00000001").mkdir(parents=True)
    with pytest.raises(BundleError, match="no complete checkpoint"):
        checkpoint.latest(tmp_path / "none")
    with pytest.raises(BundleError, match="there is no such folder"):
        checkpoint.latest(tmp_path / "nowhere")


@pytest.mark.parametrize("stop", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_rank_that_dies_or_hangs_ends_the_run_in_bounded_time(tmp_path, stop):
    root = write(tmp_path / "b")
    metrics = tmp_path / "m.jsonl"
    run = train(
        [root] * 4, "--data", f"{tmp_path / 'data.py'}:batches", "--steps", "1000000", "--timeout", "6",
        "--metrics", metrics, "--log-every", "0", kill={"rank": 2, "when": str(metrics), "lines": 3, "stop": stop},
    )  # fmt: skip
    killed = run["seconds"].pop("killed")
    assert run["codes"][2] == -9
    assert [run["codes"][r] for r in (0, 1, 3)] == [1, 1, 1], run["err"]
    assert max(run["seconds"][str(r)] for r in (0, 1, 3)) - killed < 20
    assert "another rank has died, hangs or runs other code" in run["err"]
    assert "Traceback" not in run["err"]
    assert re.search(r"\[rank [013]\] error: .*\n  at: ", run["err"])


def alone(root, *argv, **env):
    """One process that is told of a world; the checks come before anybody waits for the others."""
    start = time.monotonic()
    run = subprocess.run(
        [sys.executable, str(root / "train.py"), *map(str, argv)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**ENV, **env},
    )
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    assert time.monotonic() - start < 30
    return run.stderr


WORLD = {"WORLD_SIZE": "4", "RANK": "0", "LOCAL_RANK": "0"}


def test_wrong_number_of_ranks(tmp_path):
    root = write(tmp_path / "b")
    said = alone(root, "--data", "x.py:batches")
    assert "error: this bundle is for 4 ranks, 1 was started" in said
    assert "help: torchrun --nproc-per-node 4" in said and "train.py" in said


def test_altered_missing_and_mixed_files(tmp_path):
    root = write(tmp_path / "b")
    stage = root / "stages/stage_1.py"
    stage.write_text(stage.read_text().replace("2 * c", "3 * c"))
    said = alone(root, "--data", "x.py:batches", **WORLD)
    assert "stages/stage_1.py was changed by hand" in said and "--allow-changes" in said
    said = alone(root, "--data", "x.py:batches", "--allow-changes", **WORLD)
    assert "warning: stages/stage_1.py was changed" in said and "there is no file x.py" in said
    stage.unlink()
    with pytest.raises(BundleError, match="stages/stage_1.py is missing from the bundle"):
        Bundle(root).check()
    write(root)
    other = write(tmp_path / "other" / "b", fingerprint="0" * 64)
    shutil.copy(other / "ranks/rank_0003.py", root / "ranks/rank_0003.py")
    words = "mixed from two: ranks/rank_0003.py has fingerprint 000000000000, manifest.json ffffffffffff"
    with pytest.raises(BundleError, match=words):
        Bundle(root).check()
    said = alone(root, "--data", "x.py:batches", "--allow-changes", **{**WORLD, "RANK": "3"})
    assert "the bundle is mixed from two" in said, "not even --allow-changes runs a rank of another plan"


def test_ranks_with_different_bundles(tmp_path):
    root = write(tmp_path / "b")
    other = write(tmp_path / "other" / "b", fingerprint="0" * 64)
    run = train([root, root, root, other], "--data", f"{tmp_path / 'data.py'}:batches", "--timeout", "20")
    assert run["codes"] == [1] * 4
    assert "ranks 3 run another bundle than rank 0" in run["err"]
    assert "Traceback" not in run["err"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no file"),
        ("x = 1", "has no batches"),
        ("import nothing_of_that_name", "cannot be imported: ModuleNotFoundError"),
        ("batches = []", "the data are empty"),
        ("batches = 3", "the data are not iterable"),
        ("batches = [1]", r"each item of the data must be a pair \(batch, targets\)"),
        (
            "import torch\nbatches = [({'y': torch.ones(8, 4)}, torch.ones(8, 3))]",
            "the data have no batch.x; they have batch.y, targets",
        ),
        ("import torch\nbatches = [({'x': torch.ones(8, 5)}, torch.ones(8, 3))]", r"batch.x has shape \[8, 5\]"),
        (
            "import torch\nbatches = [({'x': torch.ones(8, 4).long()}, torch.ones(8, 3))]",
            "batch.x has dtype torch.int64",
        ),
    ],
)
def test_bad_data_are_explained(tmp_path, content, words):
    manifest = json.loads((write(tmp_path / "b") / "manifest.json").read_text())
    path = tmp_path / "mine.py"
    if content is not None:
        path.write_text(content)
    with pytest.raises(BundleError, match=words):
        data.next_batch(data.load(f"{path}:batches", manifest), manifest)


def test_one_rank_needs_no_torchrun(tmp_path):
    """A table of bytes: loss = the mean of w[token]; also --data bytes:, --weights, and tokens per second."""
    root = write(tmp_path / "b")
    for old in [*root.glob("ranks/*"), root / "stages/stage_1.py"]:
        old.unlink()
    (root / "stages/stage_0.py").write_text(
        """
from ..runtime import kernels as nn
ARGS = {"forward": ["input:batch", "param:w"], "backward": ["seed:loss", "input:batch"]}
RESULTS = {"forward": ["loss"], "backward": ["grad:w"]}
TRANSFERS = {}

def forward(comm, args):
    tokens, w = args
    return (nn.embedding(w, comm.slice(tokens, "a", dim=0)).mean(),)

def backward(comm, args):
    seed, tokens = args
    return (nn.embedding_backward((seed / tokens.numel()).expand(*tokens.shape, 1), tokens, num_weights=256),)
"""
    )
    record = {"shape": [256, 1], "dtype": "float32", "slices": [[[256, 0, 256]], [[1, 0, 1]]], "owner": True}
    values = {
        "FINGERPRINT": "f", "RANK": 0, "STAGE": 0, "GROUPS": {"a": []}, "STAGES": [[0]],
        "PARAMETERS": {"w": record}, "BUFFERS": {}, "CONSTANTS": {}, "SCHEDULE": [["forward", 0], ["backward", 0]],
    }  # fmt: skip
    source = "from ..stages import stage_0 as stage\n" + "".join(f"{k} = {v!r}\n" for k, v in values.items())
    (root / "ranks/rank_0000.py").write_text(source)
    weights.save(tmp_path / "w", {"w": torch.arange(256.0).reshape(256, 1)})
    manifest = json.loads((root / "manifest.json").read_text())
    manifest |= {
        "fingerprint": "f", "world_size": 1, "micro_batches": 1, "global_batch": 2,
        "files": {}, "loss": {"dtype": "float32"}, "inputs": [{"path": "batch", "shape": [2, 8], "dtype": "int64"}],
        "optimizer": {"kind": "sgd", "defaults": {"lr": 1.0}},
        "weights": {"files": [], "constants": []}, "parameters": {"w": {"shape": [256, 1]}}, "buffers": {},
    }  # fmt: skip
    (root / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "text").write_bytes(b"A" * 100)
    run = subprocess.run(
        [
            sys.executable, str(root / "train.py"), "--data", f"bytes:{tmp_path / 'text'}", "--steps", "3",
            "--weights", str(tmp_path / "w"), "--save", str(tmp_path / "save"),
        ],
        capture_output=True, text=True, timeout=60, env=ENV, cwd=tmp_path,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = lines(tmp_path / "save/metrics.jsonl")
    assert [line["loss"] for line in found] == [65.0, 64.0, 63.0], "one row gets the whole gradient, which is 1"
    assert [line["grad_norm"] for line in found] == [1.0, 1.0, 1.0] and found[0]["tokens_per_second"] > 0


def test_the_runtime_imports_torch_and_the_standard_library_only():
    for path in (REPO / "uniap_compiler/runtime").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1, f"{path.name} imports from outside the runtime"
                names = [node.module] if node.level == 0 else []
            for name in names:
                top = name.split(".")[0]
                assert top == "torch" or top in sys.stdlib_module_names, f"{path.name} imports {name}"
