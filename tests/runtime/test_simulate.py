"""The hand-written bundle, all ranks as threads, against autograd in float64."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from uniap_compiler.runtime.data import flatten
from uniap_compiler.runtime.errors import BundleError
from uniap_compiler.runtime.loop import StageLoop
from uniap_compiler.runtime.processes import SingleProcess
from uniap_compiler.runtime.simulate import simulate

from .tiny_bundle import Reference, batch, write

SGD = {"kind": "sgd", "defaults": {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}}


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-12) -> None:
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize(
    ("schedule", "micro_batches"), [("1f1b", 1), ("1f1b", 2), ("1f1b", 5), ("gpipe", 2), ("gpipe", 6)]
)
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_equals_autograd(tmp_path, schedule, micro_batches, kind):
    write(tmp_path / "b", schedule, micro_batches)
    batches = [batch(micro_batches, i) for i in range(3)]
    clip = 1.0 if kind == "adamw" else None
    result = simulate(
        tmp_path / "b", [flatten(*b) for b in batches], optimizer=SGD if kind == "sgd" else None, clip=clip
    )
    reference = (
        Reference("adamw")
        if kind == "adamw"
        else Reference("sgd", 0.05, momentum=0.9, nesterov=True, weight_decay=0.01)
    )
    for inputs, targets in batches:
        reference.step(inputs, targets, micro_batches, clip)
    assert max(reference.norms) > 1.0, "clipping must have an effect"
    assert result.losses == pytest.approx(reference.losses, rel=1e-12)
    assert result.grad_norms == pytest.approx(reference.norms, rel=1e-12)
    assert set(result.gradients) == set(reference.tensors) == set(result.parameters)
    for name, x in reference.tensors.items():
        close(result.gradients[name], reference.gradients[0][name])
        close(result.parameters[name], x.detach())
    assert result.buffers["seen"].item() == 3 * micro_batches
    assert result.disagreement == 0.0


def mutated(root, file, old, new):
    path = root / file
    text = path.read_text()
    assert text.count(old) == 1, "the mutation must hit exactly one place"
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("file", "old", "new", "seen"),
    [
        ("stages/stage_0.py", 'b1 = comm.all_reduce(b1, "a")', "pass", "gradient of b1"),  # a missing collective
        ("stages/stage_0.py", "comm.send(s, to_stage=1)", "comm.send(2 * s, to_stage=1)", "s@copy0"),  # a wrong copy
    ],
)
def test_copies_that_differ_are_named(tmp_path, file, old, new, seen):
    root = write(tmp_path / "b")
    mutated(root, file, old, new)
    result = simulate(root, [flatten(*batch(2, 0))], check=False)
    assert result.disagreement > 1e-3
    assert seen in result.disagreeing


def test_wrong_gradients_are_seen(tmp_path):
    root = write(tmp_path / "b")
    mutated(root, "stages/stage_1.py", "(seed / 6)", "(seed / 3)")
    result = simulate(root, [flatten(*batch(2, 0))], check=False)
    reference = Reference()
    reference.step(*batch(2, 0), 2)
    assert result.losses == pytest.approx(reference.losses)
    assert (result.gradients["w1"] - reference.gradients[0]["w1"]).abs().max() > 1e-3


def test_altered_files_are_refused(tmp_path):
    root = write(tmp_path / "b")
    mutated(root, "stages/stage_1.py", "(seed / 6)", "(seed / 3)")
    with pytest.raises(BundleError, match="stages/stage_1.py was changed by hand"):
        simulate(root, [flatten(*batch(2, 0))])


def test_missing_send_is_a_deadlock_at_once(tmp_path):
    root = write(tmp_path / "b")
    mutated(root, "stages/stage_0.py", "comm.send(s, to_stage=1)", "pass")
    with pytest.raises(Exception, match="deadlock") as caught:
        simulate(root, [flatten(*batch(2, 0))], check=False)
    assert "rank 2 waits for a tensor [6] from rank 0" in str(caught.value)


def test_the_first_exception_of_any_rank_arrives(tmp_path):
    root = write(tmp_path / "b")
    mutated(root, "stages/stage_1.py", "u = h * s", "u = h * s[:5]")
    with pytest.raises(RuntimeError, match="size of tensor") as caught:
        simulate(root, [flatten(*batch(2, 0))], check=False)
    assert any("at: forward 0" in note for note in caught.value.__notes__)


def test_wrong_shapes_of_data_are_explained(tmp_path):
    root = write(tmp_path / "b")
    with pytest.raises(BundleError, match=r"batch.x has shape \[12, 4\], the bundle was compiled for \[8, 4\]"):
        simulate(root, [flatten(*batch(3, 0))])
    with pytest.raises(BundleError, match="the data have no targets"):
        simulate(root, [flatten(batch(2, 0)[0])])


def test_the_bundle_stays_as_written(tmp_path):
    root = write(tmp_path / "b")
    before = sorted(root.rglob("*"))
    simulate(root, [flatten(*batch(2, 0))])
    assert sorted(root.rglob("*")) == before


def test_what_a_prelude_made_of_a_buffer_follows_a_checkpoint():
    stage = SimpleNamespace(
        ARGS={"prelude": ["buffer:t"], "forward": ["prelude:twice"]},
        RESULTS={"prelude": ["prelude:twice"], "forward": ["loss"]},
        prelude=lambda comm, args: (args[0] * 2,), forward=lambda comm, args: (args[0].sum(),),
    )  # fmt: skip
    rank, comm = SimpleNamespace(stage=stage, SCHEDULE=[["forward", 0]]), SingleProcess({}, [[0]], torch.device("cpu"))
    tensors = {"buffer:t": torch.ones(3)}
    loop = StageLoop(rank, comm, tensors, 1, torch.float32)
    assert loop.run([{}])[0] == 6
    tensors["buffer:t"].copy_(torch.full((3,), 2.0))
    loop.reload()
    assert loop.run([{}])[0] == 12
