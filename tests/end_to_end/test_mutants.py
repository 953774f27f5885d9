"""verify finds every mistake that a lowering could make: one change of a good programme at a time, none may survive.

The programme is changed in the dump after `localize`, where every collective is one op, and goes on from there: the
mutant is a bundle in good order whose hashes fit.  (Changes of a hand-written bundle: tests/codegen/test_verify.py.)
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.models import TASKS
from uniap_compiler import driver
from uniap_compiler.codegen.manifest import sha256_file
from uniap_compiler.ir import Diagnostic, Func, Module, Namer, Op, Value, parse_module, print_module
from uniap_compiler.verify import Row, verify

from .plans import Workshop, check

PLANS = {
    "stages": "pp=2,dp=2,micro_batches=2",
    "memory": "pp=1,dp=2,tp=2,micro_batches=2,shard=parameters,recompute=full",
    "sequence": "pp=1,dp=2,tp=2,micro_batches=2,shard=optimizer,boundary=sequence",
    "tensor stages": "pp=2,tp=2,micro_batches=2",
}


class Victim:
    """A good bundle's programme after `localize`, and what becomes of it when it is changed."""

    def __init__(self, folder: Path, dump: Path) -> None:
        self.folder, self.dump, self.text = folder, dump, dump.read_text()
        self._count = 0

    def module(self) -> Module:
        return parse_module(self.text)

    def kill(self, module: Module) -> list[Row] | str:
        """What verify says of the mutant: the rows that differ, or the words of a refusal.  Empty: it survived."""
        text = print_module(module)
        assert text != self.text, "the mutation did nothing"
        self.dump.with_name("50-mutant.mlir").write_text(text)
        self._count += 1
        out = self.folder / f"mutant{self._count}"
        bundle = driver.resume(self.dump.with_name("50-mutant.mlir"), out=out).bundle
        try:
            return verify(bundle, task=TASKS["tied"]()).failures()
        except Diagnostic as error:
            assert "ranks fail" in str(error), error
            return str(error)


