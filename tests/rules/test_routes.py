"""Routes: an op on parts of several factors at once, with what it exchanges, against the op on the whole tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from uniap_compiler.ir import Attrs, Op, Rule, TensorType
from uniap_compiler.ir.layout_checks import State, factor_mistake
from uniap_compiler.ir.rule_checks import rule_mistake
from uniap_compiler.passes.lower.local_ops import localize_op
from uniap_compiler.runtime import kernels
from uniap_compiler.runtime.threads import SimulatedComm, run_ranks

from .cases import experts, family
from .validate import DTYPES, Case, Checker, Mismatch, compare, evaluate_offset, rules_for


def factor_of(rule: Rule, route: str, groups: Any) -> str:
    """The factor in which a tensor is split."""
    (factor,) = [f for f in rule.split_by(route) if any(f in g for g in groups)] or ["-"]
    return factor


def run(case: Case, rule: Rule, route: str, parts: int, changed: Attrs | None = None, kept: list[Any] | None = None):
    """The results of all devices; kept: what forward kept, device by device, in place of x."""
    checker = Checker(case, rule)
    op = Op(case.name, checker.op.operands, checker.op.results, {**case.attrs, "rule": rule})
    mesh = {"t0": parts}
    cut: list[list[Tensor | None]] = []
    for place in range(parts):
        cut.append([
            None if t is None else checker.cut(t, g, {"t0": factor_of(rule, route, g)}, mesh, {"t0": place})
            for t, g in zip(case.operands, rule.operands)
        ])  # fmt: skip
    types = [None if t is None else TensorType(tuple(t.shape), DTYPES[t.dtype]) for t in cut[0]]
    outs = [
        TensorType(checker.local_shape(v.type.shape, g, {"t0": factor_of(rule, route, g)}, mesh), v.type.dtype)
        for v, g in zip(op.results, rule.results)
    ]
    name, attrs = localize_op(op, types, outs, {"t0": route}, mesh)

    def work(rank: int, world: Any) -> Any:
        comm = SimulatedComm(world, rank, {"t0": [list(range(parts))]}, [list(range(parts))])
        local = {k: evaluate_offset(v, {"t0": rank}, mesh) for k, v in attrs.items()} | (changed or {})
        operands = cut[rank] if kept is None else [cut[rank][0], None, *cut[rank][2:], kept[rank]]
        return getattr(kernels, name.removeprefix("nn."))(*operands, **local, comm=comm)

    return checker, run_ranks(parts, work, timeout=20.0)


def check(case: Case, rule: Rule, route: str, parts: int, **more: Any) -> None:
    """Raises Mismatch."""
    checker, made = run(case, rule, route, parts, **more)
    for i, whole in enumerate(checker.whole):
        pieces = [r[i] if isinstance(r, tuple) else r for r in made]
        factor = factor_of(rule, route, rule.results[i])
        compare(checker.join(pieces, rule.results[i], factor, {}, {}, parts), whole, f"result {i}")


def routes() -> list[tuple[Case, Rule, str]]:
    cases = [(case, rules_for(case)[0]) for case in family("experts")]
    return [(case, rule, name) for case, rule in cases for name, _ in rule.route]


@pytest.mark.parametrize("parts", [2, 3])
def test_routes_are_right(parts: int) -> None:
    count = 0
    for case, rule, name in routes():
        checker = Checker(case, rule)
        if all(checker.sizes[f] % parts == 0 for f in rule.split_by(name)):
            check(case, rule, name, parts)
            count += 1
    assert count >= 8


@pytest.mark.parametrize("parts", [2, 3])
def test_backward_with_what_forward_has_kept(parts: int) -> None:
    cases = experts()
    for forward, backward in zip(cases[::2], cases[1::2], strict=True):
        backward.operands[1:7] = forward.operands
        rule = rules_for(forward)[0]
        name = rule.route[-1][0]
        _, made = run(forward, rule, name, parts, changed={"keep": True})
        check(backward, rules_for(backward)[0], name, parts, kept=[kept for _, kept in made])


@pytest.mark.parametrize("changed", [{"stride": 0}, {"offset": 0}, {"group": ""}])
def test_a_wrong_exchange_is_noticed(changed: Attrs) -> None:
    for case, rule, name in routes():
        if Checker(case, rule).sizes[rule.split_by(name)[0]] % 2 == 0:
            with pytest.raises(Mismatch):
                check(case, rule, name, 2, changed=changed)


def test_layouts_of_a_route() -> None:
    """Every tensor is split in its factor of the route, and nothing else will do."""
    rule = rules_for(experts()[0])[0]
    (name, (token, expert)) = rule.route[0]
    split = State("split", 0, 1)
    here, there = [split] * 5 + [State()], [split]
    assert factor_mistake(rule, name, here, there, "t0") is None
    for n in range(5):
        wrong = here[:n] + [State()] + here[n + 1 :]
        assert f"does not fit operand {n}" in str(factor_mistake(rule, name, wrong, there, "t0"))
    assert "result 0" in str(factor_mistake(rule, name, here, [State("sum")], "t0"))
    assert (token, expert) == ("t0", "e")


def test_rules_with_a_wrong_route() -> None:
    case = experts()[0]
    checker = Checker(case, rules_for(case)[0])
    op, rule = checker.op, checker.rule
    assert rule_mistake(op, rule) is None
    for route, words in (
        ((("e", ("t0", "e")),), "has the name of the factor"),
        ((("r", ("t0", "h")),), "keeps a factor of its route"),
        ((("r", ("e", "i")),), "several factors of the route"),
        ((("r", ("e", "k")),), "a result of nn.experts has no factor of the route"),
    ):
        assert words in str(rule_mistake(op, replace(rule, route=route)))


def test_only_what_divides_is_offered() -> None:
    from uniap_compiler.passes.analysis.tensor_parallel.choices import enumerate_choices

    case = experts()[0]
    rule = rules_for(case)[0]
    for mesh, offered in (((2,), True), ((3,), True), ((2, 2), False), ((5,), False)):
        choices = enumerate_choices(rule, dict(rule.sizes), mesh)
        assert ((rule.route[0][0],) * len(mesh) in choices) == offered
