"""Pass pad-classes: a class dim that does not divide by the devices of a node gets a few rows more.

    %logits = nn.contract(%x, %weight) : tensor<Bx16x50257xf32>
    %loss, %lse = nn.cross_entropy(%logits, %target)
      ->
    %index = aten.arange {end = 50304};  %beyond = aten.ge.Scalar(%index) {other = 50257}        read nothing: @prelude
    %zeros = aten.full {size = [50304], fill_value = 0.0}
    %padding = aten.masked_fill.Scalar(%zeros, %beyond) {value = -inf}
    %logits = nn.contract(%x, %weight) : tensor<Bx16x50304xf32>     %weight: {unpadded = [50257, 1600]}
    %logits_padded = aten.add.Tensor(%logits, %padding)
    %loss, %lse = nn.cross_entropy(%logits_padded, %target)

Rows of the weight (and of its bias) beyond the classes are zeros: their logits are -inf, so their probabilities and
gradients are exactly 0, and neither AdamW nor SGD moves them.  The loss and all other gradients are what they were.
Nothing outside a rank's memory knows of the padding: weights, checkpoints for export and gradients have the model's
shapes (`unpadded`).  A weight may be an embedding's, too; any other reader of the weight or of the logits, and the
dim stays as it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from uniap_compiler.bridge.identities import VIEWS
from uniap_compiler.ir import Atom, Func, Module, Namer, Op, TensorType, Value, users

if TYPE_CHECKING:
    from uniap_compiler.passes.manager import Session

LEAST = 1024
"""Fewer classes than this are not worth splitting."""
DIVISOR, MULTIPLE = 8, 64
"""What does not divide by the first, the devices of most nodes, is padded to the second, which matrix units like."""

_ALIKE = frozenset({"aten._to_copy", "aten.clone", "aten.alias", "aten.detach", "aten.contiguous", *VIEWS})


@dataclass(frozen=True)
class PadClasses:
    name: ClassVar[str] = "pad-classes"
    requires: ClassVar[tuple[str, ...]] = ("captured",)
    ensures: ClassVar[str | None] = None

    least: int = LEAST

    def run(self, module: Module, session: Session) -> str:
        padded = pad_classes(module.funcs["main"], self.least)
        return ", ".join(f"{name} to {size}" for name, size in padded.items()) or "nothing to pad"


@dataclass
class _Head:
    """From a contraction with a weight to the loss.  weights: parameters and casts of them, each with its class dim."""

    contraction: Op
    loss: Op
    values: list[Value] = field(default_factory=list)
    weights: list[tuple[Value, int]] = field(default_factory=list)
    readers: list[Op] = field(default_factory=list)


def pad_classes(func: Func, least: int = LEAST) -> dict[str, int]:
    """Parameter -> its padded size."""
    readers = users(func)
    producer = {r: op for op in func.ops for r in op.results}
    heads = []
    for op in func.ops:
        if op.name == "nn.cross_entropy" and (size := _classes(op)) >= least and size % DIVISOR:
            head = _trace(op, size, producer, readers, func)
            heads += [head] if head is not None else []
    while (kept := [head for head in heads if _closed(head, heads, readers, func)]) != heads:
        heads = kept
    padded: dict[str, int] = {}
    for head in heads:
        size = _classes(head.loss)
        for value, dim in head.weights:
            if value.type.shape[dim] != size:
                continue  # of another head, too
            if value in func.params:
                value.attrs["unpadded"] = list(value.type.shape)
                padded[value.name] = _up(size)
            _resize(value, dim, _up(size))
    namer = Namer(func)
    for head in heads:
        _mask(func, head, namer)
    return padded


def _classes(loss: Op) -> int:
    logits = loss.operands[0]
    assert isinstance(logits, Value)
    size = logits.type.shape[-1]
    return size if isinstance(size, int) else 0


def _up(size: int) -> int:
    return -(-size // MULTIPLE) * MULTIPLE


def _trace(loss: Op, size: int, producer: dict[Value, Op], readers: dict[Value, list[Op]], func: Func) -> _Head | None:
    """Back from the loss: one reader each, the class dim last, until a contraction with a parameter."""
    value, reader = loss.operands[0], loss
    found = _Head(loss, loss)
    while isinstance(value, Value) and readers[value] == [reader] and value not in func.returns and value in producer:
        op = producer[value]
        first = op.operands[0]
        if not isinstance(first, Value) or value.type.shape[-1] != size:
            return None
        found.values.append(value)
        found.readers.append(op)
        if op.name == "nn.contract":
            return _contraction(op, found, producer)
        if op.name == "aten.add.Tensor" and "alpha" not in op.attrs and len(op.operands) == 2:
            bias = op.operands[1]
            if not isinstance(bias, Value) or bias.type.shape != (size,) or not _weight(bias, 0, found, producer):
                return None
        elif op.name == "aten.slice.Tensor":
            if op.attrs.get("dim", 0) in (-1, len(first.type.shape) - 1):
                return None
        elif op.name not in _ALIKE or len(op.results) != 1:
            return None
        if first.type.shape[-1] != size:
            return None
        value, reader = first, op
    return None


def _contraction(op: Op, found: _Head, producer: dict[Value, Op]) -> _Head | None:
    inputs, output = str(op.attrs["equation"]).split("->")
    left, right = (term.split() for term in inputs.split(","))
    classes = output.split()[-1]
    weight = op.operands[1]
    if classes in left or classes not in right or not isinstance(weight, Value):
        return None
    found.contraction = op
    return found if _weight(weight, right.index(classes), found, producer) else None


def _weight(value: Value, dim: int, found: _Head, producer: dict[Value, Op]) -> bool:
    """A parameter, or a cast of one."""
    found.weights.append((value, dim))
    if value.attrs.get("role") == "param":
        return True
    op = producer.get(value)
    if op is None or op.name != "aten._to_copy" or not isinstance(op.operands[0], Value):
        return False
    found.readers.append(op)
    return _weight(op.operands[0], dim, found, producer)


def _closed(head: _Head, heads: list[_Head], readers: dict[Value, list[Op]], func: Func) -> bool:
    """Whether all that reads the weights is one of the heads, or an embedding; and all agree on the dim."""
    known = {id(op) for other in heads for op in other.readers}
    dims = {(id(value), dim) for other in heads for value, dim in other.weights}
    for value, dim in head.weights:
        if value in func.returns or any(other == id(value) and d != dim for other, d in dims):
            return False
        for op in readers[value]:
            embeds = op.name == "nn.embedding" and op.operands[0] is value and dim == 0 and value not in op.operands[1:]
            if id(op) not in known and not embeds:
                return False
    return True


def _resize(value: Value, dim: int, size: int) -> None:
    shape = list(value.type.shape)
    shape[dim] = size
    value.type = replace(value.type, shape=tuple(shape))


def _mask(func: Func, head: _Head, namer: Namer) -> None:
    """The logits' new size, and -inf where no class is."""
    size = _classes(head.loss)
    for value in head.values:
        _resize(value, -1, _up(size))
    for op in head.readers:
        for key in ("size", "shape"):
            sizes = op.attrs.get(key)
            if op.name in VIEWS and isinstance(sizes, list):
                op.attrs[key] = [*sizes[:-1], _up(size)]
    (logits,) = head.contraction.results
    padding, made = _padding(size, logits.type.dtype, namer)
    masked = Value(namer(f"{logits.name}_padded"), logits.type)
    add = Op("aten.add.Tensor", [logits, padding], [masked], loc=head.contraction.loc)
    place = func.ops.index(head.contraction) + 1
    for op in func.ops[place:]:
        op.replace_operands(lambda v: masked if v is logits else v)
    func.ops[place:place] = [*made, add]


def _padding(size: int, dtype: str, namer: Namer) -> tuple[Value, list[Op]]:
    """[padded], 0 for classes and -inf beyond them."""
    shape = (_up(size),)

    def value(name: str, dtype: str) -> Value:
        return Value(namer(name), TensorType(shape, dtype))

    index, beyond, zeros, padding = (
        value(n, d) for n, d in (("index", "i64"), ("beyond", "i1"), ("zeros", dtype), ("padding", dtype))
    )
    return padding, [
        Op("aten.arange", [], [index], {"end": _up(size), "dtype": Atom("i64")}),
        Op("aten.ge.Scalar", [index], [beyond], {"other": size}),
        Op("aten.full", [], [zeros], {"size": list(shape), "fill_value": 0.0, "dtype": Atom(dtype)}),
        Op("aten.masked_fill.Scalar", [zeros, beyond], [padding], {"value": -math.inf}),
    ]
