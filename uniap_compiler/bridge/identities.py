"""Ops that give back what they read.

%v = aten.view(%x) {size = [B, 64]} : tensor<Bx64xf32>        where %x has that shape already
%s = aten.slice.Tensor(%x) {end = 9223372036854775807}        the whole dim
"""

from __future__ import annotations

from uniap_compiler.ir import Affine, Op, Value

VIEWS = frozenset({"aten.view", "aten._unsafe_view", "aten.reshape", "aten.expand"})
"""They only change the shape: without effect where it stays."""
_ALWAYS = frozenset({"aten.alias", "aten.lift_fresh_copy", "aten.lift_fresh"})


def same_value(op: Op) -> Value | None:
    """The operand that the op's only result equals, in value, shape and dtype; None when it computes something."""
    x = op.operands[0] if op.operands else None
    if op.name == "aten.cat" and isinstance(x, list):
        full = [v for v in x if v.type.shape != (0,)]  # what a cache of keys begins with; torch leaves it out, too
        x = full[0] if len(full) == 1 else None
    if not isinstance(x, Value) or len(op.results) != 1 or op.results[0].type != x.type:
        return None
    if op.name in VIEWS or op.name in _ALWAYS or op.name == "aten.cat":
        return x
    if op.name == "aten.clone":
        return x if op.attrs.get("memory_format") in (None, "preserve_format") else None
    if op.name == "aten._to_copy":
        return x if op.attrs.keys() <= {"dtype", "non_blocking"} else None
    if op.name == "aten.slice.Tensor":
        return x if op.attrs.get("step", 1) == 1 else None  # the sizes agree, so it is the whole dim
    if op.name == "aten.pow.Tensor_Scalar":
        return x if op.attrs["exponent"] == 1 else None
    if op.name in ("aten.permute", "aten.transpose.int", "aten.movedim.int"):
        return x if _keeps_order(op, len(x.type.shape)) else None
    return None


def _keeps_order(op: Op, rank: int) -> bool:
    if op.name == "aten.permute":
        dims = op.attrs["dims"]
        return isinstance(dims, list) and [d % rank if isinstance(d, int) else d for d in dims] == list(range(rank))
    keys = ("dim0", "dim1") if op.name == "aten.transpose.int" else ("source", "destination")
    a, b = (op.attrs[k] for k in keys)
    assert not isinstance(a, Affine)
    return rank == 0 or (isinstance(a, int) and isinstance(b, int) and a % rank == b % rank)


__all__ = ["VIEWS", "same_value"]