@pytest.fixture(scope="module", params=PLANS)
def victim(request: pytest.FixtureRequest, workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Victim:
    """A transformer-like model whose embedding is its head, forced into each plan."""
    folder = tmp_path_factory.mktemp("victim")
    task = TASKS["tied"]()
    bundle = workshop.compile(
        task, 4, PLANS[request.param], folder / "good", name="tied", global_batch=8, dump=folder / "dumps"
    )
    check(bundle, task=task)
    (dump,) = (folder / "dumps").glob("*-localize.mlir")
    return Victim(folder, dump)


# -- every collective -----------------------------------------------------------------------------------------------


def _without(op: Op) -> Op | None:
    """What a lowering would leave if it forgot the collective: the same shapes without the exchange."""
    x, result = op.operands[0] if op.operands else None, op.results[0] if op.results else None
    if not isinstance(x, Value) or result is None:
        return None
    if op.name in ("comm.all_reduce", "comm.first"):
        return Op("aten.clone", [x], [result])
    dim = op.attrs.get("dim")
    if op.name == "comm.all_gather":
        assert isinstance(dim, int)
        return Op("aten.cat", [[x] * (result.type.shape[dim] // x.type.shape[dim])], [result], {"dim": dim})
    if op.name == "comm.reduce_scatter":
        return Op("comm.slice", [x], [result], {k: v for k, v in op.attrs.items() if k != "op"})
    if op.name == "comm.slice" and "outer" not in op.attrs:  # everybody takes the first piece
        assert isinstance(dim, int)
        attrs = {"dim": dim, "start": 0, "end": result.type.shape[dim]}
        return Op("aten.slice.Tensor", [x], [result], {k: v for k, v in attrs.items() if k == "end" or v})
    return None


def _collectives(module: Module) -> list[tuple[Func, int]]:
    return [(func, n) for func in module.funcs.values() for n, op in enumerate(func.ops) if _without(op) is not None]


def test_every_collective_matters(victim: Victim) -> None:
    count = len(_collectives(victim.module()))
    assert count >= 3
    survivors = []
    for i in range(count):
        module = victim.module()
        func, n = _collectives(module)[i]
        old = func.ops[n]
        changed = _without(old)
        assert changed is not None
        func.ops[n] = changed
        found = victim.kill(module)
        if not found:
            survivors.append(f"{old.name} -> %{old.results[0].name} in @{func.name}")
        elif func.name.endswith("reduce_gradients") and not isinstance(found, str):
            parameter = re.sub(r"(_\d+|@copy\d+|\.grad)*$", "", old.results[0].name)
            assert parameter in {row.name for row in found}, f"{parameter} is not named"
    assert not survivors, "\n".join(survivors)


# -- every gradient -------------------------------------------------------------------------------------------------


def _gradients(module: Module) -> Iterator[tuple[Func, int, str]]:
    for func in module.funcs.values():
        if func.attrs.get("kind") == "segment" and func.attrs.get("phase") == "backward":
            roles = func.attrs["results"]
            assert isinstance(roles, (list, tuple))
            for n, role in enumerate(map(str, roles)):
                if role.startswith("grad:"):
                    yield func, n, role.removeprefix("grad:").partition("@")[0]


def test_every_gradient_matters(victim: Victim) -> None:
    """Halved where backward returns it: that parameter is the one that is named, and no other."""
    count = len(list(_gradients(victim.module())))
    assert count >= 13
    for i in range(0, count, 3):
        module = victim.module()
        func, n, name = list(_gradients(module))[i]
        gradient = func.returns[n]
        assert gradient is not None
        half = Value(Namer(func)("half"), gradient.type)
        func.ops.append(Op("aten.mul.Tensor", [gradient], [half], {"other": 0.5}))
        func.returns[n] = half
        found = victim.kill(module)
        assert not isinstance(found, str), found
        assert {row.name for row in found if row.what == "gradient"} == {name}


# -- what happens once per step --------------------------------------------------------------------------------------


def _edit(module: Module, change: Callable[[Func], None], *names: str) -> Module:
    for name in names:
        change(module.funcs[name])
    return module


@pytest.fixture(scope="module")
def staged(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Victim:
    folder = tmp_path_factory.mktemp("staged")
    workshop.compile(
        TASKS["tied"](), 4, PLANS["stages"], folder / "good", name="tied", global_batch=8, dump=folder / "dumps"
    )
    (dump,) = (folder / "dumps").glob("*-localize.mlir")
    return Victim(folder, dump)


def test_a_forgotten_tied_gradient(staged: Victim) -> None:
    """The head's gradient of the shared weight is not sent to the embedding."""

    def forget(func: Func) -> None:
        dropped = [op.results[0] for op in func.ops if op.name == "comm.recv"]
        func.ops = [op for op in func.ops if op.name not in ("comm.send", "comm.recv")]
        for op in func.ops:
            if any(v in dropped for v in op.flat_operands()):
                kept = [v for v in op.flat_operands() if v not in dropped]
                op.name, op.operands, op.attrs = "aten.clone", list(kept), {}

    module = _edit(staged.module(), forget, "stage_0.reduce_gradients", "stage_1.reduce_gradients")
    found = staged.kill(module)
    assert not isinstance(found, str), found
    assert {row.name for row in found if row.what == "gradient"} == {"embed.weight"}


def test_a_copy_that_is_not_refreshed(staged: Victim) -> None:
    module = staged.module()
    for name in ("stage_0.refresh_parameters", "stage_1.refresh_parameters"):
        del module.funcs[name]
    found = staged.kill(module)
    assert not isinstance(found, str), found
    assert not any(row.what == "gradient" for row in found), "the first step is right"
    assert any("embed.weight" in row.name for row in found), found


def _shorter(module: Module, drop: Callable[[list[object]], bool]) -> None:
    for op in module.ops:
        if op.name == "sched.stage":
            table = op.attrs["table"]
            assert isinstance(table, (list, tuple))
            op.attrs["table"] = [entry for entry in table if not drop(list(entry))]  # type: ignore[call-overload]


def test_a_skipped_micro_batch(staged: Victim) -> None:
    """No stage does micro-batch 1: the step ends with values that nobody took."""
    victim = Victim(staged.folder / "skip", next(staged.dump.parent.glob("*-schedule.mlir")))
    module = victim.module()
    _shorter(module, lambda entry: entry[-1] == 1)
    found = victim.kill(module)
    assert isinstance(found, str) and "the schedule leaves values that nobody took" in found


def test_a_micro_batch_that_is_not_added(staged: Victim) -> None:
    """Hashes adjusted: the loop keeps the last micro-batch's gradients instead of their sum."""
    bundle = driver.resume(staged.dump, out=staged.folder / "loop").bundle
    loop = bundle / "runtime" / "loop.py"
    text = loop.read_text()
    assert text.count("held = self.accumulators.get(name)") == 1, "the loop adds in another way: change the mutant"
    loop.write_text(text.replace("held = self.accumulators.get(name)", "held = None"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["runtime/loop.py"] = sha256_file(loop)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    found = verify(bundle, task=TASKS["tied"]()).failures()
    assert {row.name for row in found if row.what == "gradient"} >= {"embed.weight", "blocks.0.up.weight"}


def test_a_shifted_slice(workshop: Workshop, out: Path) -> None:
    """A rank of a sharded bundle takes another piece of a parameter; hashes adjusted."""
    bundle = workshop.compile(TASKS["tied"](), 4, PLANS["memory"], out, name="tied", global_batch=8)
    rank = bundle / "ranks" / "rank_0003.py"
    text = rank.read_text()
    record = re.search(r'"blocks\.1\.up\.bias": \{.*?\}', text, re.DOTALL)
    assert record is not None
    found = re.search(r"\[(\d+), (\d+), (\d+)\]", record.group())
    assert found is not None and found.group(2) != "0"
    whole, start, stop = map(int, found.groups())
    changed = record.group().replace(found.group(), f"[{whole}, {start - 1}, {stop - 1}]")
    rank.write_text(text.replace(record.group(), changed))
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["ranks/rank_0003.py"] = sha256_file(rank)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    try:
        said = {row.name for row in verify(bundle, task=TASKS["tied"]()).failures()}
    except Diagnostic as error:
        said = set(str(error).split())
    assert "blocks.1.up.bias" in said, said
