"""Complex numbers as pairs: a complex tensor [..] is a real one [.., 2], and its ops are arithmetic on it.

    torch.view_as_complex(x)      x itself                          torch.view_as_real(z)      its pairs
    z * w                         (ac - bd, ad + bc)                z.real, z.abs()            a part; sqrt(a^2 + b^2)
    torch.fft.fft(z, dim=1)       a contraction with the matrix of exp(-2 pi i j k / n), and so for the other transforms

So rotary positions as complex factors and Fourier mixing need no dtype, rule or collective of their own; a transform of
length n costs n operations per element instead of log n.  Derivatives are those of the arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pair:
    """of: [.., 2], real and imaginary part."""

    of: Tensor

    @property
    def rank(self) -> int:
        return self.of.dim() - 1

    @property
    def parts(self) -> tuple[Tensor, Tensor]:
        return self.of.select(-1, 0), self.of.select(-1, 1)


def is_complex(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_complex()


def call(target: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """The op on pairs.  Raises NotImplementedError for one that is not known, or not in this form."""
    name = target._schema.name.removeprefix("aten::")
    found = _OPS.get(name)
    try:
        result = NotImplemented if found is None else found(*args, **kwargs)
    except (AttributeError, TypeError, ValueError, IndexError):
        result = NotImplemented
    if result is NotImplemented:
        raise NotImplementedError(f"{name} of complex numbers is not supported; use view_as_real and real ops")
    return result


# -- arithmetic -----------------------------------------------------------------------------------------------------


def _pair(re: Tensor, im: Tensor) -> Pair:
    return Pair(torch.stack(torch.broadcast_tensors(re, im), -1))


def _as_pair(x: Any) -> Pair:
    return x if isinstance(x, Pair) else _pair(x, torch.zeros_like(x))


def _split(x: Any) -> tuple[Any, Any]:
    """Real and imaginary part; 0 where there is none."""
    if isinstance(x, Pair):
        return x.parts
    return (x.real, x.imag) if isinstance(x, complex) else (x, 0)


def _mul(x: Any, y: Any) -> Pair:
    """One of them is a pair, or a tensor and the other a complex number."""
    x, y = (x, y) if isinstance(x, (Pair, complex)) else (y, x)
    if isinstance(x, Pair) and not isinstance(y, (Pair, complex)):
        return Pair(x.of * (y.unsqueeze(-1) if isinstance(y, Tensor) else y))
    (a, b), (c, d) = _split(x), _split(y)
    return _pair(a * c - b * d, a * d + b * c)


def _add(x: Any, y: Any, *, alpha: Any = 1) -> Pair:
    (a, b), (c, d) = _split(x), _split(y)
    re, im = a + c * alpha, b + d * alpha
    return _pair(re, im if isinstance(im, Tensor) else torch.full_like(re, im))


def _sub(x: Any, y: Any, *, alpha: Any = 1) -> Pair:
    return _add(x, y, alpha=-alpha)


def _div(x: Any, y: Any) -> Pair:
    if isinstance(y, Pair):
        c, d = y.parts
        return _mul(_mul(x, _conj(y)), 1 / (c * c + d * d))
    return _mul(x, 1 / y)


def _conj(x: Any) -> Any:
    return _pair(x.parts[0], -x.parts[1]) if isinstance(x, Pair) else x


def _abs(x: Pair) -> Tensor:
    """The gradient at zero is zero, as torch's is."""
    a, b = x.parts
    squares = a * a + b * b
    none = squares == 0
    return squares.masked_fill(none, 1.0).sqrt().masked_fill(none, 0.0)


def _exp(x: Pair) -> Pair:
    return _polar(x.parts[0].exp(), x.parts[1])


def _polar(length: Tensor, angle: Tensor) -> Pair:
    return _pair(length * angle.cos(), length * angle.sin())


def _cast(x: Any, *args: Any, **kwargs: Any) -> Any:
    if args and isinstance(args[0], (Pair, Tensor)):
        return _type_as(x, args[0])
    wanted = next((a for a in (*args, *kwargs.values()) if isinstance(a, torch.dtype)), None)
    if wanted is None:
        return x
    if not wanted.is_complex:
        return x.parts[0].to(wanted)
    real = wanted.to_real()
    return Pair(x.of.to(real)) if isinstance(x, Pair) else _pair(x.to(real), torch.zeros_like(x, dtype=real))


def _type_as(x: Any, y: Any) -> Any:
    return _cast(x, y.of.dtype.to_complex() if isinstance(y, Pair) else y.dtype)


