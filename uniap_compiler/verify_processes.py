"""verify --processes: the bundle under torchrun with gloo, its tensors brought back for the comparison.

    result = run_processes(bundle, batches, {"kind": "sgd", "defaults": {"lr": 0.01}})

Every rank is this module again: it trains with the bundle's own runtime and writes what it holds to a file; the parent
puts the pieces together as the simulation does.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from .ir import Diagnostic
from .runtime.bundle import Bundle, forget_package
from .runtime.simulate import Simulation, gather
from .runtime.weights import SafetensorsFile, save

Tensors = dict[str, torch.Tensor]
_SECONDS = 600


def run_processes(root: Path, batches: Sequence[Tensors], optimizers: Sequence[Mapping[str, Any]]) -> list[Simulation]:
    """As runtime.simulate.simulate for each optimizer, with one process per rank.  Raises Diagnostic when they fail."""
    size = Bundle(root).world_size
    with tempfile.TemporaryDirectory(prefix="uniap-verify-") as name:
        folder = Path(name)
        for n, batch in enumerate(batches):
            save(folder / f"batch_{n}.safetensors", batch)
        about = {"bundle": str(root), "batches": len(batches), "optimizers": [dict(o) for o in optimizers]}
        (folder / "about.json").write_text(json.dumps(about))
        _launch(folder, size)
        return [_collect(root, folder / str(n), size) for n in range(len(optimizers))]


def _launch(folder: Path, size: int) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
    package_root = str(Path(__file__).parent.parent)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")])),
    }
    done = subprocess.run(
        [*command, "-m", "uniap_compiler.verify_processes", str(folder)],
        env=environment, capture_output=True, text=True, timeout=_SECONDS + 120,
    )  # fmt: skip
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if "rror: " in line]
        raise Diagnostic(f"the {size} processes of the bundle failed", notes=said[:8] or done.stderr.splitlines()[-8:])


def _collect(root: Path, folder: Path, size: int) -> Simulation:
    held: dict[str, list[Tensors]] = {"gradient": [], "param": [], "buffer": [], "master": []}
    for rank in range(size):
        file = SafetensorsFile(folder / f"rank_{rank}.safetensors")
        for kind, found in held.items():
            names = [n for n in file.header if n.startswith(kind + ":")]
            found.append({n.removeprefix(kind + ":"): file.tensor(n).clone() for n in names})
    bundle = Bundle(root)
    try:
        ranks = [bundle.rank(rank) for rank in range(size)]
    finally:
        forget_package(bundle.package)
    about = json.loads((folder / "rank_0.json").read_text())
    result = Simulation(about["losses"], about["grad_norms"])
    result.gradients = gather(result, ranks, held["gradient"], "PARAMETERS", "gradient of ")
    result.masters = gather(result, ranks, held["master"], "PARAMETERS", "master of ")
    result.parameters = gather(result, ranks, held["param"], "PARAMETERS", "")
    result.buffers = gather(result, ranks, held["buffer"], "BUFFERS", "")
    return result


def work(folder: Path) -> None:
    """One rank."""
    about = json.loads((folder / "about.json").read_text())
    outer = Bundle(Path(about["bundle"]))
    number = int(os.environ["RANK"])

    def theirs(name: str) -> Any:
        return importlib.import_module(f"{outer.package}.runtime.{name}")

    bundle = theirs("bundle").Bundle(outer.root, outer.package)
    rank = bundle.rank(number)
    timeout = timedelta(seconds=_SECONDS)
    torch.distributed.init_process_group("gloo", timeout=timeout)
    comm = theirs("processes").ProcessGroups(rank.GROUPS, rank.STAGES, torch.device("cpu"), timeout)
    files = [SafetensorsFile(folder / f"batch_{n}.safetensors") for n in range(about["batches"])]
    batches = [theirs("data").cut({n: f.tensor(n) for n in f.header}, bundle.manifest) for f in files]
    for n, described in enumerate(about["optimizers"]):
        training = theirs("training").Training(bundle, rank, comm, theirs("optimizer").Optimizer(described))
        _train(training, batches, folder / str(n), number)
    comm.barrier()
    torch.distributed.destroy_process_group()


def _train(training: Any, batches: Sequence[Sequence[Tensors]], folder: Path, number: int) -> None:
    """All batches once; what the rank then holds goes to files."""
    folder.mkdir(exist_ok=True)
    losses, norms, gradients = [], [], {}
    for n, micro_batches in enumerate(batches):
        result = training.step([dict(m) for m in micro_batches])
        losses.append(result.loss)
        norms.append(result.grad_norm)
        if n == 0:
            gradients = {f"gradient:{name}": g.clone() for name, g in result.gradients.items()}
    kept = {role: x for role, x in training.tensors.items() if role.startswith(("param:", "buffer:"))}
    kept |= {f"master:{name}": x for name, x in training.optimizer.masters().items()}
    save(folder / f"rank_{number}.safetensors", {**gradients, **kept})
    if number == 0:
        (folder / "rank_0.json").write_text(json.dumps({"losses": losses, "grad_norms": norms}))


if __name__ == "__main__":
    work(Path(sys.argv[1]))
