"""Initial values that no file holds: what the model's own initialiser does to a parameter, done for a slice of it.

    weights/recipe.json
    {"format": "uniap-recipe/1", "seed": 0, "tensors": {
      "embed.weight": {"shape": [512, 64], "steps": [["normal", 0.0, 0.02, {"draw": 3}],
                                                     ["fill", 0.0, {"in": [[0, 1], [0, 64]]}]]}}}

Steps, applied in turn to the whole tensor or to the box `in` (per dim [start, stop] or [start, stop, step]):

    fill c    uniform low high    normal mean std    trunc_normal mean std low high
    add c     mul c    div c    clamp low high       (null: no bound)

Element i (its place in the full tensor, row-major) of draw n is a function of (seed, n, i) alone, so every rank
computes its own slice, under any plan and on any device, and all of them hold parts of one tensor.  Bits are those of
SplitMix64 (Steele, Lea, Flood 2014) at position i of a sequence that (seed, n) chooses; normals are the inverse of the
cumulative distribution (Wichura 1988, algorithm AS 241, 1e-16 relative).  Only integer operations and single float64
additions, multiplications, divisions and square roots are used: these are exact or correctly rounded everywhere, which
a library's logarithm or cosine is not.  The last step's result is rounded to the tensor's dtype.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import pieces
from .errors import BundleError

FORMAT = "uniap-recipe/1"
DRAWS = ("uniform", "normal", "trunc_normal")
_ARGUMENTS = {"fill": 1, "uniform": 2, "normal": 2, "trunc_normal": 4, "add": 1, "mul": 1, "div": 1, "clamp": 2}
_BLOCK = {"cpu": 1 << 16}  # elements at a time: the cache of a core; elsewhere what keeps a device busy
_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15

Step = list[Any]


@dataclass(frozen=True)
class Recipe:
    """One tensor: its full shape, and the steps that make its values."""

    shape: tuple[int, ...]
    steps: tuple[Step, ...]
    seed: int

    def values(
        self, dtype: torch.dtype, device: torch.device | str = "cpu", slices: pieces.Slices | None = None
    ) -> Tensor:
        """The piece that `slices` describes (default: everything), contiguous."""
        if slices is None:
            slices = [[[size, 0, size]] for size in self.shape]
        return make(self.steps, self.seed, slices, dtype, torch.device(device))


class Recipes:
    """A file of recipes; `read` gives a rank's piece of a tensor."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {content['format']!r}, not {FORMAT!r}")
            self.recipes = {
                str(name): Recipe(tuple(entry["shape"]), tuple(entry["steps"]), int(content["seed"]))
                for name, entry in content["tensors"].items()
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BundleError(f"cannot read the recipes {path}: {error}", everywhere=True) from None
        for name, recipe in self.recipes.items():
            for step in recipe.steps:
                if not _legal(step):
                    raise BundleError(f"{path}: the recipe of {name} has a wrong step: {step!r}", everywhere=True)

    def __contains__(self, name: str) -> bool:
        return name in self.recipes

    def read(self, name: str, record: Mapping[str, Any], device: torch.device) -> Tensor:
        recipe, wanted = self.recipes[name], pieces.full_shape(record["slices"])
        if list(recipe.shape) != wanted:
            raise BundleError(f"the recipe of {name} has shape {list(recipe.shape)}, the bundle needs {wanted}")
        return recipe.values(getattr(torch, record["dtype"]), device, record["slices"])


def to_json(recipes: Mapping[str, Recipe]) -> str:
    """The text of a file of recipes, one line per tensor.  All of them have one seed."""
    seeds = {recipe.seed for recipe in recipes.values()} or {0}
    if len(seeds) > 1:
        raise ValueError(f"recipes of several seeds: {sorted(seeds)}")
    lines = [
        f" {json.dumps(name)}: " + json.dumps({"shape": list(r.shape), "steps": list(r.steps)}, allow_nan=False)
        for name, r in sorted(recipes.items())
    ]
    head = f'{{"format": {json.dumps(FORMAT)}, "seed": {seeds.pop()}, "tensors": {{\n'
    return head + ",\n".join(lines) + "\n}}\n"


def _legal(step: object) -> bool:
    if not isinstance(step, list) or not step or step[0] not in _ARGUMENTS:
        return False
    options = step[-1] if isinstance(step[-1], dict) else {}
    count = len(step) - 1 - isinstance(step[-1], dict)
    return count == _ARGUMENTS[step[0]] and (step[0] not in DRAWS or isinstance(options.get("draw"), int))


def make(
    steps: Sequence[Step], seed: int, slices: pieces.Slices, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The piece `slices` of the tensor that the steps describe."""
    shape = pieces.local_shape(slices)
    out = torch.empty(shape, dtype=dtype, device=device)
    if not out.numel():
        return out
    indices = [_indices(dim).to(device) for dim in slices] or [torch.zeros(1, dtype=torch.int64, device=device)]
    sizes = pieces.full_shape(slices) or [1]
    rows = _combined(indices[:-1], sizes, lambda a, b: a + b, 0)
    boxes = [_masks(step, indices) for step in steps]
    flat, inner = out.view(rows.numel(), -1), indices[-1]
    block = _BLOCK.get(device.type, 1 << 22)
    width = min(block, inner.numel())
    height = max(1, block // width)
    for top in range(0, rows.numel(), height):
        for left in range(0, inner.numel(), width):
            r, c = slice(top, top + height), slice(left, left + width)
            place = rows[r, None] + inner[None, c]
            x = torch.zeros(place.shape, dtype=torch.float64, device=device)
            for step, box in zip(steps, boxes, strict=True):
                if box is None:
                    x = _apply(step, x, place, seed)
                    continue
                inside = box[0][r, None] & box[1][None, c]
                if bool(inside.any()):
                    x = torch.where(inside, _apply(step, x.clone(), place, seed), x)
            flat[r, c] = x.to(dtype)
    return out


def draw(step: Step, place: Tensor, seed: int) -> Tensor:
    """float64 numbers of the distribution `step` for the elements at these places (int64)."""
    kind, *arguments, options = step
    bits = _bits(place, _key(seed, options["draw"]))
    if kind == "uniform":
        low, high = arguments
        return _shift(bits, 11).double().mul_(2.0**-53).mul_(high - low).add_(low)
    if kind == "normal":
        mean, std = arguments
        # Odd multiples of 2^-53: symmetric about 0, and neither 0 nor 1 in size.
        centred = _shift(bits, 11).mul_(2).add_(1 - (1 << 53)).double().mul_(2.0**-53)
        return quantile(centred).mul_(std).add_(mean)
    mean, std, low, high = arguments
    bottom, top = (math.erf((end - mean) / std / math.sqrt(2.0)) for end in (low, high))
    unit = _shift(bits, 11).double().mul_(2.0**-53).add_(2.0**-54)
    centred = unit.mul_(top - bottom).add_(bottom).clamp_(-1 + 2.0**-53, 1 - 2.0**-53)
    return quantile(centred).mul_(std).add_(mean).clamp_(low, high)


def _apply(step: Step, x: Tensor, place: Tensor, seed: int) -> Tensor:
    """x may be changed."""
    kind = step[0]
    if kind in DRAWS:
        return draw(step, place, seed)
    if kind == "fill":
        return x.fill_(step[1])
    if kind == "add":
        return x.add_(step[1])
    if kind == "mul":
        return x.mul_(step[1])
    if kind == "div":
        return x.div_(step[1])
    return x.clamp_(step[1], step[2])


def _indices(parts: list[list[int]]) -> Tensor:
    """Places along one dim of the full tensor that a piece holds, in its order."""
    whole = torch.arange(math.prod(size for size, _, _ in parts)).view([size for size, _, _ in parts])
    return whole[tuple(slice(start, stop) for _, start, stop in parts)].reshape(-1)


def _combined(vectors: Sequence[Tensor], sizes: Sequence[int], join: Any, start: Any) -> Tensor:
    """Over all dims but the last: places (times their stride in the full tensor) joined to one vector."""
    device = vectors[0].device if vectors else torch.device("cpu")
    result = torch.full((1,), start, device=device)
    for d, vector in enumerate(vectors):
        scaled = vector * math.prod(sizes[d + 1 :]) if vector.dtype == torch.int64 else vector
        result = join(result[:, None], scaled[None, :]).reshape(-1)
    return result


def _masks(step: Step, indices: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
    """Which rows and which places of the last dim lie in the step's box."""
    box = step[-1].get("in") if isinstance(step[-1], dict) else None
    if box is None:
        return None
    inside = []
    for place, (start, stop, *rest) in zip(indices, box, strict=True):
        inside.append((place >= start) & (place < stop) & ((place - start) % (rest[0] if rest else 1) == 0))
    return _combined(inside[:-1], [1] * len(inside), lambda a, b: a & b, True), inside[-1]


# -- numbers from places ----------------------------------------------------------------------------------------------


def _mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _key(seed: int, draw: int) -> int:
    return _signed(_mix((_mix((seed + _GOLDEN) & _MASK) + (draw + 1) * _GOLDEN) & _MASK))


def _signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x


def _shift(x: Tensor, count: int) -> Tensor:
    """Logical, where torch's is arithmetic."""
    return (x >> count).bitwise_and_((1 << (64 - count)) - 1)


def _bits(place: Tensor, key: int) -> Tensor:
    """64 random bits per place: SplitMix64, arithmetic modulo 2^64."""
    x = (place * _signed(_GOLDEN)).add_(key)
    x = x.bitwise_xor_(_shift(x, 30)).mul_(_signed(0xBF58476D1CE4E5B9))
    x = x.bitwise_xor_(_shift(x, 27)).mul_(_signed(0x94D049BB133111EB))
    return x.bitwise_xor_(_shift(x, 31))


# AS 241, PPND16: numerators and denominators, the constant term last.
_CENTRE = (
    (2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4, 4.5921953931549871457e4,
     1.3731693765509461125e4, 1.9715909503065514427e3, 1.3314166789178437745e2, 3.3871328727963666080e0),
    (5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4,
     5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0),
)  # fmt: skip
_MIDDLE = (
    (7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1, 1.27045825245236838258e0,
     3.64784832476320460504e0, 5.76949722146069140550e0, 4.63033784615654529590e0, 1.42343711074968357734e0),
    (1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1,
     6.89767334985100004550e-1, 1.67638483018380384940e0, 2.05319162663775882187e0, 1.0),
)  # fmt: skip
_FAR = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3, 2.65321895265761230930e-2,
     2.96560571828504891230e-1, 1.78482653991729133580e0, 5.46378491116411436990e0, 6.65790464350110377720e0),
    (2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5, 7.86869131145613259100e-4,
     1.48753612908506148525e-2, 1.36929880922735805310e-1, 5.99832206555887937690e-1, 1.0),
)  # fmt: skip


