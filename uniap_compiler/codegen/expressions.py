"""The right-hand side of one op, as a person would write it.

    aten.add.Tensor(%a, %b)                      a + b
    aten.view(%x) {size = [2, 64, 128]}          x.reshape(2, 64, 128)
    aten.silu_backward(%g, %x)                   aten.silu_backward(g, x)
    nn.contract(%x, %w) {equation = "..."}       nn.contract(x, w, equation="b s k, n k -> b s n")
    comm.all_reduce(%h) {group = "a_b"}          comm.all_reduce(h, "a_b")

A nice spelling is used only where it dispatches to the same aten overload with the same arguments; every other op is
called by its aten name, with torch's own schema deciding which argument goes where.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..ir import Atom, Op, Struct, Value
from ..ir.ops import is_own
from ..runtime.kernels import REPLACED
from .names import dtype, literal, string

_WORDS = ("contiguous_format", "preserve_format", "channels_last", "channels_last_3d", "strided")
_END = 2**63 - 1
_DRAWS = ("nn.bernoulli", "nn.uniform", "nn.normal")
"""They make tensors out of a key, which lives on the host."""


@dataclass(frozen=True)
class Call:
    """`head(a, b, c)tail`: kept apart so that a long call can be wrapped between its arguments."""

    head: str
    args: list[str] = field(default_factory=list)
    tail: str = ""

    def __str__(self) -> str:
        return f"{self.head}({', '.join(self.args)}){self.tail}"


@dataclass(frozen=True)
class Scope:
    """What an expression needs to know of the function it stands in: names of values, the order of mesh axes."""

    name: Callable[[Value], str]
    axes: tuple[str, ...]

    def show(self, x: Any) -> str:
        """Source of an operand or attribute."""
        if isinstance(x, Value):
            return self.name(x)
        if isinstance(x, Struct) and x.name == "offset":
            return f"comm.coordinate({self.group(x['axes'])}) * {literal(x['size'])}"
        if isinstance(x, Struct) and x.name == "part":
            return f"({x['size']}, comm.coordinate({self.group(x['axes'])}) * {x['count']}, {x['count']})"
        if isinstance(x, Atom):
            return f"torch.{x}" if x in _WORDS else dtype(x)
        if isinstance(x, (list, tuple)):
            return "[" + ", ".join(map(self.show, x)) + "]"
        return literal(x)

    def group(self, axes: Any) -> str:
        """The name of the group over some axes, in mesh order."""
        unknown = [a for a in axes if a not in self.axes]
        if unknown:
            raise ValueError(f"no mesh axis is called {unknown[0]!r}; the mesh has {', '.join(self.axes)}")
        return string("_".join(a for a in self.axes if a in axes))


class Bound:
    """The arguments of an aten op by schema name; what is not given has the schema's default."""

    def __init__(self, op: Op, scope: Scope) -> None:
        self.op, self.scope = op, scope
        self.schema = schema_of(op)
        self.values = _bind(op, self.schema)

    def __getitem__(self, name: str) -> str:
        return self.scope.show(self.get(name))

    def get(self, name: str) -> Any:
        """The argument itself: a Value, a list, or an attribute."""
        if name in self.values:
            return self.values[name]
        return next(a.default_value for a in self.schema.arguments if a.name == name)

    def only(self, *names: str) -> bool:
        """Nothing but these is given."""
        return all(n in names for n in self.values)


def schema_of(op: Op) -> Any:
    """torch's schema of `aten.add.Tensor`, `aten.relu` (overload default)."""
    dialect, name, *overload = op.name.split(".")
    try:
        return getattr(getattr(getattr(torch.ops, dialect), name), overload[0] if overload else "default")._schema
    except (AttributeError, RuntimeError):
        raise ValueError(f"torch {torch.__version__} has no operator {op.name}") from None


def _bind(op: Op, schema: Any) -> dict[str, Any]:
    """Operands are the schema's tensors in order; everything else, and numbers in a tensor's place, are attrs."""
    operands = list(op.operands)
    values: dict[str, Any] = {}
    for argument in schema.arguments:
        if argument.name in op.attrs:
            values[argument.name] = op.attrs[argument.name]
        elif _takes_tensor(argument) and operands:
            operand = operands.pop(0)
            if operand is not None:
                values[argument.name] = operand
    if operands:
        raise ValueError(f"{op.name} has {len(operands)} operands more than torch's schema: {schema}")
    return values


