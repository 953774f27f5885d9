"""What an op's attributes are on one device: sizes become local, everything else stays.

    aten.view(%x) {size = [8, 16, 32]}, whose last dim is split in two
    ->
    aten.reshape(%x) {shape = [8, 16, 16]}

Views become reshapes because a local tensor need not have the strides that made the global view possible.  An op
whose rule has an `offset` factor gets `offset = #offset<axes = ["a"], size = 32>`: the device's coordinate along the
axes (major to minor) times the local length.  What draws random
numbers gets `index`, the places of the whole tensor that the device draws: per dim a length, or
`#part<size = 8, axes = ["a"], count = 4>`, or a list of these.  Most ops have no sizes and are not mentioned here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

from uniap_compiler.ir import Attr, Attrs, Op, Rule, TensorType, struct

from ..analysis.rules.pooling import UPSAMPLES_BACKWARD
from ..analysis.rules.table import packet
from ..analysis.shard_rules import VIEWS, rule_of
from .mesh import group_name


class Local:
    """One op with its local types: what the functions below read and the attributes that they change."""

    __slots__ = ("op", "rule", "operands", "results", "split", "mesh", "name", "attrs")

    def __init__(
        self,
        op: Op,
        rule: Rule,
        operands: Sequence[TensorType | None],
        results: Sequence[TensorType],
        split: Mapping[str, str],
        mesh: Mapping[str, int],
    ) -> None:
        self.op, self.rule, self.operands, self.results = op, rule, operands, results
        self.split, self.mesh = split, mesh
        self.name = op.name
        self.attrs: Attrs = {k: v for k, v in op.attrs.items() if k not in ("rule", "split")}

    def parts(self, group: Sequence[str]) -> int:
        """Into how many parts the axes split a dim that consists of these factors."""
        count = 1
        for axis, factor in self.split.items():
            if any(f in group for f in self.rule.split_by(factor)):
                count *= self.mesh[axis]
        return count

    def axes(self, factor: str) -> list[str]:
        """The axes that split a factor, by itself or on a route, in mesh order."""
        return [a for a in self.mesh if a in self.split and factor in self.rule.split_by(self.split[a])]

    def shape(self, result: int = 0) -> list[Attr]:
        return [int(d) for d in self.results[result].shape]  # type: ignore[arg-type]

    def input_shape(self, operand: int = 0) -> list[int]:
        found = self.operands[operand]
        assert found is not None
        return [int(d) for d in found.shape]  # type: ignore[arg-type]


def localize_op(
    op: Op,
    operands: Sequence[TensorType | None],
    results: Sequence[TensorType],
    split: Mapping[str, str],
    mesh: Mapping[str, int],
) -> tuple[str, Attrs]:
    """The op's name and attributes on local shapes.

    operands, results: local types, flat.  split: axis -> factor of the op's rule.  mesh: axis -> size, major first.
    Integers of the op must be evaluated already; those that are not sizes (divisors, fill values) stay as they are.
    """
    rule = op.attrs.get("rule")
    local = Local(op, rule if isinstance(rule, Rule) else rule_of(op), operands, results, split, mesh)
    change = _CHANGES.get(op.name) or _CHANGES.get(packet(op.name))
    if change is not None:
        change(local)
    if local.rule.offset:
        _offset(local)
    return local.name, local.attrs


def _offset(local: Local) -> None:
    """Where the device's slice of the rows or classes begins."""
    factor = local.rule.offset[0]
    axes = local.axes(factor)
    if not axes:
        return
    tensors = zip((*local.rule.operands, *local.rule.results), (*local.operands, *local.results))
    for groups, type in tensors:
        for group, length in zip(groups or (), type.shape if type is not None else ()):
            if factor in group:
                local.attrs["offset"] = struct("offset", axes=[*axes], size=length)
                return


def _index(local: Local, dims: Sequence[tuple[tuple[str, ...], int]]) -> list[Attr]:
    """dims: the factors of each dim and its local length.

    A factor's size may depend on the batch, which is not known here: it is what is left of the dim's length.
    """
    sizes = dict(local.rule.sizes)
    index: list[Attr] = []
    for group, length in dims:
        whole = length * local.parts(group)
        known = {f: size for f in group if isinstance(size := sizes[f], int)}
        rest = whole // prod(known.values())
        parts: list[tuple[int, list[str]]] = []  # size and axes of each factor, whole minor ones taken together
        for f in group or ("",):
            size = known.get(f, rest) if f else length
            axes = [axis for axis in local.mesh if f and local.split.get(axis) == f]
            if parts and not axes:
                parts[-1] = (parts[-1][0] * size, parts[-1][1])
            else:
                parts.append((size, axes))
        shown: list[Attr] = []
        for size, axes in parts:
            count = size // prod(local.mesh[axis] for axis in axes)
            shown.append(struct("part", size=size, axes=[*axes], count=count) if axes else size)
        index.append(shown[0] if len(shown) == 1 else shown)
    return index


def _draw(local: Local) -> None:
    local.attrs.pop("size")
    local.attrs["index"] = _index(local, list(zip(local.rule.results[0], local.shape(), strict=True)))  # type: ignore[arg-type]


