"""ranks/rank_NNNN.py: what is particular to one rank: where it sits, its groups, its slices, its schedule.

    STAGE = 0
    COORDINATES = {"a": 1, "b": 1}
    PARAMETERS = {
        "wq.weight": {"shape": [32, 64], "dtype": "float32", "slices": [[[64, 32, 64]], [[64, 0, 64]]], "owner": False},
    }

Rank of (stage i, coordinates) = i * g + mixed radix of the coordinates in mesh order, g devices per stage.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import prod
from typing import Any

from ..ir import Layout, Module, Op, Struct
from .names import dtype, literal, string
from .stage import segments_of

Slices = list[list[list[int]]]


@dataclass(frozen=True)
class World:
    """The mesh of a stage, in order, and how many stages there are."""

    mesh: dict[str, int]
    stages: int

    @classmethod
    def of(cls, module: Module) -> World:
        op = module.find("plan.mesh")
        if op is None:
            raise ValueError("the module has no plan.mesh op")
        axes, stages = op.attrs["axes"], op.attrs["stages"]
        assert isinstance(axes, Struct) and isinstance(stages, int)
        world = cls({name: int(str(size)) for name, size in axes.fields}, stages)
        if op.attrs.get("world", world.size) != world.size:
            raise ValueError(f"plan.mesh says {op.attrs['world']} ranks, its axes and stages make {world.size}")
        return world

    @property
    def per_stage(self) -> int:
        return prod(self.mesh.values())

    @property
    def size(self) -> int:
        return self.per_stage * self.stages

    def stage_of(self, rank: int) -> int:
        return rank // self.per_stage

    def coordinates(self, rank: int) -> dict[str, int]:
        rest, found = rank % self.per_stage, {}
        for axis in reversed(self.mesh):
            found[axis] = rest % self.mesh[axis]
            rest //= self.mesh[axis]
        return {axis: found[axis] for axis in self.mesh}

    def groups(self, axes: Sequence[str]) -> list[list[int]]:
        """Every group of the world over some axes, by first rank."""
        found: dict[tuple[object, ...], list[int]] = {}
        for rank in range(self.size):
            at = self.coordinates(rank)
            rest = tuple(at[a] for a in self.mesh if a not in axes)
            found.setdefault((self.stage_of(rank), *rest), []).append(rank)
        return sorted(found.values())


def slices_of(shape: Sequence[int], layout: Layout | None, world: World, coordinates: dict[str, int]) -> Slices:
    """Per dim of the full tensor its parts [size, start, stop], major to minor."""
    result: Slices = []
    for d, size in enumerate(shape):
        parts = []
        for part in layout.dims[d] if layout is not None else [None]:
            whole = size if part is None or part.size is None else int(str(part.size))
            index, count = 0, 1
            for axis in part.axes if part is not None else ():
                index = index * world.mesh[axis] + coordinates[axis]
                count *= world.mesh[axis]
            if whole % count:
                raise ValueError(f"dim {d} of {list(shape)} does not divide over {count} devices: {layout}")
            parts.append([whole, index * whole // count, (index + 1) * whole // count])
        result.append(parts)
    return result


def record(
    op: Op, layout: Layout | None, world: World, coordinates: dict[str, int], **extra: object
) -> dict[str, Any]:
    """One entry of PARAMETERS, BUFFERS or CONSTANTS.  A dim's elements are the product of its parts' ranges."""
    slices = slices_of(shape_of(op), layout, world, coordinates)
    shape = [prod(stop - start for _, start, stop in dim) for dim in slices]
    found = {"shape": shape, "dtype": torch_name(op.attrs["dtype"]), "slices": slices, **extra}
    if "unpadded" in op.attrs:
        found["unpadded"] = shape_of(op, padded=False)
    return found


def parameters_of(module: Module, world: World, rank: int) -> dict[str, dict[str, Any]]:
    """The tensors of parameters that a rank stores: homes, copies, master slices."""
    stage, at = world.stage_of(rank), world.coordinates(rank)
    found: dict[str, dict[str, Any]] = {}
    for op in module.ops:
        if op.name != "plan.parameter" or op.attrs["stage"] != stage:
            continue
        assert op.symbol is not None
        layout = layout_of(op, "layout")
        if op.attrs.get("home", True):
            split = set(layout.split_axes()) if layout is not None else set()
            owner = all(index == 0 for axis, index in at.items() if axis not in split)
            found[op.symbol] = record(op, layout, world, at, owner=owner)
        else:
            found[op.symbol] = record(op, layout, world, at, owner=False, source=str(op.attrs["of"]))
    return found


def groups_in_use(module: Module, world: World) -> dict[str, list[list[int]]]:
    """The groups that some function of some stage names, in mesh order."""
    used = {name for func in module.funcs.values() for op in func.ops for name in _groups_of(op)}
    subsets = (axes for n in range(1, len(world.mesh) + 1) for axes in combinations(world.mesh, n))
    return {"_".join(axes): world.groups(axes) for axes in subsets if frozenset(axes) in used}


def _groups_of(op: Op) -> Iterable[frozenset[str]]:
    group = op.attrs.get("group")
    if group is not None:
        yield frozenset(str(group).split("_"))
    offsets = [a["axes"] for a in op.attrs.values() if isinstance(a, Struct) and a.name == "offset"]
    for axes in [op.attrs.get("axes"), *offsets]:
        if isinstance(axes, (list, tuple)):
            yield frozenset(map(str, axes))


@dataclass
class Common:
    """What the files of many ranks share.  stages: per stage its buffers, constants, and the lines of its schedule."""

    groups: list[str]
    members: str
    stages: list[tuple[list[Op], list[Op], list[str]]]

    @classmethod
    def of(cls, module: Module, world: World) -> Common:
        members = literal([[*range(s * world.per_stage, (s + 1) * world.per_stage)] for s in range(world.stages)])
        stages = [_stage(module, stage) for stage in range(world.stages)]
        return cls(_table("GROUPS", groups_in_use(module, world)), members, stages)


def _stage(module: Module, stage: int) -> tuple[list[Op], list[Op], list[str]]:
    constants = _named(module, "plan.constant", _in_roles(module, stage, "constant:"))
    buffers = _named(module, "plan.buffer", _in_roles(module, stage, "buffer:"))
    schedule = module.find("sched.stage", f"stage_{stage}")
    if schedule is None:
        raise ValueError(f"the module has no schedule of stage {stage}")
    table = schedule.attrs["table"]
    assert isinstance(table, (list, tuple))
    return buffers, constants, [f"    {literal(_entry(entry))}," for entry in table]


def write_rank(module: Module, world: World, rank: int, fingerprint: str, common: Common | None = None) -> str:
    """common: made once for all ranks."""
    stage, at = world.stage_of(rank), world.coordinates(rank)
    common = common if common is not None else Common.of(module, world)
    buffers, constants, schedule = common.stages[stage]
    lines = [
        f'"""Rank {rank} of {world.size}: stage {stage}.  Written by uniap-compiler."""',
        "",
        f"from ..stages import stage_{stage} as stage",
        "",
        '__all__ = ["stage"]',
        "",
        fingerprint_line(fingerprint),
        f"RANK = {rank}",
        f"STAGE = {stage}",
        f"COORDINATES = {literal(at)}",
        f"MESH = {literal(world.mesh)}",
        *common.groups,
        f"STAGES = {common.members}",
        *_table("PARAMETERS", parameters_of(module, world, rank)),
        *_table("BUFFERS", {str(op.symbol): record(op, layout_of(op, "layout"), world, at) for op in buffers}),
        *_table("CONSTANTS", {str(op.symbol): record(op, layout_of(op, "layout"), world, at) for op in constants}),
        "SCHEDULE = [",
        *schedule,
        "]",
    ]
    return "\n".join(lines) + "\n"


def fingerprint_line(fingerprint: str) -> str:
    return f"FINGERPRINT = {string(fingerprint)}"


def _entry(entry: object) -> list[object]:
    """["recv", "h4", 0]; the words of the table may be atoms."""
    assert isinstance(entry, (list, tuple))
    return [str(x) if isinstance(x, str) else x for x in entry]


def _table(name: str, rows: dict[str, Any]) -> list[str]:
    if not rows:
        return [f"{name} = {{}}"]
    return [f"{name} = {{", *(f"    {string(key)}: {literal(row)}," for key, row in rows.items()), "}"]


def _in_roles(module: Module, stage: int, prefix: str) -> set[str]:
    """Names that the segments of a stage take or return under a role."""
    found: set[str] = set()
    for func in segments_of(module, stage).values():
        for roles in (func.attrs["args"], func.attrs["results"]):
            assert isinstance(roles, (list, tuple))
            found.update(str(r).removeprefix(prefix) for r in roles if str(r).startswith(prefix))
    return found


def _named(module: Module, kind: str, names: set[str]) -> list[Op]:
    ops = [op for op in module.ops if op.name == kind and op.symbol in names]
    missing = names - {str(op.symbol) for op in ops}
    if missing:
        raise ValueError(f"the module has no {kind} @{sorted(missing)[0]}")
    return ops


def shape_of(op: Op, *, padded: bool = True) -> list[int]:
    """Of the full tensor, as ranks share it; without padding as the model knows it."""
    shape = op.attrs["shape"] if padded else op.attrs.get("unpadded", op.attrs["shape"])
    assert isinstance(shape, (list, tuple))
    return [int(str(size)) for size in shape]


def layout_of(op: Op, key: str) -> Layout | None:
    layout = op.attrs.get(key)
    assert layout is None or isinstance(layout, Layout)
    return layout


def torch_name(name: object) -> str:
    """f32 -> float32"""
    return dtype(str(name)).removeprefix("torch.")
