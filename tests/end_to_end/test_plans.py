"""The plans that must be right, for the MLP and the Llama, in float64 to 1e-10 under the schedules that there are.

All of them with ranks as threads, six with gloo processes too; behind `slow` all of them so, and the full-size Llama.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from .plans import LLAMA, MLP, SMALL_LLAMA, Workshop, check, manifest, strategies

MODELS = {"mlp": MLP, "llama": SMALL_LLAMA}
MIXED = {"mlp": "embed:tp=4;blocks.[012]:tp=4;blocks.[345]:dp=4;head:dp=4",
         "llama": "embed:tp=4;layers.[01]:tp=4;layers.[23]:dp=4;head:dp=4"}  # fmt: skip
ONE_STAGE = (
    "dp=4", "tp=4", "dp=4,shard=parameters", "dp=2,tp=2", "dp=2,tp=2,shard=parameters,recompute=full",
    "dp=4,shard=optimizer", "tp=4,boundary=sequence", "dp=2,tp=2,recompute=selective",
)  # fmt: skip
STAGES = ("pp=4,micro_batches=6", "pp=2,dp=2,micro_batches=3", "pp=2,tp=2,micro_batches=3",
          "pp=2,dp=2,shard=parameters,micro_batches=3")  # fmt: skip
MORE_RANKS = ((6, "pp=3,tp=2,micro_batches=4"), (6, "pp=2,dp=3,micro_batches=4"), (8, "pp=2,dp=2,tp=2,micro_batches=3"))

PLANS: list[tuple[int, str, str | None]] = [
    *((4, f"pp=1,{force}", None) for force in ONE_STAGE),
    (4, "mixed", None),
    (4, "", None),
    (1, "", None),
    *((4, force, schedule) for force in STAGES for schedule in ("1f1b", "gpipe")),
    *((devices, force, schedule) for devices, force in MORE_RANKS for schedule in ("1f1b", "gpipe")),
]
"""Devices, what is forced, schedule."""

IN_PROCESSES = (
    ("mlp", 4, "pp=1,dp=4,shard=parameters", None),
    ("mlp", 4, "pp=2,dp=2,shard=parameters,micro_batches=3", "1f1b"),
    ("mlp", 4, "pp=4,micro_batches=6", "gpipe"),
    ("llama", 4, "pp=1,dp=2,tp=2,shard=parameters,recompute=full", None),
    ("llama", 4, "pp=1,tp=4,boundary=sequence", None),
    ("llama", 4, "pp=2,tp=2,micro_batches=3", "1f1b"),
)


def _force(model: str, force: str) -> str:
    return MIXED[model] if force == "mixed" else force


def _expect_the_force(bundle: Path, devices: int, force: str, schedule: str | None) -> None:
    """The bundle is what was asked for: a plan that ignores its force would be verified for nothing."""
    about, layers = manifest(bundle), strategies(bundle)
    assert about["world_size"] == devices
    assert schedule is None or about["schedule"] == schedule
    wanted = dict(pair.split("=") for pair in force.split(",") if pair)
    assert str(about["stages"]) == wanted.get("pp", str(about["stages"]))
    assert str(about["micro_batches"]) == wanted.get("micro_batches", str(about["micro_batches"]))
    for layer, (_, strategy) in layers.items():
        for key in ("dp", "tp", "shard", "recompute", "boundary"):
            if key in wanted:
                assert str(strategy[key]) == wanted[key], f"{key} of {layer}"


@pytest.mark.parametrize(("devices", "force", "schedule"), PLANS)
@pytest.mark.parametrize("model", MODELS)
def test_simulated(model: str, devices: int, force: str, schedule: str | None, workshop: Workshop, out: Path) -> None:
    bundle = workshop.compile(MODELS[model], devices, _force(model, force), out, schedule=schedule)
    if force != "mixed":
        _expect_the_force(bundle, devices, force, schedule)
    else:
        assert {s["tp"] for _, s in strategies(bundle).values()} == {1, 4}
    check(bundle)


MIXTURES = {
    "data on one stage, tensor on the other": (
        "mlp", 4, "pp=2,micro_batches=3;embed:dp=2,stage=0;blocks.[012]:dp=2,stage=0;blocks.[345]:tp=2,stage=1;"
        "head:tp=2,stage=1",
    ),
    "sequence-split activations sent to data parallel layers": (
        "llama", 4, "pp=2,micro_batches=3;embed:tp=2,stage=0;layers.[01]:tp=2,stage=0,boundary=sequence;"
        "layers.[23]:dp=2,stage=1,shard=gradients;head:dp=2,stage=1,shard=optimizer",
    ),
    "every kind of shard": (
        "llama", 4, "dp=4,shard=gradients,micro_batches=3;layers.1:recompute=full;layers.2:shard=parameters;"
        "head:shard=optimizer",
    ),
    "some of it recomputed, some layers all": (
        "llama", 4, "pp=2,tp=2,micro_batches=3,boundary=sequence,recompute=selective;layers.2:recompute=full;"
        "layers.1:recompute=none",
    ),
    "three devices, nothing divides": ("llama", 3, "tp=3"),
    "three kinds of parallelism, shards, recomputation": (
        "mlp", 12, "pp=3,dp=2,tp=2,micro_batches=2,shard=parameters,recompute=full",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mixture", MIXTURES)
def test_mixtures(mixture: str, workshop: Workshop, out: Path) -> None:
    model, devices, force = MIXTURES[mixture]
    check(workshop.compile(MODELS[model], devices, force, out))


@pytest.mark.timeout(200)
@pytest.mark.parametrize(("model", "devices", "force", "schedule"), IN_PROCESSES)
def test_in_processes(
    model: str, devices: int, force: str, schedule: str | None, workshop: Workshop, out: Path
) -> None:
    bundle = workshop.compile(MODELS[model], devices, _force(model, force), out, schedule=schedule)
    assert check(bundle, processes=True).how == "gloo processes"


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("devices", "force", "schedule"), PLANS)
@pytest.mark.parametrize("model", MODELS)
def test_all_in_processes(
    model: str, devices: int, force: str, schedule: str | None, workshop: Workshop, out: Path
) -> None:
    check(workshop.compile(MODELS[model], devices, _force(model, force), out, schedule=schedule), processes=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("devices", "force", "schedule"), PLANS)
def test_the_llama_in_full_size(devices: int, force: str, schedule: str | None, workshop: Workshop, out: Path) -> None:
    force = force if force != "mixed" else "embed:tp=4;layers.[012]:tp=4;layers.[345]:dp=4;head:dp=4"
    check(workshop.compile(LLAMA, devices, force, out, schedule=schedule))
