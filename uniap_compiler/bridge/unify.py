"""Two recordings of one function, at two batch sizes, as one func for a symbolic batch.

    at B=5:  %e = aten.view(%x) {size = [320, 4]}  : tensor<320x4xf32>
    at B=7:  %e = aten.view(%x) {size = [448, 4]}  : tensor<448x4xf32>
    both:    %e = aten.view(%x) {size = [64*B, 4]} : tensor<64*Bx4xf32>

The recordings must agree op by op; integers that differ become `coef * B + offset`, and a float that differs becomes
the same or the inverse of one.
"""

from __future__ import annotations

from typing import Any

from uniap_compiler.ir import Affine, Func, Op, TensorType, Value, affine

BATCHES = (5, 7)
"""The two batch sizes: no powers of two, and neither divides the other."""
THIRD = 11
"""A third one, at which shapes are checked: two points fit any line."""


class Mismatch(Exception):
    """The recordings differ in more than numbers; `op` is where."""

    def __init__(self, message: str, op: Op | None = None) -> None:
        super().__init__(message)
        self.op = op


def unify_number(x: Any, y: Any, batches: tuple[int, int] = BATCHES) -> Any:
    """One number that is x at the first and y at the second batch size."""
    if isinstance(x, bool) or isinstance(y, bool):
        raise Mismatch(f"{x} at batch {batches[0]}, {y} at batch {batches[1]}")
    step = batches[1] - batches[0]
    for invert in (False, True):
        if invert and (isinstance(x, int) or x == 0 or y == 0):
            break
        u, v = (1.0 / x, 1.0 / y) if invert else (x, y)
        iu, iv = round(u), round(v)
        if abs(u - iu) > 1e-9 * max(1.0, abs(u)) or abs(v - iv) > 1e-9 * max(1.0, abs(v)) or (iv - iu) % step:
            continue
        coef = (iv - iu) // step
        offset = iu - coef * batches[0]
        return Affine(coef, offset, inverse=True) if invert else affine(coef, offset)
    raise Mismatch(
        f"{x} at batch {batches[0]} and {y} at batch {batches[1]} is no multiple of the batch plus a constant"
    )


def unify_attr(x: Any, y: Any) -> Any:
    if type(x) is type(y) and x == y:
        return x
    if isinstance(x, float) and isinstance(y, float) and x != x and y != y:
        return x
    if isinstance(x, (list, tuple)) and isinstance(y, (list, tuple)):
        if len(x) != len(y):
            raise Mismatch(f"{len(x)} elements at batch {BATCHES[0]}, {len(y)} at batch {BATCHES[1]}")
        return [unify_attr(a, b) for a, b in zip(x, y)]
    if isinstance(x, (int, float)) and isinstance(y, (int, float)):
        return unify_number(x, y)
    raise Mismatch(f"{x!r} at batch {BATCHES[0]}, {y!r} at batch {BATCHES[1]}")


def unify_type(x: TensorType, y: TensorType) -> TensorType:
    if x.dtype != y.dtype or len(x.shape) != len(y.shape):
        raise Mismatch(f"{x} at batch {BATCHES[0]}, {y} at batch {BATCHES[1]}")
    return TensorType(tuple(a if a == b else unify_number(a, b) for a, b in zip(x.shape, y.shape)), x.dtype)


def unify(first: Func, second: Func) -> Func:
    """The symbolic func.  Names and attributes of params are the first recording's.  Raises Mismatch."""
    if len(first.params) != len(second.params) or len(first.ops) != len(second.ops):
        raise Mismatch(
            f"{len(first.ops)} ops at batch {BATCHES[0]}, {len(second.ops)} at batch {BATCHES[1]}",
            _first_difference(first, second),
        )
    new: dict[Value, Value] = {}
    twin: dict[Value, Value] = {}

    def fresh(x: Value, y: Value) -> Value:
        new[x] = Value(x.name, unify_type(x.type, y.type), dict(x.attrs))
        twin[y] = x
        return new[x]

    params = [fresh(x, y) for x, y in zip(first.params, second.params)]
    ops = []
    for a, b in zip(first.ops, second.ops):
        flat_b = [twin[v] if v is not None else None for v in b.flat_operands()]
        if a.name != b.name or a.symbol != b.symbol or a.flat_operands() != flat_b or a.attrs.keys() != b.attrs.keys():
            raise Mismatch(f"{a.name} at batch {BATCHES[0]}, {b.name} at batch {BATCHES[1]}", a)
        try:
            op = Op(
                a.name,
                a.operands,
                [fresh(x, y) for x, y in zip(a.results, b.results, strict=True)],
                {k: unify_attr(v, b.attrs[k]) for k, v in a.attrs.items()},
                a.symbol,
                a.loc,
            )
        except Mismatch as error:
            raise Mismatch(str(error), a) from None
        op.replace_operands(new.__getitem__)
        ops.append(op)
    if [twin[v] if v is not None else None for v in second.returns] != first.returns:
        raise Mismatch("other results are returned")
    return Func(first.name, params, ops, [new[v] if v is not None else None for v in first.returns], dict(first.attrs))


def _first_difference(first: Func, second: Func) -> Op | None:
    return next((a for a, b in zip(first.ops, second.ops) if a.name != b.name), first.ops[-1] if first.ops else None)
