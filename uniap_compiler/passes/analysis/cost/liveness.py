"""How many bytes a func holds at its worst moment, beside what its caller holds anyway.

    %a = aten.exp(%x)            live: a
    %v = aten.view(%a)           live: a (the view has no memory of its own)
    %s = aten.sum(%v)            live: a, s       <- peak; a dies here
    return %s

The generated functions delete every name at its last use, so this is what they do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from uniap_compiler.ir import ALIASING_OPS, Func, Value

from .op_cost import Size, local_bytes, local_dims, scratch_bytes

_ALIASES = ALIASING_OPS | {"comm.slice", "comm.wait"}


def storage(func: Func) -> dict[Value, Value]:
    """value -> the value whose memory it shares (itself unless it is a view)."""
    base: dict[Value, Value] = {p: p for p in func.params}
    for op in func.ops:
        source = next((v for v in op.flat_operands() if v is not None), None) if op.name in _ALIASES else None
        for result in op.results:
            base[result] = base[source] if source is not None else result
    return base


def peak_bytes(
    func: Func, sizes: Mapping[str, int], batch: Size, elsewhere: Collection[Value], kind: str = "cpu"
) -> Size:
    """The largest sum of live bytes.  elsewhere: values that are counted somewhere else.  kind: of device.

    Parameters of the func and returned values live until its end: the caller holds them.
    """
    base = storage(func)
    held = {base[v] for v in elsewhere}
    end = len(func.ops)
    last: dict[Value, int] = dict.fromkeys((base[p] for p in func.params), end)
    for n, op in enumerate(func.ops):
        for value in (*op.flat_operands(), *op.results):
            if value is not None:
                last[base[value]] = max(last.get(base[value], 0), n)
    for returned in func.returns:
        if returned is not None:
            last[base[returned]] = end
    dying: dict[int, list[Value]] = {}
    for value, n in last.items():
        dying.setdefault(n, []).append(value)

    def bytes_of(value: Value) -> Size:
        return local_bytes(value.type, sizes, batch)

    live: Size = 0.0
    for p in func.params:
        if p not in held:
            live = live + bytes_of(p)
    peak = live
    for n, op in enumerate(func.ops):
        for result in op.results:
            if base[result] is result and result not in held:
                live = live + bytes_of(result)
        dims = [local_dims(v.type, sizes, batch) if v is not None else None for v in op.flat_operands()]
        peak = np.maximum(peak, live + scratch_bytes(op, dims, kind))
        for value in dying.get(n, ()):
            if value not in held:
                live = live - bytes_of(value)
    return peak
