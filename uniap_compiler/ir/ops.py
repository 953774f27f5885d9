"""The ops that are ours: how many operands and results, and which attributes they must have.

An aten op's table is torch's own schema, and this package does not import torch: `use_schemas` lets the bridge hand it
in.  Without it (`uniap-opt` on a text) the arity of aten ops is not checked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .core import Op


@dataclass(frozen=True)
class OpSpec:
    """operands, results: how many; a pair is a range, None any number.  attrs: those that must be there."""

    operands: int | tuple[int, int] | None
    results: int | tuple[int, int] | None
    attrs: tuple[str, ...] = ()


OPS: dict[str, OpSpec] = {
    # nn: linear algebra and fused ops on unflattened dims
    "nn.contract": OpSpec(2, 1, ("equation",)),
    "nn.attention": OpSpec((3, 5), 2),
    "nn.attention_backward": OpSpec((6, 8), (3, 4)),
    "nn.sum_exp": OpSpec(2, 1),
    "nn.pick": OpSpec(2, 1),
    "nn.cross_entropy": OpSpec(2, 2),
    "nn.cross_entropy_backward": OpSpec(4, 1),
    "nn.embedding": OpSpec(2, 1),
    "nn.embedding_backward": OpSpec(2, 1, ("num_weights",)),
    "nn.replace_gradient": OpSpec(3, 1),
    "nn.experts": OpSpec((5, 6), (1, 2), ("activation",)),
    "nn.experts_backward": OpSpec((6, 8), (4, 5), ("activation",)),
    # nn: random numbers, functions of a key (docs/random.md); `size` globally, `index` on one device
    "nn.random_key": OpSpec(1, 1, ("site",)),
    "nn.bernoulli": OpSpec(1, 1, ("p",)),
    "nn.uniform": OpSpec(1, 1, ("dtype",)),
    "nn.normal": OpSpec(1, 1, ("dtype",)),
    # comm: collectives along `axes` of the mesh, over a process `group` in local funcs
    "comm.all_reduce": OpSpec(1, 1, ("op",)),
    "comm.reduce_scatter": OpSpec(1, 1, ("dim",)),
    "comm.all_gather": OpSpec(1, 1, ("dim",)),
    "comm.all_to_all": OpSpec(1, 1, ("split_dim", "concat_dim")),
    "comm.slice": OpSpec(1, 1, ("dim",)),
    "comm.first": OpSpec(1, 1, ()),
    "comm.all_reduce_many": OpSpec(1, None, ("op",)),
    "comm.reduce_scatter_many": OpSpec(1, None, ("dims",)),
    "comm.all_gather_many": OpSpec(1, None, ("dims",)),
    "comm.all_gather_start": OpSpec(1, 1, ("dim",)),
    "comm.all_reduce_start": OpSpec(1, 1, ("op",)),
    "comm.reduce_scatter_start": OpSpec(1, 1, ("dim",)),
    "comm.all_reduce_many_start": OpSpec(1, 1, ("op",)),
    "comm.reduce_scatter_many_start": OpSpec(1, 1, ("dims",)),
    "comm.wait": OpSpec(1, None),
}

ALIASING_OPS = frozenset(
    "aten." + name
    for name in (
        "view _unsafe_view reshape t transpose.int permute unsqueeze squeeze squeeze.dim squeeze.dims detach alias "
        "expand select.int slice.Tensor split.Tensor split_with_sizes unbind.int unfold diagonal"
    ).split()
)
"""Ops that move no data: their results share their operand's memory."""

DIALECTS = frozenset({"aten", "nn", "plan", "comm", "mesh", "sched"})
"""First parts of the names of ops that are torch's or ours; all others are namespaces of a user's own ops."""


def is_own(name: str) -> bool:
    """Whether an op is the user's own: `mylib.gate`."""
    return name.partition(".")[0] not in DIALECTS


_schemas: Callable[[Op], OpSpec | None] | None = None


def use_schemas(schemas: Callable[[Op], OpSpec | None]) -> None:
    """From now on ask `schemas` about ops that are not in OPS; None stands for "not known"."""
    global _schemas
    _schemas = schemas


def arity_mistake(op: Op) -> str | None:
    """A sentence, or None when the op has the operands, results and attributes of its table."""
    spec = OPS.get(op.name)
    if spec is None and _schemas is not None:
        spec = _schemas(op)
    if spec is None:
        return None
    for what, count, wanted in (
        ("operands", len(op.operands), spec.operands),
        ("results", len(op.results), spec.results),
    ):
        low, high = wanted if isinstance(wanted, tuple) else (wanted, wanted)
        if low is not None and high is not None and not low <= count <= high:
            return f"{op.name} has {count} {what} and takes {low if low == high else f'{low} to {high}'}"
    missing = [name for name in spec.attrs if name not in op.attrs]
    collective = op.name.startswith("comm.") and op.name != "comm.wait"
    if collective and "group" not in op.attrs and "axes" not in op.attrs:
        missing.append("axes")  # a local func names the process group instead
    return f"{op.name} needs the attribute {missing[0]}" if missing else None
