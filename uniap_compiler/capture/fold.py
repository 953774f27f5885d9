"""Values that depend on nothing but constants are computed once, at compile time.

    %arange = aten.arange {end = 128};  %outer = nn.contract(%arange, %inv_freq);  %cos = aten.cos(%outer)
      ->  func param %cos: tensor<128x16xf32> {role = "constant", digest = "..."}   and its data in the ConstantStore

A table that its dtype rounds is computed in float64 as well, and stored beside as `cos@f64`: that is what the constant
is when the plan is lowered again in float64 (promote-dtype).  Buffers that forward never changes count as constants;
one that went into another constant is marked `folded`: a checkpoint with other values does not fit the programme.  A
single factory op (`aten.full`, `aten.arange`) stays as it is: it is easier to read than data.  An attention mask that
says no more than "look back only" becomes `causal = true`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from uniap_compiler.bridge.identities import same_value
from uniap_compiler.bridge.interpret import operand_values, run_op
from uniap_compiler.bridge.schema import dtype_name, type_of
from uniap_compiler.ir import Affine, Atom, ConstantStore, Func, Op, Value

from .dtypes import FLOATS
from .fake import is_fake

LARGEST = 1 << 24
"""Elements; a larger table is computed by the programme."""


WIDE = "@f64"
"""Behind the name of a constant: its values before rounding."""


def fold_constants(func: Func, constants: dict[str, Tensor], model: nn.Module) -> None:
    """Fold in place; `constants` (by param name) gains the new ones."""
    mutated = {str(k).removeprefix("buffer:") for k in func.attrs["results"] if str(k).startswith("buffer:")}  # type: ignore[union-attr]
    buffers = dict(model.named_buffers(remove_duplicate=False))
    env: dict[Value, Any] = {}
    wide: dict[Value, Any] = {}
    for p in func.params:
        if p.attrs["role"] == "constant":
            env[p] = constants[p.name]
            wide[p] = _double(env[p])
        elif p.attrs["role"] == "buffer" and p.attrs["path"] not in mutated:
            data = buffers.get(str(p.attrs["path"]))
            if data is not None and not is_fake(data):
                env[p] = data
                wide[p] = _double(data)
    known = dict(env)
    folded: list[Op] = []
    single: set[Value] = set()
    for op in func.ops:
        operands = [v for v in op.flat_operands() if v is not None]
        if any(v not in known for v in operands) or _depends_on_batch(op) or _size(op) > LARGEST:
            continue
        with torch.no_grad():
            results = run_op(op, operand_values(op, known))
            known.update(zip(op.results, results, strict=True))
            if any(v.type.dtype in FLOATS for v in (*operands, *op.results)):
                results = run_op(_promoted(op), operand_values(op, wide))
        wide.update(zip(op.results, results, strict=True))
        for v in operands:
            if v.attrs.get("role") == "buffer":
                v.attrs["folded"] = True
        folded.append(op)
        if not operands:
            single.update(op.results)
    inside = set(folded)
    outside = {v for op in func.ops if op not in inside for v in op.flat_operands()} | set(func.returns)
    new: list[Value] = []
    same: dict[Value, Value] = {}
    for op in folded:
        for v in op.results:
            if v in outside and v not in single:
                data = known[v].contiguous()
                # equal tables (each layer's own cos) are one constant, so that the layers stay equal
                exact = wide[v].contiguous()
                twin = next((n for n in new if n.type == v.type and torch.equal(wide[n], exact)), None)
                if twin is not None:
                    same[v] = twin
                    continue
                v.attrs = {"role": "constant"}
                constants[v.name], wide[v] = data, exact
                if exact.is_floating_point() and not torch.equal(data.double(), exact):
                    constants[v.name + WIDE] = exact
                new.append(v)
    for op in func.ops:
        op.replace_operands(lambda v: same.get(v, v))
    func.params.extend(new)
    func.ops = [op for op in func.ops if op not in inside or any(r in single and r in outside for r in op.results)]
    _recognise_causal(func, constants)


def _double(data: Any) -> Any:
    return data.double() if isinstance(data, Tensor) and data.is_floating_point() else data


def _promoted(op: Op) -> Op:
    """The op in float64, dtype attributes included."""
    attrs = {key: Atom("f64") if isinstance(a, Atom) and a in FLOATS else a for key, a in op.attrs.items()}
    return Op(op.name, op.operands, op.results, attrs, op.symbol, op.loc)


def drop_identities(func: Func) -> None:
    """Remove ops that give back what they read, so that `self.cos[:length]` stays the buffer `cos`."""
    replaced: dict[Value, Value] = {}
    kept = []
    for op in func.ops:
        op.replace_operands(lambda v: replaced.get(v, v))
        same = same_value(op)
        if same is None:
            kept.append(op)
        else:
            replaced[op.results[0]] = same
    func.ops = kept
    func.returns = [replaced.get(v, v) if v is not None else None for v in func.returns]


def _depends_on_batch(op: Op) -> bool:
    def depends(attr: Any) -> bool:
        return any(map(depends, attr)) if isinstance(attr, list) else isinstance(attr, Affine)

    return any(map(depends, op.attrs.values())) or any(isinstance(d, Affine) for r in op.results for d in r.type.shape)


def _size(op: Op) -> int:
    total = 0
    for r in op.results:
        n = 1
        for d in r.type.shape:
            n *= d if isinstance(d, int) else 1
        total += n
    return total


def _recognise_causal(func: Func, constants: dict[str, Tensor]) -> None:
    producer = {r: op for op in func.ops for r in op.results}
    for op in func.ops:
        if op.name != "nn.attention" or op.operands[3] is None or op.attrs.get("causal"):
            continue
        mask = op.operands[3]
        while isinstance(mask, Value) and mask in producer and producer[mask].name in ("aten.expand", "aten.unsqueeze"):
            mask = producer[mask].operands[0]  # type: ignore[assignment]
        data = constants.get(mask.name) if isinstance(mask, Value) and mask.attrs.get("role") == "constant" else None
        q, k = op.operands[0], op.operands[1]
        assert isinstance(q, Value) and isinstance(k, Value)
        if data is not None and q.type.shape[-2] == k.type.shape[-2] and _is_causal(data, q.type.shape[-2]):
            op.operands[3] = None
            op.attrs["causal"] = True


def _is_causal(mask: Tensor, length: Any) -> bool:
    if mask.shape[-2:] != (length, length):
        return False
    if mask.dtype == torch.bool:
        keep = mask
    elif bool(((mask == 0) | (mask <= -1e4)).all()):
        keep = mask == 0
    else:
        return False
    return bool((keep == torch.ones(length, length, dtype=torch.bool).tril()).all())


def store_constants(func: Func, constants: dict[str, Tensor], store: ConstantStore) -> list[Op]:
    """Data into the store, digests onto the params that are read; the module's `plan.constant` ops."""
    read = {v for op in func.ops for v in op.flat_operands()} | set(func.returns)
    func.params = [p for p in func.params if p.attrs["role"] != "constant" or p in read]
    ops = []
    for p in func.params:
        if p.attrs["role"] != "constant":
            continue
        data = constants[p.name].detach()
        type_ = type_of(data)
        added = store.add(p.name, _array(data), dtype_name(data.dtype))
        p.attrs["digest"] = added.digest
        if p.name + WIDE in constants:
            store.add(p.name + WIDE, constants[p.name + WIDE].numpy(), "f64")
        ops.append(
            Op(
                "plan.constant",
                symbol=p.name,
                attrs={"digest": added.digest, "shape": list(type_.shape), "dtype": type_.dtype},
            )
        )
    return ops


def _array(data: Tensor) -> np.ndarray[Any, Any]:
    data = data.contiguous()
    return data.view(torch.uint16).numpy() if data.dtype == torch.bfloat16 else data.numpy()
