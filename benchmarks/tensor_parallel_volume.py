"""What the tensor-parallel search finds for every kind of layer, beside the schemes that people write by hand.

    python benchmarks/tensor_parallel_volume.py [--models llama-7b ...] [--degrees 2 4 8] [--json FILE]

Zoo models at full width (a kind of layer is searched once, so a few layers of each kind are enough), on one node of
the cluster.  A row is one kind of layer on t devices with one boundary: its collectives, forward and backward, and the
MB that a device sends per micro-batch with ring algorithms, r = (t - 1) / t, for whole tensors of n bytes:

    AR all-reduce 2 r n    AG all-gather, RS reduce-scatter r n    A2A all-to-all r n / t

Gradients that are reduced once per step count with their share (four micro-batches).  The formulas of the schemes are
in `tensor_parallel_schemes.py`.  "work" is a device's part of the matrix operations times t: 1 is perfect.  Where
Ulysses exists, a layer is searched once more with parameters that cost nothing where they are whole, as Ulysses has
them, and with collectives that cost their bytes and no latency.
Exit code 1 when a search sends more than the best scheme.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tensor_parallel_schemes import Scheme, schemes

from uniap_compiler.capture import capture
from uniap_compiler.cluster import Mesh, load_cluster
from uniap_compiler.ir import ConstantStore, Func, Module
from uniap_compiler.passes.analysis.cost.layer_cost import Communication, layer_cost
from uniap_compiler.passes.analysis.cost.op_cost import matrix_operations
from uniap_compiler.passes.analysis.find_tensor_parallelism import empty_backward
from uniap_compiler.passes.analysis.tensor_parallel import Weights, search
from uniap_compiler.passes.manager import Session, run_passes
from uniap_compiler.passes.pipelines import parse_pipeline
from uniap_compiler.passes.solve.enumerate_strategies import search_cost, search_pattern
from uniap_compiler.zoo import find_task

PASSES = "canonicalize,pad-classes,outline-layers,differentiate,decompose-losses,shard-rules"
MODELS = {
    "llama-7b": "num_hidden_layers=4", "llama-13b": "num_hidden_layers=4", "bert-huge": "num_hidden_layers=4",
    "t5-large": "num_layers=4,num_decoder_layers=4", "vit-huge": "num_hidden_layers=4",
    "swin-huge": "depths=[2,2,6,2]", "gpt2-xl": "n_layer=4", "gpt3-175b": "n_layer=4",
    "mixtral-8x7b": "num_hidden_layers=4", "resnet-50": "",
}  # fmt: skip
"""Each with as many layers as have different kinds."""
MICRO_BATCHES = 4
SHORT = {"all_reduce": "AR", "all_gather": "AG", "reduce_scatter": "RS", "all_to_all": "A2A"}
BYTES_ONLY = Weights(rest=0.0, round=0.0)
SLACK, SMALL = 1.005, 0.1
"""A few bytes beside the activations: the classes of rows, the choices of a router.  Of less than SMALL MB the
latency counts, not the volume."""


@dataclass(frozen=True)
class Row:
    """mb, hand: of one micro-batch, on one device."""

    model: str
    kind: str
    t: int
    boundary: str
    forward: str
    backward: str
    mb: float
    work: float
    scheme: str
    hand: float | None
    seconds: float

    @property
    def ratio(self) -> float | None:
        if self.hand is None:
            return None
        return self.mb / self.hand if self.hand else (1.0 if self.mb < 0.01 else float("inf"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=list(MODELS), help="names, or specs: gpt2-xl,vocab_size=50304")
    parser.add_argument("--cluster", default="a100-80gb", help="a preset or file with NVLink (a100-80gb)")
    parser.add_argument("--degrees", nargs="*", type=int, default=[2, 4, 8])
    parser.add_argument("--rows", type=int, default=8, help="of a micro-batch (8)")
    parser.add_argument("--json", type=Path, help="write every row here")
    options = parser.parse_args()
    mesh = Mesh.of(load_cluster(options.cluster), 1, 0)
    table = Table(*"model layer t boundary forward backward MB work scheme MB ratio".split())
    found: list[Row] = []
    for model in options.models:
        for row in searched(model, mesh, options.degrees, options.rows):
            found.append(row)
            table.add_row(*cells(row))
            print("  ".join(cells(row)), f"{row.seconds:.1f} s", file=sys.stderr, flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps([asdict(row) for row in found], indent=1))
    Console(width=180).print(table)
    worse = [row for row in found if row.hand is not None and row.mb > SLACK * row.hand + SMALL]
    compared = sum(row.hand is not None for row in found)
    print(f"{len(found)} searches, {compared} beside a scheme by hand, {len(worse)} worse")
    for row in worse:
        print("worse:", *cells(row))
    sys.exit(bool(worse))


def cells(row: Row) -> list[str]:
    hand = "" if row.hand is None else f"{row.hand:.1f}"
    ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
    return [row.model, row.kind, str(row.t), row.boundary, row.forward, row.backward, f"{row.mb:.1f}",
            f"{row.work:.2f}", row.scheme, hand, ratio]  # fmt: skip


def layers_of(model: str) -> Module:
    task, constants = (
        find_task(",".join(filter(None, [f"zoo:{model}", MODELS[model.partition(",")[0]]]))),
        ConstantStore(),
    )
    module = capture(task, constants=constants)
    run_passes(module, parse_pipeline(PASSES), Session(constants=constants, task=task))
    return module


def searched(model: str, mesh: Mesh, degrees: list[int], rows: int) -> Iterator[Row]:
    module = layers_of(model)
    for name in [n for n, f in module.funcs.items() if f.attrs.get("kind") == "forward"]:
        kind, forward = name.removesuffix(".forward"), module.funcs[name]
        backward = module.funcs.setdefault(f"{kind}.backward", empty_backward(forward))
        whole = sum(float(matrix_operations(f, {}, rows)) for f in (forward, backward))
        for t in degrees:
            axes = mesh.tensor_axes(t)
            assert axes is not None, f"{t} devices are no part of the mesh {mesh.axes}"
            sizes, dp = tuple(mesh.axes[a] for a in axes), mesh.devices // t
            cost = search_cost(mesh, axes, rows * MICRO_BATCHES * dp, dp, MICRO_BATCHES)
            for boundary in ("replicated", "sequence"):
                by_hand, why = schemes(forward, t, boundary, rows, MICRO_BATCHES)
                for free in {s.parameters_whole: None for s in by_hand} or [False]:
                    start = time.perf_counter()
                    if free:
                        pair = search(forward, backward, sizes, boundary, replace(cost, latency=0.0), BYTES_ONLY)
                    else:
                        pair = search_pattern(module, kind, sizes, boundary, cost)
                    seconds = time.perf_counter() - start
                    forward_kinds, backward_kinds, sent, work = volume(pair, sizes, rows, mesh)
                    best = min((s for s in by_hand if s.parameters_whole in (free, False)), key=lambda s: s.bytes,
                               default=Scheme(f"none: {why}", -1.0))  # fmt: skip
                    yield Row(
                        model, kind, t, boundary + (", parameters whole" if free else ""), forward_kinds,
                        backward_kinds, sent / 1e6, t * work / whole if whole else 1.0, best.name,
                        best.bytes / 1e6 if by_hand else None, seconds,
                    )  # fmt: skip


def volume(pair: tuple[Func, Func], sizes: tuple[int, ...], rows: int, mesh: Mesh) -> tuple[str, str, float, float]:
    """(collectives of forward, of backward, bytes sent, matrix operations of a device)."""
    axes = {f"t{n}": size for n, size in enumerate(sizes)}
    cost = layer_cost(*pair, axes, [rows], mesh.cluster)
    sent, kinds = 0.0, {"forward": "", "backward": ""}
    for c in cost.communications:
        if c.phase in kinds:
            sent += _sent(c, prod(axes[a] for a in c.axes))
            some = "" if len(c.axes) == len(axes) else f"/{prod(axes[a] for a in c.axes)}"
            kinds[c.phase] += f"{' ' if kinds[c.phase] else ''}{c.count} {SHORT[c.kind]}{some}"
    for p in cost.parameters:
        group = prod(axes[a] for a in p.gradient or ())
        sent += 2 * (group - 1) / group * p.bytes / MICRO_BATCHES
    work = sum(float(matrix_operations(func, axes, rows)) for func in pair)
    return kinds["forward"] or "-", kinds["backward"] or "-", sent, work


def _sent(c: Communication, group: int) -> float:
    """size: bytes of the operands on one device; a device of a gather sends what it has to all others."""
    each = float(c.size[0]) * (group if c.kind == "all_gather" else 1)
    return (2 if c.kind == "all_reduce" else 1) * (group - 1) / group * each


if __name__ == "__main__":
    main()