def _bilinear(function: Callable[..., Tensor]) -> Callable[..., Pair]:
    def run(x: Any, y: Any) -> Pair:
        (a, b), (c, d) = _split(x), _split(y)
        if not isinstance(y, Pair):
            return _pair(function(a, c), function(b, c))
        if not isinstance(x, Pair):
            return _pair(function(a, c), function(a, d))
        return _pair(function(a, c) - function(b, d), function(a, d) + function(b, c))

    return run


def _einsum(equation: str, operands: Sequence[Any], **_: Any) -> Pair:
    if len(operands) == 1:
        return _pair(*(torch.einsum(equation, part) for part in operands[0].parts))
    if len(operands) > 2:
        return NotImplemented
    x, y = operands
    return _bilinear(lambda a, b: torch.einsum(equation, a, b))(x, y)


# -- shapes ---------------------------------------------------------------------------------------------------------


def _plain(name: str) -> Callable[..., Any]:
    """No dims among the arguments."""
    return lambda x, *args, **kwargs: Pair(getattr(torch.ops.aten, name)(x.of, *args, **kwargs))


def _sized(function: Callable[[Tensor, list[int]], Tensor], last: int) -> Callable[..., Any]:
    return lambda x, size, **_: Pair(function(x.of, [*size, last]))


def _along(name: str, dims: Sequence[int], more: int = 0) -> Callable[..., Any]:
    """Arguments at the positions `dims` (the default of a missing one is 0) count dims of the pairs' elements."""

    def run(x: Any, *args: Any, **kwargs: Any) -> Any:
        several = [_as_pair(p) for p in x] if isinstance(x, (list, tuple)) else None
        rank = (several[0] if several else x).rank + more
        values = [*args, *[0] * (max(dims) - len(args))]
        for at in dims:
            d = values[at - 1] if at <= len(args) else kwargs.pop("dim", 0)
            values[at - 1] = [n % rank for n in d] if isinstance(d, (list, tuple)) else d % rank
        result = getattr(torch.ops.aten, name)([p.of for p in several] if several else x.of, *values, **kwargs)
        return [Pair(r) for r in result] if isinstance(result, (list, tuple)) else Pair(result)

    return run


def _scatter(name: str) -> Callable[..., Any]:
    """`y` is written over a part of `x`: what is left of a change in place."""

    def run(x: Pair, y: Any, dim: int = 0, *args: Any, **kwargs: Any) -> Pair:
        return Pair(getattr(torch.ops.aten, name)(x.of, _as_pair(y).of, dim % x.rank, *args, **kwargs))

    return run


def _copy(x: Pair, y: Any, *_: Any) -> Pair:
    return Pair(_as_pair(y).of.expand(x.of.shape).to(x.of.dtype))


def _fill(x: Pair, y: Any) -> Pair:
    if isinstance(y, (Tensor, Pair)):
        return _copy(x, y)
    return _pair(*(torch.full_like(x.parts[0], part) for part in _split(y)))


def _squeeze(x: Pair, dim: Any = None) -> Pair:
    dims = range(x.rank) if dim is None else dim if isinstance(dim, (list, tuple)) else [dim]
    return Pair(x.of.squeeze(tuple(d % x.rank for d in dims)))


def _roll(x: Pair, shifts: Any, dims: Sequence[int] = ()) -> Pair:
    if dims:
        return Pair(x.of.roll(shifts, [d % x.rank for d in dims]))
    return Pair(x.of.reshape(-1, 2).roll(shifts, 0).reshape(x.of.shape))


def _flatten(x: Pair, start: int = 0, end: int = -1) -> Pair:
    return Pair(x.of.flatten(start % x.rank, end % x.rank))


def _unflatten(x: Pair, dim: int, sizes: Sequence[int]) -> Pair:
    return Pair(x.of.unflatten(dim % x.rank, list(sizes)))


def _summed(mean: bool) -> Callable[..., Any]:
    def run(x: Pair, dim: Any = None, keepdim: bool = False, **_: Any) -> Pair:
        dims = list(range(x.rank)) if dim is None or dim == [] else [d % x.rank for d in dim]
        total = x.of.sum(dims, keepdim)
        return Pair(total / math.prod(x.of.shape[d] for d in dims) if mean else total)

    return run


# -- Fourier transforms ---------------------------------------------------------------------------------------------


Transform = Callable[..., Any]
"""(x, n, dim, norm) as torch.fft has them."""


def _scale(norm: Optional[str], n: int, inverse: bool) -> float:
    if norm == "ortho":
        return 1 / math.sqrt(n)
    return 1 / n if inverse == (norm in (None, "backward")) else 1.0


