"""SPECs, and tasks that are not as they should be: each mistake in words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniap_compiler.capture import Optimizer, TrainingTask, capture, load_task
from uniap_compiler.ir import Diagnostic

TASK = """
import torch
from torch import nn
from uniap_compiler import TrainingTask

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(4, 1)

    def forward(self, x):
        {body}
        return self.up(x).mean()

def task():
    return TrainingTask(Net(), (torch.randn(3, 4),))

def wrong():
    return Net()

def fails():
    return undefined_name

number = 3
"""


def write(folder: Path, body: str = "pass") -> Path:
    path = folder / "net.py"
    path.write_text(TASK.format(body=body))
    return path


def message(spec: str) -> str:
    with pytest.raises(Diagnostic) as caught:
        load_task(spec)
    return caught.value.render()


def test_specs(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert isinstance(load_task(f"{path}:task"), TrainingTask)
    assert "there is no file" in message(f"{tmp_path}/other.py:task")
    assert "has no factory 'tusk'" in message(f"{path}:tusk") and "it defines task, wrong, fails" in message(
        f"{path}:tusk"
    )
    assert "returned a Net, not a TrainingTask" in message(f"{path}:wrong")
    assert "is an int, not a function" in message(f"{path}:number")
    text = message(f"{path}:fails")
    assert "NameError: name 'undefined_name' is not defined" in text and "net.py:22" in text
    assert "does not name a task" in message("examples/mlp.py")
    assert "there is no module no_such_package" in message("no_such_package.models:task")


def test_broken_files(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("def task(:\n")
    assert "is not valid Python" in message(f"{path}:task")
    path.write_text("import torch\nimport no_such_module\n")
    text = message(f"{path}:task")
    assert "cannot be imported: ModuleNotFoundError" in text and "broken.py:2" in text


@pytest.mark.parametrize(
    "body, words",
    [
        ("x = x if x.sum() > 0 else -x", ["torch.export cannot capture the model", "torch.where", "net.py:12"]),
        ("x = x * float(x.mean().item())", ["torch.export cannot capture the model"]),
        ("x = x if x.shape[0] > 6 else torch.tanh(x)", ["something else at another batch size"]),
        ("x = x + torch.randperm(4)", ["an unsupported random op: randperm", "net.py:12"]),
        ("x = x + torch.rand(4, generator=torch.Generator())", ["a random op with a generator of its own: rand"]),
        ("x = x.view(x.shape[0] * 2, 2).view(-1, 4)[: x.shape[0] ** 2 // 7]", ["neither constant nor a multiple"]),
        ("x = x @ torch.zeros(4, 3)", ["cannot capture the model", "net.py"]),
    ],
)
def test_models_that_cannot_be_captured(tmp_path: Path, body: str, words: list[str]) -> None:
    task = load_task(f"{write(tmp_path, body)}:task")
    with pytest.raises(Diagnostic) as caught:
        capture(task)
    text = caught.value.render(tmp_path)
    assert all(word in text for word in words), text
    assert "Traceback" not in text and len(text.splitlines()) < 20


class Identity(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


def refused(task: TrainingTask) -> str:
    with pytest.raises(Diagnostic) as caught:
        capture(task)
    return caught.value.render()


def test_batches_and_losses() -> None:
    x = torch.randn(3, 4)
    assert "the loss has shape [5, 4]" in refused(TrainingTask(Identity(), x))
    assert "different first dims" in refused(TrainingTask(Identity(), x, F.mse_loss, torch.randn(2, 4)))
    assert "its first dim must be the batch" in refused(TrainingTask(Identity(), x, F.mse_loss, torch.tensor(1.0)))
    assert "holds no tensor" in refused(TrainingTask(Identity(), ()))
    assert "the loss is a tuple" in refused(TrainingTask(Identity(), x, lambda o, t: (o, t), x))
    assert "no parameter of the model needs a gradient" in refused(TrainingTask(nn.ReLU(), x, F.mse_loss, x))
    with pytest.raises(Diagnostic, match="the optimizer 'lion' is not known"):
        TrainingTask(Identity(), x, optimizer="lion")
    with pytest.raises(Diagnostic, match="'f23' is not a dtype"):
        capture(TrainingTask(Identity(), x, F.mse_loss, x), dtype="f23")


def test_optimizer_is_in_the_text() -> None:
    x = torch.randn(3, 4)
    module = capture(TrainingTask(Identity(), x, F.mse_loss, x, optimizer=Optimizer("sgd", momentum=0.9)))
    assert str(module.attrs["optimizer"]["kind"]) == "sgd" and module.attrs["optimizer"]["momentum"] == 0.9  # type: ignore[index]


def test_locations_are_relative_to_the_task_file(tmp_path: Path) -> None:
    module = capture(load_task(f"{write(tmp_path, 'x = torch.tanh(x)')}:task"))
    ops = {op.name: op.loc for op in module.funcs["main"].ops}
    tanh, up = ops["aten.tanh"], ops["nn.contract"]
    assert tanh is not None and (tanh.file, tanh.line, tanh.module) == ("net.py", 12, "")
    assert up is not None and (up.file, up.line, up.module) == ("net.py", 13, "up")


def test_a_class_for_a_model_and_a_torch_optimizer_are_named() -> None:
    with pytest.raises(Diagnostic, match="the model of the task is the class Linear"):
        TrainingTask(torch.nn.Linear, torch.zeros(2, 3))  # type: ignore[arg-type]
    model = torch.nn.Linear(3, 3)
    with pytest.raises(Diagnostic, match=r"is a torch\.optim\.adamw\.AdamW"):
        TrainingTask(model, torch.zeros(2, 3), optimizer=torch.optim.AdamW(model.parameters()))  # type: ignore[arg-type]


class _ReadsANumber(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * x.max().item()


def test_a_number_read_out_of_a_tensor_is_refused() -> None:
    task = TrainingTask(_ReadsANumber(3, 3), torch.zeros(2, 3), loss=lambda out, _: out.sum(), targets=torch.zeros(2))
    with pytest.raises(Diagnostic, match=r"turns a tensor into a Python number"):
        capture(task)
