"""Pass canonicalize: one spelling for what can be said in several ways.

    %a = aten.view(%x) {size = [-1, 256]}                 ->  {size = [128*B, 256]}: sizes are those of the type
    %b = aten.view(%a) {..}; %a read by nobody else       ->  one view of %x
    %s = aten.sum.dim_IntList(%x) {dim = [0], keepdim = true}; %v = aten.view(%s) {size = [128]}
                                                          ->  %v = aten.sum.dim_IntList(%x) {dim = [0]}
    %v = aten.view(%x) of the same shape, x ** 1, ...     ->  %x
    %r = aten.index.Tensor(%x, [%arange, %i])             ->  aten.gather(%x, %i): row b of the batch is row b
    %d = aten.detach(%x) where nothing has a gradient     ->  %x
    the matrices of chosen experts, gathered              ->  nn.experts (fuse_experts.py)

Runs at any level below `annotated`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from uniap_compiler.bridge.identities import VIEWS, same_value
from uniap_compiler.ir import Affine, Attr, Dim, Func, Loc, Module, Namer, Op, TensorType, Value, users
from uniap_compiler.ir.core import Operand

from .dce import remove_dead_ops
from .fuse_experts import fuse_experts

RESHAPES = frozenset({"aten.view", "aten._unsafe_view", "aten.reshape"})


@dataclass(frozen=True)
class Canonicalize:
    name: ClassVar[str] = "canonicalize"
    requires: ClassVar[tuple[str, ...]] = ("captured", "layered", "differentiated")
    ensures: ClassVar[str | None] = None

    def run(self, module: Module, session: Any) -> str:
        # what a forward func saves is named by its backward: its ops were simplified before it was differentiated
        funcs = [f for f in module.funcs.values() if f.attrs.get("kind") != "forward"]
        return f"{sum(map(canonicalize, funcs))} ops simplified"


def canonicalize(func: Func) -> int:
    """Returns how many ops went or changed."""
    before = len(func.ops)
    changed = _explicit_sizes(func) + _gather_rows(func)
    replaced: dict[Value, Value] = {}

    def current(v: Value) -> Value:
        while v in replaced:
            v = replaced[v]
        return v

    producer: dict[Value, Op] = {}
    readers = {v: len(ops) for v, ops in users(func).items()}
    active = _active(func)
    kept: list[Op] = []
    for op in func.ops:
        op.replace_operands(current)
        same = same_value(op)
        if (
            same is None
            and op.name == "aten.detach"
            and isinstance(op.operands[0], Value)
            and op.operands[0] not in active
        ):
            same = op.operands[0]
        if same is not None:
            replaced[op.results[0]] = same
            continue
        changed += _merge_with_producer(op, producer, readers)
        producer.update((r, op) for r in op.results)
        kept.append(op)
    func.ops = kept
    func.returns = [current(v) if v is not None else None for v in func.returns]
    changed += fuse_experts(func)
    remove_dead_ops(func)
    return changed + before - len(func.ops)


def _active(func: Func) -> set[Value]:
    """Values that depend on something with a gradient."""
    active = {p for p in func.params if p.attrs.get("grad") is True or p.attrs.get("role") in ("tangent", "saved")}
    for op in func.ops:
        if any(v in active for v in op.flat_operands()):
            active.update(op.results)
    return active


def _explicit_sizes(func: Func) -> int:
    changed = 0
    for op in func.ops:
        if op.name in VIEWS and list(op.results[0].type.shape) != op.attrs.get("size", op.attrs.get("shape")):
            op.attrs["shape" if op.name == "aten.reshape" else "size"] = list(op.results[0].type.shape)
            changed += 1
    return changed


def _gather_rows(func: Func) -> int:
    """x[arange(B), i], one place of every row of the batch: said so that the batch need not be whole.

    An index may count from the end, which gather does not understand.
    """
    namer, changed, ops = Namer(func), 0, list[Op]()
    counts = {op.results[0] for op in func.ops if op.name.startswith("aten.arange") and _counts_from_zero(op)}
    for op in func.ops:
        table, indices = op.operands[:2] if op.name == "aten.index.Tensor" else (None, None)
        if not isinstance(table, Value) or not isinstance(indices, list) or len(indices) != 2:
            ops.append(op)
            continue
        row, place = indices
        batch, *rest = table.type.shape
        if row not in counts or place is None or not (row.type.shape == place.type.shape == (batch,)):
            ops.append(op)
            continue

        def add(
            name: str, operands: list[Operand], shape: tuple[Dim, ...], dtype: str, loc: Loc | None, **attrs: Attr
        ) -> Value:
            made = Value(namer(name.split(".")[1]), TensorType(shape, dtype))
            ops.append(Op(name, operands, [made], attrs, loc=loc))
            return made

        length, *others = rest
        i64, dtype, loc = place.type.dtype, table.type.dtype, op.loc
        at = add("aten.remainder.Scalar", [place], (batch,), i64, loc, other=length)
        flat = (batch, *[1] * len(rest))
        at = add("aten.view", [at], flat, i64, loc, size=[*flat])
        wide = (batch, 1, *others)
        at = add("aten.expand", [at], wide, i64, loc, size=[*wide])
        picked = add("aten.gather", [table, at], wide, dtype, loc, dim=1)
        ops.append(Op("aten.view", [picked], op.results, {"size": [batch, *others]}, loc=loc))
        changed += 1
    func.ops = ops
    return changed


def _counts_from_zero(op: Op) -> bool:
    """arange of the batch: 0, 1, ..., B - 1."""
    size = op.results[0].type.shape[0]
    return isinstance(size, Affine) and op.attrs.get("start", 0) == 0 and op.attrs.get("step", 1) == 1


def _merge_with_producer(op: Op, producer: dict[Value, Op], readers: dict[Value, int]) -> int:
    x = op.operands[0] if op.operands else None
    if op.name not in ("aten.view", "aten._unsafe_view") or not isinstance(x, Value) or x not in producer:
        return 0
    source = producer[x]
    if source.name == "aten.view":
        op.operands[0] = source.operands[0]
        return 1
    if source.name == "aten.sum.dim_IntList" and source.attrs.get("keepdim") and readers.get(x) == 1:
        dims = source.attrs["dim"]
        rank = len(x.type.shape)
        gone = {d % rank for d in dims if isinstance(d, int)} if isinstance(dims, list) else set()
        if tuple(d for i, d in enumerate(x.type.shape) if i not in gone) == op.results[0].type.shape:
            op.name, op.operands = source.name, list(source.operands)
            op.attrs = {k: a for k, a in source.attrs.items() if k != "keepdim"}
            return 1
    return 0
