"""Weights, data, optimizer: the parts that need no ranks."""

from __future__ import annotations

import json
import math

import pytest
import torch

from uniap_compiler.runtime import data, weights
from uniap_compiler.runtime import optimizer as optimizer_module
from uniap_compiler.runtime.errors import BundleError
from uniap_compiler.runtime.metrics import Metrics, progress
from uniap_compiler.runtime.optimizer import Optimizer, clip_scale, squared_norm

TOKENS = {
    "global_batch": 6, "micro_batches": 2,
    "inputs": [{"path": p, "shape": [3, 5], "dtype": "int64"} for p in ("batch.tokens", "targets")],
}  # fmt: skip


def test_safetensors_both_ways(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    tensors = {
        "a": torch.randn(4, 6, dtype=torch.float64),
        "flag": torch.tensor([True, False, True]),
        "half": torch.randn(3, dtype=torch.bfloat16),
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "strided": torch.randn(4, 6).T,
    }
    weights.save(tmp_path / "ours", tensors)
    read = safetensors.load_file(tmp_path / "ours")
    assert read.keys() == tensors.keys()
    safetensors.save_file(
        {k: v.contiguous() for k, v in tensors.items()}, tmp_path / "theirs", metadata={"who": "them"}
    )
    for path in ("ours", "theirs"):
        file = weights.SafetensorsFile(tmp_path / path)
        assert file.header.keys() == tensors.keys()
        for name, x in tensors.items():
            assert file.tensor(name).dtype == x.dtype and torch.equal(file.tensor(name), x), name
            assert torch.equal(read[name], x)
    again = tmp_path / "again"
    weights.save(again, dict(reversed(tensors.items())))
    assert again.read_bytes() == (tmp_path / "ours").read_bytes()


def test_pieces_are_read_as_memory_of_their_own(tmp_path):
    x = torch.arange(24.0).reshape(6, 4)
    weights.save(tmp_path / "w", {"x": x})
    files = weights.Weights([tmp_path / "w"])
    record = {"slices": [[[3, 0, 3], [2, 1, 2]], [[4, 0, 2]]], "dtype": "float64"}
    piece = files.read("x", record)
    assert torch.equal(piece, x[1::2, :2].double())
    piece.zero_()
    assert torch.equal(files.read("x", record), x[1::2, :2].double())
    with pytest.raises(BundleError, match="no weights for y"):
        files.read("y", record)
    with pytest.raises(BundleError, match=r"the weights of x have shape \[6, 4\], the bundle needs \[5, 4\]"):
        files.read("x", {"slices": [[[5, 0, 5]], [[4, 0, 4]]], "dtype": "float32"})
    (tmp_path / "w").write_bytes((tmp_path / "w").read_bytes()[:-8])
    with pytest.raises(BundleError, match="cut off"):
        weights.Weights([tmp_path / "w"]).read("x", record)
    (tmp_path / "w").write_bytes(b"no safetensors")
    with pytest.raises(BundleError, match="cannot read the weights"):
        weights.Weights([tmp_path / "w"])


def test_flatten_and_cut():
    x, y = torch.arange(12).reshape(6, 2), torch.ones(6)
    flat = data.flatten({"a": [x, {"m": y}], "n": 3}, (x,))
    assert list(flat) == ["batch.a.0", "batch.a.1.m", "targets.0"]
    assert list(data.flatten(x)) == ["batch"]
    manifest = {"micro_batches": 3, "inputs": [{"path": "batch.a.0", "shape": [2, 2], "dtype": "int64"}]}
    assert [m["batch.a.0"].tolist() for m in data.cut(flat, manifest)] == x.reshape(3, 2, 2).tolist()
    assert data.cut(flat, manifest, wanted=[]) == [{}, {}, {}]


def test_streams_begin_again_and_in_the_middle():
    def plain():
        yield from range(3)

    def with_start(start=0, seed=0):
        yield from range(start + seed, 100)

    assert [next(s) for s in [data.Stream(plain, start=2)] for _ in range(3)] == [2, 0, 1]
    stream = data.Stream([5, 6])
    assert [next(stream) for _ in range(5)] == [5, 6, 5, 6, 5] and stream.position == 5
    assert next(data.Stream(with_start, seed=10, start=7)) == 17
    used_up = data.Stream(iter([1]))
    next(used_up)
    with pytest.raises(BundleError, match="used up: give a function"):
        next(used_up)


def test_bytes_as_tokens(tmp_path):
    text = bytes(range(256)) * 2
    (tmp_path / "text").write_bytes(text)

    def read(seed=0, start=0, count=1):
        stream = data.load(f"bytes:{tmp_path / 'text'}", TOKENS, seed, start)
        return [data.next_batch(stream, TOKENS) for _ in range(count)]

    first = read()[0]
    assert len(first) == 2 and first[0]["batch.tokens"].shape == (3, 5)
    for m in first:
        assert torch.equal((m["batch.tokens"] + 1) % 256, m["targets"])
        assert torch.equal(m["batch.tokens"][:, 1:], m["targets"][:, :-1])
    three = read(count=3)
    assert torch.equal(three[2][1]["targets"], read(start=2)[0][1]["targets"]), "a resumed run goes on where it was"
    assert not torch.equal(three[0][0]["targets"], three[1][0]["targets"])
    assert not torch.equal(read(seed=1)[0][0]["targets"], first[0]["targets"])
    (tmp_path / "text").write_bytes(b"short")
    with pytest.raises(BundleError, match="5 bytes are fewer than a sequence of 5"):
        read()


@pytest.mark.parametrize(
    ("kind", "ours", "make"),
    [
        ("adamw", {"lr": 0.1, "betas": [0.8, 0.95], "eps": 1e-6, "weight_decay": 0.2}, torch.optim.AdamW),
        ("sgd", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.2}, torch.optim.SGD),
        ("sgd", {"lr": 0.1, "momentum": 0.9, "nesterov": True}, torch.optim.SGD),
        ("sgd", {"lr": 0.1}, torch.optim.SGD),
    ],
)
def test_optimizer_equals_torch(kind, ours, make, monkeypatch):
    """Late gradients, gradients with strides of their own, one tensor for two parameters, several parts."""
    monkeypatch.setattr(optimizer_module, "_TOGETHER", 200)
    torch.manual_seed(0)
    theirs = torch.nn.ParameterDict({n: torch.randn(3, 5, dtype=torch.float64) for n in ("a", "b", "c", "d", "unused")})
    values = {n: p.detach().clone() for n, p in theirs.items()}
    first = [p for n, p in theirs.items() if n != "b"]
    groups = [{"params": first}, {"params": [theirs["b"]], "lr": 0.03, "weight_decay": 0.0}]
    reference = make(groups, **ours)
    optimizer = Optimizer(
        {"kind": kind, "defaults": ours, "groups": [{"parameters": ["b"], "lr": 0.03, "weight_decay": 0.0}]}
    )
    for step in range(4):
        transposed = torch.randn(5, 3, dtype=torch.float64).t()
        gradients = {"a": transposed, "c": transposed, "d": torch.randn(5, dtype=torch.float64).expand(3, 5)}
        if step:
            gradients["b"] = torch.randn(3, 5, dtype=torch.float64)
        norm = sum(g.square().sum() for g in gradients.values()).sqrt().item()
        assert squared_norm(gradients, gradients, torch.device("cpu")).item() == pytest.approx(norm**2)
        reference.zero_grad()
        for n, g in gradients.items():
            theirs[n].grad = g.clone(memory_format=torch.contiguous_format)
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        reference.step()
        optimizer.step(values, gradients, clip_scale(norm, 1.0))
    for n, x in values.items():
        assert torch.allclose(x, theirs[n], rtol=1e-13, atol=1e-13), n


