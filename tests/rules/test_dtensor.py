"""torch's own sharding rules as a second opinion: where DTensor follows a split without communication, both agree.

One mesh axis of two devices, one of which exists.  DTensor has no rule for some ops, communicates for others, and then
says nothing about ours.  It is asked both ways: for every split of a rule of ours, and for every way to split operands.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from uniap_compiler.ir import Rule
from uniap_compiler.passes.analysis.tensor_parallel.choices import SUM, WHOLE, State, operand_state, result_state

from .cases import FAMILIES, family
from .validate import Case, execute, flatten, nest, rules_for

Placements = list[Placement | None]

# DTensor splits these, we do not.
ONLY_THEIRS = {
    "aten.addmm": "canonicalize makes it nn.contract and an addition",
    "aten.linear": "canonicalize makes it nn.contract and an addition",
    "aten.mean": "decomposed into a sum and a division before rules are asked for",
    "aten.mean.dim": "as aten.mean",
    "aten.amin": "no collective takes the minimum",
    "aten.min": "no collective takes the minimum",
    "aten.all": "no collective takes the product of bools",
    "aten.any.dim": "a sum of bools is not a bool",
    "aten.prod.dim_int": "no collective takes the product",
    "aten.linalg_vector_norm": "a norm of norms is no pending sum",
    "aten.aminmax": "no collective takes the minimum",
    "aten.binary_cross_entropy": "its mean is a pending mean there; canonicalize makes it a sum and a division",
    "aten.embedding": "canonicalize makes it nn.embedding, which splits rows",
    "aten.convolution": "it communicates by itself, which CommDebugMode does not count",
    "aten.convolution_backward": "as aten.convolution",
    "aten.gather": "wrong: an index shorter than its operand in the other dims does not split with it",
}

# Both split, with other results.
OTHERWISE = {"aten.sum.dim_IntList{'dim': []}": "wrong: dim=[] reduces all dims"}


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    logging.disable(logging.WARNING)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield init_device_mesh("cpu", (2,))
    dist.destroy_process_group()
    logging.disable(logging.NOTSET)


def placement(dims: Any, state: State) -> Placement | None:
    """None where only a minor part of a dim is split."""
    (atom,) = state
    if isinstance(atom, str):
        return Replicate() if atom == WHOLE else Partial("sum" if atom == SUM else "max")
    for d, group in enumerate(dims):
        if atom < len(group):
            return Shard(d) if atom == 0 else None
        atom -= len(group)
    raise AssertionError(state)


def ours(case: Case, rule: Rule) -> Iterator[tuple[Placements, Placements]]:
    """Operands and results of every split in two."""
    sizes = dict(rule.sizes)
    for factor in rule.factors():
        if factor in rule.keep or int(sizes[factor]) % 2:  # type: ignore[call-overload]
            continue
        operands = [
            None if t is None else placement(dims, operand_state(rule, i, (factor,)))
            for i, (t, dims) in enumerate(zip(flatten(case.operands), rule.operands, strict=True))
        ]
        if any((t is None) != (p is None) for t, p in zip(flatten(case.operands), operands, strict=True)):
            continue
        yield operands, [placement(dims, result_state(rule, i, (factor,))) for i, dims in enumerate(rule.results)]


def theirs(case: Case, placements: Placements, mesh: DeviceMesh) -> Placements | None:
    """The results of DTensor, None per empty one; None where it has no rule, communicates, or gives up the split."""

    def give(t: Tensor | None, p: Placement | None) -> DTensor | None:
        if t is None or p is None:
            return None
        local = t.chunk(2, p.dim)[0].contiguous() if isinstance(p, Shard) else t
        return DTensor.from_local(local, mesh, [p], run_check=False)

    flat = [give(t, p) for t, p in zip(flatten(case.operands), placements, strict=True)]
    seen = CommDebugMode()
    try:
        with seen:
            results = execute(case.name, nest(flat, case.operands), case.attrs)
    except Exception:
        return None
    if seen.get_total_counts():
        return None
    found = [r.placements[0] if isinstance(r, DTensor) and r.numel() else None for r in results]
    return found if any(p is not None and not isinstance(p, Replicate) for p in found) else None


def same(a: Placements, b: Placements) -> bool:
    return all(x is None or y is None or x == y for x, y in zip(a, b))


def aten_cases() -> Iterator[tuple[Case, Rule]]:
    for name in FAMILIES:
        for case in family(name):
            if case.name.startswith("aten."):
                yield case, rules_for(case)[0]


def test_splits_of_ours_are_splits_of_dtensor(mesh: DeviceMesh) -> None:
    agreed, wrong = 0, []
    for case, rule in aten_cases():
        for operands, results in ours(case, rule):
            answer = theirs(case, operands, mesh)
            if answer is None or f"{case.name}{case.attrs}" in OTHERWISE:
                continue
            agreed += same(answer, results)
            if not same(answer, results):
                wrong.append(f"{case} {operands}: ours {results}, DTensor's {answer}")
    assert not wrong, "\n".join(wrong)
    assert agreed > 400  # else it was not asked


def test_splits_of_dtensor_are_splits_of_ours(mesh: DeviceMesh) -> None:
    """A split of theirs is ours when slices of whole operands, which are free, lead to a split of ours."""
    agreed, missing = 0, []
    for case, rule in aten_cases():
        if case.name in ONLY_THEIRS or f"{case.name}{case.attrs}" in OTHERWISE:
            continue
        known = list(ours(case, rule))
        for operands in ways(case):
            answer = theirs(case, operands, mesh)
            if answer is None:
                continue
            found = any(
                same(answer, results) and all(a == b or isinstance(b, Replicate) for a, b in zip(wanted, operands))
                for wanted, results in known
            )
            agreed += found
            if not found:
                missing.append(f"{case} {rule}: DTensor takes {operands} to {answer}")
    assert not missing, "\n".join(missing[:20])
    assert agreed > 400


def ways(case: Case) -> list[Placements]:
    """Every operand whole or split in one dim; with many operands, all splits of one dim at a time."""
    options: list[Placements] = [
        [None]
        if t is None
        else [Replicate(), *(Shard(d) for d in range(t.dim()) if t.shape[d] and t.shape[d] % 2 == 0)]
        for t in flatten(case.operands)
    ]
    found = [list(way) for way in itertools.product(*options)]
    if len(found) > 50:
        found = [way for way in found if len({p.dim for p in way if isinstance(p, Shard)}) == 1][:50]
    return [way for way in found if any(isinstance(p, Shard) for p in way)]
