"""Models that are awkward in one way each (tests/models.py), under the plans where that way hurts.

Batch norm's statistics over data ranks, skips over stages, one layer called four times, an embedding whose copy is the
head of another stage, parameters that nobody uses, losses inside the model, means over targets that are not ignored.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.models import TASKS
from uniap_compiler import TrainingTask, driver
from uniap_compiler.ir import Diagnostic
from uniap_compiler.verify import verify

from .plans import Workshop, check, manifest, strategies

BATCH = 8
PLANS = {
    "data": (2, "pp=1,dp=2,micro_batches=2"),
    "tensor": (2, "pp=1,tp=2"),
    "stages": (4, "pp=2,dp=2,micro_batches=2"),
    "memory": (4, "pp=2,dp=2,micro_batches=2,shard=parameters,recompute=full"),
    "tensor stages": (4, "pp=2,tp=2,micro_batches=4,recompute=full"),
    "selective": (4, "pp=2,dp=2,micro_batches=2,shard=parameters,recompute=selective"),
}
ONE_STAGE = ("einsum", "statistics")
"""One layer only; layers that update the same buffers."""


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("model", TASKS)
def test_model(model: str, plan: str, workshop: Workshop, out: Path) -> None:
    devices, force = PLANS[plan]
    if model in ONE_STAGE:
        devices, force = 2, force.replace("pp=2", "pp=1")
    task = TASKS[model]()
    bundle = workshop.compile(task, devices, force, out, name=model, global_batch=BATCH)
    report = check(bundle, task=task)
    after = {row.name for row in report.rows if row.what.startswith("buffer after")}
    if model == "convnet":
        assert {"stem.1.running_mean", "stem.1.running_var", "norm.running_mean", "norm.running_var"} <= after
    if model == "statistics":
        assert {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked", "average"} <= after


@pytest.mark.parametrize("plan", ["pp=2,dp=2", "pp=2,tp=2", "pp=4", "pp=2,dp=2,shard=optimizer"])
def test_the_head_is_a_copy_of_the_embedding_on_another_stage(plan: str, workshop: Workshop, out: Path) -> None:
    task = TASKS["tied"]()
    bundle = workshop.compile(task, 4, f"{plan},micro_batches=2", out, name="tied", global_batch=BATCH)
    layers = strategies(bundle)
    assert layers["embed"][0] < layers["head"][0]
    about = manifest(bundle)["parameters"]["embed.weight"]
    assert about["home_stage"] == 0 and about["aliases"] == ["head.weight"]
    check(bundle, task=task)


def test_layers_that_share_a_changing_buffer_stay_together(workshop: Workshop, out: Path) -> None:
    force = "pp=2;norm:stage=0;norm@1:stage=1"
    with pytest.raises(Diagnostic, match="is updated by norm@1 on stage 1 and read by norm on stage 0"):
        workshop.compile(TASKS["statistics"](), 2, force, out, name="statistics", global_batch=BATCH)


def test_the_solver_keeps_them_together(workshop: Workshop, out: Path) -> None:
    task = TASKS["statistics"]()
    bundle = workshop.compile(task, 4, "", out, name="statistics", global_batch=BATCH)
    assert manifest(bundle)["stages"] == 1
    check(bundle, task=task)


class _Before(torch.nn.Module):
    """Reads a running average, and changes it afterwards: backward needs the one that was read."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(8, 8), torch.nn.Linear(8, 5)
        self.register_buffer("average", torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.up(x))
        y = torch.exp(x * self.average.clone())
        with torch.no_grad():
            self.average.mul_(0.9).add_(x.mean(0), alpha=0.1)
        return self.down(y * torch.sin(y))


def before() -> TrainingTask:
    torch.manual_seed(0)
    targets = torch.arange(8) % 5
    return TrainingTask(_Before(), torch.randn(8, 8), loss=torch.nn.functional.cross_entropy, targets=targets)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_backward_has_a_buffer_as_forward_read_it(recompute: str, workshop: Workshop, out: Path) -> None:
    force = f"pp=1,dp=2,micro_batches=2,recompute={recompute}"
    check(workshop.compile(before(), 2, force, out, name="before", global_batch=BATCH), task=before())


def weighted() -> TrainingTask:
    """A loss that is a module and has a buffer of its own."""
    torch.manual_seed(0)
    loss = torch.nn.CrossEntropyLoss(weight=torch.rand(8) + 0.5)
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 8))
    return TrainingTask(model, torch.randn(8, 6), loss=loss, targets=torch.arange(8))


def test_a_loss_module_with_a_buffer(tmp_path: Path) -> None:
    compiled = driver.compile(weighted(), "laptop", 8, out=tmp_path / "b", force="dp=2,tp=2", dtype="float64")
    report = verify(compiled.bundle, task=weighted())
    assert report.ok, report.failures()[:3]


class _Scaled(torch.nn.Module):
    """A plain tensor as an attribute: neither parameter nor buffer, so `.double()` leaves it alone."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(6, 8)
        self.scale = torch.linspace(1, 2, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.up(x) * self.scale


def scaled() -> TrainingTask:
    torch.manual_seed(0)
    model = _Scaled()
    return TrainingTask(model, torch.randn(8, 6), loss=torch.nn.functional.cross_entropy, targets=torch.arange(8))


def test_a_plain_tensor_follows_into_float64(tmp_path: Path) -> None:
    compiled = driver.compile(scaled(), "laptop", 8, out=tmp_path / "b", force="dp=2,tp=2", dtype="float64")
    report = verify(compiled.bundle, task=scaled())
    assert report.ok, report.failures()[:3]
