"""A small Mixtral: experts as parts of a sum, and behind exchanges of tokens, under data, tensor and pipeline plans.

On a cluster whose links cost nothing the search exchanges tokens wherever sequences are split between layers.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from uniap_compiler import driver
from uniap_compiler.ir import Diagnostic, Op, parse_module, print_module
from uniap_compiler.verify import verify

from .plans import Workshop, check

SPEC = "zoo:mixtral-8x7b@small,num_hidden_layers=2"
BATCH = 8
FAST = 'bandwidth = "1000 GB/s"\nlatency = 0\noverhead = 0\n'


def cluster(folder: Path, devices: int, links: str) -> Path:
    path = folder / f"ranks{devices}.toml"
    kinds = ["", ".all_reduce", ".all_gather", ".reduce_scatter", ".all_to_all"] if links else []
    text = f'extends = "laptop"\ndevices_per_node = {devices}\n[device]\nlaunch = 0\n'
    path.write_text(text + "".join(f"[links.intra{kind}]\n{links}" for kind in kinds))
    return path


def compiled(
    workshop: Workshop, folder: Path, devices: int, force: str, links: str = "", dump: Path | None = None
) -> tuple[Path, str]:
    """The bundle and its code."""
    (start,) = workshop.dumps("mixtral", SPEC, "float64", BATCH).glob("*-shard-rules.mlir")
    out = folder / "build"
    driver.resume(start, out=out, cluster=cluster(folder, devices, links), force=force, dump=dump)
    return out, "".join(path.read_text() for path in sorted((out / "stages").glob("*.py")))


@pytest.mark.parametrize("force", ["pp=1,dp=2", "pp=1,tp=2", "pp=2,micro_batches=4,recompute=full"])
def test_plans(workshop: Workshop, tmp_path: Path, force: str) -> None:
    bundle, code = compiled(workshop, tmp_path, 2, force)
    assert "nn.experts(" in code and "nn.experts_backward(" in code
    check(bundle)


@pytest.mark.parametrize(
    ("devices", "force"),
    [
        (4, "pp=1,tp=4,boundary=sequence"),
        (4, "pp=1,dp=2,tp=2,boundary=sequence,shard=parameters,recompute=full,micro_batches=2"),
        (4, "pp=2,tp=2,boundary=sequence,micro_batches=2,recompute=selective"),
    ],
)
def test_exchanges(workshop: Workshop, tmp_path: Path, devices: int, force: str) -> None:
    bundle, code = compiled(workshop, tmp_path, devices, force, FAST)
    assert "keep=True" in code
    assert "stride=" in code and "comm=comm" in code
    check(bundle)


def test_exchanges_over_processes(workshop: Workshop, tmp_path: Path) -> None:
    bundle, code = compiled(workshop, tmp_path, 2, "pp=1,tp=2,boundary=sequence", FAST)
    assert "comm=comm" in code
    check(bundle, processes=True)


def wrong_stride(op: Op) -> bool:
    """Tokens go to ranks that do not have their experts."""
    if op.name == "nn.experts" and "keep" in op.attrs:
        op.attrs["stride"] = int(str(op.attrs["stride"])) * 2
        return True
    return False


def nobody_sends(op: Op) -> bool:
    return op.name == "nn.experts_backward" and op.attrs.pop("group", None) is not None


def first_experts(op: Op) -> bool:
    """Everybody thinks that he has the first experts."""
    return op.name == "nn.experts" and op.attrs.pop("offset", None) is not None


def no_gate(op: Op) -> bool:
    if op.name == "nn.experts_backward":
        op.attrs["activation"] = "silu(gate) * gate"
        return True
    return False


@pytest.mark.parametrize("change", [wrong_stride, nobody_sends, first_experts, no_gate])
def test_mutants_are_found(workshop: Workshop, tmp_path: Path, change) -> None:  # type: ignore[no-untyped-def]
    dumps = tmp_path / "dumps"
    compiled(workshop, tmp_path, 2, "pp=1,tp=2,boundary=sequence", FAST, dumps)
    (dump,) = dumps.glob("*-localize.mlir")
    module = parse_module(dump.read_text())
    changed = [change(op) for func in module.funcs.values() for op in func.ops]
    assert any(changed)
    mutant = dump.with_name("50-mutant.mlir")
    mutant.write_text(print_module(module))
    bundle = driver.resume(mutant, out=tmp_path / "mutant").bundle
    try:
        assert verify(bundle).failures()
    except Diagnostic as error:
        assert "ranks fail" in str(error)
