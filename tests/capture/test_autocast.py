"""torch.autocast regions as captured: the casts of torch's own lists, for CPUs and for GPUs that are not there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniap_compiler.capture import TrainingTask, capture
from uniap_compiler.ir import ConstantStore, Diagnostic, Module

from .reference import eager, interpret

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


class Region(nn.Module):
    """f(module, x) in a region; x is [rows, 4, 16]."""

    def __init__(self, f: Callable[[Any, Tensor], Tensor], device: str = "cpu") -> None:
        super().__init__()
        self.f, self.device = f, device
        self.up, self.out = nn.Linear(16, 16), nn.Linear(16, 16, bias=False)
        self.norm, self.batch_norm, self.group = nn.LayerNorm(16), nn.BatchNorm1d(4), nn.GroupNorm(2, 4)
        self.rms, self.conv = nn.RMSNorm(16), nn.Conv1d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(self.device, dtype=torch.bfloat16):
            return self.f(self, x)


def attention(m: Any, x: Tensor) -> Tensor:
    q = m.up(x).unflatten(-1, (2, 8)).transpose(1, 2)
    return F.scaled_dot_product_attention(q, x.unflatten(-1, (2, 8)).transpose(1, 2), q).transpose(1, 2).flatten(2)


def nested(m: Any, x: Tensor) -> Tensor:
    y = m.up(x)
    with torch.autocast("cpu", enabled=False):
        y = m.out(y.float()) * 2
    with torch.no_grad():
        gate = torch.sigmoid(m.out(y))
    return m.up(y) * gate


FUNCTIONS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "linear": lambda m, x: m.out(F.gelu(m.up(x))),
    "matmul": lambda m, x: m.up(x) @ x.transpose(1, 2) @ x,
    "einsum": lambda m, x: torch.einsum("bsk,btk->bst", m.up(x), x) @ x,
    "attention": attention,
    "softmax": lambda m, x: torch.softmax(m.up(x), -1) * m.up(x).log_softmax(-1),
    "norms": lambda m, x: m.rms(m.norm(m.up(x))) + m.group(m.up(x)),
    "batch norm": lambda m, x: m.batch_norm(m.up(x)) * m.batch_norm(x),
    "convolution": lambda m, x: F.relu(m.conv(m.up(x))),
    "cat": lambda m, x: torch.cat([m.up(x), x], 1).mean(1, keepdim=True) + torch.stack([x, m.up(x)]).sum(0),
    "loss": lambda m, x: F.cross_entropy(m.up(x).flatten(0, 1), torch.zeros(x.shape[0] * 4, dtype=torch.int64)),
    "mean squares": lambda m, x: F.mse_loss(m.up(x), x) + F.smooth_l1_loss(m.up(x), x),
    "nested": nested,
    "numbers": lambda m, x: torch.exp(m.up(x)).sum(-1).rsqrt() * (m.up(x) ** 2).cumsum(-1).mean(-1),
}


def task(f: Callable[[Any, Tensor], Tensor], device: str = "cpu", loss: Any = None) -> TrainingTask:
    torch.manual_seed(0)
    return TrainingTask(Region(f, device), (torch.randn(4, 4, 16),), loss=loss or (lambda y, t: y.float().mean()))


def dtypes(module: Module) -> list[tuple[str, str]]:
    """(op, dtype of its first result), casts and views apart."""
    return [(op.name, op.results[0].type.dtype) for op in module.funcs["main"].ops if op.name != "aten._to_copy"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_region_computes_what_torch_does(name: str) -> None:
    """Result, its dtype, gradients; the reference is torch's own autocast, which casts below Python."""
    f, seen = FUNCTIONS[name], []

    def loss(y: Tensor, targets: Tensor | None) -> Tensor:
        seen.append(y.dtype)
        each = y[0].numel() if y.dim() else 1
        return (y.double() * torch.linspace(-1, 1, each, dtype=torch.float64).view(y.shape[1:])).mean()

    given, constants = task(f, loss=loss), ConstantStore()
    module = capture(given, constants=constants)
    seen.clear()
    theirs, ours = eager(given), interpret(module, "main", given, constants)
    assert float((ours.loss - theirs.loss).abs()) < 0.02 * max(float(theirs.loss.abs()), 0.1)
    for buffer in ours.buffers:
        torch.testing.assert_close(ours.buffers[buffer], theirs.buffers[buffer], rtol=0.02, atol=0.01)
    assert bool(ours.buffers) == (name == "batch norm")
    (wide, *_) = [op for op in module.funcs["main"].ops if op.name == "aten._to_copy" and "f64" in str(op.attrs)]
    assert DTYPES[wide.operands[0].type.dtype] == seen[0]  # type: ignore[union-attr]
    assert any(dtype == "bf16" for _, dtype in dtypes(module))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_lists_for_gpus_without_a_gpu(name: str) -> None:
    """As torch says on fake tensors of a GPU: the same dtype of the result."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from uniap_compiler.capture.autocast import regions_for_any_device

    if name == "nested":
        pytest.skip("names the CPU")
    seen = []

    def loss(y: Tensor, targets: Any) -> Tensor:
        seen.append(y)
        return y.double().mean()

    module = capture(task(FUNCTIONS[name], "cuda", loss))
    (wide, *_) = [op for op in module.funcs["main"].ops if op.results[0].type.dtype == "f64"]
    found = wide.operands[0].type.dtype  # type: ignore[union-attr]
    model = Region(FUNCTIONS[name], "cuda").eval()  # in training, batch norm on a GPU needs one
    state = model.state_dict()
    with FakeTensorMode(), regions_for_any_device(), torch.device("cuda"):
        tensors = {n: torch.empty(t.shape, dtype=t.dtype) for n, t in state.items()}
        expected = torch.func.functional_call(model, tensors, (torch.empty(4, 4, 16),)).dtype
    assert DTYPES[found] == expected


def test_where_the_lists_differ() -> None:
    f = FUNCTIONS["norms"]
    cpu, cuda = (dict(dtypes(capture(task(f, device)))) for device in ("cpu", "cuda"))
    assert cpu["nn.contract"] == cuda["nn.contract"] == "bf16"
    assert (cpu["aten.native_layer_norm"], cuda["aten.native_layer_norm"]) == ("bf16", "f32")
    cpu, cuda = (dict(dtypes(capture(task(FUNCTIONS["softmax"], device)))) for device in ("cpu", "cuda"))
    assert (cpu["aten._softmax"], cuda["aten._softmax"]) == ("bf16", "f32")


def test_attention_is_one_op_in_the_regions_dtype() -> None:
    for device in ("cpu", "cuda"):
        assert ("nn.attention", "bf16") in dtypes(capture(task(attention, device)))


def test_float64_is_never_cast() -> None:
    module = capture(task(FUNCTIONS["attention"]), dtype="float64")
    assert {dtype for _, dtype in dtypes(module)} <= {"f64", "i64", "i1"}


def test_other_devices_are_refused() -> None:
    with pytest.raises(Diagnostic, match="mps"):
        capture(task(FUNCTIONS["linear"], "mps"))
