"""Where layers end, which of them are the same, and what they take and give."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models import TASKS, Residual
from uniap_compiler.capture import TrainingTask
from uniap_compiler.ir import Module

from .reference import captured, difference, eager, interpret
from .test_equals_eager import LAYERS, STEP, make


def layers(module: Module) -> list[tuple[str, str]]:
    """(layer, func) of every call but the prelude's."""
    return [(str(op.attrs["layer"]), str(op.symbol)) for op in module.funcs["main"].ops if op.symbol != "prelude"]


EXPECTED = {
    "mlp": [("embed", "embed"), *((f"blocks.{i}", "block") for i in range(6)), ("head", "head")],
    "tiny_llama": [("embed", "embed"), *((f"layers.{i}", "block") for i in range(6)), ("head", "head")],
    "albert": [
        ("embed", "embed"),
        ("layer", "layer"),
        ("layer@1", "layer"),
        ("layer@2", "layer"),
        ("layer@3", "layer"),
        ("head", "head"),
    ],
    "mixer": [("embed", "embed"), *((f"blocks.{i}", "blocks") for i in range(3)), ("head", "head")],
    "convnext": [
        ("features.0", "conv2d"),
        ("features.1.0", "block"),
        ("features.1.1", "block"),
        ("features.2.0", "group_norm"),
        ("features.2.1", "conv2d_1"),
        *((f"features.3.{i}", "block_1") for i in range(3)),
        ("head.1", "linear"),
    ],
    "swin": [
        ("embed", "embed"),
        ("blocks.0", "block"),
        ("blocks.1", "block_1"),
        ("blocks.2", "block"),
        ("blocks.3", "block_1"),
        ("head", "head"),
    ],
    "statistics": [("first", "first"), ("norm", "norm"), ("second", "second"), ("norm@1", "norm_1"), ("head", "head")],
    "tied": [("embed", "embed"), ("blocks.0", "residual"), ("blocks.1", "residual"), ("head", "head")],
    "encoder": [
        ("embed", "embed"),
        ("encoder.layers.0", "transformer_encoder_layer"),
        ("encoder.layers.1", "transformer_encoder_layer"),
        ("pooler", "pooler"),
        ("head", "head"),
    ],
    "decoder": [
        ("embed", "embed"),
        ("encoder.0", "residual"),
        ("encoder.1", "residual"),
        ("embed@1", "embed_1"),
        ("layers.0", "layer"),
        ("layers.1", "layer"),
        ("head", "head"),
    ],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_layers(name: str) -> None:
    module, _, _ = captured(make(name), LAYERS)
    assert layers(module) == EXPECTED[name]


@pytest.mark.parametrize("name", TASKS)
def test_calls_are_in_order_and_complete(name: str) -> None:
    """Every call reads what earlier ones gave; the last one gives the loss first; parameters keep their names."""
    module, task, _ = captured(TASKS[name](), LAYERS)
    main = module.funcs["main"]
    known = set(main.params)
    for op in main.ops:
        assert all(v in known for v in op.flat_operands())
        callee = module.funcs[str(op.symbol)]
        assert [v.type for v in op.operands] == [p.type for p in callee.params]  # type: ignore[union-attr]
        assert [r.type for r in op.results] == [r.type for r in callee.returns if r is not None]
        known.update(op.results)
    assert main.ops[-1].results[0] is main.returns[0]
    assert {str(p.attrs["path"]) for p in main.params if p.attrs["role"] == "param"} == {
        n for n, _ in task.model.named_parameters()
    }


class Stack(nn.Module):
    def __init__(self, blocks: nn.ModuleList, pool: bool = False) -> None:
        super().__init__()
        self.blocks, self.pool = blocks, pool
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1) if self.pool else x)


def stack(model: Stack, *shape: int) -> TrainingTask:
    targets = torch.randint(3, (4,))
    return TrainingTask(model, (torch.randn(4, *shape, 8),), F.cross_entropy, targets)


def test_frozen_layers_differ() -> None:
    """Needs-gradient is part of what makes layers the same: the first trained layer has no gradient to pass on.

    (The first layer of all is its own: it reads the batch, which is fed to it.)
    """
    blocks = nn.ModuleList(Residual(8) for _ in range(4))
    blocks[:2].requires_grad_(False)
    module, task, constants = captured(stack(Stack(blocks)), LAYERS)
    assert [f for _, f in layers(module)] == ["residual", "residual_1", "residual_2", "residual_3", "head"]
    module, task, constants = captured(stack(Stack(blocks)), STEP)
    assert "residual.backward" not in module.funcs and "residual_1.backward" not in module.funcs
    assert "grad:x" not in module.funcs["residual_2.backward"].attrs["results"]  # type: ignore[operator]
    assert difference(interpret(module, "step", task, constants), eager(task)) < 1e-10


def test_shared_parameters_inside_a_layer_differ() -> None:
    blocks = nn.ModuleList(Residual(8) for _ in range(2))
    blocks[1].norm.bias = blocks[1].down.bias  # one tensor in two places
    module, task, constants = captured(stack(Stack(blocks)), LAYERS)
    assert [f for _, f in layers(module)] == ["residual", "residual_1", "head"]


def test_pooling_after_the_last_block_leaves_it_equal() -> None:
    module, _, _ = captured(stack(Stack(nn.ModuleList(Residual(8) for _ in range(3)), pool=True), 5), LAYERS)
    assert [f for _, f in layers(module)] == ["residual", "residual_1", "residual_1", "head"]


def test_prelude_holds_what_depends_on_inputs_only() -> None:
    module, _, _ = captured(make("tiny_llama"), LAYERS)
    prelude = module.funcs["prelude"]
    assert [p.attrs["role"] for p in prelude.params] == ["input"]
    assert "aten.ne.Scalar" in {op.name for op in prelude.ops}
    block = module.funcs["block"]
    assert {p.attrs["role"] for p in block.params} == {"activation", "param", "buffer"}
    assert [p.name for p in block.params if p.attrs["role"] == "buffer"] == ["cos", "sin"]


def test_a_buffer_read_after_its_update_is_given_twice() -> None:
    module, _, _ = captured(make("statistics"), LAYERS)
    main = module.funcs["main"]
    update = main.returns[main.attrs["results"].index("buffer:average")]  # type: ignore[union-attr]
    call = next(op for op in main.ops if update in op.results)
    kinds = module.funcs[str(call.symbol)].attrs["results"]
    assert sorted(map(str, kinds)) == ["buffer:average", "value", "value", "value"] or "value" in kinds  # type: ignore[arg-type, operator]
    assert not any(update in op.flat_operands() for op in main.ops)


def test_batch_norm_statistics_stay_in_their_layer() -> None:
    module, _, _ = captured(make("convnet"), LAYERS)
    kinds = [k for f in module.funcs.values() if f.attrs.get("kind") == "layer" for k in f.attrs["results"]]  # type: ignore[union-attr]
    assert {"buffer:running_mean", "buffer:running_var", "buffer:num_batches_tracked"} <= set(kinds)
    assert module.funcs["main"].attrs["results"] == [
        "loss",
        *(
            f"buffer:{n}.{b}"
            for n in ("norm", "stem.1")
            for b in ("num_batches_tracked", "running_mean", "running_var")
        ),
    ]