def _attention(local: Local) -> None:
    """The index of the scores: all dims of the queries but the last, and the length of the keys."""
    if "dropout_p" not in local.attrs:
        return
    first = 1 if local.op.name == "nn.attention_backward" else 0
    queries, keys = local.rule.operands[first], local.rule.operands[first + 1]
    assert queries is not None and keys is not None
    lengths = [*local.input_shape(first)[:-1], local.input_shape(first + 1)[-2]]
    local.attrs["index"] = _index(local, list(zip([*queries[:-1], keys[-2]], lengths, strict=True)))


def _experts(local: Local) -> None:
    """On a route, the group that exchanges tokens and how many experts lie from one of its devices to the next."""
    local.attrs.pop("peers", None)
    routes = dict(local.rule.route)
    routed = [axis for axis in local.mesh if local.split.get(axis) in routes]
    if not routed:
        return
    (first,) = local.rule.offset
    minor = local.axes(first)[local.axes(first).index(routed[-1]) + 1 :]
    gate_up = 4 if local.op.name == "nn.experts_backward" else 3
    local.attrs["group"] = group_name(routed, local.mesh)
    local.attrs["stride"] = local.input_shape(gate_up)[0] * prod(local.mesh[axis] for axis in minor)


def _reshape(local: Local) -> None:
    local.name, local.attrs = "aten.reshape", {"shape": local.shape()}


def _size(attr: str) -> Callable[[Local], None]:
    def change(local: Local) -> None:
        local.attrs[attr] = local.shape()

    return change


def _repeat(local: Local) -> None:
    source, target = local.input_shape(), local.results[0].shape
    ones = [1] * (len(target) - len(source))
    local.attrs["repeats"] = [int(n) // m for n, m in zip(target, [*ones, *source])]  # type: ignore[arg-type]


def _repeat_interleave(local: Local) -> None:
    dim = int(local.attrs["dim"])  # type: ignore[arg-type]
    local.attrs["repeats"] = int(local.results[0].shape[dim]) // local.input_shape()[dim]  # type: ignore[arg-type]
    local.attrs.pop("output_size", None)


def _bounds(local: Local, groups: Sequence[tuple[str, ...]]) -> None:
    """start and end count pieces, of which every device holds a part."""
    dim = int(local.attrs.get("dim", 0)) % len(groups)  # type: ignore[arg-type]
    parts = local.parts(groups[dim])
    for name in ("start", "end"):
        value = local.attrs.get(name)
        if isinstance(value, int) and value < 2**62:
            local.attrs[name] = value // parts


def _slice(local: Local) -> None:
    groups = local.rule.operands[0]
    assert groups is not None
    _bounds(local, groups)


def _slice_backward(local: Local) -> None:
    _bounds(local, local.rule.results[0])
    local.attrs["input_sizes"] = local.shape()


def _split_sizes(local: Local) -> None:
    dim = int(local.attrs.get("dim", 0))  # type: ignore[arg-type]
    local.attrs["split_sizes"] = [r.shape[dim] for r in local.results]


def _split_size(local: Local) -> None:
    local.attrs["split_size"] = local.results[0].shape[int(local.attrs.get("dim", 0))]  # type: ignore[arg-type]


def _groups(local: Local) -> None:
    """A grouped convolution: the channels' major factor counts the groups."""
    groups = local.attrs.get("groups", 1)
    assert isinstance(groups, int)
    local.attrs["groups"] = groups // local.parts(_pieces(local, "q"))


def _pieces(local: Local, factor: str) -> list[str]:
    """The factor's names after refinement: q, or q0, q1, ..."""
    return [f for f in local.rule.factors() if f == factor or (f[:1] == factor and f[1:].isdigit())]


def _convolution_backward(local: Local) -> None:
    _groups(local)
    if local.attrs.get("bias_sizes") is not None:
        local.attrs["bias_sizes"] = [local.input_shape(0)[1]]


def _rows(local: Local) -> None:
    local.attrs["num_weights"] = local.shape()[0]


def _classes(local: Local) -> None:
    local.attrs["num_classes"] = local.shape()[-1]


_CHANGES: dict[str, Callable[[Local], None]] = {
    **dict.fromkeys(VIEWS, _reshape),
    **dict.fromkeys(("aten.expand", "aten.full", "aten.zeros", "aten.ones"), _size("size")),
    **dict.fromkeys(("aten.new_zeros", "aten.new_ones", "aten.new_full"), _size("size")),
    "aten.repeat": _repeat,
    "aten.repeat_interleave": _repeat_interleave,
    **dict.fromkeys(("aten.slice", "aten.slice_scatter"), _slice),
    "aten.slice_backward": _slice_backward,
    **dict.fromkeys(("aten.select_backward", "aten.diagonal_backward", "aten.unfold_backward"), _size("input_sizes")),
    **dict.fromkeys(("aten.split_with_sizes", "aten.unsafe_split_with_sizes"), _split_sizes),
    **dict.fromkeys(("aten.split.Tensor", "aten.unsafe_split.Tensor"), _split_size),
    "aten.convolution": _groups,
    "aten.convolution_backward": _convolution_backward,
    **dict.fromkeys(UPSAMPLES_BACKWARD, _size("input_size")),
    "nn.embedding_backward": _rows,
    "nn.pick_backward": _classes,
    **dict.fromkeys(("nn.bernoulli", "nn.uniform", "nn.normal"), _draw),
    **dict.fromkeys(("nn.attention", "nn.attention_backward"), _attention),
    **dict.fromkeys(("nn.experts", "nn.experts_backward"), _experts),
}
