"""Deep pipelines through the loop: no schedule hangs, whatever the number of stages and micro-batches."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from uniap_compiler.runtime import loop as loop_module
from uniap_compiler.runtime.errors import CommunicationError
from uniap_compiler.runtime.loop import StageLoop
from uniap_compiler.runtime.threads import SimulatedComm, run_ranks

from .tiny_bundle import table


def stage(index: int, stages: int) -> SimpleNamespace:
    """h -> w h, the loss is the last h; two values cross every boundary."""
    first, last = index == 0, index == stages - 1
    source = "input:batch" if first else "recv:h"
    args = {"forward": [source, "param:w"] + ([] if first else ["recv:k"]), "backward": ["saved:x", "param:w"]}
    results = {
        "forward": ["saved:x", "loss" if last else "send:h"] + ([] if last else ["send:k"]),
        "backward": ["grad:w"],
    }
    args["backward"] += ["seed:loss"] if last else ["recv_grad:h", "recv_grad:k"]
    results["backward"] += [] if first else ["send_grad:h", "send_grad:k"]

    def forward(comm, a):
        x, w, *k = a
        a.clear()
        return (x, (x * w).sum()) if last else (x, x * w, torch.zeros(3, dtype=torch.float64))

    def backward(comm, a):
        x, w, g, *k = a
        a.clear()
        return ((g * x).sum(), *(() if first else ((g * w).expand(2), torch.ones(3, dtype=torch.float64))))

    transfers = {"h": ([2], "float64"), "k": ([3], "float64")}
    return SimpleNamespace(ARGS=args, RESULTS=results, TRANSFERS=transfers, forward=forward, backward=backward)


def both(entries):
    """The second value follows the first."""
    result = []
    for entry in entries:
        result.append(entry)
        if entry[0] in ("recv", "send", "recv_grad", "send_grad"):
            result.append([entry[0], "k", entry[2]])
    return result


def run(stages, micro_batches, tables):
    def work(rank, world):
        comm = SimulatedComm(world, rank, {}, [[r] for r in range(stages)])
        module = SimpleNamespace(stage=stage(rank, stages), SCHEDULE=tables[rank])
        tensors = {"param:w": torch.tensor(1.0 + rank, dtype=torch.float64)}
        loop = StageLoop(module, comm, tensors, micro_batches, torch.float64)
        inputs = [{"batch": torch.full((2,), m + 1.0, dtype=torch.float64)} for m in range(micro_batches)]
        loss, gradients = loop.run(inputs)
        return loss, gradients["w"]

    return run_ranks(stages, work, timeout=20)


@pytest.mark.parametrize("kind", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("ahead", "in_flight"), [(loop_module.AHEAD, loop_module.IN_FLIGHT), (1, 1)])
def test_no_schedule_hangs(monkeypatch, kind, ahead, in_flight):
    monkeypatch.setattr(loop_module, "AHEAD", ahead)
    monkeypatch.setattr(loop_module, "IN_FLIGHT", in_flight)
    for stages in (1, 2, 3, 5):
        for micro_batches in (1, 2, 4, 9):
            tables = [both(table(kind, s, micro_batches, stages)) for s in range(stages)]
            product = torch.arange(1, stages + 1, dtype=torch.float64).prod()
            mean = (1 + micro_batches) / 2
            results = run(stages, micro_batches, tables)
            assert sum(loss for loss, _ in results) == pytest.approx(2 * mean * product)
            for s, (_, grad) in enumerate(results):
                assert grad == pytest.approx(2 * mean * product / (s + 1))


def test_a_schedule_that_hangs_is_told():
    tables = [both(table(kind, s, 3, 2)) for s, kind in enumerate(("1f1b", "gpipe"))]
    with pytest.raises(CommunicationError, match=r"deadlock(.|\n)*rank 0 waits for a tensor \[2\] from rank 1"):
        run(2, 3, tables)


def test_values_that_nobody_took_are_named():
    tables = [both(table("1f1b", s, 1, 2)) for s in range(2)]
    for t in tables:
        t[:] = [e for e in t if e[:2] not in (["send_grad", "k"], ["recv_grad", "k"])]
    tables[0] = [e for e in tables[0] if e[0] != "backward"]
    with pytest.raises(RuntimeError, match="leaves values that nobody took: (recv_grad:h, saved:x|send_grad:k)"):
        run(2, 1, tables)


def test_a_value_that_is_not_there_is_named():
    tables = [both(table("1f1b", s, 1, 2)) for s in range(2)]
    tables[1] = [e for e in tables[1] if e[:2] != ["recv", "k"]]
    with pytest.raises(RuntimeError, match="forward 0 reads recv:k, which is not there"):
        run(2, 1, tables)


def test_one_tensor_under_two_names_is_not_accumulated_twice():
    """Both gradients of an addition are one tensor; adding to it in place would count it double."""

    def backward(comm, a):
        g = torch.ones(2)
        return g, g

    module = SimpleNamespace(
        stage=SimpleNamespace(
            ARGS={"forward": [], "backward": []}, RESULTS={"forward": [], "backward": ["grad:a", "grad:b"]},
            TRANSFERS={}, forward=lambda comm, a: (), backward=backward,
        ),
        SCHEDULE=[e for m in range(4) for e in (["forward", m], ["backward", m])],
    )  # fmt: skip

    def work(rank, world):
        return StageLoop(module, SimulatedComm(world, 0, {}, [[0]]), {}, 4, torch.float32).run([{}] * 4)[1]

    (gradients,) = run_ranks(1, work)
    assert gradients["a"].tolist() == gradients["b"].tolist() == [4.0, 4.0]
