"""Reductions over dims.  Means, variances and norms are not sums of what the devices see: their dims stay whole here
(capture writes means and variances as sums and divisions by the global count, which do split).
"""

from __future__ import annotations

from uniap_compiler.ir import Op, Rule

from .pointwise import pointwise
from .spell import Groups, make_rule, shape_of
from .table import packet, rule

KIND = {
    "aten.sum": "sum",
    "aten.count_nonzero": "sum",
    "aten.amax": "max",
    "aten.max": "max",
    "aten.mean": "keep",
    "aten.amin": "keep",
    "aten.min": "keep",
    "aten.argmax": "keep",
    "aten.argmin": "keep",
    "aten.var": "keep",
    "aten.var_mean": "keep",
    "aten.std": "keep",
    "aten.prod": "keep",
    "aten.any": "keep",
    "aten.all": "keep",
    "aten.logsumexp": "keep",
    "aten.linalg_vector_norm": "keep",
    "aten.aminmax": "keep",
}
SELECTING = ("aten.max.dim", "aten.min.dim", "aten.median.dim", "aten.nanmedian.dim", "aten.mode", "aten.kthvalue")
LINEAR = ("aten.sum", "aten.mean")


def reduced_dims(op: Op) -> list[int]:
    """The dims that a reduction is over: attribute `dim` (an int, a list, or none for all)."""
    rank = len(shape_of(op, 0))
    dim = op.attrs.get("dim", -1 if op.name in ("aten.mode", "aten.kthvalue") else None)
    if dim is None or dim == [] or dim == ():
        return list(range(rank))
    dims = [d for d in (dim if isinstance(dim, (list, tuple)) else [dim]) if isinstance(d, int)]
    return sorted(d % rank for d in dims) if rank else []


@rule(*KIND, *SELECTING)
def reduction(op: Op) -> Rule:
    if len(op.flat_operands()) > 1:  # aten.max.other, aten.min.other
        return pointwise(op)
    name = packet(op.name)
    over = reduced_dims(op)
    whole: Groups = [(f"d{i}",) for i in range(len(shape_of(op, 0)))]
    left: Groups = [() if i in over else g for i, g in enumerate(whole)]
    if not op.attrs.get("keepdim"):
        left = [g for i, g in enumerate(left) if i not in over]
    # Those that also return positions need the dim whole: a position means nothing in a part of it.
    kind = "keep" if len(op.results) > 1 else KIND[name]
    factors = [f"d{i}" for i in over]
    return make_rule(
        op,
        [whole],
        [left for _ in op.results],
        {},
        reduce=dict.fromkeys(factors, kind) if kind != "keep" else {},
        keep=factors if kind == "keep" else (),
        linear=[(0,)] if name in LINEAR else [],
    )


@rule("aten.cumsum", "aten.cumprod", "aten.logcumsumexp", "aten.cummax", "aten.cummin", "aten.sort", "aten.topk")
def along(op: Op) -> Rule:
    """Results of the same rank; the dim is needed whole, and may change its length."""
    rank = len(shape_of(op, 0))
    dim = op.attrs.get("dim", -1)
    assert isinstance(dim, int)
    whole: Groups = [(f"d{i}",) for i in range(rank)]
    kept: Groups = [("n",) if rank and i == dim % rank else g for i, g in enumerate(whole)]
    linear = [(0,)] if packet(op.name) == "aten.cumsum" else []
    keep = ("n", f"d{dim % rank}") if rank else ()
    return make_rule(op, [whole], [kept for _ in op.results], {}, keep=keep, linear=linear)
