"""Models that are awkward in one way each (tests/models.py), under the plans where that way hurts.

Batch norm's statistics over data ranks, skips over stages, one layer called four times, an embedding whose copy is the
head of another stage, parameters that nobody uses, losses inside the model, means over targets that are not ignored.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.models import TASKS, Residual
from uniap_compiler.capture import TrainingTask

from .plans import Workshop, check, manifest, strategies

BATCH = 8
PLANS = {
    "data": (2, "pp=1,dp=2,micro_batches=2"),
    "tensor": (2, "pp=1,tp=2"),
    "stages": (4, "pp=2,dp=2,micro_batches=2"),
    "memory": (4, "pp=2,dp=2,micro_batches=2,shard=parameters,recompute=full"),
    "optimizer": (4, "pp=2,tp=2,micro_batches=4,recompute=full"),
}
MODELS = tuple(TASKS)


def _task(model: str, dtype: torch.dtype = torch.float64) -> TrainingTask:
    return TASKS[model]()


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("model", MODELS)
def test_model(model: str, plan: str, workshop: Workshop, out: Path) -> None:
    devices, force = PLANS[plan]
    task = TASKS[model]()
    bundle = workshop.compile(task, devices, force, out, name=model, global_batch=BATCH)
    report = check(bundle, task=task)
    buffers = [row.name for row in report.rows if row.what.startswith("buffer after")]
    if model == "convnet":
        assert {"stem.1.running_mean", "stem.1.running_var", "norm.running_var"} <= set(buffers)
