"""Means and variances as sums and divisions, so that a split dim falls out of the rules.

    %m = aten.mean.dim(%x) {dim = [-1], keepdim = true} : tensor<Bx128x1xf32>
becomes
    %m_sum = aten.sum.dim_IntList(%x) {dim = [-1], keepdim = true} : tensor<Bx128x1xf32>
    %m = aten.div.Scalar(%m_sum) {other = 512} : tensor<Bx128x1xf32>

The divisor is the GLOBAL count (of the micro-batch when it depends on B); on a part of the dim the sum is pending
and the division lets it pass.  This is what torch's own CPU kernel does, so the numbers stay the same.
"""

from __future__ import annotations

from uniap_compiler.ir import Attrs, Dim, Func, Namer, Op, TensorType, Value

from .factors import as_dim, as_int
from .rules.reduction import reduced_dims

MEANS = ("aten.mean", "aten.mean.dim")
VARIANCES = tuple(f"aten.{name}{overload}" for name in ("var", "var_mean") for overload in ("", ".dim", ".correction"))


def decompose_means(func: Func) -> int:
    """Rewrites the means and variances of a func in place; the number of ops that were replaced."""
    namer = Namer(func)
    ops: list[Op] = []
    count = 0
    for op in func.ops:
        if op.name in MEANS:
            ops += _mean(op, namer)
        elif op.name in VARIANCES:
            ops += _variance(op, namer)
        else:
            ops.append(op)
            continue
        count += 1
    func.ops = ops
    return count


def _count(op: Op, source: Value) -> Dim:
    total = 1
    for dim in reduced_dims(op):
        total *= as_int(source.type.shape[dim])
    return as_dim(total)


def _sum(source: Value, result: Value, over: list[int], keepdim: bool, op: Op) -> Op:
    """A sum over `over`, written without `dim` when it is over everything."""
    attrs: Attrs = {"dim": list(over)}
    if keepdim:
        attrs["keepdim"] = True
    if not keepdim and len(over) == len(source.type.shape):
        return Op("aten.sum", [source], [result], {}, loc=op.loc)
    return Op("aten.sum.dim_IntList", [source], [result], attrs, loc=op.loc)


def _mean(op: Op, namer: Namer) -> list[Op]:
    source = op.operands[0]
    assert isinstance(source, Value)
    result = op.results[0]
    ops = []
    if "dtype" in op.attrs:
        cast = Value(namer(f"{result.name}_cast"), TensorType(source.type.shape, result.type.dtype))
        ops.append(Op("aten._to_copy", [source], [cast], {"dtype": op.attrs["dtype"]}, loc=op.loc))
        source = cast
    total = Value(namer(f"{result.name}_sum"), result.type)
    ops.append(_sum(source, total, reduced_dims(op), bool(op.attrs.get("keepdim")), op))
    ops.append(Op("aten.div.Scalar", [total], [result], {"other": _count(op, source)}, loc=op.loc))
    return ops


def _variance(op: Op, namer: Namer) -> list[Op]:
    """var = sum((x - mean)^2) / (n - correction)"""
    source = op.operands[0]
    assert isinstance(source, Value)
    over = reduced_dims(op)
    n = as_int(_count(op, source))
    correction = op.attrs.get("correction")
    if correction is None:
        correction = 1 if op.attrs.get("unbiased", True) else 0
    assert isinstance(correction, (int, float))
    variance = op.results[0]
    dtype = variance.type.dtype
    wide = TensorType(tuple(1 if i in over else d for i, d in enumerate(source.type.shape)), dtype)

    def new(suffix: str, type: TensorType) -> Value:
        return Value(namer(f"{variance.name}_{suffix}"), type)

    total, centre = new("sum", wide), new("mean", wide)
    shifted, squared = new("shifted", source.type), new("squared", source.type)
    spread = new("squares", variance.type)
    keepdim = bool(op.attrs.get("keepdim"))
    ops = [
        _sum(source, total, over, True, op),
        Op("aten.div.Scalar", [total], [centre], {"other": as_dim(n)}, loc=op.loc),
        Op("aten.sub.Tensor", [source, centre], [shifted], {}, loc=op.loc),
        Op("aten.mul.Tensor", [shifted, shifted], [squared], {}, loc=op.loc),
        _sum(squared, spread, over, keepdim, op),
        Op("aten.div.Scalar", [spread], [variance], {"other": as_dim(n - int(correction))}, loc=op.loc),
    ]
    if len(op.results) > 1:
        mean = op.results[1]
        if keepdim:
            ops[1].results = [mean]
            ops[2].operands[1] = mean
        else:
            short = new("total", mean.type)
            ops.append(_sum(source, short, over, False, op))
            ops.append(Op("aten.div.Scalar", [short], [mean], {"other": as_dim(n)}, loc=op.loc))
    return ops
