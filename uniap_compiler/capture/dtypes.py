"""Results never depend on torch's default dtype at run time: what it decided at capture is written down.

%c = aten.cos(%i) : tensor<6xf64>            where %i is tensor<6xi64> and the default was float64
  ->  %f = aten._to_copy(%i) {dtype = f64};  %c = aten.cos(%f)
%z = aten.full {size = [8], fill_value = 0.5} : tensor<8xf64>   ->   the same with dtype = f64
"""

from __future__ import annotations

from uniap_compiler.bridge.schema import arguments, overload_of
from uniap_compiler.ir import Atom, Func, Namer, Op, TensorType, Value

FLOATS = frozenset({"f64", "f32", "bf16", "f16"})


def explicit_dtypes(func: Func) -> None:
    """Add casts and dtype attributes in place."""
    namer = Namer(func)
    ops: list[Op] = []
    for op in func.ops:
        result = next((r.type.dtype for r in op.results if r.type.dtype in FLOATS), None)
        operands = [v for v in op.flat_operands() if v is not None]
        if result is not None and "dtype" not in op.attrs and all(v.type.dtype not in FLOATS for v in operands):
            if not operands:
                if any(name == "dtype" for name, *_ in arguments(overload_of(op.name, op.attrs))):
                    op.attrs["dtype"] = Atom(result)
            else:
                first = operands[0]
                cast = Value(namer(f"{first.name}.float"), TensorType(first.type.shape, result))
                ops.append(Op("aten._to_copy", [first], [cast], {"dtype": Atom(result)}, loc=op.loc))
                op.replace_operands(lambda v, first=first, cast=cast: cast if v is first else v)  # type: ignore[misc]
        ops.append(op)
    func.ops = ops
