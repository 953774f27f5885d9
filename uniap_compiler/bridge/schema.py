"""How a torch op is spelled in the IR, both ways; the op's own schema is the only table.

    torch.ops.aten.sum.dim_IntList(x, [1], keepdim=True)     %s = aten.sum.dim_IntList(%x) {dim = [1], keepdim = true}
    torch.ops.aten.mul.Tensor(x, 2.0)                        %y = aten.mul.Tensor(%x) {other = 2.0}
    torch.ops.uniap.contract(a, b, "b k, n k -> b n")        %c = nn.contract(%a, %b) {equation = "b k, n k -> b n"}

Tensor arguments are operands in schema order, every other argument that differs from its default is an attribute.
Where a number stands for a tensor (`x * 2.0`) it is an attribute too.  Device, layout and pin_memory are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch._ops import OpOverload

from uniap_compiler.ir import Affine, Atom, Attrs, TensorType, Value
from uniap_compiler.ir.core import Operand

DTYPES: dict[torch.dtype, str] = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "i1",
}
TORCH_DTYPES: dict[str, torch.dtype] = {name: dtype for dtype, name in DTYPES.items()}
MEMORY_FORMATS: dict[str, torch.memory_format] = {
    str(f).removeprefix("torch."): f
    for f in (torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d)
}
DROPPED = frozenset({"device", "layout", "pin_memory", "generator"})


def type_of(tensor: torch.Tensor) -> TensorType:
    """The type of one tensor, with every size a plain int."""
    return TensorType(tuple(int(d) for d in tensor.shape), dtype_name(tensor.dtype))


def dtype_name(dtype: torch.dtype) -> str:
    if dtype not in DTYPES:
        raise NotImplementedError(f"tensors of dtype {dtype} are not supported")
    return DTYPES[dtype]


def op_name(overload: OpOverload) -> str:
    """`aten.add.Tensor`, `aten.relu`, `nn.contract`."""
    namespace, _, base = overload._schema.name.partition("::")
    if namespace == "uniap":
        return f"nn.{base}"
    suffix = "" if overload._overloadname == "default" else f".{overload._overloadname}"
    return f"{namespace}.{base}{suffix}"


@cache
def find_overload(name: str, overload: str = "") -> OpOverload:
    """The torch op of an IR op name.  Raises KeyError when torch has no such op."""
    namespace, _, rest = name.partition(".")
    base, _, suffix = rest.partition(".")
    try:
        packet = getattr(getattr(torch.ops, "uniap" if namespace == "nn" else namespace), base)
        return getattr(packet, overload or suffix or "default")
    except AttributeError:
        raise KeyError(f"torch has no op {name!r}") from None


def overload_of(name: str, attrs: Attrs) -> OpOverload:
    """As find_overload; attention with dropout takes a key, and gives a gradient of its mask where one is needed."""
    if name == "nn.experts_backward":
        return find_overload(name, "bias" if attrs.get("bias_grad") else "")
    if name not in ("nn.attention", "nn.attention_backward"):
        return find_overload(name)
    words = ["dropout"] if "dropout_p" in attrs else []
    words += ["mask"] if name == "nn.attention_backward" and attrs.get("mask_grad") else []
    return find_overload(name, "_".join(words))


@cache
def arguments(overload: OpOverload) -> tuple[tuple[str, bool, bool, bool, Any], ...]:
    """For each schema argument: name, whether it takes tensors, a list, a keyword only; its default (or `...`)."""
    rows = []
    for a in overload._schema.arguments:
        text = str(a.type)
        rows.append(
            (
                a.name,
                "Tensor" in text,
                text.startswith(("List", "Optional[List")),
                a.kwarg_only,
                a.default_value if a.has_default_value() else ...,
            )
        )
    return tuple(rows)


def to_attr(value: Any) -> Any:
    """A torch argument as an attribute."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, torch.dtype):
        return Atom(dtype_name(value))
    if isinstance(value, torch.memory_format):
        return Atom(str(value).removeprefix("torch."))
    if isinstance(value, (list, tuple)):
        return [to_attr(v) for v in value]
    raise NotImplementedError(f"an argument of type {type(value).__name__} is not supported: {value!r}")


def from_attr(value: Any, batch: int | None) -> Any:
    """An attribute as a torch argument, batch-dependent numbers evaluated at `batch`."""
    if isinstance(value, Affine):
        if batch is None:
            raise ValueError(f"the number {value} depends on the batch, and no batch was given")
        return value.at(batch)
    if isinstance(value, list):
        return [from_attr(v, batch) for v in value]
    if isinstance(value, Atom):
        return TORCH_DTYPES[value] if value in TORCH_DTYPES else MEMORY_FORMATS[value]
    return value


def split_arguments(
    overload: OpOverload, args: Sequence[Any], kwargs: dict[str, Any], value_of: Callable[[Any], Value]
) -> tuple[list[Operand], Attrs]:
    """A call's arguments as operands and attributes."""
    operands: list[Operand] = []
    attrs: Attrs = {}
    for position, (name, is_tensor, is_list, _, default) in enumerate(arguments(overload)):
        value = args[position] if position < len(args) else kwargs.get(name, default)
        if is_tensor:
            if isinstance(value, (bool, int, float)):
                attrs[name] = value
            elif is_list and value is not None and value is not ...:
                operands.append([None if v is None else value_of(v) for v in value])
            else:
                operands.append(None if value is None or value is ... else value_of(value))
        elif name not in DROPPED and value is not ... and not _same(value, default):
            attrs[name] = to_attr(value)
    return operands, attrs


def _same(value: Any, default: Any) -> bool:
    if isinstance(value, (list, tuple)) or isinstance(default, (list, tuple)):
        return isinstance(value, (list, tuple)) and isinstance(default, (list, tuple)) and list(value) == list(default)
    return type(value) is type(default) and value == default


def join_arguments(
    name: str, operands: Sequence[Any], attrs: Attrs, batch: int | None
) -> tuple[OpOverload, list[Any], dict[str, Any]]:
    """The torch op and the arguments of an IR op whose operands are already torch tensors (or fx nodes)."""
    overload = overload_of(name, attrs)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    rest = iter(operands)
    for arg, is_tensor, _, keyword, default in arguments(overload):
        if arg in attrs:
            value = from_attr(attrs[arg], batch)
        elif is_tensor:
            value = next(rest, None)
        elif default is ...:
            raise ValueError(f"{name} needs the attribute {arg!r}")
        else:
            if not keyword:
                args.append(default)
            continue
        if keyword:
            kwargs[arg] = value
        else:
            args.append(value)
    if next(rest, None) is not None:
        raise ValueError(f"{name} takes fewer operands than it was given")
    return overload, args, kwargs