def _waves(rows: int, columns: int, n: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos and sin of 2 pi j k / n, [rows, columns]."""
    j, k = (torch.arange(count, device=like.device) for count in (rows, columns))
    angle = (j[:, None] * k).remainder(n).to(like.dtype) * (2 * math.pi / n)
    return angle.cos(), angle.sin()


def _cut(x: Tensor, dim: int, n: Optional[int]) -> Tensor:
    """To length n: cut, or filled with zeros at the end."""
    if n is None or n == x.shape[dim]:
        return x
    if n < x.shape[dim]:
        return x.narrow(dim, 0, n)
    return torch.cat([x, x.new_zeros([*x.shape[:dim], n - x.shape[dim], *x.shape[dim + 1 :]])], dim)


def _contract(x: Tensor, dim: int, matrix: Tensor, pair_in: bool, pair_out: bool) -> Tensor:
    """matrix: [in, out], with a last-but-one dim for the parts that come in and a last one for those that go out."""
    letters = "abcdefgh"[: x.dim() - pair_in]
    left = letters.replace(letters[dim], "j") + "p" * pair_in
    right = letters.replace(letters[dim], "k") + "q" * pair_out
    return torch.einsum(f"{left},jk{'p' * pair_in}{'q' * pair_out}->{right}", x, matrix)


def _fft(inverse: bool) -> Callable[..., Pair]:
    def run(x: Any, n: Optional[int] = None, dim: int = -1, norm: Optional[str] = None) -> Pair:
        rank = x.rank if isinstance(x, Pair) else x.dim()
        at, pairs = dim % rank, isinstance(x, Pair)
        data = _cut(x.of if pairs else x, at, n)
        n = data.shape[at]
        c, s = _waves(n, n, n, data)
        s = -s if inverse else s
        of_re, of_im = torch.stack([c, -s], -1), torch.stack([s, c], -1)
        matrix = torch.stack([of_re, of_im], -2) if pairs else of_re
        return Pair(_contract(data, at, matrix * _scale(norm, n, inverse), pairs, True))

    return run


def _rfft(x: Tensor, n: Optional[int] = None, dim: int = -1, norm: Optional[str] = None) -> Pair:
    at = dim % x.dim()
    x = _cut(x, at, n)
    n = x.shape[at]
    c, s = _waves(n, n // 2 + 1, n, x)
    return Pair(_contract(x, at, torch.stack([c, -s], -1) * _scale(norm, n, False), False, True))


def _irfft(x: Pair, n: Optional[int] = None, dim: int = -1, norm: Optional[str] = None) -> Tensor:
    """Half of the spectrum stands for both; the imaginary parts at its ends have no say."""
    at = dim % x.rank
    n = 2 * (x.of.shape[at] - 1) if n is None else n
    data = _cut(x.of, at, n // 2 + 1)
    c, s = _waves(n // 2 + 1, n, n, data)
    places = torch.arange(n // 2 + 1, device=data.device)
    once = (places == 0) | (2 * places == n)
    weight = torch.where(once, 1.0, 2.0).to(data.dtype)[:, None] * _scale(norm, n, True)
    return _contract(data, at, torch.stack([c * weight, -s * weight], -1), True, False)


def _several(one: Transform, last: Optional[Transform] = None, first: bool = True) -> Transform:
    """The transform over several dims; `last` is another one for the last dim, at the beginning or at the end."""

    def run(x: Any, s: Any = None, dim: Any = (-2, -1), norm: Optional[str] = None) -> Any:
        rank = x.rank if isinstance(x, Pair) else x.dim()
        dims = list(range(rank))[-len(s) if s else 0 :] if dim is None else [d % rank for d in dim]
        sizes = list(s) if s else [None] * len(dims)
        steps = [(one, d, n) for d, n in zip(dims, sizes)]
        if last is not None:
            special = (last, *steps.pop()[1:])
            steps = [special, *steps] if first else [*steps, special]
        for function, d, n in steps:
            x = function(x, n, d, norm)
        return x

    return run


def _n(function: Callable[..., Any]) -> Callable[..., Any]:
    """fft_fftn and its like: all dims unless told."""
    return lambda x, s=None, dim=None, norm=None: function(x, s, dim, norm)


def _scaled(z: Any, by: int, sizes: Sequence[int]) -> Any:
    """torch's kernels count norms: 0 none, 1 by the root of the size, 2 by the size."""
    factor = math.prod(sizes) ** (-by / 2)
    return Pair(z.of * factor) if isinstance(z, Pair) else z * factor


def _c2c(x: Pair, dim: Sequence[int], by: int, forward: bool) -> Pair:
    for d in dim:
        x = _fft(not forward)(x, None, d, "backward" if forward else "forward")
    return _scaled(x, by, [x.of.shape[d % x.rank] for d in dim])


def _r2c(x: Tensor, dim: Sequence[int], by: int, onesided: bool) -> Pair:
    *others, last = dim
    y = (_rfft if onesided else _fft(False))(x, None, last % x.dim())
    return _scaled(_c2c(y, others, 0, True), by, [x.shape[d] for d in dim])


def _c2r(x: Pair, dim: Sequence[int], by: int, size: int) -> Tensor:
    *others, last = dim
    y = _irfft(_c2c(x, others, 0, False), size, last % x.rank, "forward")
    return _scaled(y, by, [y.shape[d] for d in dim])


_FORTH, _BACK = _several(_fft(False)), _several(_fft(True))
_REAL_FORTH, _REAL_BACK = _several(_fft(False), _rfft), _several(_fft(True), _irfft, first=False)
_SAME = lambda x, *_, **__: x  # noqa: E731

_OPS: dict[str, Callable[..., Any]] = {
    "view_as_complex": lambda x: Pair(x), "view_as_real": lambda z: z.of,
    "complex": _pair, "polar": _polar, "real": lambda z: z.parts[0], "imag": lambda z: z.parts[1],
    "mul": _mul, "multiply": _mul, "add": _add, "sub": _sub, "div": _div, "square": lambda z: _mul(z, z),
    "pow": lambda z, n: _mul(z, z) if n == 2 else NotImplemented,
    "rsub": lambda x, y, alpha=1: _sub(y, _mul(x, alpha)), "neg": _plain("neg"), "_assert_tensor_metadata": _SAME,
    "conj": _conj, "_conj": _conj, "conj_physical": _conj, "_conj_physical": _conj, "resolve_conj": _SAME,
    "resolve_neg": _SAME, "abs": _abs, "exp": _exp, "angle": lambda z: torch.atan2(z.parts[1], z.parts[0]),
    "matmul": _bilinear(torch.matmul), "bmm": _bilinear(torch.matmul),
    "mm": _bilinear(torch.matmul), "einsum": _einsum, "reciprocal": lambda z: _div(1, z),
    "to": _cast, "_to_copy": _cast, "type_as": _type_as,
    "clone": _plain("clone"), "contiguous": _SAME, "detach": _plain("detach"), "detach_": _plain("detach"),
    "alias": _SAME, "lift_fresh_copy": _SAME, "lift_fresh": _SAME,
    "view": _sized(Tensor.reshape, 2), "reshape": _sized(Tensor.reshape, 2), "_unsafe_view": _sized(Tensor.reshape, 2),
    "expand": _sized(Tensor.expand, -1), "repeat": _sized(Tensor.repeat, 1),
    "flatten": _flatten, "unflatten": _unflatten,
    "unsqueeze": _along("unsqueeze", [1], more=1), "squeeze": _squeeze, "select": _along("select", [1]),
    "copy": _copy, "fill": _fill,
    "slice_scatter": _scatter("slice_scatter"), "select_scatter": _scatter("select_scatter"),
    "slice": _along("slice", [1]), "narrow": _along("narrow", [1]), "transpose": _along("transpose", [1, 2]),
    "mT": lambda x: Pair(x.of.transpose(x.rank - 2, x.rank - 1)),
    "mH": lambda x: _conj(Pair(x.of.transpose(x.rank - 2, x.rank - 1))),
    "permute": lambda x, dims: Pair(x.of.permute([*(d % x.rank for d in dims), x.rank])),
    "cat": _along("cat", [1]), "concat": _along("cat", [1]), "stack": _along("stack", [1], more=1),
    "unbind": _along("unbind", [1]), "chunk": _along("chunk", [2]), "split": _along("split", [2]),
    "split_with_sizes": _along("split_with_sizes", [2]), "index_select": _along("index_select", [1]),
    "index": _plain("index"), "roll": _roll, "flip": _along("flip", [1]), "sum": _summed(False),
    "mean": _summed(True), "fft_fft": _fft(False), "fft_ifft": _fft(True), "fft_rfft": _rfft, "fft_irfft": _irfft,
    "fft_fft2": _FORTH, "fft_ifft2": _BACK, "fft_rfft2": _REAL_FORTH, "fft_irfft2": _REAL_BACK,
    "constant_pad_nd": lambda x, pad, value=0: Pair(torch.nn.functional.pad(x.of, [0, 0, *pad])),
    "_fft_c2c": _c2c, "_fft_r2c": _r2c, "_fft_c2r": _c2r,
    "fft_fftn": _n(_FORTH), "fft_ifftn": _n(_BACK), "fft_rfftn": _n(_REAL_FORTH), "fft_irfftn": _n(_REAL_BACK),
}  # fmt: skip
