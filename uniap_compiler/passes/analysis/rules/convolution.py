"""Convolutions: batch, output channels, input channels and groups; windows keep the spatial dims whole.

A kernel that tiles its input (patch embedding: stride = kernel, no padding) is a contraction over (place, kernel),
so places may be split; a 1 x 1 kernel is the simplest case of it.
"""

from __future__ import annotations

from uniap_compiler.ir import Op, Rule

from .norm import results
from .spell import result_shape, shape_of, spell
from .table import opaque, rule


def _ints(op: Op, name: str, rank: int, default: int) -> list[int]:
    value = op.attrs.get(name, default)
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return [int(v) for v in (values * rank if len(values) == 1 else values)]  # type: ignore[arg-type]


def _spatial(op: Op, x: list[int], w: list[int], y: list[int]) -> tuple[str, str, str, str]:
    """Terms of the spatial dims of input, weight and output, and the factors that stay whole."""
    rank = len(x) - 2
    stride, padding, dilation = (_ints(op, n, rank, d) for n, d in (("stride", 1), ("padding", 0), ("dilation", 1)))
    left, kernel, right, keep = [], [], [], []
    for i in range(rank):
        size = w[2 + i]
        keep.append(f"k{i}")
        kernel.append(f"k{i}")
        if (stride[i], padding[i], dilation[i]) == (size, 0, 1) and x[2 + i] == size * y[2 + i] and not _transposed(op):
            left.append(f"(h{i} k{i})")
            right.append(f"h{i}")
        else:
            left.append(f"x{i}")
            right.append(f"y{i}")
            keep += [f"x{i}", f"y{i}"]
    return " ".join(left), " ".join(kernel), " ".join(right), " ".join(keep)


def _transposed(op: Op) -> bool:
    return bool(op.attrs.get("transposed", False))


def _channels(op: Op, w: list[int]) -> tuple[str, str, str, dict[str, int]]:
    """Terms of the input's channels, the weight's first two dims, the output's channels; q groups, i in, o out."""
    groups = int(op.attrs.get("groups", 1))  # type: ignore[arg-type]
    first, second = w[0] // groups, w[1]
    if _transposed(op):
        return "(q i)", "(q i) o", "(q o)", {"q": groups, "i": first, "o": second}
    return "(q i)", "(q o) i", "(q o)", {"q": groups, "o": first, "i": second}


def _own_kernels(op: Op) -> bool:
    """Every row of the batch has kernels of its own: as many groups as rows."""
    return not isinstance(op.attrs.get("groups", 1), int)


@rule("aten.convolution")
def convolution(op: Op) -> Rule:
    """input, weight, bias.  With a bias the input channels stay whole: it would be added on every device."""
    if _own_kernels(op):
        return opaque(op)
    x, w, y = shape_of(op, 0), shape_of(op, 1), result_shape(op)
    left, kernel, right, keep = _spatial(op, x, w, y)
    channels, weight, out, sizes = _channels(op, w)
    bias = len(op.operands) > 2 and op.operands[2] is not None
    clauses = f"keep {keep} i | linear 0 2 | linear 1 2" if bias else f"keep {keep} | sum i | linear 0 | linear 1"
    sizes |= {f"k{n}": k for n, k in enumerate(w[2:])}
    return spell(op, f"n {channels} {left}, {weight} {kernel}, {out} -> n {out} {right} | {clauses}", **sizes)


@rule("aten.convolution_backward")
def convolution_backward(op: Op) -> Rule:
    """gradient, input, weight -> dinput, dweight, dbias"""
    if _own_kernels(op):
        return opaque(op)
    y, x, w = shape_of(op, 0), shape_of(op, 1), shape_of(op, 2)
    left, kernel, right, keep = _spatial(op, x, w, y)
    channels, weight, out, sizes = _channels(op, w)
    sizes |= {f"k{n}": k for n, k in enumerate(w[2:])}
    places = " ".join(f for f in right.split() if f[0] == "h")
    wanted = op.attrs["output_mask"]
    assert isinstance(wanted, (list, tuple))
    # dinput needs the weight, dweight the input: both pending makes both pending, but dbias needs neither.
    other = [p for p, w in ((2, wanted[0]), (1, wanted[1])) if w]
    linear = "" if wanted[2] or not other else f" | linear {' '.join(map(str, sorted(other)))}"
    kinds = results(op, [f"n {channels} {left}", f"{weight} {kernel}", out])
    return spell(
        op,
        f"n {out} {right}, n {channels} {left}, {weight} {kernel} -> {kinds}"
        f" | sum n o {places} | copy i q | keep {keep} z* | linear 0{linear}",
        **sizes,
    )
