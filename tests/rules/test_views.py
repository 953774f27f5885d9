"""Random reshapes: whatever the two shapes share may be split, and nothing else."""

from __future__ import annotations

from math import prod

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from uniap_compiler.ir import Affine, at
from uniap_compiler.passes.analysis.factors import PRIME, as_dim, as_int, common_cuts

from .validate import Case, check_rule, missing, rules_for

PRIMES = st.lists(st.sampled_from([2, 2, 3, 3, 5]), min_size=1, max_size=6)


def grouped(data: st.DataObject, primes: list[int]) -> list[int]:
    """The primes in some order, multiplied together in runs; ones in between."""
    order = data.draw(st.permutations(primes))
    shape = [1]
    for p in order:
        if data.draw(st.booleans()):
            shape.append(1)
        shape[-1] *= p
    return shape


@settings(max_examples=150, deadline=None)
@given(PRIMES, st.data())
def test_reshapes(primes: list[int], data: st.DataObject) -> None:
    source, target = grouped(data, primes), grouped(data, primes)
    case = Case("aten.view", [torch.arange(prod(primes), dtype=torch.float64).reshape(source)], {"size": target})
    for rule in rules_for(case):
        assert not check_rule(case, rule)


@settings(max_examples=60, deadline=None)
@given(PRIMES, st.data())
def test_nothing_is_missing_where_one_shape_refines_the_other(primes: list[int], data: st.DataObject) -> None:
    """[24, 12] and [4, 6, 12]: every factor of the finer shape may be split."""
    source = grouped(data, primes)
    target = list(primes)
    fine = Case("aten.view", [torch.randn(source, dtype=torch.float64)], {"size": source})
    assert not rules_for(fine)[0].keep
    case = Case("aten.view", [torch.randn(target, dtype=torch.float64)], {"size": [prod(primes)]})
    assert not rules_for(case)[0].keep and not missing(case, rules_for(case)[0])


@given(st.integers(0, 10**6), st.integers(-1000, 1000))
def test_sizes_at_the_prime_come_back(coef: int, offset: int) -> None:
    size = as_dim(coef * PRIME + offset)
    assert as_int(size) == coef * PRIME + offset and at(size, 7) == coef * 7 + offset
    assert isinstance(size, Affine) == (coef != 0)


@settings(max_examples=200, deadline=None)
@given(PRIMES, st.data())
def test_cuts_cover_both_shapes(primes: list[int], data: st.DataObject) -> None:
    cuts = common_cuts(grouped(data, primes), grouped(data, primes))
    assert prod(high // low for low, high, _ in cuts) == prod(primes)
    assert all(a[1] == b[0] for a, b in zip(cuts, cuts[1:]))
