"""The simulated collectives against their definition, and what they say of broken programmes."""

from __future__ import annotations

import time

import pytest
import torch

from uniap_compiler.runtime import pieces
from uniap_compiler.runtime.comm import distinct_groups
from uniap_compiler.runtime.errors import CommunicationError
from uniap_compiler.runtime.threads import SimulatedComm, run_ranks

from .collectives import GROUPS, STAGES, compare, exercise


def simulated(work, size=4, timeout=20.0):
    return run_ranks(size, lambda rank, world: work(SimulatedComm(world, rank, GROUPS, STAGES)), timeout)


def test_simulated_collectives():
    for rank, found in enumerate(simulated(exercise)):
        compare(rank, found)


def test_split_and_join_are_inverse():
    x = torch.arange(2 * 12 * 3).reshape(2, 12, 3)
    for parts, outer in ((2, 1), (3, 2), (2, 3), (12, 1)):
        pieces_of_x = pieces.split(x, parts, 1, outer)
        assert torch.equal(pieces.join(pieces_of_x, 1, outer), x)
        for i in range(parts):
            assert torch.equal(pieces.take(x, parts, i, 1, outer), pieces_of_x[i])
    assert pieces.take(torch.arange(8), 2, 0, 0, 2).tolist() == [0, 1, 4, 5]
    with pytest.raises(ValueError, match="does not divide"):
        pieces.split(x, 5, 1)


def test_parameter_slices():
    x = torch.arange(24).reshape(12, 2)
    slices = [[[3, 0, 3], [4, 2, 4]], [[2, 1, 2]]]
    assert pieces.full_shape(slices) == [12, 2] and pieces.local_shape(slices) == [6, 1]
    assert pieces.read(x, slices).flatten().tolist() == [5, 7, 13, 15, 21, 23]


def test_groups_are_created_once_and_in_order():
    assert distinct_groups({**GROUPS, "c": [[1, 3], [0, 2]]}, 4) == [(0, 2), (1, 3), (0, 1), (2, 3)]
    with pytest.raises(ValueError, match="ascending"):
        distinct_groups({"a": [[1, 0]]}, 4)
    with pytest.raises(ValueError, match="two of its lists"):
        distinct_groups({"a": [[0, 1], [1, 2]]}, 4)


def test_unknown_group():
    with pytest.raises(KeyError, match="no group 'z'"):
        simulated(lambda comm: comm.all_reduce(torch.ones(1), "z"))


def test_different_operations_are_an_error_that_names_both():
    def work(comm):
        x = torch.ones(2, 2)
        return comm.all_reduce(x, "b") if comm.rank == 0 else comm.all_gather(x, "b", dim=0)

    with pytest.raises(CommunicationError, match=r"rank \d calls .* of float32 \[2, 2\] where rank \d calls"):
        simulated(work)


def test_different_shapes_are_an_error():
    with pytest.raises(CommunicationError, match="all_reduce sum of float32"):
        simulated(lambda comm: comm.all_reduce(torch.ones(comm.rank + 1), "a_b"))


def test_deadlock_is_found_at_once():
    def work(comm):
        for group in ("a", "b") if comm.rank in (1, 2) else ("b", "a"):
            comm.all_reduce(torch.ones(1), group)

    start = time.monotonic()
    with pytest.raises(CommunicationError, match="deadlock") as caught:
        simulated(work, timeout=60)
    assert time.monotonic() - start < 5
    assert "rank 0 waits for all_reduce sum of float32 [1] in group b (ranks 0, 1)" in str(caught.value)


def test_a_rank_that_finishes_early_is_a_deadlock():
    with pytest.raises(CommunicationError, match="rank 3 has finished"):
        simulated(lambda comm: None if comm.rank == 3 else comm.barrier())


def test_a_slow_rank_runs_into_the_timeout():
    def work(comm):
        if comm.rank == 1:
            time.sleep(3)
        comm.barrier()

    with pytest.raises(CommunicationError, match="no progress for 0.5 s"):
        simulated(work, timeout=0.5)


def test_the_failing_rank_is_reported_and_nobody_hangs():
    def work(comm):
        if comm.rank == 2:
            raise ZeroDivisionError("rank two")
        comm.barrier()

    start = time.monotonic()
    with pytest.raises(ZeroDivisionError, match="rank two") as caught:
        simulated(work, timeout=60)
    assert caught.value.__notes__ == ["on simulated rank 2"]
    assert time.monotonic() - start < 5


def test_a_wrong_transfer_names_both_shapes():
    def work(comm):
        if comm.rank == 0:
            comm.isend(torch.ones(3), 1)
        if comm.rank == 1:
            comm.irecv([2], torch.float32, 0).wait()

    with pytest.raises(
        CommunicationError, match=r"rank 1 expects torch.float32 \[2\] from rank 0, which sent torch.float32 \[3\]"
    ):
        simulated(work)
