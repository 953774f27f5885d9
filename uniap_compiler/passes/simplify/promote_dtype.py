"""promote-dtype: the same programme in another precision, casts and constants included.

    promote-dtype{dtype=f64}
    %y = aten._to_copy(%x) {dtype = f32} : tensor<4xf32>    ->    %y = aten._to_copy(%x) {dtype = f64} : tensor<4xf64>

Every floating-point type, dtype attribute and tensor constant becomes that dtype, at any level: what was computed in
float32 inside a bfloat16 model is computed in `dtype` too, as in the reference that it is compared with; in float64 a
table that capture rounded is the unrounded one (`capture/fold.py`).  The log-sum-exp of attention is never less than
float32, as its kernel has it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from uniap_compiler.ir import Atom, Attr, Constant, Module, Op, Value

if TYPE_CHECKING:
    from uniap_compiler.passes.manager import Session

_FLOATS = ("f64", "f32", "bf16", "f16")
_NUMPY = {"f64": np.float64, "f32": np.float32, "f16": np.float16}


@dataclass(frozen=True)
class PromoteDtype:
    name: ClassVar[str] = "promote-dtype"
    requires: ClassVar[tuple[str, ...]] = ()
    ensures: ClassVar[str | None] = None

    dtype: Literal["f64", "f32", "bf16", "f16"] = "f64"

    def run(self, module: Module, session: Session) -> str:
        changed = 0
        log_sums = {op.results[1] for f in module.funcs.values() for op in f.ops if op.name == "nn.attention"}
        for func in module.funcs.values():
            for value in func.values():
                changed += self._value(value, value in log_sums)
            for op in func.ops:
                op.attrs = {key: self._attr(attr) for key, attr in op.attrs.items()}
        for op in module.ops:
            if "dtype" in op.attrs:
                op.attrs["dtype"] = self._attr(op.attrs["dtype"])
        digests = {}
        for op in module.ops:
            if op.name == "plan.constant" and op.symbol in session.constants:
                before = op.attrs.get("digest")
                self._constant(op, session)
                digests[before] = op.attrs["digest"]
        for func in module.funcs.values():
            for param in func.params:
                if param.attrs.get("digest") in digests:
                    param.attrs["digest"] = digests[param.attrs["digest"]]
        if "dtype" in module.attrs:
            module.attrs["dtype"] = self._attr(module.attrs["dtype"])
        return f"{changed} values"

    def _value(self, value: Value, log_sum: bool) -> bool:
        wanted = "f32" if log_sum and self.dtype in ("bf16", "f16") else self.dtype
        if value.type.dtype not in _FLOATS or value.type.dtype == wanted:
            return False
        value.type = replace(value.type, dtype=wanted)
        return True

    def _attr(self, attr: Attr) -> Attr:
        """dtypes are bare words (or, in module-level ops, strings); nothing else is called like one."""
        if isinstance(attr, str) and attr in _FLOATS:
            return Atom(self.dtype) if isinstance(attr, Atom) else self.dtype
        return attr

    def _constant(self, op: Op, session: Session) -> None:
        assert op.symbol is not None
        old, exact = session.constants[op.symbol], f"{op.symbol}@f64"
        if self.dtype == "f64" and exact in session.constants:  # what capture found before it rounded
            session.constants.add(op.symbol, session.constants[exact].array, "f64")
        elif old.dtype in _FLOATS and old.dtype != self.dtype:
            session.constants.add(op.symbol, _from_float(_to_float(old), self.dtype), self.dtype)
        op.attrs["digest"] = session.constants.digest(op.symbol)


def _to_float(constant: Constant) -> Any:
    """bf16 is the upper half of a float32."""
    if constant.dtype == "bf16":
        return (constant.array.astype(np.uint32) << 16).view(np.float32)
    return constant.array


def _from_float(array: Any, dtype: str) -> Any:
    if dtype != "bf16":
        return array.astype(_NUMPY[dtype])
    bits = np.ascontiguousarray(array.astype(np.float32)).reshape(array.shape).view(np.uint32)
    rounded = bits + 0x7FFF + ((bits >> 16) & 1)  # to nearest, ties to even
    return np.where(np.isnan(array), bits >> 16, rounded >> 16).astype(np.uint16)
