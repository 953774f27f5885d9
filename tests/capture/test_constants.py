"""Constants: what is computed at compile time, what stays code, masks that are no more than causality, precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniap_compiler.capture import TrainingTask, capture
from uniap_compiler.ir import ConstantStore, Diagnostic, Module

from .reference import captured, difference, eager, interpret, promoted


class Model(nn.Module):
    def __init__(self, body: Any) -> None:
        super().__init__()
        self.up = nn.Linear(8, 8)
        self.register_buffer("table", torch.randn(6, 8), persistent=False)
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, self.up(x)).mean()


def make(body: Any) -> TrainingTask:
    torch.manual_seed(0)
    return TrainingTask(Model(body), (torch.randn(4, 6, 8),))


def roles(module: Module) -> dict[str, str]:
    return {p.name: str(p.attrs["role"]) for p in module.funcs["main"].params}


def names(module: Module) -> set[str]:
    return {op.name for op in module.funcs["main"].ops}


def check(body: Any) -> tuple[Module, ConstantStore]:
    module, task, constants = captured(make(body))
    with promoted(torch.float64):
        theirs = eager(task)
    ours = interpret(module, "main", task, constants)
    ours.gradients.clear()
    assert difference(ours, theirs) < 1e-12
    return module, constants


def test_a_table_is_folded() -> None:
    def body(self: Any, x: Tensor) -> Tensor:
        angles = torch.outer(torch.arange(6), 1.0 / torch.arange(1, 9))
        return x * angles.cos() + self.table[:6].exp()

    module, constants = check(body)
    assert names(module) == {"nn.contract", "aten.add.Tensor", "aten.mul.Tensor", "aten.sum", "aten.div.Tensor"}
    assert sorted(roles(module).values()).count("constant") == len(constants) == 2
    op = module.ops[0]
    assert op.name == "plan.constant" and op.attrs["digest"] == constants.digest(str(op.symbol))


def test_equal_tables_are_one_constant() -> None:
    def body(self: Any, x: Tensor) -> Tensor:
        return x * self.table.cos() + x.tanh() * self.table.cos()

    module, constants = check(body)
    assert len(constants) == 1


def test_a_buffer_used_whole_stays_a_buffer() -> None:
    module, constants = check(lambda self, x: x * self.table[: x.shape[1]])
    assert roles(module)["table"] == "buffer" and len(constants) == 0


def test_what_depends_on_the_batch_is_not_folded() -> None:
    module, _ = check(lambda self, x: x * torch.arange(x.shape[0]).cos()[:, None, None] / x.shape[0])
    assert "aten.cos" in names(module)
    end = next(op.attrs["end"] for op in module.funcs["main"].ops if op.name.startswith("aten.arange"))
    assert str(end) == "B"


def test_a_single_factory_op_stays_code() -> None:
    module, constants = check(lambda self, x: x + torch.full((8,), 0.5))
    assert "aten.full" in names(module) and len(constants) == 0


@pytest.mark.parametrize("kind", ["bool", "additive", "finfo", "expanded"])
def test_a_causal_mask_is_recognised(kind: str) -> None:
    def body(self: Any, x: Tensor) -> Tensor:
        keep = torch.ones(6, 6, dtype=torch.bool).tril()
        if kind == "additive":
            mask = torch.zeros(6, 6).masked_fill(~keep, float("-inf"))
        elif kind == "finfo":
            mask = torch.full((6, 6), torch.finfo(torch.float32).min).triu(1)
        else:
            mask = keep
        mask = mask[None, None].expand(x.shape[0], 1, 6, 6) if kind == "expanded" else mask
        h = x.unflatten(-1, (2, 4)).transpose(1, 2)
        return F.scaled_dot_product_attention(h, h, h, attn_mask=mask)

    module, constants = check(body)
    op = next(op for op in module.funcs["main"].ops if op.name == "nn.attention")
    assert op.attrs["causal"] is True and op.operands[3] is None and len(constants) == 0


def test_another_mask_is_kept() -> None:
    def body(self: Any, x: Tensor) -> Tensor:
        mask = torch.ones(6, 6, dtype=torch.bool).tril()
        mask = mask | torch.eye(6, dtype=torch.bool).roll(1, 1)
        h = x.unflatten(-1, (2, 4)).transpose(1, 2)
        return F.scaled_dot_product_attention(h, h, h, attn_mask=mask)

    module, constants = check(body)
    op = next(op for op in module.funcs["main"].ops if op.name == "nn.attention")
    assert not op.attrs["causal"] and op.operands[3] is not None and len(constants) == 1


def test_casts_and_constants_are_promoted() -> None:
    """`.float()`, dtype arguments and new tensors follow to float64; without that the loss is off by 1e-8."""

    def body(self: Any, x: Tensor) -> Tensor:
        y = (x.float() * torch.tensor([0.1] * 8)).to(torch.float32) + torch.zeros(8, dtype=torch.float32)
        return y.softmax(-1, dtype=torch.float32).type_as(x) + x.half() + x.to("cpu", torch.bfloat16)

    module, _ = check(body)
    assert {v.type.dtype for v in module.funcs["main"].values()} <= {"f64", "i64", "i1"}


def test_a_constant_of_the_batch_is_refused() -> None:
    with pytest.raises(Diagnostic, match="depends on the batch size"):
        capture(make(lambda self, x: x * torch.tensor(1.0 + x.shape[0])))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_rounded_table_has_its_exact_values_beside(dtype: str) -> None:
    """So that the plan of a float32 or bfloat16 bundle, lowered again in float64, is the model to 1e-10."""
    from uniap_compiler.passes.manager import Session, run_passes
    from uniap_compiler.passes.pipelines import parse_pipeline

    def body(self: Any, x: Tensor) -> Tensor:
        angles = torch.outer(torch.arange(6).float(), 1.0 / torch.arange(1, 9).float())
        halves = torch.outer(torch.arange(6).float(), torch.full((8,), 0.5))  # exact in any dtype: nothing beside
        return x * angles.cos().to(x.dtype) + halves.to(x.dtype)

    given, exact = ConstantStore(), ConstantStore()
    module = capture(make(body), dtype=dtype, constants=given)
    capture(make(body), dtype="float64", constants=exact)
    (cos,) = [name.removesuffix("@f64") for name in given if name.endswith("@f64")]
    before = given[cos].dtype
    run_passes(module, parse_pipeline("promote-dtype{dtype=f64}"), Session(constants=given))
    assert before == {"float32": "f32", "bfloat16": "bf16"}[dtype]
    assert any(given[cos].digest == exact[name].digest for name in exact)
    (op,) = [op for op in module.ops if op.symbol == cos]
    assert op.attrs["digest"] == given[cos].digest
