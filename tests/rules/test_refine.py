"""Factors agree over a forward/backward pair: values, saved copies, gradients."""

from __future__ import annotations

import pytest

from uniap_compiler.ir import Func, Rule
from uniap_compiler.passes.analysis.factors import Conflict, Refinement, common_cuts
from uniap_compiler.passes.analysis.shard_rules import Atoms, refine, rule_of, same_factors

from . import layers
from .build import B, func, op, tensor


def check_consistent(forward: Func, backward: Func | None, atoms: Atoms) -> None:
    """Each rule spells every tensor with the factors of that tensor, and knows what becomes of every factor."""
    for f in (forward, backward):
        for o in f.ops if f is not None else ():
            rule = o.attrs["rule"]
            assert isinstance(rule, Rule)
            sizes = dict(rule.sizes)
            assert set(sizes) == set(rule.factors()), o
            pairs = [*zip(o.flat_operands(), rule.operands, strict=True), *zip(o.results, rule.results, strict=True)]
            for value, groups in pairs:
                if value is None or groups is None:
                    continue
                assert tuple(tuple(sizes[x] for x in g) for g in groups) == atoms[value], (o, value)
            for factor in rule.factors():
                if any(factor not in {x for g in r for x in g} for r in rule.results):
                    assert factor in rule.keep or factor in dict(rule.reduce), (o, factor)
    for a, b in same_factors(forward, backward):
        assert atoms[a] == atoms[b], (a, b)


@pytest.mark.parametrize("pair", [layers.mlp, layers.attention])
def test_pairs_are_consistent(pair) -> None:  # type: ignore[no-untyped-def]
    forward, backward = pair()
    check_consistent(forward, backward, refine(forward, backward))


def test_groups_of_queries_reach_the_weights_and_their_gradients() -> None:
    forward, backward = layers.attention(heads=8, kv=2, size=4)
    atoms = refine(forward, backward)
    by_name = {v.name: atoms[v] for v in backward.values()}
    assert by_name["wq"] == by_name["dwq"] == ((2, 4, 4), (32,))
    assert by_name["wk"] == by_name["dwk"] == ((2, 4), (32,))
    assert by_name["wo"] == by_name["dwo"] == ((32,), (2, 4, 4))


def test_batch_and_sequence_stay_visible_through_a_flattened_dim() -> None:
    x, y = tensor("x", B, 6, 8), tensor("y", 6 * B, 8)
    atoms = refine(func("f", [x], [op("aten.view", [x], y, size=[6 * B, 8])], [y]))
    assert atoms[y] == ((B, 6), (8,))


def test_factors_that_do_not_match_are_kept() -> None:
    x, y = tensor("x", B, 4, 9), tensor("y", B, 6, 6)
    rule = rule_of(op("aten.view", [x], y))
    assert len(rule.keep) >= 2 and len(rule.factors()) > len(rule.keep)  # the batch is free
    f = func("f", [x], [op("aten.view", [x], y)], [y])
    check_consistent(f, None, refine(f))


def test_a_fused_projection_is_cut_into_heads() -> None:
    x, q, k, v = tensor("x", B, 5, 24), *(tensor(n, B, 5, 8) for n in "qkv")
    heads = tensor("heads", B, 5, 2, 4)
    f = func(
        "f",
        [x],
        [
            op("aten.split_with_sizes", [x], [q, k, v], split_sizes=[8, 8, 8], dim=2),
            op("aten.view", [q], heads, size=[B, 5, 2, 4]),
        ],
        [heads],
    )
    atoms = refine(f)
    assert atoms[x] == ((B,), (5,), (3, 2, 4))
    check_consistent(f, None, atoms)
    rule = f.ops[0].attrs["rule"]
    assert isinstance(rule, Rule) and len(rule.keep) == 1