def test_bad_optimizers_are_refused():
    with pytest.raises(BundleError, match="optimizer kind 'lamb'; adamw and sgd exist"):
        Optimizer({"kind": "lamb"})
    with pytest.raises(BundleError, match="no setting 'amsgrad'"):
        Optimizer({"kind": "adamw", "defaults": {"amsgrad": True}})


def test_metrics(tmp_path):
    metrics = Metrics(TOKENS, tmp_path / "deep" / "metrics.jsonl")
    line = metrics.record(3, 2.5, 0.5, 0.1)
    assert json.loads((tmp_path / "deep/metrics.jsonl").read_text()) == line
    assert line["samples_per_second"] == 60.0 and line["tokens_per_second"] == 300.0
    assert progress(line, 100) == "step   3/100  loss 2.5000  grad norm 0.500  0.100 s  300 tokens/s"
    metrics.record(4, math.nan, math.inf, 0.1)
    last = json.loads((tmp_path / "deep/metrics.jsonl").read_text().splitlines()[-1], parse_constant=pytest.fail)
    assert last["loss"] is None and last["grad_norm"] is None


def test_a_norm_that_is_no_number_clips_everything_as_torch_does():
    for norm in (math.nan, math.inf, 0.5, 4.0):
        p = torch.nn.Parameter(torch.zeros(3))
        p.grad = torch.ones(3)
        torch.nn.utils.clip_grads_with_norm_([p], 1.0, torch.tensor(norm))
        torch.testing.assert_close(torch.ones(3) * clip_scale(norm, 1.0), p.grad, equal_nan=True)
