"""The verifier notices every small mistake in a sharded layer: a lost collective, a wrong layout, a wrong factor."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from uniap_compiler.ir import Atom, Diagnostic, Func, Layout, Module, Part, Struct, Value, parse_module, verify

SOURCE = parse_module((Path(__file__).parent / "sharded_pair.mlir").read_text())
FUNCS = list(SOURCE.funcs)


def accepted(func: Func) -> bool:
    module = Module("mutant")
    module.add(func)
    try:
        verify(module)
    except Diagnostic:
        return False
    return True


def collectives(func: Func) -> list[int]:
    return [n for n, op in enumerate(func.ops) if op.name.startswith("comm.")]


@pytest.mark.parametrize("name", FUNCS)
def test_the_original_is_right(name: str) -> None:
    assert accepted(SOURCE.funcs[name].clone())
    assert collectives(SOURCE.funcs[name])


@pytest.mark.parametrize("name", FUNCS)
def test_a_lost_collective(name: str) -> None:
    for n in collectives(SOURCE.funcs[name]):
        func = SOURCE.funcs[name].clone()
        op = func.ops.pop(n)
        (operand,), (result,) = op.flat_operands(), op.results
        for other in func.ops:
            other.replace_operands(lambda v, old=result, new=operand: new if v is old else v)
        assert not accepted(func), op


def wrong_layouts(value: Value) -> Iterator[Layout]:
    """The layouts that differ in one dim or one pending axis."""
    layout = value.type.layout
    assert layout is not None
    whole, split = (Part(),), (Part(("t0", "t1")),)
    for d, dim in enumerate(layout.dims):
        changed = whole if dim != whole else split if not layout.split_axes() and not layout.pending else None
        if changed is not None:
            yield Layout((*layout.dims[:d], changed, *layout.dims[d + 1 :]), layout.pending)
    if layout.pending:
        yield Layout(layout.dims, layout.pending[:-1])
        yield Layout(layout.dims, tuple(("max", axis) for _, axis in layout.pending))
    elif not layout.split_axes():
        yield Layout(layout.dims, (("sum", "t0"),))


@pytest.mark.parametrize("name", FUNCS)
def test_a_wrong_layout(name: str) -> None:
    count = 0
    for n, op in enumerate(SOURCE.funcs[name].ops):
        for r, result in enumerate(op.results):
            for layout in wrong_layouts(result):
                func = SOURCE.funcs[name].clone()
                value = func.ops[n].results[r]
                value.type = value.type.with_layout(layout)
                assert not accepted(func), (op, layout)
                count += 1
    assert count > 15


@pytest.mark.parametrize("name", FUNCS)
def test_a_wrong_factor(name: str) -> None:
    for n, op in enumerate(SOURCE.funcs[name].ops):
        split = op.attrs.get("split")
        if not isinstance(split, Struct):
            continue
        rule = op.attrs["rule"]
        for factor in rule.factors():  # type: ignore[union-attr]
            if split.get("t0") != factor:
                func = SOURCE.funcs[name].clone()
                func.ops[n].attrs["split"] = Struct("split", (("t0", Atom(factor)), ("t1", split.get("t1"))))
                assert not accepted(func), (op, factor)


@pytest.mark.parametrize("name", FUNCS)
def test_a_wrong_dim(name: str) -> None:
    for n in collectives(SOURCE.funcs[name]):
        if "dim" in SOURCE.funcs[name].ops[n].attrs:
            func = SOURCE.funcs[name].clone()
            func.ops[n].attrs["dim"] = 0
            assert not accepted(func), func.ops[n]
