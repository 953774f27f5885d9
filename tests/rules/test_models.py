"""The rules of every op of real models, refined over whole layers, against the op on the model's own data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from tests.capture.reference import BATCH, arguments, captured
from tests.models import TASKS
from uniap_compiler.bridge import interpret
from uniap_compiler.capture import TrainingTask
from uniap_compiler.ir import Affine, Module, Op, Rule, at, parse_module, print_module
from uniap_compiler.passes.analysis.shard_rules import batch_obstacles, refine, unruled

from .models import FACTORS, MODELS
from .test_refine import check_consistent
from .validate import Case, check_rule

PIPELINE = "canonicalize,outline-layers,differentiate,canonicalize,decompose-losses,shard-rules"


def annotated(name: str) -> tuple[Module, TrainingTask, Any]:
    return captured((MODELS | TASKS)[name](), PIPELINE)


def layers(module: Module) -> Iterator[tuple[Any, Any]]:
    for func in module.funcs.values():
        if func.attrs.get("kind") == "forward":
            of = [f for f in module.funcs.values() if str(f.attrs.get("of")) == func.name]
            yield func, of[0] if of else None


def evaluated(value: Any) -> Any:
    if isinstance(value, list):
        return [evaluated(v) for v in value]
    return value.at(BATCH) if isinstance(value, Affine) else value


@pytest.mark.parametrize("name", [*MODELS, *TASKS])
def test_rules_of_a_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, task, constants = annotated(name)
    factors: dict[str, Any] = {}
    for forward, backward in layers(module):
        atoms = refine(forward, backward)
        check_consistent(forward, backward, atoms)
        layer = forward.name.removesuffix(".forward")
        factors |= {f"{layer}.{p.name}": atoms[p] for p in forward.params}
        for func in (forward, backward):
            if func is not None:
                assert not unruled(func)
                assert not batch_obstacles(func), [f"{op} {op.attrs['rule']}" for op, _ in batch_obstacles(func)]
    expected = FACTORS.get(name, {})
    found = {parameter: cut for parameter, cut in factors.items() if parameter in expected}
    assert found == expected, sorted(factors)
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
        if (str(case), rule) in seen:
            continue
        seen.add((str(case), rule))
        problems += check_rule(case, rule, pairs=False)
    assert seen
    assert not problems, "\n".join(problems[:20])