def quantile(centred: Tensor) -> Tensor:
    """z with P(|Z| < |z|) = |centred| and its sign, Z standard normal: sqrt(2) erfinv(centred), -1 < centred < 1."""
    q = centred * 0.5
    z = _ratio((q * q).neg_().add_(0.180625), _CENTRE).mul_(q)
    tail = (q.abs() > 0.425).nonzero(as_tuple=True)
    if tail[0].numel():
        side = q[tail]
        r = _negative_log(side.abs().neg_().add_(0.5)).sqrt_()
        size = torch.where(r <= 5.0, _ratio(r - 1.6, _MIDDLE), _ratio(r - 5.0, _FAR))
        z[tail] = size.mul_(side.sign())
    return z


def _ratio(x: Tensor, polynomials: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    above, below = (_polynomial(x, coefficients) for coefficients in polynomials)
    return above.div_(below)


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    y = torch.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        y.mul_(x).add_(c)  # two kernels, two roundings: no fused multiply-add anywhere
    return y


def _negative_log(x: Tensor) -> Tensor:
    """-log(x), 0 < x < 1: exponent times log 2, and the series of 2 atanh((m - 1) / (m + 1)) for 0.7 < m < 1.42."""
    mantissa, exponent = torch.frexp(x)
    small = mantissa < math.sqrt(0.5)
    mantissa = torch.where(small, mantissa * 2.0, mantissa)
    exponent = exponent.double() - small.double()
    s = (mantissa - 1.0) / (mantissa + 1.0)
    series = _polynomial(s * s, [1.0 / k for k in range(23, 0, -2)])
    return series.mul_(s).mul_(-2.0).sub_(exponent.mul_(math.log(2.0)))
