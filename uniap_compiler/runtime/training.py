"""Training of one rank: the schedule loop, the loss and gradient norm over the world, clipping, the optimizer.

training = Training(bundle, rank, comm, Optimizer(...), clip=1.0)
result = training.step(micro_batches)       # loss and gradient norm are the same on every rank
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from .bundle import Bundle
from .comm import Communicator
from .initial import InitialValues
from .loop import StageLoop
from .optimizer import Optimizer, clip_scale, squared_norm
from .random import Randomness
from .weights import Weights


@dataclass(frozen=True)
class StepResult:
    loss: float
    grad_norm: float
    gradients: dict[str, torch.Tensor]


def source(name: str, record: Mapping[str, Any]) -> str:
    """The name in the weights: a copy's is its home's."""
    return str(record.get("source", name))


def load_tensors(
    bundle: Bundle, rank: ModuleType, device: torch.device, weights: Path | None = None, partial: bool = False
) -> dict[str, torch.Tensor]:
    """This rank's pieces of parameters, buffers and constants, by role."""
    initial = InitialValues(bundle.root, bundle.manifest, weights, partial)
    constants = Weights(bundle.root / name for name in bundle.manifest["weights"].get("constants", ()))
    tensors = {}
    for kind, records in (("param", rank.PARAMETERS), ("buffer", rank.BUFFERS)):
        for name, record in records.items():
            tensors[f"{kind}:{name}"] = initial.read(source(name, record), record, device)
    for name, record in rank.CONSTANTS.items():
        tensors[f"constant:{name}"] = constants.read(source(name, record), record).to(device)
    return tensors


class Training:
    """randomness: of dropout and other random ops.  done: steps so far, those before a resumed run included."""

    def __init__(
        self, bundle: Bundle, rank: ModuleType, comm: Communicator, optimizer: Optimizer,
        clip: float | None = None, weights: Path | None = None, partial: bool = False,
    ) -> None:  # fmt: skip
        manifest = bundle.manifest
        self.rank, self.comm, self.optimizer, self.clip = rank, comm, optimizer, clip
        self.tensors = load_tensors(bundle, rank, comm.device, weights, partial)
        loss_dtype = getattr(torch, manifest["loss"]["dtype"])
        with torch.no_grad():
            self.loop = StageLoop(rank, comm, self.tensors, int(manifest["micro_batches"]), loss_dtype)
        self.randomness = Randomness()
        self.done = 0
        self.owned = [name for name, record in rank.PARAMETERS.items() if record.get("owner")]

    def step(self, inputs: Sequence[Mapping[str, torch.Tensor]]) -> StepResult:
        with torch.no_grad():
            share, gradients = self.loop.run(inputs, self.randomness.keys(self.done, len(inputs)))
            self.done += 1
            self.loop.at = "loss and gradient norm"
            totals = torch.stack([share.double(), squared_norm(gradients, self.owned, self.comm.device)])
            loss, squared = self.comm.all_reduce(totals, "world").tolist()
            norm = squared**0.5
            self.loop.at = "optimizer"
            parameters = {name: self.tensors[f"param:{name}"] for name in gradients}
            self.optimizer.step(parameters, gradients, clip_scale(norm, self.clip))
            self.loop.refresh()
        return StepResult(loss, norm, gradients)

    def derived(self) -> set[str]:
        """Roles that `refresh_parameters` makes from others: not saved, made again after loading."""
        return set(self.rank.stage.RESULTS.get("refresh_parameters", ()))

    def reload(self) -> None:
        """After the tensors were replaced by those of a checkpoint."""
        with torch.no_grad():
            self.loop.reload()