def expression(op: Op, scope: Scope) -> Call | str:
    """The source of one op; plan.call is written by the function writer, which knows the callee."""
    dialect, name = op.name.split(".", 1)
    if dialect == "aten":
        bound = Bound(op, scope)
        spelled = _SPELLED[op.name](bound) if op.name in _SPELLED else None
        return spelled if spelled is not None else _plain(op, bound)
    if dialect == "nn":
        return _kernel(op, name, scope)
    if dialect == "comm":
        return _collective(op, name, scope)
    if is_own(op.name):
        return _plain(op, Bound(op, scope))
    raise ValueError(f"no way to write {op.name} as Python")


def _plain(op: Op, bound: Bound) -> Call:
    """`aten.name(tensors..., other=...)`: positional up to the last tensor, by keyword after it."""
    arguments = [a for a in bound.schema.arguments if not a.kwarg_only]
    # A tensor without a default must be written even when it is absent: native_layer_norm(x, [64], None, None, eps).
    tensors = [
        i for i, a in enumerate(arguments) if _takes_tensor(a) and (a.name in bound.values or not a.has_default_value())
    ]
    last = tensors[-1] if tensors else -1
    args = [bound[a.name] if a.name in bound.values or a.has_default_value() else "None" for a in arguments[: last + 1]]
    written = {a.name for a in arguments[: last + 1]}
    args += [f"{n}={bound.scope.show(v)}" for n, v in bound.values.items() if n not in written]
    if last < 0 and any(a.name == "device" for a in bound.schema.arguments):  # a factory
        if "dtype" not in bound.values:
            args.append(f"dtype={dtype(op.results[0].type.dtype)}")
        args.append("device=comm.device")
    return Call(_callee(op), args)


def _takes_tensor(argument: Any) -> bool:
    return "Tensor" in str(argument.type)


def _callee(op: Op) -> str:
    """`aten.silu` where that can only mean the default overload, else the overload's full name."""
    dialect, name, *overload = op.name.split(".")
    if dialect != "aten":
        return f"torch.ops.{op.name}" + ("" if overload else ".default")
    if op.name in REPLACED:
        return f"nn.{name}"
    if overload:
        return op.name
    packet = getattr(torch.ops.aten, name)
    others = [o for o in packet.overloads() if o != "default" and not _writes(getattr(packet, o)._schema)]
    return op.name + (".default" if others else "")


def _writes(schema: Any) -> bool:
    """An overload that writes into an argument; a call without that argument cannot mean it."""
    return any(a.is_out for a in schema.arguments)


def _kernel(op: Op, name: str, scope: Scope) -> Call:
    attrs = {k: v for k, v in op.attrs.items() if k not in ("rule", "split")}
    operands = [scope.show(o) for o in op.operands]
    device = ["device=comm.device"] if op.name in _DRAWS else ["comm=comm"] if "group" in attrs else []
    return Call(f"nn.{name}", operands + [f"{k}={scope.show(v)}" for k, v in attrs.items()] + device)


def _collective(op: Op, name: str, scope: Scope) -> Call:
    attrs = {k: v for k, v in op.attrs.items() if k not in ("rule", "split")}
    args = [scope.show(o) for o in op.operands]
    if "group" in attrs or "axes" in attrs:
        axes = str(attrs["group"]).split("_") if "group" in attrs else attrs["axes"]
        args.append(scope.group(axes))
    attrs.pop("group", None)
    attrs.pop("axes", None)
    if name == "recv":
        attrs["dtype"] = Atom(op.results[0].type.dtype)
    defaults = {"op": "sum", "outer": 1, "split_outer": 1, "concat_outer": 1}
    return Call(f"comm.{name}", args + [f"{k}={scope.show(v)}" for k, v in attrs.items() if defaults.get(k) != v])


# -- nice spellings ---------------------------------------------------------------------------------------------------


def _infix(sign: str, *, swap: bool = False) -> Callable[[Bound], str | None]:
    def spell(b: Bound) -> str | None:
        if not b.only("self", "other", "exponent"):  # alpha, rounding_mode
            return None
        left, right = b["self"], b["exponent" if any(a.name == "exponent" for a in b.schema.arguments) else "other"]
        return f"{right} {sign} {left}" if swap else f"{left} {sign} {right}"

    return spell


def _torch(name: str) -> Callable[[Bound], Call | None]:
    """torch.name(tensors): the Python binding of the same aten op, without the dispatcher's detour through Python."""

    def spell(b: Bound) -> Call | None:
        tensors = [a.name for a in b.schema.arguments if _takes_tensor(a)]
        if not b.only(*tensors):
            return None
        return Call(f"torch.{name}", [b[n] for n in tensors])

    return spell


