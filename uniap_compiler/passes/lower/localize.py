"""localize: what one device does.  Global types with layouts become local shapes; axes become process groups.

    %h = nn.contract(%x, %w) {...} : tensor<Bx512x1024xf32> @[a, _, b]
    %h_1 = comm.all_reduce(%h) {axes = ["b"], op = "sum"} ...
    ->
    %h = nn.contract(%x, %w) {...} : tensor<4x512x512xf32>
    %h_1 = comm.all_reduce(%h) {group = "b", op = "sum"}

The batch is evaluated at the micro-batch size; integers that are sizes of a result become local sizes (`local_ops.py`),
all others keep the micro-batch's value: a mean divides by the whole micro-batch's count on every device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from uniap_compiler.ir import Affine, Attr, Attrs, Diagnostic, Func, Layout, Module, Op, Struct, TensorType, Value

from .local_ops import localize_op
from .mesh import group_name, stage_mesh
from .reshard import outer_blocks

if TYPE_CHECKING:
    from uniap_compiler.passes.manager import Session


@dataclass(frozen=True)
class Localize:
    name: ClassVar[str] = "localize"
    requires: ClassVar[str] = "staged"
    ensures: ClassVar[str] = "local"

    def run(self, module: Module, session: Session) -> str:
        mesh = stage_mesh(module)
        info = module.find("plan.plan")
        assert info is not None
        micro_batch = int(module.attrs["global_batch"]) // int(info.attrs["micro_batches"])  # type: ignore[arg-type]
        for func in module.funcs.values():
            localize_func(func, mesh, micro_batch)
        for op in module.ops:
            if op.name in ("plan.input", "plan.buffer", "plan.parameter"):
                op.attrs = {key: evaluate(value, micro_batch) for key, value in op.attrs.items()}
        return f"micro-batch of {micro_batch}"


def localize_func(func: Func, mesh: dict[str, int], micro_batch: int) -> None:
    local: dict[Value, TensorType] = {}
    for value in func.values():
        layout = value.type.layout or Layout.replicated(len(value.type.shape))
        try:
            shape = layout.local_shape(value.type.shape, mesh, micro_batch)
        except ValueError as error:
            message = f"%{value.name} of @{func.name} does not fit its layout {layout}: {error}"
            raise Diagnostic(message, func=func) from None
        local[value] = TensorType(shape, value.type.dtype)
    for op in func.ops:
        if op.name.startswith("comm."):
            op.attrs = _comm_attrs(op, local, mesh, micro_batch)
        elif op.name != "plan.call":
            op.attrs = _compute_attrs(op, local, mesh, micro_batch)
    for value in func.values():
        value.type = local[value]


def evaluate(attr: Attr, batch: int) -> Attr:
    """Affine integers inside an attribute, evaluated."""
    if isinstance(attr, Affine):
        return attr.at(batch)
    if isinstance(attr, (list, tuple)):
        return [evaluate(item, batch) for item in attr]
    return attr


def _compute_attrs(op: Op, local: dict[Value, TensorType], mesh: dict[str, int], batch: int) -> Attrs:
    split = op.attrs.get("split")
    factors = {k: str(v) for k, v in split.fields} if isinstance(split, Struct) else {}
    op.attrs = {k: v if k in ("rule", "split") else evaluate(v, batch) for k, v in op.attrs.items()}
    operands = [local[v] if v is not None else None for v in op.flat_operands()]
    name, attrs = localize_op(op, operands, [local[r] for r in op.results], factors, mesh)
    op.name = name
    return {k: v for k, v in attrs.items() if k not in ("rule", "split")}


def _comm_attrs(op: Op, local: dict[Value, TensorType], mesh: dict[str, int], batch: int) -> Attrs:
    replaced = ("axes", "outer", "split_outer", "concat_outer")
    attrs = {k: evaluate(v, batch) for k, v in op.attrs.items() if k not in replaced}
    axes = op.attrs.get("axes")
    if axes is None:  # send, recv
        if op.name == "comm.recv":
            attrs["shape"], attrs["dtype"] = list(local[op.results[0]].shape), op.results[0].type.dtype
        return attrs
    assert isinstance(axes, (list, tuple))
    names = [str(a) for a in axes]
    attrs["group"] = group_name(names, mesh)
    operand = next(v for v in op.flat_operands() if v is not None)
    before, after = operand.type.layout, op.results[0].type.layout
    assert before is not None and after is not None
    for key, outer, layout in (
        ("dim", "outer", after if op.name in ("comm.slice", "comm.reduce_scatter") else before),
        ("split_dim", "split_outer", after),
        ("concat_dim", "concat_outer", before),
    ):
        if key in attrs:
            blocks = outer_blocks(layout, int(attrs[key]), names, mesh, batch)  # type: ignore[arg-type]
            if blocks != 1:
                attrs[outer] = blocks
    return attrs
