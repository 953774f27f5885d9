"""A bundle written by hand in the format of docs/bundle.md, and the same model in plain torch.

Two stages of two data-parallel ranks: h = tanh(x w1' + b1) * s on stage 0; y = (h * s) w2' + b2 - 2 c on stage 1;
loss = mean (y - t)^2.
w1 is sharded for the optimizer, w2 for everything (strided: every second column), s is tied over the stages, the buffer
`seen` counts micro-batches.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import torch

import uniap_compiler.runtime as runtime
from uniap_compiler.runtime import weights

ROWS = 4  # of a micro-batch
STAGES = 2

STAGE_0 = """
import torch
from ..runtime import kernels as nn

ARGS = {
    "forward": ["input:batch.x", "param:w1@copy0", "param:b1", "param:s", "buffer:seen"],
    "backward": ["recv_grad:h", "saved:x", "saved:tanh", "param:s"],
    "reduce_gradients": ["grad:w1@copy0", "grad:b1", "grad:s"],
    "refresh_parameters": ["param:w1", "param:s"],
}
RESULTS = {
    "forward": ["send:h", "saved:x", "saved:tanh", "buffer:seen"],
    "backward": ["grad:w1@copy0", "grad:b1", "grad:s"],
    "reduce_gradients": ["grad:w1", "grad:b1", "grad:s"],
    "refresh_parameters": ["param:w1@copy0"],
}
TRANSFERS = {"h": ([2, 6], "float64")}


def forward(comm, args):
    x, w1, b1, s, seen = args
    args.clear()
    x = comm.slice(x, "a", dim=0)
    tanh = (nn.contract(x, w1, equation="b k, n k -> b n") + b1).tanh()
    return tanh * s, x, tanh, seen + 1


def backward(comm, args):
    g, x, tanh, s = args
    args.clear()
    ds = (g * tanh).sum(0)
    dz = g * s * (1 - tanh * tanh)
    return nn.contract(dz, x, equation="b n, b k -> n k"), dz.sum(0), ds


def reduce_gradients(comm, args):
    w1, b1, s = args
    args.clear()
    handle = comm.reduce_scatter_start(w1, "a", dim=0)
    b1 = comm.all_reduce(b1, "a")
    s = comm.all_reduce(s, "a") + comm.recv([6], torch.float64, from_stage=1)
    return comm.wait(handle), b1, s


def refresh_parameters(comm, args):
    w1, s = args
    args.clear()
    comm.send(s, to_stage=1)
    return (comm.all_gather(w1, "a", dim=0),)
"""

STAGE_1 = """
import torch
from ..runtime import kernels as nn

ARGS = {
    "prelude": ["constant:c"],
    "forward": ["recv:h", "input:targets", "param:s@copy0", "param:w2", "param:b2", "prelude:twice"],
    "backward": ["seed:loss", "saved:d", "saved:u", "saved:h", "param:s@copy0", "param:w2"],
    "reduce_gradients": ["grad:b2", "grad:s@copy0"],
    "refresh_parameters": [],
}
RESULTS = {
    "prelude": ["prelude:twice"],
    "forward": ["loss", "saved:d", "saved:u", "saved:h"],
    "backward": ["grad:w2", "grad:b2", "grad:s@copy0", "send_grad:h"],
    "reduce_gradients": ["grad:b2"],
    "refresh_parameters": ["param:s@copy0"],
}
TRANSFERS = {"h": ([2, 6], "float64")}


def prelude(comm, args):
    (c,) = args
    args.clear()
    return (2 * c,)


def forward(comm, args):
    h, t, s, w2, b2, twice = args
    args.clear()
    t = comm.slice(t, "a", dim=0)
    w2 = comm.all_gather(w2, "a", dim=1, outer=3)
    u = h * s
    d = nn.contract(u, w2, equation="b k, n k -> b n") + b2 - twice - t
    return (d * d).sum() / 12, d, u, h


