"""Models with random ops under plans: with the counter every rank draws its part of what the unsharded model draws.

Dropout after the embedding, inside attention and the MLP, drop path, under data, tensor and pipeline parallelism,
recomputation and micro-batches; what verify says of wrong keys and wrong places; runs from generators.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniap_compiler import TrainingTask, driver
from uniap_compiler.ir import Diagnostic, Func, Module, Op, Struct, parse_module, print_module
from uniap_compiler.runtime import random
from uniap_compiler.runtime.simulate import simulate
from uniap_compiler.verify import make_batches, verify

from .plans import Workshop, check, manifest

BATCH, WIDTH, LENGTH, CLASSES = 8, 16, 32, 11


class Block(nn.Module):
    """A transformer block with everything that is dropped in one."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 8 * WIDTH), nn.Linear(8 * WIDTH, WIDTH)
        self.dropout, self.p = nn.Dropout(p), p

    def drop_path(self, x: Tensor) -> Tensor:
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.p)
        return x * keep.div_(1 - self.p) if self.p < 1 else x

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (t.unflatten(-1, (4, -1)).transpose(1, 2) for t in self.qkv(self.norm1(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.p if self.training else 0.0)
        x = x + self.drop_path(self.dropout(self.out(y.transpose(1, 2).flatten(2))))
        return x + self.drop_path(self.dropout(self.down(self.dropout(F.gelu(self.up(self.norm2(x)))))))


class Noisy(nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.embed, self.dropout = nn.Embedding(CLASSES, WIDTH), nn.Dropout(p)
        self.blocks = nn.ModuleList(Block(p) for _ in range(2))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.dropout(self.embed(tokens))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def noisy(p: float = 0.3) -> TrainingTask:
    torch.manual_seed(0)
    tokens, targets = torch.randint(CLASSES, (2, BATCH, LENGTH))
    return TrainingTask(Noisy(p), tokens, loss=loss, targets=targets)


PLANS = {
    "data": "dp=4",
    "tensor": "tp=4",
    "sequence": "tp=4,boundary=sequence",
    "stages": "pp=2,dp=2,micro_batches=2",
    "recompute": "pp=1,dp=2,tp=2,recompute=full,micro_batches=2",
    "selective": "pp=2,tp=2,boundary=sequence,recompute=selective,micro_batches=4",
    "memory": "pp=1,dp=4,shard=parameters,micro_batches=2",
}


@pytest.mark.parametrize("plan", PLANS)
def test_plan(plan: str, workshop: Workshop, out: Path) -> None:
    bundle = workshop.compile(noisy(), 4, PLANS[plan], out, name="noisy", global_batch=BATCH)
    check(bundle, task=noisy())
    assert manifest(bundle)["random_sites"] == 13
    text = "".join(p.read_text() for p in (bundle / "stages").iterdir())
    assert "comm.coordinate" in text and text.count("nn.random_key(") == 13
    if plan == "tensor":  # the heads are split, and so are their masks
        assert "dropout_p=0.3, index=[8, (4, comm.coordinate(" in " ".join(text.split())


@pytest.mark.slow
def test_processes(workshop: Workshop, out: Path) -> None:
    bundle = workshop.compile(noisy(), 2, "tp=2", out, name="noisy", global_batch=BATCH)
    check(bundle, task=noisy(), processes=True)


# -- what verify notices --------------------------------------------------------------------------------------------


def parts(attr: object) -> Iterator[list[object]]:
    """The lists in which a `#part` stands."""
    if isinstance(attr, list):
        if any(isinstance(x, Struct) for x in attr):
            yield attr
        for x in attr:
            yield from parts(x)


def mutations(module: Module) -> Iterator[tuple[str, Func, Op, dict[str, object]]]:
    """(what, func, op, its new attributes): another site, another probability, the first rank's place everywhere."""
    seen: set[tuple[str, ...]] = set()
    for func in module.funcs.values():
        for op in func.ops:
            if op.name == "nn.random_key":
                yield "site", func, op, {**op.attrs, "site": 100}
            if "index" not in op.attrs:
                continue
            for key in ("p", "dropout_p"):
                if key in op.attrs:
                    yield "probability", func, op, {**op.attrs, key: 0.31}
            places = list(parts(op.attrs["index"]))
            kind = (func.name.rpartition(".")[2], op.name, str(op.attrs["index"]))
            if places and kind not in seen:
                seen.add(kind)
                index = [x["count"] if isinstance(x, Struct) else x for x in places[0]]
                yield "place", func, op, {**op.attrs, "index": index}


@pytest.mark.slow
def test_every_key_and_place_matters(workshop: Workshop, tmp_path: Path) -> None:
    dumps = tmp_path / "dumps"
    workshop.compile(noisy(), 4, PLANS["recompute"], tmp_path / "b", name="noisy", global_batch=BATCH, dump=dumps)
    (dump,) = dumps.glob("*-localize.mlir")
    text = dump.read_text()
    count = len(list(mutations(parse_module(text))))
    survivors, done = [], dict.fromkeys(("site", "probability", "place"), 0)
    for i in range(count):
        module = parse_module(text)
        what, func, op, attrs = list(mutations(module))[i]
        if done[what] >= 6 and i % 3:  # a third of what is alike
            continue
        done[what] += 1
        op.attrs = attrs  # type: ignore[assignment]
        mutant = dump.with_name("50-mutant.mlir")
        mutant.write_text(print_module(module))
        bundle = driver.resume(mutant, out=tmp_path / f"mutant{i}").bundle
        try:
            failures = bool(verify(bundle, task=noisy()).failures())
        except Diagnostic:
            failures = True
        if not failures:
            survivors.append(f"{what} of {op.name} in @{func.name}")
    assert all(n >= 3 for n in done.values()), done
    assert not survivors, "\n".join(survivors)


def test_a_model_that_draws_otherwise(workshop: Workshop, out: Path) -> None:
    bundle = workshop.compile(noisy(), 2, "dp=2", out, name="noisy", global_batch=BATCH)
    task = noisy()
    task.model.dropout.p = 0.0  # type: ignore[union-attr]
    with pytest.raises(Diagnostic, match="draws random numbers 12 times in a forward pass, the bundle 13 times"):
        verify(bundle, task=task)


# -- runs -----------------------------------------------------------------------------------------------------------


def run(bundle: Path, mode: str, seed: int = 0) -> list[float]:
    """The losses of three steps, all ranks in threads; copies on different ranks must agree."""
    batches = [dict(b) for b in make_batches(noisy(), BATCH, 3)]
    result = simulate(bundle, batches, seed=seed, random=mode)
    assert result.disagreement == 0.0, result.disagreeing
    return result.losses


def test_runs_repeat_and_seeds_differ(workshop: Workshop, out: Path) -> None:
    bundle = workshop.compile(noisy(), 4, PLANS["selective"], out, name="noisy", global_batch=BATCH)
    runs = {(mode, seed): run(bundle, mode, seed) for mode in random.MODES for seed in (0, 1)}
    assert len({loss for losses in runs.values() for loss in losses}) == 12
    assert run(bundle, "fast") == runs["fast", 0] and run(bundle, "counter") == runs["counter", 0]


def test_recomputation_repeats_what_generators_drew(workshop: Workshop, tmp_path: Path) -> None:
    """Gradients of other masks than forward's would show in the losses after the first step."""
    runs = []
    for recompute in ("none", "selective", "full"):
        force = f"pp=1,dp=2,tp=2,boundary=sequence,recompute={recompute},micro_batches=2"
        bundle = workshop.compile(noisy(), 4, force, tmp_path / recompute, name="noisy", global_batch=BATCH)
        runs.append(torch.tensor(run(bundle, "fast"), dtype=torch.float64))
    for other in runs[1:]:
        torch.testing.assert_close(other, runs[0], rtol=1e-12, atol=0.0)


def test_a_resumed_run_goes_on_with_the_same_numbers(workshop: Workshop, out: Path, tmp_path: Path) -> None:
    bundle = workshop.compile(noisy(), 1, "", out, name="noisy", global_batch=BATCH)
    (tmp_path / "data.py").write_text(
        "import torch\n"
        "def batches(batch_size, seed, start):\n"
        f"    x = torch.arange(batch_size * {LENGTH}).view(batch_size, {LENGTH}) % {CLASSES}\n"
        "    while True:\n"
        "        yield x, x\n"
    )

    def train(steps: int, name: str, *more: str) -> list[str]:
        options = ["--data", f"{tmp_path / 'data.py'}:batches", "--steps", str(steps), "--seed", "3", "--device", "cpu"]
        command = [sys.executable, str(bundle / "train.py"), *options, "--metrics", str(tmp_path / name), *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return [json.loads(line)["loss"] for line in (tmp_path / name).read_text().splitlines() if '"loss"' in line]

    whole = train(4, "whole")
    first = train(2, "parts", "--save", str(tmp_path / "saved"))
    both = train(4, "parts", "--resume", str(tmp_path / "saved"))
    assert len(set(whole)) == 4 and first == whole[:2] and both == whole
