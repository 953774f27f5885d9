"""The mesh of a stage as the lowering sees it: ordered axes with sizes, tensor axes fastest.

    plan.mesh @mesh {axes = #axes<a = 2, b = 2>, stages = 2, world = 8}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import prod

from uniap_compiler.ir import Diagnostic, Module, Struct


def stage_mesh(module: Module) -> dict[str, int]:
    """axis -> size, slowest first.  Raises Diagnostic when the module has no `plan.mesh`."""
    op = module.find("plan.mesh")
    if op is None:
        raise Diagnostic("the module has no plan.mesh op", help="run solve-parallelism first")
    axes = op.attrs["axes"]
    assert isinstance(axes, Struct)
    return {name: int(size) for name, size in axes.fields}  # type: ignore[arg-type]


def axes_of(degree: int, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """The fastest axes whose sizes multiply to `degree`, in mesh order."""
    names = list(mesh)
    for count in range(len(names) + 1):
        for chosen in sorted(combinations(range(len(names)), count), reverse=True):
            if prod(mesh[names[n]] for n in chosen) == degree:
                return tuple(names[n] for n in chosen)
    raise Diagnostic(f"a degree of {degree} is no product of the mesh axes {dict(mesh)}")


def group_name(axes: Sequence[str], mesh: Mapping[str, int]) -> str:
    """The process group over `axes`: their names in mesh order, joined by `_`."""
    return "_".join(axis for axis in mesh if axis in axes)
