"""All ranks of a bundle as threads of one process: what `uniap verify` compares with the unsharded model.

    result = simulate("build", [flatten(batch, targets)], optimizer={"kind": "sgd", "defaults": {"lr": 0.1}})
    result.losses[0], result.gradients["wq.weight"], result.parameters["wq.weight"], result.disagreement

The bundle's own copy of the runtime does the work, so what is tested is what ships.  Pieces are put together by the
slices of the rank files; ranks that hold the same piece must agree.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from . import pieces
from .bundle import Bundle, forget_package
from .data import cut
from .errors import BundleError
from .optimizer import Optimizer
from .random import Randomness
from .threads import SimulatedComm, World, run_ranks
from .training import Training, source

Tensors = dict[str, torch.Tensor]


@dataclass
class Simulation:
    """Per step the loss and the gradient norm; gradients of the first step (not clipped), the rest after the last step.

    masters: float32 masters of low-precision parameters, where the optimizer keeps them.

    disagreement: the largest difference between two ranks' copies of one piece, and what it was ("": none).
    """

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    gradients: Tensors = field(default_factory=dict)
    parameters: Tensors = field(default_factory=dict)
    buffers: Tensors = field(default_factory=dict)
    masters: Tensors = field(default_factory=dict)
    disagreement: float = 0.0
    disagreeing: str = ""

    def differ(self, amount: float, what: str) -> None:
        if not amount <= self.disagreement:  # NaN differs
            self.disagreement, self.disagreeing = amount, what


def simulate(
    folder: str | Path, batches: Sequence[Tensors], *, steps: int | None = None,
    optimizer: Mapping[str, Any] | None = None, lr: float | None = None, clip: float | None = None,
    weights: Path | None = None, check: bool = True, timeout: float = 300.0, seed: int = 0, random: str = "counter",
) -> Simulation:  # fmt: skip
    """batches: global batches by path (data.flatten), used in turn for `steps` steps (default: each once).

    seed, random: of random ops (random.py).
    """
    root = Path(folder).resolve()
    writing, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # the bundle stays as it was written
    bundle = Bundle(root)
    try:
        if check:
            bundle.check()
        theirs = importlib.import_module(f"{bundle.package}.runtime.simulate")
        result = theirs.run(root, bundle.package, batches, steps, optimizer, lr, clip, weights, timeout, seed, random)
        return Simulation(**vars(result))
    except Exception as error:
        if type(error).__name__ == "BundleError" and not isinstance(error, BundleError):
            raise BundleError(str(error)) from error
        raise
    finally:
        forget_package(bundle.package)
        sys.dont_write_bytecode = writing


def run(
    root: Path, package: str, batches: Sequence[Tensors], steps: int | None, optimizer: Mapping[str, Any] | None,
    lr: float | None, clip: float | None, weights: Path | None, timeout: float, seed: int, random: str,
) -> Simulation:  # fmt: skip
    bundle = Bundle(root, package)
    manifest = bundle.manifest
    size = bundle.world_size
    ranks = [bundle.rank(r) for r in range(size)]
    inputs = [cut(batch, manifest) for batch in batches]
    count = len(batches) if steps is None else steps
    losses, norms = [0.0] * count, [0.0] * count

    def work(rank: int, world: World) -> tuple[Tensors, Tensors, Tensors]:
        comm = SimulatedComm(world, rank, ranks[rank].GROUPS, ranks[rank].STAGES)
        training = Training(bundle, ranks[rank], comm, Optimizer(optimizer or manifest["optimizer"], lr), clip, weights)
        training.randomness = Randomness(seed, random)
        gradients: Tensors = {}
        for step in range(count):
            try:
                result = training.step([dict(m) for m in inputs[step % len(inputs)]])
            except Exception as error:
                error.add_note(f"in step {step + 1}, at: {training.loop.at}")
                raise
            if rank == 0:
                losses[step], norms[step] = result.loss, result.grad_norm
            if step == 0:
                gradients = {name: g.clone() for name, g in result.gradients.items()}
        return gradients, training.tensors, training.optimizer.masters()

    results = run_ranks(size, work, timeout)
    simulation = Simulation(losses, norms)
    for attribute, n, what in (("gradients", 0, "gradient of "), ("masters", 2, "master of ")):
        setattr(simulation, attribute, gather(simulation, ranks, [r[n] for r in results], "PARAMETERS", what))
    for attribute, table, prefix in (("parameters", "PARAMETERS", "param:"), ("buffers", "BUFFERS", "buffer:")):
        held = [
            {role.removeprefix(prefix): x for role, x in tensors.items() if role.startswith(prefix)}
            for _, tensors, _ in results
        ]
        setattr(simulation, attribute, gather(simulation, ranks, held, table, ""))
    return simulation


def gather(
    simulation: Simulation, ranks: Sequence[ModuleType], held: Sequence[Tensors], table: str, what: str
) -> Tensors:
    """Full tensors from everybody's pieces; copies are compared with what they are copies of."""
    full: Tensors = {}
    covered: dict[str, torch.Tensor] = {}
    padded: dict[str, list[int]] = {}
    order = [
        (bool(r.get("source")), i, n)
        for i, rank in enumerate(ranks)
        for n, r in getattr(rank, table).items()
        if n in held[i]
    ]
    for is_copy, i, name in sorted(order):
        record, home = getattr(ranks[i], table)[name], source(name, getattr(ranks[i], table)[name])
        x, slices = held[i][name], record["slices"]
        if list(x.shape) != pieces.local_shape(slices):
            raise BundleError(
                f"the {what or table.lower().removesuffix('s') + ' '}{name} of rank {i} has shape {list(x.shape)}, "
                f"its slices say {pieces.local_shape(slices)}"
            )
        if home not in full:
            shape = pieces.full_shape(slices)
            full[home] = torch.zeros(shape, dtype=x.dtype)
            covered[home] = torch.zeros(shape, dtype=torch.bool)
            if "unpadded" in record:
                padded[home] = record["unpadded"]
        target, seen = pieces.region(full[home], slices), pieces.region(covered[home], slices)
        x = x.reshape(pieces.extents(slices))
        if bool(seen.any()):
            difference = torch.where(seen, (target.double() - x.double()).abs(), 0.0)
            simulation.differ(float(difference.max()), f"{what}{name} on rank {i}")
        if not is_copy:
            target.copy_(torch.where(seen, target, x))
            seen.fill_(True)
    for name, mask in covered.items():
        if not bool(mask.all()):
            raise BundleError(f"no rank holds a part of the {what or table.lower().removesuffix('s') + ' '}{name}")
    for name, shape in padded.items():
        whole, inside = full[name], tuple(slice(size) for size in shape)
        full[name] = whole[inside].clone()
        whole[inside] = 0.0
        simulation.differ(float(whole.abs().max()), f"the padding of {what}{name}")
    return full
