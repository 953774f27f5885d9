"""The rules of every op of real models, refined over whole layers, against the op on the model's own data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.capture.reference import BATCH, arguments, captured
from tests.models import TASKS
from uniap_compiler.bridge import interpret
from uniap_compiler.capture import TrainingTask, load_task
from uniap_compiler.ir import Affine, Module, Op, Rule, at, parse_module, print_module
from uniap_compiler.passes.analysis.shard_rules import batch_obstacles, refine, unruled

from .test_refine import check_consistent
from .validate import Case, check_rule

EXAMPLES = Path(__file__).parents[2] / "examples"
PIPELINE = "canonicalize,outline-layers,differentiate,canonicalize,decompose-losses,shard-rules"


def annotated(name: str) -> tuple[Module, TrainingTask, Any]:
    task = TASKS[name]() if name in TASKS else load_task(f"{EXAMPLES / name}.py:task")
    return captured(task, PIPELINE)


def layers(module: Module) -> Iterator[tuple[Any, Any]]:
    for func in module.funcs.values():
        if func.attrs.get("kind") == "forward":
            of = [f for f in module.funcs.values() if str(f.attrs.get("of")) == func.name]
            yield func, of[0] if of else None


def evaluated(value: Any) -> Any:
    if isinstance(value, list):
        return [evaluated(v) for v in value]
    return value.at(BATCH) if isinstance(value, Affine) else value


@pytest.mark.parametrize("name", ["mlp", "tiny_llama", *TASKS])
def test_rules_of_a_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, task, constants = annotated(name)
    for forward, backward in layers(module):
        check_consistent(forward, backward, refine(forward, backward))
        for func in (forward, backward):
            if func is not None:
                assert not unruled(func)
                assert not batch_obstacles(func), [f"{op} {op.attrs['rule']}" for op, _ in batch_obstacles(func)]
    assert print_module(parse_module(print_module(module))) == print_module(module)

    ran: dict[Op, Case] = {}
    run_op = interpret.run_op

    def record(op: Op, operands: list[Any], **options: Any) -> list[Any]:
        if op.name != "plan.call":
            attrs = {k: evaluated(v) for k, v in op.attrs.items() if k != "rule"}
            ran.setdefault(op, Case(op.name, operands, attrs))
        return run_op(op, operands, **options)

    with monkeypatch.context() as patch:
        patch.setattr(interpret, "run_op", record)
        interpret.run(
            module.funcs["step"], arguments(module, "step", task, constants), batch=BATCH, module=module
        )
    problems, seen = [], set()
    for op, case in ran.items():
        rule = op.attrs.get("rule")
        if not isinstance(rule, Rule):
            continue
        rule = replace(rule, sizes=tuple((f, at(n, BATCH)) for f, n in rule.sizes))
        if (str(case), rule) in seen or sum(n.numel() for n in case_tensors(case)) > 200_000:
            continue
        seen.add((str(case), rule))
        problems += check_rule(case, rule, pairs=False)
    assert seen
    assert not problems, "\n".join(problems[:20])


def case_tensors(case: Case) -> Iterator[torch.Tensor]:
    for operand in case.operands:
        yield from (t for t in (operand if isinstance(operand, list) else [operand]) if t is not None)
