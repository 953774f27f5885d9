"""Save and resume under the same plan, exactly.

    DIR/step_00000100/rank_0003.pt      parameters, buffers, optimizer state of one rank (read with weights_only)
    DIR/step_00000100/checkpoint.json   written last, by rank 0: without it the checkpoint is not complete

    export(folder, bundle, FILE)        the whole model as one safetensors file, names as in the model's state_dict

Each file is written beside its place and renamed.  Values that `refresh_parameters` derives are not saved.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import torch

from . import weights
from .bundle import Bundle
from .errors import BundleError
from .simulate import Simulation, gather
from .training import Training

_FORMAT = "uniap-checkpoint/1"


def save(directory: Path, bundle: Bundle, training: Training, step: int, position: int) -> Path:
    """Called by every rank; returns when all have written.  step: steps done; position: batches read."""
    folder = directory / f"step_{step:08d}"
    folder.mkdir(parents=True, exist_ok=True)
    derived = training.derived()
    kept = {
        role: x.detach()
        for role, x in training.tensors.items()
        if role.startswith(("param:", "buffer:")) and role not in derived
    }
    content = {
        "format": _FORMAT, "fingerprint": bundle.fingerprint, "rank": training.comm.rank,
        "step": step, "position": position,
        "optimizer": training.optimizer.kind, "tensors": kept, "state": training.optimizer.state,
    }  # fmt: skip
    _write(folder / f"{bundle.rank_name(training.comm.rank)}.pt", lambda path: torch.save(content, path))
    training.comm.barrier()
    if training.comm.rank == 0:
        about = {
            "format": _FORMAT,
            "fingerprint": bundle.fingerprint,
            "step": step,
            "position": position,
            "world_size": bundle.world_size,
        }
        _write(folder / "checkpoint.json", lambda path: path.write_text(json.dumps(about) + "\n"))
    training.comm.barrier()
    return folder


def _write(path: Path, write: Any) -> None:
    temporary = path.with_name(path.name + ".tmp")
    write(temporary)
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def latest(directory: Path) -> Path:
    """The folder of a checkpoint: `directory` itself, or the complete one with most steps inside it."""
    if (directory / "checkpoint.json").is_file():
        return directory
    if not directory.is_dir():
        raise BundleError(f"--resume {directory}: there is no such folder", everywhere=True)
    complete = [
        p for p in directory.iterdir() if re.fullmatch(r"step_\d+", p.name) and (p / "checkpoint.json").is_file()
    ]
    if not complete:
        raise BundleError(f"--resume {directory}: no complete checkpoint in it", everywhere=True)
    return max(complete, key=lambda p: int(p.name.removeprefix("step_")))


def read_about(folder: Path, bundle: Bundle) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads((folder / "checkpoint.json").read_text())
    except (OSError, ValueError) as error:
        raise BundleError(f"the checkpoint {folder} cannot be read: {error}", everywhere=True) from None
    if about.get("format") != _FORMAT:
        raise BundleError(
            f"{folder} has format {about.get('format')!r}, this runtime reads {_FORMAT!r}", everywhere=True
        )
    if about["fingerprint"] != bundle.fingerprint:
        raise BundleError(
            f"the checkpoint {folder} belongs to another bundle "
            f"(fingerprint {about['fingerprint'][:12]}, this one is {bundle.fingerprint[:12]})",
            "resume it with the bundle that saved it",
            everywhere=True,
        )
    return about


def resume(folder: Path, bundle: Bundle, training: Training) -> tuple[int, int]:
    """Load this rank's part; returns (steps done, batches read)."""
    about = read_about(folder, bundle)
    content = _read(folder, bundle, training.comm.rank, about, map_location=training.comm.device)
    if content["optimizer"] != training.optimizer.kind:
        raise BundleError(
            f"the checkpoint {folder} was trained with {content['optimizer']}, not {training.optimizer.kind}"
        )
    for role, x in content["tensors"].items():
        training.tensors[role].copy_(x)
    training.optimizer.state = content["state"]
    training.done = int(about["step"])
    training.reload()
    return int(about["step"]), int(about["position"])


def _read(folder: Path, bundle: Bundle, rank: int, about: dict[str, Any], **how: Any) -> dict[str, Any]:
    """What one rank has saved; how: for torch.load."""
    path = folder / f"{bundle.rank_name(rank)}.pt"
    try:
        content: dict[str, Any] = torch.load(path, weights_only=True, **how)
    except FileNotFoundError:
        raise BundleError(f"the checkpoint {folder} has no {path.name}") from None
    except Exception as error:
        raise BundleError(f"{path} cannot be read: {str(error).splitlines()[0]}") from None
    if (content["fingerprint"], content["rank"], content["step"]) != (bundle.fingerprint, rank, about["step"]):
        raise BundleError(
            f"{path} does not belong to this checkpoint: it is of rank {content['rank']}, step {content['step']}"
        )
    return content


def export(folder: Path, bundle: Bundle, path: Path) -> Path:
    """Parameters and buffers put together from all ranks' files; a tied parameter under each of its names."""
    about = read_about(folder, bundle)
    count = range(bundle.world_size)
    saved = [_read(folder, bundle, rank, about, map_location="cpu", mmap=True)["tensors"] for rank in count]
    ranks = [bundle.rank(rank) for rank in count]
    found = Simulation()
    full: dict[str, torch.Tensor] = {}
    for table, prefix in (("PARAMETERS", "param:"), ("BUFFERS", "buffer:")):
        held = [{r.removeprefix(prefix): x for r, x in tensors.items() if r.startswith(prefix)} for tensors in saved]
        full |= gather(found, ranks, held, table, "")
    if found.disagreement:
        raise BundleError(f"the checkpoint {folder} is damaged: ranks disagree on {found.disagreeing}")
    for name, record in bundle.manifest["parameters"].items():
        full |= {alias: full[name] for alias in record["aliases"] if name in full}
    path.parent.mkdir(parents=True, exist_ok=True)
    weights.save(path, full)
    return path
