"""Float32 masters of bfloat16 parameters: the update, what small steps add up to, and a resumed run."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch

from uniap_compiler.runtime.optimizer import Optimizer

SETTINGS: dict[str, dict[str, Any]] = {
    "adamw": {"lr": 1e-3, "betas": [0.9, 0.99], "eps": 1e-6, "weight_decay": 0.1},
    "sgd": {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.01},
    "plain": {"lr": 1e-2},
}


def kind_of(case: str) -> str:
    return "adamw" if case == "adamw" else "sgd"


def gradients(steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, 5, generator=generator) for _ in range(steps)]


def start() -> torch.Tensor:
    return torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).bfloat16()


@pytest.mark.parametrize("case", SETTINGS)
def test_the_master_is_trained_and_the_parameter_is_it_rounded(case: str) -> None:
    param, master = start(), start().float().requires_grad_()
    optimizer = Optimizer({"kind": kind_of(case), "defaults": SETTINGS[case], "master_weights": True})
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in SETTINGS[case].items()}
    make: Any = torch.optim.AdamW if case == "adamw" else torch.optim.SGD
    theirs = make([master], **options)
    for grad in gradients(5):
        optimizer.step({"w": param}, {"w": grad})
        master.grad = grad.clone()
        theirs.step()
    torch.testing.assert_close(optimizer.masters()["w"], master.detach(), rtol=1e-6, atol=1e-7)
    assert param.dtype == torch.bfloat16
    assert torch.equal(param, optimizer.masters()["w"].bfloat16())
    moments = [x for x in optimizer.state["w"].values() if isinstance(x, torch.Tensor)]
    assert all(x.dtype == torch.float32 for x in moments)


def test_small_steps_add_up() -> None:
    """300 steps of a thousandth each: bfloat16 alone stays at 1, where the next number is 1.0078."""
    kept, lost = torch.ones(1, dtype=torch.bfloat16), torch.ones(1, dtype=torch.bfloat16)
    for masters, param in ((True, kept), (False, lost)):
        optimizer = Optimizer({"kind": "sgd", "defaults": {"lr": 1e-3}, "master_weights": masters})
        for _ in range(300):
            optimizer.step({"w": param}, {"w": torch.full((1,), -1.0).to(torch.float32 if masters else param.dtype)})
    assert kept.item() == pytest.approx(1.3, abs=5e-3)
    assert lost.item() == 1.0


@pytest.mark.parametrize("case", SETTINGS)
def test_a_resumed_run_is_the_same(case: str) -> None:
    """As checkpoint.py does it: the parameter and the state are saved, the state is what resumes."""
    description = {"kind": kind_of(case), "defaults": SETTINGS[case]}
    straight, whole = Optimizer(description), start()
    for grad in gradients(6):
        straight.step({"w": whole}, {"w": grad})
    first, param = Optimizer(description), start()
    for grad in gradients(6)[:3]:
        first.step({"w": param}, {"w": grad})
    file = io.BytesIO()
    torch.save({"param": param, "state": first.state}, file)
    file.seek(0)
    content = torch.load(file, weights_only=True)
    second = Optimizer(description)
    second.state, param = content["state"], content["param"]
    for grad in gradients(6)[3:]:
        second.step({"w": param}, {"w": grad})
    assert torch.equal(param, whole)
    assert torch.equal(second.masters()["w"], straight.masters()["w"])


def test_float32_has_no_master() -> None:
    optimizer = Optimizer({"kind": "sgd"})
    param = torch.ones(3)
    optimizer.step({"w": param}, {"w": torch.ones(3)})
    assert optimizer.masters() == {} and optimizer.state.get("w", {}) == {}
