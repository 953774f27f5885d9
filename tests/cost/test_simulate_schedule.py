"""Schedule tables, the event simulation against closed forms, and deadlocks."""

from __future__ import annotations

import pytest

from uniap_compiler.passes.solve.simulate_schedule import (
    SCHEDULES,
    Table,
    compute_order,
    find_deadlock,
    forward_first,
    in_flight,
    simulate,
    stage_table,
)

SHAPES = [(1, 1), (1, 4), (2, 1), (2, 2), (2, 5), (3, 4), (4, 2), (4, 4), (4, 9), (8, 16)]


def tables(kind: str, stages: int, micro_batches: int, values: int = 1) -> list[Table]:
    names = [[f"h{j}_{n}" for n in range(values)] for j in range(stages - 1)]
    return [stage_table(kind, stages, micro_batches, i, names, [n[:1] for n in names]) for i in range(stages)]


def test_orders() -> None:
    assert compute_order("1f1b", 2, 3, 0) == [
        ("forward", 0), ("forward", 1), ("backward", 0), ("forward", 2), ("backward", 1), ("backward", 2),
    ]  # fmt: skip
    assert compute_order("1f1b", 2, 2, 1) == [("forward", 0), ("backward", 0), ("forward", 1), ("backward", 1)]
    assert compute_order("gpipe", 2, 2, 1) == [("forward", 0), ("forward", 1), ("backward", 0), ("backward", 1)]
    with pytest.raises(ValueError, match="unknown schedule 'zigzag': known are 1f1b, gpipe"):
        compute_order("zigzag", 2, 2, 0)


def test_rows_stand_around_the_segments() -> None:
    assert stage_table("gpipe", 3, 1, 1, [["h", "k"], ["h"]], [["h"], []]) == [
        ["recv", "h", 0], ["recv", "k", 0], ["forward", 0], ["send", "h", 0], ["backward", 0], ["send_grad", "h", 0],
    ]  # fmt: skip


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize(("stages", "micro_batches"), SHAPES)
def test_every_micro_batch_once_and_in_flight_at_most_as_said(kind: str, stages: int, micro_batches: int) -> None:
    for i in range(stages):
        order = compute_order(kind, stages, micro_batches, i)
        assert sorted(order) == sorted((p, m) for p in ("forward", "backward") for m in range(micro_batches))
        begun = ended = most = 0
        for phase, _ in order:
            begun, ended = begun + (phase == "forward"), ended + (phase == "backward")
            most = max(most, begun - ended)
        assert most == in_flight(kind, stages, micro_batches, i)
        assert most == (min(micro_batches, stages - i) if kind == "1f1b" else micro_batches)


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize(("stages", "micro_batches"), SHAPES)
def test_equal_stages_take_c_plus_d_minus_one_periods(kind: str, stages: int, micro_batches: int) -> None:
    timeline = simulate(tables(kind, stages, micro_batches), [1.0] * stages, [2.0] * stages, {})
    assert timeline.seconds == pytest.approx(3.0 * (micro_batches + stages - 1))
    assert timeline.bubble == pytest.approx((stages - 1) / (micro_batches + stages - 1))
    assert len(timeline.events) == 2 * stages * micro_batches


def test_unequal_stages_are_paced_by_the_slowest() -> None:
    forward, backward = [1.0, 3.0, 1.0], [2.0, 6.0, 2.0]
    timeline = simulate(tables("1f1b", 3, 8), forward, backward, {})
    # Stage 1 is never idle between its first forward and its last backward.
    assert timeline.seconds == pytest.approx(1.0 + 8 * 9.0 + 2.0)
    assert timeline.seconds <= sum(forward) + sum(backward) + 7 * 9.0  # the solver's objective


def test_transfers_delay_and_overlap() -> None:
    seconds: dict[tuple[int, str], float] = {(0, "forward"): 0.5, (0, "backward"): 0.25}
    one = simulate(tables("1f1b", 2, 1), [1.0, 1.0], [2.0, 2.0], seconds)
    assert one.seconds == pytest.approx(6.0 + 0.75)
    # GPipe sends while it computes: only the first transfer of each direction shows.
    many = simulate(tables("gpipe", 2, 6), [1.0, 1.0], [2.0, 2.0], seconds)
    assert many.seconds == pytest.approx(3.0 * 7 + 0.75)
    slow = simulate(tables("gpipe", 2, 6), [1.0, 1.0], [2.0, 2.0], {(0, "forward"): 5.0})
    assert slow.seconds == pytest.approx(1.0 + 6 * 5.0 + 1.0 + 6 * 2.0 + 2.0)
    # Without receives posted ahead every transfer shows.
    bare = simulate(tables("gpipe", 2, 6), [1.0, 1.0], [2.0, 2.0], seconds, ahead=0)
    assert bare.seconds == pytest.approx(3.0 * 7 + 6 * 0.75)


def test_a_bounded_number_of_sends_holds_the_sender() -> None:
    made = tables("gpipe", 2, 6)
    free = simulate(made, [1.0, 1.0], [0.0, 0.0], {(0, "forward"): 5.0}, limit=6)
    held = simulate(made, [1.0, 1.0], [0.0, 0.0], {(0, "forward"): 5.0}, limit=1)
    assert [e.end for e in free.events if e.stage == 0 and e.phase == "forward"] == [1, 2, 3, 4, 5, 6]
    # The second send stops the stage until the first has arrived, and so on.
    assert [e.end for e in held.events if e.stage == 0 and e.phase == "forward"] == [1, 2, 7, 12, 17, 22]


def test_the_values_of_a_boundary_share_its_seconds() -> None:
    seconds = {(0, "forward"): 0.5}
    assert simulate(tables("gpipe", 2, 3, values=1), [1, 1], [1, 1], seconds).seconds == pytest.approx(
        simulate(tables("gpipe", 2, 3, values=2), [1, 1], [1, 1], seconds).seconds
    )


def test_once_per_step_is_added_at_the_end_of_each_stage() -> None:
    timeline = simulate(tables("1f1b", 2, 1), [1.0, 1.0], [1.0, 1.0], {}, [5.0, 1.0])
    assert timeline.finished == [4.0, 3.0]
    assert timeline.seconds == 9.0


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize(("stages", "micro_batches"), SHAPES)
def test_no_schedule_deadlocks(kind: str, stages: int, micro_batches: int) -> None:
    made = tables(kind, stages, micro_batches, values=2)
    assert find_deadlock(made) is None
    assert find_deadlock([forward_first(table) for table in made], blocking=True) is None
    assert find_deadlock([forward_first(table) for table in made]) is None


def test_blocking_sends_in_the_plain_order_do_deadlock() -> None:
    assert "waits at" in (find_deadlock(tables("1f1b", 2, 4), blocking=True) or "")


def test_mistakes_in_tables_are_found() -> None:
    made = tables("1f1b", 2, 2)
    made[1] = [row for row in made[1] if row != ["send_grad", "h0_0", 0]]
    assert find_deadlock(made) is not None
    made = tables("1f1b", 2, 2)
    made[1].remove(["recv", "h0_0", 1])
    assert "2 values are sent and 1 received" in (find_deadlock(made) or "")
    made = tables("gpipe", 2, 2)
    made[1][0], made[1][2] = made[1][2], made[1][0]  # receives micro-batch 1 first
    assert "is sent where" in (find_deadlock(made) or "")
    with pytest.raises(ValueError, match="cannot finish: across boundary 0 0 values are sent and 1 received"):
        simulate([[["recv_grad", "h", 0], ["backward", 0]], [["backward", 0]]], [1, 1], [1, 1], {})
