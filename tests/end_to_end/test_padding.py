"""Class dims that do not divide: padded inside, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniap_compiler import TrainingTask, on_meta
from uniap_compiler.capture import capture
from uniap_compiler.ir import ConstantStore
from uniap_compiler.passes.analysis.tensor_parallel import search
from uniap_compiler.passes.analysis.tensor_parallel.costs import RooflineCost
from uniap_compiler.passes.manager import Session, run_passes
from uniap_compiler.passes.pipelines import parse_pipeline
from uniap_compiler.passes.simplify.pad_classes import pad_classes
from uniap_compiler.runtime.simulate import simulate
from uniap_compiler.runtime.weights import save

from .plans import Workshop, check, manifest

WORDS, PADDED, WIDTH, ROWS, LENGTH = 1037, 1088, 24, 8, 6
Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits[:, :-1].reshape(-1, WORDS), targets[:, 1:].reshape(-1), ignore_index=3)


class Words(nn.Module):
    """Embedding, two layers and a head; `tied`: the head's weight is the embedding's."""

    def __init__(self, tied: bool, body: Callable[[Any, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, WORDS)
        if tied:
            self.head.weight = self.embed.weight
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for layer in self.layers:
            h = h + layer(h).tanh()
        return self.head(h) if self.body is None else self.body(self, h)


def task(tied: bool = True, body: Callable[[Any, Tensor], Tensor] | None = None, loss: Loss = cross_entropy) -> Any:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randint(0, WORDS, (ROWS, LENGTH), generator=generator) for _ in range(2))
    y[0, 2] = 3
    return TrainingTask(Words(tied, body), (x,), loss=loss, targets=y, optimizer="adamw")


def table(bundle: Path, rank: int = 0) -> dict[str, Any]:
    space: dict[str, Any] = {}
    text = (bundle / "ranks" / f"rank_{rank:04d}.py").read_text()
    exec(text[text.index("PARAMETERS") : text.index("\n}\n", text.index("PARAMETERS")) + 2], space)
    return dict(space["PARAMETERS"])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    "force",
    [
        "tp=4",
        "dp=4,shard=parameters",
        "pp=2,dp=2,shard=optimizer",
        "pp=2,tp=2,boundary=sequence",
        "dp=2,tp=2,recompute=full",
    ],
)
def test_equal_under_every_plan(force: str, tied: bool, workshop: Workshop, tmp_path: Path) -> None:
    bundle = workshop.compile(task(tied), 4, force, tmp_path / "b", name=f"words {tied}", global_batch=ROWS)
    check(bundle, task=task(tied))
    name = "embed.weight" if tied else "head.weight"
    assert manifest(bundle)["parameters"][name]["shape"] == [WORDS, WIDTH]
    records = [r for rank in range(4) for n, r in table(bundle, rank).items() if n.startswith((name, "head.bias"))]
    assert records and all(r["unpadded"] == [WORDS, WIDTH][: len(r["slices"])] for r in records)
    assert all(r["slices"][0][0][0] == PADDED for r in records)


def test_weights_come_and_go_without_padding(workshop: Workshop, tmp_path: Path) -> None:
    bundle = workshop.compile(task(), 4, "tp=4", tmp_path / "b", name="words True", global_batch=ROWS)
    wanted = {n: torch.randn_like(p) for n, p in task().model.named_parameters()}
    save(tmp_path / "given.safetensors", wanted)
    found = simulate(bundle, [], steps=0, weights=tmp_path / "given.safetensors", check=False)
    assert found.disagreement == 0, found.disagreeing
    for name, value in wanted.items():
        assert torch.equal(found.parameters[name], value.double()), name


def test_a_row_that_moved_is_found(workshop: Workshop, tmp_path: Path) -> None:
    """Were the padding to change, the report of a simulation would say so."""
    bundle = workshop.compile(task(), 4, "tp=4", tmp_path / "b", name="words True", global_batch=ROWS)
    path = bundle / "runtime" / "initial.py"
    path.write_text(path.read_text().replace("padded = torch.zeros(", "padded = 0.5 * torch.ones("))
    found = simulate(bundle, [], steps=0, check=False)
    assert found.disagreement == 0.5 and "padding of embed.weight" in found.disagreeing


def smoothed(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.reshape(-1, WORDS), targets.reshape(-1), label_smoothing=0.1)


def with_z_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(logits, targets) + 1e-3 * logits.logsumexp(-1).square().mean()


KEPT: dict[str, Callable[[], Any]] = {
    "another loss of the logits": lambda: task(loss=with_z_loss),
    "label smoothing": lambda: task(loss=smoothed),
    "another reader of the weight": lambda: task(body=lambda m, h: m.head(h + m.embed.weight.mean(0))),
    "a product with it": lambda: task(body=lambda m, h: m.head(h) * m.head.bias),
    "a second dim": lambda: task(body=lambda m, h: m.head(h) + F.linear(m.head(h).tanh(), m.head.weight.t()).mean()),
}


@pytest.mark.parametrize("name", KEPT)
def test_kept(name: str) -> None:
    module = capture(KEPT[name]())
    shapes = [p.type for p in module.funcs["main"].params]
    assert pad_classes(module.funcs["main"]) == {}
    assert [p.type for p in module.funcs["main"].params] == shapes


def test_divisible_and_small_dims_are_kept() -> None:
    main = capture(task()).funcs["main"]
    assert pad_classes(main, least=WORDS + 1) == {}
    assert set(pad_classes(main).values()) == {PADDED}
    assert pad_classes(main) == {}, "once is enough"


def test_the_class_dim_is_split_where_it_pays() -> None:
    """At the sizes of a real head the search splits it: a reduce-scatter and a gather of its input's gradient only."""
    model = on_meta(lambda: Head(1600, 50257))
    x, y = torch.zeros(2, 1024, 1600), torch.zeros(2, 1024, dtype=torch.long)
    given = TrainingTask(model, (x,), loss=lambda a, b: F.cross_entropy(a.flatten(0, 1), b.flatten()), targets=y)
    constants = ConstantStore()
    module = capture(given, constants=constants)
    passes = "canonicalize,pad-classes,outline-layers,differentiate,decompose-losses,shard-rules"
    run_passes(module, parse_pipeline(passes), Session(constants=constants, task=given))
    forward, backward = (module.funcs[f"head.{phase}"] for phase in ("forward", "backward"))
    pair = search(forward, backward, (2, 2, 2), "replicated", RooflineCost((2, 2, 2), 2))
    layout = pair[0].param("weight").type.layout
    assert layout is not None and layout.split_axes() and len(layout.dims[0][0].axes) == 3
    sent = {
        op.name
        for func in pair
        for op in func.ops
        if op.name.startswith("comm.") and 50304 in op.results[0].type.shape
    }
    assert sent <= {"comm.slice"}, "no logits travel"


class Head(nn.Module):
    def __init__(self, width: int, words: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, words, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x))
