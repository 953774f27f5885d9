"""Every method of a communicator on known tensors, and what must come out, without the runtime's own helpers."""

from __future__ import annotations

from typing import Any

import torch

GROUPS = {"a": [[0, 2], [1, 3]], "b": [[0, 1], [2, 3]], "a_b": [[0, 1, 2, 3]], "alone": []}
STAGES = [[0, 1], [2, 3]]
DTYPES = (torch.float64, torch.float32, torch.bfloat16)
_RANKS = {"a": lambda r: [r % 2, r % 2 + 2], "b": lambda r: [r // 2 * 2, r // 2 * 2 + 1], "a_b": lambda r: [0, 1, 2, 3]}


def value(rank: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """[4, 8, 3] of small integers, exact in every dtype."""
    g = torch.Generator().manual_seed(rank)
    return torch.randint(-8, 8, (4, 8, 3), generator=g).to(dtype)


def exercise(comm: Any) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for dtype in DTYPES:
        x = value(comm.rank, dtype)
        before = x.clone()
        for group in ("a", "b", "a_b"):
            key = f"{dtype} {group}"
            found[f"{key} sum"] = comm.all_reduce(x, group)
            found[f"{key} max"] = comm.all_reduce(x, group, op="max")
            found[f"{key} first"] = comm.first(x, group)
            for dim, outer in ((0, 1), (1, 1), (1, 2), (-2, 2)):
                found[f"{key} gather {dim} {outer}"] = comm.all_gather(x, group, dim=dim, outer=outer)
                found[f"{key} scatter {dim} {outer}"] = comm.reduce_scatter(x, group, dim=dim, outer=outer)
                found[f"{key} slice {dim} {outer}"] = comm.slice(x, group, dim=dim, outer=outer)
                found[f"{key} exchange {dim} {outer}"] = comm.all_to_all(
                    x, group, split_dim=dim, concat_dim=2, split_outer=outer
                )
            found[f"{key} exchange back"] = comm.all_to_all(x, group, split_dim=0, concat_dim=1, concat_outer=4)
        assert torch.equal(x, before), "an argument was changed"
    strided = value(comm.rank).transpose(0, 1)
    found["strided"] = comm.all_reduce(strided, "a_b") + comm.all_gather(strided, "b", dim=0).sum()
    handles = [comm.all_reduce_start(value(comm.rank) * i, "a") for i in range(3)] + [
        comm.all_gather_start(strided, "b", dim=1)
    ]
    found["started"] = sum(comm.wait(h).sum() for h in handles)
    found["alone"] = comm.all_reduce(value(comm.rank), "alone")
    found["count"] = comm.all_reduce(torch.tensor(comm.rank), "world")
    found["expanded"] = comm.all_reduce(torch.ones(()).expand(3), "world")
    found["empty"] = comm.all_gather(torch.empty(0, 2), "a_b", dim=1)
    many = [value(comm.rank), value(comm.rank).float()[1], value(comm.rank)[:, :4]]
    for group in ("a", "a_b", "alone"):
        found |= {f"many sum {group} {i}": x for i, x in enumerate(comm.all_reduce_many(many, group))}
        scattered = comm.reduce_scatter_many(many, group, dims=[1, 0, 1], outers=[2, 1, 1])
        found |= {f"many scatter {group} {i}": x for i, x in enumerate(scattered)}
        gathered = comm.all_gather_many(many, group, dims=[1, 0, 1], outers=[2, 1, 1])
        found |= {f"many gather {group} {i}": x for i, x in enumerate(gathered)}
        found |= {f"one sum {group} {i}": comm.all_reduce(x, group) for i, x in enumerate(many)}
        for i, (x, dim, outer) in enumerate(zip(many, (1, 0, 1), (2, 1, 1))):
            found[f"one scatter {group} {i}"] = comm.reduce_scatter(x, group, dim, outer)
            found[f"one gather {group} {i}"] = comm.all_gather(x, group, dim, outer)
    # Both directions at once, several tags in another order than sent.
    other = comm.peers[1 - comm.stage]
    late = [comm.irecv([4, 8, 3], torch.float64, other, tag) for tag in (7, 5)]
    sends = [comm.isend(value(comm.rank) + tag, other, tag) for tag in (5, 7)]
    found["received 7"], found["received 5"] = (h.wait() for h in late)
    for handle in sends:
        handle.wait()
    comm.send(value(comm.rank).transpose(0, 2), to_stage=1 - comm.stage)
    found["tied"] = comm.recv([3, 8, 4], "float64", from_stage=1 - comm.stage)
    comm.flush()
    comm.barrier()
    found["coordinate"] = torch.tensor([comm.coordinate(g) for g in ("a", "b", "a_b", "alone")])
    return found


def expected(rank: int) -> dict[str, torch.Tensor]:
    wanted: dict[str, torch.Tensor] = {}
    for dtype in DTYPES:
        for group in ("a", "b", "a_b"):
            key, ranks = f"{dtype} {group}", _RANKS[group](rank)
            n, me = len(ranks), ranks.index(rank)
            values = [value(r, dtype) for r in ranks]
            total = torch.stack(values).sum(0)
            wanted[f"{key} sum"], wanted[f"{key} max"] = total, torch.stack(values).amax(0)
            wanted[f"{key} first"] = values[0] if me == 0 else torch.zeros_like(values[0])
            for dim, outer in ((0, 1), (1, 1), (1, 2), (-2, 2)):

                def piece(x: torch.Tensor, i: int, dim: int = dim, outer: int = outer, n: int = n) -> torch.Tensor:
                    return torch.cat([block.chunk(n, dim)[i] for block in x.chunk(outer, dim)], dim)

                blocks = [x.chunk(outer, dim) for x in values]
                wanted[f"{key} gather {dim} {outer}"] = torch.cat([b[o] for o in range(outer) for b in blocks], dim)
                wanted[f"{key} scatter {dim} {outer}"] = piece(total, me)
                wanted[f"{key} slice {dim} {outer}"] = piece(values[me], me)
                wanted[f"{key} exchange {dim} {outer}"] = torch.cat([piece(x, me) for x in values], 2)
            parts = [x.chunk(n, 0)[me].chunk(4, 1) for x in values]
            wanted[f"{key} exchange back"] = torch.cat([p[o] for o in range(4) for p in parts], 1)
    everyone = [value(r) for r in range(4)]
    pair, column = _RANKS["b"](rank), _RANKS["a"](rank)
    wanted["strided"] = sum(everyone).transpose(0, 1) + sum(everyone[r] for r in pair).sum()
    wanted["started"] = 3 * sum(everyone[r] for r in column).sum() + sum(everyone[r] for r in pair).sum()
    wanted["alone"], wanted["count"], wanted["expanded"] = everyone[rank], torch.tensor(6), torch.full((3,), 4.0)
    wanted["empty"] = torch.empty(0, 8)
    other = (rank + 2) % 4
    wanted["received 7"], wanted["received 5"] = everyone[other] + 7, everyone[other] + 5
    wanted["tied"] = everyone[other].transpose(0, 2)
    wanted["coordinate"] = torch.tensor([rank // 2, rank % 2, rank, 0])
    return wanted


def compare(rank: int, found: dict[str, torch.Tensor]) -> None:
    # Many at once against one by one, whose values are compared below.
    for key in [k for k in found if k.startswith("many ")]:
        many, one = found.pop(key), found.pop(key.replace("many ", "one "))
        assert many.dtype == one.dtype and torch.equal(many, one), f"rank {rank}: {key}"
    wanted = expected(rank)
    assert found.keys() == wanted.keys()
    for key, x in wanted.items():
        assert found[key].shape == x.shape and torch.equal(found[key], x), f"rank {rank}: {key}"