def backward(comm, args):
    seed, d, u, h, s, w2 = args
    args.clear()
    dy = d * (seed / 6)
    dw2 = comm.reduce_scatter(nn.contract(dy, u, equation="b n, b k -> n k"), "a", dim=1, outer=3)
    du = nn.contract(dy, comm.all_gather(w2, "a", dim=1, outer=3), equation="b n, n k -> b k")
    return dw2, dy.sum(0), (du * h).sum(0), du * s


def reduce_gradients(comm, args):
    b2, s = args
    args.clear()
    comm.send(comm.all_reduce(s, "a"), to_stage=0)
    return (comm.all_reduce(b2, "a"),)


def refresh_parameters(comm, args):
    return (comm.recv([6], "float64", from_stage=0),)
"""


def table(kind: str, stage: int, micro_batches: int, stages: int = STAGES) -> list[list[object]]:
    """The schedule of one stage: gpipe or 1f1b."""

    def forward(m: int) -> list[list[object]]:
        receive = [["recv", "h", m]] if stage > 0 else []
        return [*receive, ["forward", m], *([["send", "h", m]] if stage < stages - 1 else [])]

    def backward(m: int) -> list[list[object]]:
        receive = [["recv_grad", "h", m]] if stage < stages - 1 else []
        return [*receive, ["backward", m], *([["send_grad", "h", m]] if stage > 0 else [])]

    ahead = micro_batches if kind == "gpipe" else min(stages - stage - 1, micro_batches)
    entries = [e for m in range(ahead) for e in forward(m)]
    for m in range(micro_batches):
        if m + ahead < micro_batches:
            entries += forward(m + ahead)
        entries += backward(m)
    return entries


def _record(slices: list, **extra: object) -> dict[str, object]:
    shape = []
    for dim in slices:
        size = 1
        for _, start, stop in dim:
            size *= stop - start
        shape.append(size)
    return {"shape": shape, "dtype": "float64", "slices": slices, **extra}


def _whole(n: int) -> list[list[int]]:
    return [[n, 0, n]]


def rank_source(rank: int, schedule: str, micro_batches: int, fingerprint: str) -> str:
    stage, a = divmod(rank, 2)
    if stage == 0:
        parameters = {
            "w1": _record([[[6, 3 * a, 3 * a + 3]], _whole(4)], owner=True),
            "w1@copy0": _record([_whole(6), _whole(4)], owner=False, source="w1"),
            "b1": _record([_whole(6)], owner=a == 0),
            "s": _record([_whole(6)], owner=a == 0),
        }
        buffers, constants = {"seen": _record([])}, {}
    else:
        parameters = {
            "w2": _record([_whole(3), [[3, 0, 3], [2, a, a + 1]]], owner=True),
            "b2": _record([_whole(3)], owner=a == 0),
            "s@copy0": _record([_whole(6)], owner=False, source="s"),
        }
        buffers, constants = {}, {"c": _record([_whole(3)])}
    values = {
        "FINGERPRINT": fingerprint, "RANK": rank, "STAGE": stage, "COORDINATES": {"a": a}, "MESH": {"a": 2},
        "GROUPS": {"a": [[0, 1], [2, 3]]}, "STAGES": [[0, 1], [2, 3]], "PARAMETERS": parameters, "BUFFERS": buffers,
        "CONSTANTS": constants, "SCHEDULE": table(schedule, stage, micro_batches),
    }  # fmt: skip
    return f"from ..stages import stage_{stage} as stage\n\n" + "".join(f"{k} = {v!r}\n" for k, v in values.items())


def initial() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    shapes = {"w1": (6, 4), "b1": (6,), "s": (6,), "w2": (3, 6), "b2": (3,)}
    tensors = {n: torch.randn(*s, generator=g, dtype=torch.float64) for n, s in shapes.items()}
    return {**tensors, "seen": torch.zeros((), dtype=torch.float64)}


CONSTANT = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)


def batch(micro_batches: int, seed: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    g = torch.Generator().manual_seed(100 + seed)
    rows = ROWS * micro_batches
    return (
        {"x": torch.randn(rows, 4, generator=g, dtype=torch.float64)},
        torch.randn(rows, 3, generator=g, dtype=torch.float64),
    )


DATA = """
from tests.runtime.tiny_bundle import batch

