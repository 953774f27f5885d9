"""What a func sends: rounds (an all-reduce is a reduce-scatter and an all-gather) and whole bytes per round."""

from __future__ import annotations

from math import prod

from uniap_compiler.ir import ITEM_BYTES, Func, at

ROUNDS = {"comm.all_reduce": 2, "comm.reduce_scatter": 1, "comm.all_gather": 1, "comm.all_to_all": 1}


def traffic(func: Func, batch: int) -> tuple[int, int]:
    """(rounds, bytes): bytes of the global tensor, once per round."""
    rounds = size = 0
    for op in func.ops:
        n = ROUNDS.get(op.name, 0)
        rounds += n
        t = op.results[0].type
        size += n * prod(at(d, batch) for d in t.shape) * ITEM_BYTES[t.dtype]
    return rounds, size
