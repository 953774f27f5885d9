"""torch's schemas as op specs, for the verifier of the IR (which does not import torch).

aten.add.Tensor(Tensor self, Tensor other, *, Scalar alpha=1) -> Tensor          2 operands, 1 result
aten.mul.Tensor(%x) {other = 2.0}                                                1 operand: a number is an attribute
"""

from __future__ import annotations

from uniap_compiler.ir import Op
from uniap_compiler.ir.ops import OpSpec

from .schema import arguments, overload_of


def spec_of(op: Op) -> OpSpec | None:
    """None for what torch does not know."""
    if op.name.startswith("nn."):
        return None
    try:
        overload = overload_of(op.name, op.attrs)
    except KeyError:
        return None
    tensors = [default for name, is_tensor, _, _, default in arguments(overload) if is_tensor and name not in op.attrs]
    required = sum(default is ... for default in tensors)
    returns = [str(r.type) for r in overload._schema.returns]
    return OpSpec((required, len(tensors)), len(returns) if all(r == "Tensor" for r in returns) else None)