def _method(name: str, *positional: str, **renamed: str) -> Callable[[Bound], Call]:
    """x.name(positional..., keyword=...) for the arguments that are given."""

    def spell(b: Bound) -> Call:
        args = [b[n] for n in positional]
        args += [f"{renamed.get(n, n)}={b[n]}" for n in b.values if n != "self" and n not in positional]
        return Call(f"{b['self']}.{name}", args)

    return spell


def _spread(name: str, sizes: str) -> Callable[[Bound], Call | None]:
    """x.name(2, 64, 128): a list argument as several."""

    def spell(b: Bound) -> Call | None:
        if not b.only("self", sizes):
            return None
        items = b.get(sizes)
        # Without sizes (a view as a scalar) the list itself must be written: x.reshape([]).
        return Call(f"{b['self']}.{name}", [b.scope.show(i) for i in items] if items else ["[]"])

    return spell


def _cast(b: Bound) -> Call | None:
    if not b.only("self", "dtype", "non_blocking") or "dtype" not in b.values:
        return None
    return Call(f"{b['self']}.to", [b["dtype"]])


def _slice(b: Bound) -> str | None:
    dim, start, end, step = (b.get(n) for n in ("dim", "start", "end", "step"))
    if not isinstance(dim, int) or dim < 0:
        return None
    first = "" if not start else literal(start)
    last = "" if end is None or end >= _END else literal(end)
    return f"{b['self']}[{':, ' * dim}{first}:{last}{'' if step == 1 else f':{step}'}]"


def _select(b: Bound) -> str | None:
    dim = b.get("dim")
    return f"{b['self']}[{':, ' * dim}{b['index']}]" if isinstance(dim, int) and dim >= 0 else None


def _listed(name: str) -> Callable[[Bound], Call]:
    return lambda b: Call(f"torch.{name}", [b["tensors"], *([f"dim={b['dim']}"] if b.get("dim") else [])])


def _negate(b: Bound) -> str:
    return f"-{b['self']}"


_SPELLED: Mapping[str, Callable[[Bound], Call | str | None]] = {
    **{f"aten.{n}.{o}": _infix(s) for n, s in (
        ("add", "+"), ("sub", "-"), ("mul", "*"), ("div", "/"), ("eq", "=="), ("ne", "!="), ("lt", "<"), ("le", "<="),
        ("gt", ">"), ("ge", ">="), ("bitwise_and", "&"), ("bitwise_or", "|"), ("bitwise_xor", "^"),
    ) for o in ("Tensor", "Scalar")},
    "aten.rsub.Scalar": _infix("-", swap=True),
    "aten.pow.Tensor_Scalar": _infix("**"),
    "aten.pow.Tensor_Tensor": _infix("**"),
    "aten.neg": _negate,
    **{f"aten.{n}": _torch(n) for n in (
        "abs", "bitwise_not", "ceil", "cos", "erf", "exp", "floor", "isinf", "isnan", "log", "log1p", "logical_and",
        "logical_not", "logical_or", "maximum", "minimum", "reciprocal", "relu", "rsqrt", "sigmoid", "sign", "sin",
        "sqrt", "square", "tanh", "zeros_like", "ones_like",
    )},
    "aten.where.self": _torch("where"),
    "aten.view": _spread("reshape", "size"),
    "aten._unsafe_view": _spread("reshape", "size"),
    "aten.reshape": _spread("reshape", "shape"),
    "aten.expand": _spread("expand", "size"),
    "aten.permute": _spread("permute", "dims"),
    "aten.transpose.int": _method("transpose", "dim0", "dim1"),
    "aten.unsqueeze": _method("unsqueeze", "dim"),
    "aten.squeeze": _method("squeeze"),
    "aten.squeeze.dim": _method("squeeze", "dim"),
    "aten.t": _method("t"),
    "aten.clone": _method("clone"),
    "aten.detach": _method("detach"),
    "aten.contiguous": _method("contiguous"),
    "aten.split.Tensor": _method("split", "split_size"),
    "aten.split_with_sizes": _method("split_with_sizes", "split_sizes"),
    "aten.sum": _method("sum"),
    "aten.sum.dim_IntList": _method("sum", "dim"),
    "aten.mean": _method("mean"),
    "aten.mean.dim": _method("mean", "dim"),
    "aten.amax": _method("amax", "dim"),
    "aten.masked_fill.Scalar": _method("masked_fill", "mask", "value"),
    "aten._to_copy": _cast,
    "aten.to.dtype": _cast,
    "aten.slice.Tensor": _slice,
    "aten.select.int": _select,
    "aten.cat": _listed("cat"),
    "aten.stack": _listed("stack"),
}  # fmt: skip
