"""A compiled bundle trains where nothing of ours can be imported: torchrun, the data file, torch.

Also: `metrics.jsonl` has its fields, save and resume are exact, the loss goes down on real text.  (A hand-written
bundle, other schedules and ranks that die: tests/runtime/test_processes.py.)
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from .plans import ROOT, SMALL_LLAMA, Workshop

_BLOCKER = '''\
import importlib.abc
import sys


class Refuse(importlib.abc.MetaPathFinder):
    """Stands before every other finder: only what a machine that trains has may be imported."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("uniap_compiler", "lark", "mip", "safetensors"):
            raise ImportError(f"{name} is not on this machine")
        return None


sys.meta_path.insert(0, Refuse())
'''


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, workshop: Workshop) -> Path:
    """A folder with the bundle and the data file, as it would be copied to a cluster."""
    folder = tmp_path_factory.mktemp("machine")
    force = "pp=2,dp=2,shard=parameters,micro_batches=2"
    built = workshop.compile(SMALL_LLAMA, 4, force, folder / "elsewhere" / "build", dtype="float32", global_batch=8)
    shutil.copytree(built, folder / "shipped")
    shutil.rmtree(folder / "elsewhere")
    shutil.copy(ROOT / "examples" / "tiny_llama.py", folder / "mydata.py")
    (folder / "mydata.py").write_text(
        (folder / "mydata.py").read_text() + "\n\ndef windows(batch_size, seed=0):\n"
        "    return batches(batch_size, 32, seed)\n"
    )
    (folder / "blocker").mkdir()
    (folder / "blocker" / "sitecustomize.py").write_text(_BLOCKER)
    return folder


def torchrun(machine: Path, *words: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "WORLD_SIZE", "RANK", "LOCAL_RANK")}
    environment |= {"PYTHONPATH": str(machine / "blocker"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4", "shipped/train.py",
         "--data", "mydata.py:windows", "--timeout", "60", *words],
        cwd=machine, env=environment, capture_output=True, text=True, timeout=150,
    )  # fmt: skip
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_compiler_cannot_be_imported_there(machine: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(machine / "blocker")}
    command = [sys.executable, "-c", "import uniap_compiler"]
    done = subprocess.run(command, cwd=machine, env=environment, capture_output=True, text=True)
    assert "uniap_compiler is not on this machine" in done.stderr, "the blocker does not block"


@pytest.mark.timeout(400)
def test_it_trains_saves_and_resumes_exactly(machine: Path) -> None:
    done = torchrun(machine, "--steps", "8", "--lr", "0.01", "--clip", "1.0", "--save", "whole")
    assert "step 8/8  loss" in done.stdout and "tokens/s" in done.stdout
    found = lines(machine / "whole" / "metrics.jsonl")
    assert [line["step"] for line in found] == list(range(1, 9))
    for line in found:
        assert set(line) == {"step", "loss", "grad_norm", "seconds", "samples_per_second", "tokens_per_second"}
        assert line["seconds"] > 0 and line["grad_norm"] > 0
        assert line["tokens_per_second"] == pytest.approx(32 * line["samples_per_second"], rel=1e-3)
    assert found[0]["loss"] == pytest.approx(5.5, abs=0.2), "log(256) at the start"
    assert found[-1]["loss"] < found[0]["loss"] - 0.5

    options = ("--lr", "0.01", "--clip", "1.0", "--save", "parts")
    torchrun(machine, "--steps", "3", *options)
    torchrun(machine, "--steps", "8", *options, "--resume", "parts")
    again = lines(machine / "parts" / "metrics.jsonl")
    assert [(x["step"], x["loss"], x["grad_norm"]) for x in again] == [
        (x["step"], x["loss"], x["grad_norm"]) for x in found
    ]
    for rank in range(4):
        one, two = (
            torch.load(machine / run / "step_00000008" / f"rank_{rank:04d}.pt", weights_only=True)
            for run in ("whole", "parts")
        )
        assert one["tensors"].keys() == two["tensors"].keys()
        for role, x in one["tensors"].items():
            assert torch.equal(x, two["tensors"][role]), role
        assert {n: set(s) for n, s in one["state"].items()} == {n: set(s) for n, s in two["state"].items()}
        for name, state in one["state"].items():
            for key, x in state.items():
                assert torch.equal(torch.as_tensor(x), torch.as_tensor(two["state"][name][key])), (name, key)


@pytest.mark.timeout(200)
def test_the_wrong_number_of_ranks(machine: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(machine / "blocker"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "shipped/train.py",
         "--data", "mydata.py:windows"],
        cwd=machine, env=environment, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode != 0
    assert "error: this bundle is for 4 ranks, 2 were started" in done.stderr
    assert "help: torchrun --nproc-per-node 4 shipped/train.py" in done.stderr


@pytest.mark.timeout(200)
def test_data_with_a_token_that_the_model_does_not_have(machine: Path) -> None:
    (machine / "bad.py").write_text(
        "import torch\n\n\ndef windows(batch_size):\n"
        "    yield {'tokens': torch.zeros(batch_size, 32, dtype=torch.long)}, torch.full((batch_size, 32), 256)\n"
    )
    done = torchrun(machine, "--data", "bad.py:windows", "--steps", "1", expect=1)
    assert "error: step 1, forward 0: index 256 is out of bounds" in done.stderr
    assert "help: is there a token or a class that the model does not have?" in done.stderr