def test_a_fused_projection_reaches_attention() -> None:
    x, flat = tensor("x", B, 5, 24), [tensor(n, B, 5, 8) for n in ("qf", "kf", "vf")]
    views = [tensor(n, B, 5, 2, 4) for n in ("qv", "kv", "vv")]
    heads = [tensor(n, B, 2, 5, 4) for n in "qkv"]
    out, lse = tensor("out", B, 2, 5, 4), tensor("lse", B, 2, 5)
    ops = [op("aten.split.Tensor", [x], flat, split_size=8, dim=2)]
    for a, b, c in zip(flat, views, heads):
        ops += [op("aten.view", [a], b, size=[B, 5, 2, 4]), op("aten.transpose.int", [b], c, dim0=1, dim1=2)]
    f = func("f", [x], [*ops, op("nn.attention", [*heads, None], [out, lse], causal=True, scale=1.0)], [out])
    assert refine(f)[x] == ((B,), (5,), (3, 2, 4))


def test_a_slice_gives_way_to_a_view() -> None:
    """The view cuts 24 into (3 8), the slice would cut it into (2 12)."""
    x, y, s = tensor("x", 5, 24), tensor("y", 5, 3, 8), tensor("s", 5, 12)
    ops = [op("aten.slice.Tensor", [x], s, dim=1, start=0, end=12), op("aten.view", [x], y, size=[5, 3, 8])]
    f = func("f", [x], ops, [y, s])
    atoms = refine(f)
    assert atoms[x] == ((5,), (3, 8)) and atoms[s] == ((5,), (12,))
    check_consistent(f, None, atoms)


def test_rotary_halves_do_not_cut_the_head() -> None:
    q, lo, hi, turned = tensor("q", B, 2, 8, 4), *(tensor(n, B, 2, 8, 2) for n in ("lo", "hi")), tensor("r", B, 2, 8, 4)
    out, lse = tensor("out", B, 2, 8, 4), tensor("lse", B, 2, 8)
    ops = [
        op("aten.slice.Tensor", [q], lo, dim=3, start=0, end=2),
        op("aten.slice.Tensor", [q], hi, dim=3, start=2, end=4),
        op("aten.cat", [[hi, lo]], turned, dim=3),
        op("nn.attention", [turned, q, q, None], [out, lse], causal=True, scale=1.0),
    ]
    f = func("f", [q], ops, [out])
    atoms = refine(f)
    assert atoms[q] == ((B,), (2,), (8,), (4,))
    check_consistent(f, None, atoms)


def test_the_causal_query_sequence_is_kept() -> None:
    forward, _ = layers.attention()
    attention = next(o for o in forward.ops if o.name == "nn.attention")
    assert "s" in rule_of(attention).keep
    attention.attrs["causal"] = False
    assert "s" not in rule_of(attention).keep


def test_common_cuts() -> None:
    assert common_cuts([64, 512], [64, 8, 64]) == [(1, 64, True), (64, 512, True), (512, 32768, True)]
    assert common_cuts([7, 4, 6], [7, 6, 4]) == [(1, 2, True), (2, 12, False), (12, 24, True), (24, 168, True)]


def test_a_refused_tie_leaves_no_trace() -> None:
    nodes = Refinement()
    a, b = nodes.node(24), nodes.node(24)
    nodes.tie([(a, [b])])
    nodes.tie([(a, [nodes.node(3), nodes.node(8)])])
    with pytest.raises(Conflict):
        nodes.tie([(b, [nodes.node(2), nodes.node(12)])])
    assert nodes.atoms(a) == nodes.atoms(b) == [3, 8]
    nodes.tie([(b, [nodes.node(6), nodes.node(4)])])
    assert nodes.atoms(a) == [3, 2, 4]


def test_an_unknown_op_is_kept_whole() -> None:
    x, y = tensor("x", B, 4), tensor("y", B, 4)
    f = func("f", [x], [op("aten.something_new", [x], y)], [y])
    atoms = refine(f)
    rule = f.ops[0].attrs["rule"]
    assert isinstance(rule, Rule) and set(rule.keep) == set(rule.factors())
    check_consistent(f, None, atoms)
