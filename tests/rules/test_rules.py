"""Every rule against its op: what it lets split is right, what it keeps has a reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from uniap_compiler.ir import Affine, Func, Rule, at
from uniap_compiler.passes.analysis.rules import table
from uniap_compiler.passes.analysis.shard_rules import refine

from . import layers
from .cases import FAMILIES, family
from .validate import Case, check_rule, execute, missing, rules_for

# Splits that would be right and that the rules leave out on purpose.
EXPECTED: dict[tuple[str, str], str] = {
    ("nn.attention", "e"): "every device would compute all scores again",
    ("nn.attention_backward", "e"): "every device would compute all scores again",
    ("aten.any.dim", "d1"): "no collective takes the maximum of bools",
    ("aten.slice.Tensor", "x0=y0"): "strided slices of a split dim: not met where a split would help",
    ("aten.slice_backward", "x0=y0"): "as the slice",
    ("aten.convolution", "x0=y0"): "transposed convolutions whose windows tile",
    ("aten.convolution", "x1=y1"): "transposed convolutions whose windows tile",
    **{(f"aten.avg_pool{n}d", f"h{i}=y{i}"): "pools whose windows tile" for n in (2, 3) for i in range(n)},
    ("aten.im2col", "h=p"): "windows that tile",
    ("aten.isin.Tensor_Tensor", "n0"): "no collective takes the maximum of bools",
    ("aten.all", "d0"): "no collective takes the minimum of bools",
    ("aten.all", "d1"): "as d0",
    **{(f"aten.adaptive_max_pool{n}d_backward", f"y{i}"): "spatial dims stay whole" for n in (2, 3) for i in range(n)},
    **{("aten.max_pool3d_with_indices_backward", f"y{i}"): "spatial dims stay whole" for i in range(3)},
    ("aten.native_batch_norm", "linear 0 2 3"): "running statistics are never pending",
    ("aten._native_batch_norm_legit_no_training", "linear 0 2 3"): "running statistics are never pending",
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():  # type: ignore[no-untyped-def]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", FAMILIES)
def test_splits_are_right(name: str) -> None:
    problems = [p for case in family(name) for rule in rules_for(case) for p in check_rule(case, rule)]
    assert not problems, "\n".join(problems[:20])


@pytest.mark.parametrize("name", FAMILIES)
def test_no_split_is_missing(name: str) -> None:
    found = [f"{c}: {m}" for c in family(name) for m in missing(c, rules_for(c)[0]) if (c.name, m) not in EXPECTED]
    assert not found, "\n".join(found[:20])


def test_expected_omissions_are_still_found() -> None:
    """A stale entry would hide a real omission."""
    names = {name for name, _ in EXPECTED}
    cases = [c for name in FAMILIES for c in family(name) if c.name in names]
    found = {(c.name, m) for c in cases for m in missing(c, rules_for(c)[0])}
    assert found >= set(EXPECTED)


def test_every_rule_has_a_case() -> None:
    tested = {case.name for name in FAMILIES for case in family(name)}
    tested |= {table.packet(n) for n in tested}
    assert not {n for n in table.names() if n not in tested and table.packet(n) not in tested}


def corruptions(case: Case, rule: Rule):  # type: ignore[no-untyped-def]
    """Rules that differ from a right one in one clause."""
    for i, (factor, kind) in enumerate(rule.reduce):
        for other in ("sum", "max", "copy"):
            if other != kind:
                yield replace(rule, reduce=(*rule.reduce[:i], (factor, other), *rule.reduce[i + 1 :]))
        yield replace(rule, reduce=(*rule.reduce[:i], *rule.reduce[i + 1 :]))
    for factor in rule.keep:
        yield replace(rule, keep=tuple(f for f in rule.keep if f != factor), reduce=(*rule.reduce, (factor, "sum")))
    if rule.offset:
        yield replace(rule, offset=())
    if not rule.linear and case.operands[0].is_floating_point():
        yield replace(rule, linear=((0,),))


@pytest.mark.parametrize("name", ["contraction", "reduction", "norm", "attention", "convolution", "losses", "experts"])
def test_a_corrupted_rule_is_noticed(name: str) -> None:
    count, unnoticed = 0, []
    for case in family(name):
        rule = rules_for(case)[0]
        sizes = dict(rule.sizes)
        for wrong in corruptions(case, rule):
            freed = [f for f in rule.keep if f not in wrong.keep]
            if any((case.name, f) in EXPECTED or (sizes[f] % 2 and sizes[f] % 3) for f in freed):
                continue  # right after all, or a size that the check does not split
            count += 1
            if not check_rule(case, wrong, pairs=False):
                unnoticed.append(f"{case}\n  {rule}\n  {wrong}")
    assert count > 5
    assert not [u for u in unnoticed if not harmless(u)], "\n".join(unnoticed)


def harmless(text: str) -> bool:
    """Sums and copies of a result that is empty cannot be told apart."""
    return "output_mask" in text or "batch_norm" in text


def run_layer(forward: Func, backward: Func | None) -> list[tuple[Case, Rule]]:
    """Every op of a pair on random operands, with its refined rule at a batch of 4."""
    refine(forward, backward)
    torch.manual_seed(0)
    cases = []
    for f in (forward, backward):
        for op in f.ops if f is not None else ():
            flat = [torch.randn([at(d, 4) for d in v.type.shape]).double() if v else None for v in op.flat_operands()]
            attrs = {k: evaluate(v) for k, v in op.attrs.items() if k != "rule"}
            rule = op.attrs["rule"]
            assert isinstance(rule, Rule)
            cases.append((Case(op.name, flat, attrs), replace(rule, sizes=tuple((n, at(d, 4)) for n, d in rule.sizes))))
    return cases


def evaluate(value):  # type: ignore[no-untyped-def]
    if isinstance(value, list):
        return [evaluate(v) for v in value]
    return value.at(4) if isinstance(value, Affine) else value


@pytest.mark.parametrize("pair", [layers.mlp, layers.attention])
def test_refined_rules_are_right(pair) -> None:  # type: ignore[no-untyped-def]
    problems = []
    for case, rule in run_layer(*pair()):
        if case.name == "nn.attention_backward":  # out and lse must belong to q, k and v
            case.operands[5:7] = execute("nn.attention", case.operands[1:5], case.attrs)
        problems += check_rule(case, rule)
    assert not problems, "\n".join(problems[:20])