def batches(start=0):
    while True:
        yield batch({micro_batches}, start)
        start += 1
"""


def write(
    root: Path,
    schedule: str = "1f1b",
    micro_batches: int = 2,
    optimizer: dict | None = None,
    fingerprint: str = "f" * 64,
) -> Path:
    """The bundle in `root`, and data.py beside it."""
    for name in ("stages", "ranks", "weights", "runtime"):
        (root / name).mkdir(parents=True, exist_ok=True)
    (root / "stages/stage_0.py").write_text(STAGE_0)
    (root / "stages/stage_1.py").write_text(STAGE_1)
    for rank in range(4):
        (root / f"ranks/rank_{rank:04d}.py").write_text(rank_source(rank, schedule, micro_batches, fingerprint))
    for path in Path(runtime.__file__).parent.glob("*.py"):
        shutil.copy(path, root / ("train.py" if path.name == "train.py" else f"runtime/{path.name}"))
    weights.save(root / "weights/initial.safetensors", initial())
    weights.save(root / "weights/constants.safetensors", {"c": CONSTANT})
    files = sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and p.name != "manifest.json")
    manifest = {
        "format": "uniap-bundle/1", "fingerprint": fingerprint, "versions": {}, "spec": "",
        "spec_sha256": "", "world_size": 4,
        "stages": 2, "micro_batches": micro_batches, "global_batch": ROWS * micro_batches, "schedule": schedule,
        "dtype": "float64", "mesh": [["a", 2]],
        "optimizer": optimizer or {
            "kind": "adamw", "defaults": {"lr": 0.01, "betas": [0.9, 0.99], "eps": 1e-8, "weight_decay": 0.1},
            "groups": [{"parameters": ["b1", "s"], "weight_decay": 0.0, "lr": 0.02}],
        },
        "inputs": [
            {"path": "batch.x", "shape": [ROWS, 4], "dtype": "float64"},
            {"path": "targets", "shape": [ROWS, 3], "dtype": "float64"},
        ],
        "loss": {"dtype": "float64"}, "parameters": {}, "buffers": {},
        "weights": {"files": ["weights/initial.safetensors"], "constants": ["weights/constants.safetensors"]},
        "files": {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in files},
    }  # fmt: skip
    (root / "manifest.json").write_text(json.dumps(manifest, indent=1))
    (root.parent / "data.py").write_text(DATA.format(micro_batches=micro_batches))
    return root


class Reference:
    """The same model and training in plain torch; the mean over micro-batches of losses and gradients."""

    def __init__(self, optimizer: str = "adamw", lr: float = 0.01, **settings: object) -> None:
        self.tensors = {n: x.clone().requires_grad_() for n, x in initial().items() if n != "seen"}
        p = self.tensors
        if optimizer == "adamw":
            groups = [
                {"params": [p["w1"], p["w2"], p["b2"]]},
                {"params": [p["b1"], p["s"]], "weight_decay": 0.0, "lr": 2 * lr},
            ]
            self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
        else:
            self.optimizer = torch.optim.SGD(list(p.values()), lr=lr, **settings)
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.losses: list[float] = []
        self.norms: list[float] = []

    def step(
        self, inputs: dict[str, torch.Tensor], targets: torch.Tensor, micro_batches: int, clip: float | None = None
    ) -> None:
        p = self.tensors
        self.optimizer.zero_grad()
        total = 0.0
        for x, t in zip(inputs["x"].chunk(micro_batches), targets.chunk(micro_batches)):
            h = torch.tanh(x @ p["w1"].T + p["b1"]) * p["s"]
            y = (h * p["s"]) @ p["w2"].T + p["b2"] - 2 * CONSTANT
            loss = ((y - t) ** 2).mean() / micro_batches
            loss.backward()
            total += loss.item()
        self.losses.append(total)
        self.gradients.append({n: x.grad.clone() for n, x in p.items()})
        norm = torch.nn.utils.clip_grad_norm_(list(p.values()), clip if clip is not None else float("inf"))
        self.norms.append(norm.item())
        self.optimizer.step()
