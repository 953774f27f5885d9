"""Numbers of a recipe: the same on every rank and device, with the right distribution."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
import torch

from uniap_compiler.runtime import initialise, pieces
from uniap_compiler.runtime.errors import BundleError
from uniap_compiler.runtime.initialise import Recipe, Recipes, quantile, to_json

NORMAL = ["normal", 1.0, 2.0, {"draw": 7}]
UNIFORM = ["uniform", -3.0, 1.0, {"draw": 8}]
TRUNCATED = ["trunc_normal", 0.5, 1.0, -1.0, 1.25, {"draw": 9}]


def numbers(*steps: Any, shape: tuple[int, ...] = (200, 500), seed: int = 0) -> torch.Tensor:
    return Recipe(shape, steps, seed).values(torch.float64)


def splitmix(place: int, key: int) -> int:
    """The published algorithm, in Python's integers."""
    mask = (1 << 64) - 1
    x = (place * 0x9E3779B97F4A7C15 + key) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def test_bits() -> None:
    places = [0, 1, 2, 12345, (1 << 40) + 3]
    key = initialise._key(5, 3)
    found = initialise._bits(torch.tensor(places), key).tolist()
    assert [x % (1 << 64) for x in found] == [splitmix(place, key) for place in places]
    # The first outputs of the published generator seeded with 1234567: state is the key, one golden ratio per step.
    found = initialise._bits(torch.arange(1, 4), 1234567).tolist()
    assert [x % (1 << 64) for x in found] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_quantile() -> None:
    special = torch.tensor([-1 + 2.0**-40, -0.85, -(2.0**-53), 0.3, 0.8500001, 0.99], dtype=torch.float64)
    centred = torch.cat([special, torch.linspace(-0.9999, 0.9999, 1001, dtype=torch.float64)])
    wanted = [math.sqrt(2) * float(x) for x in torch.special.erfinv(centred)]
    torch.testing.assert_close(quantile(centred), torch.tensor(wanted, dtype=torch.float64), rtol=1e-12, atol=1e-16)
    far = quantile(torch.tensor([1 - 2.0**-53], dtype=torch.float64)).item()
    assert far == pytest.approx(-NormalDist().inv_cdf(2.0**-54), rel=1e-12)


def test_normal() -> None:
    x = numbers(NORMAL)
    z = ((x - 1) / 2).flatten()
    n = z.numel()
    assert abs(float(z.mean())) < 4 / math.sqrt(n)
    assert abs(float(z.var()) - 1) < 4 * math.sqrt(2 / n)
    assert abs(float((z**4).mean()) - 3) < 4 * math.sqrt(96 / n)
    assert abs(float((z[1:] * z[:-1]).mean())) < 4 / math.sqrt(n)
    ordered = z.sort().values
    expected = torch.arange(1, n + 1) / n
    gap = (torch.special.ndtr(ordered) - expected).abs().max()
    assert float(gap) < 1.95 / math.sqrt(n), "Kolmogorov-Smirnov, 0.1 %"


def test_uniform_and_truncated() -> None:
    x = numbers(UNIFORM)
    assert -3 <= float(x.min()) < -2.99 and 0.99 < float(x.max()) < 1
    gap = ((x.flatten().sort().values + 3) / 4 - torch.arange(1, x.numel() + 1) / x.numel()).abs().max()
    assert float(gap) < 1.95 / math.sqrt(x.numel())
    x = numbers(TRUNCATED)
    assert -1 <= float(x.min()) < -0.99 and 1.24 < float(x.max()) <= 1.25
    low, high = (NormalDist(0.5, 1.0).cdf(end) for end in (-1.0, 1.25))
    cdf = (torch.special.ndtr(x.flatten().sort().values - 0.5) - low) / (high - low)
    assert float((cdf - torch.arange(1, x.numel() + 1) / x.numel()).abs().max()) < 1.95 / math.sqrt(x.numel())


def test_draws_and_seeds_are_independent() -> None:
    first = numbers(["normal", 0.0, 1.0, {"draw": 0}])
    for other in (numbers(["normal", 0.0, 1.0, {"draw": 1}]), numbers(["normal", 0.0, 1.0, {"draw": 0}], seed=1)):
        assert abs(float((first * other).mean())) < 4 / math.sqrt(first.numel())


STEPS = [
    NORMAL, ["mul", 0.5], ["fill", 0.0, {"in": [[2, 3], [0, 24]]}],
    ["uniform", 5.0, 6.0, {"draw": 1, "in": [[3, 30, 4], [5, 17]]}],
    ["add", 1.0], ["clamp", None, 4.5, {"in": [[0, 30], [20, 24]]}], ["div", 3.0],
]  # fmt: skip
PIECES = [
    [[[30, 10, 20]], [[24, 0, 24]]],
    [[[30, 0, 30]], [[24, 12, 18]]],
    [[[3, 0, 3], [10, 5, 10]], [[24, 6, 12]]],
    [[[5, 1, 4], [6, 2, 4]], [[2, 0, 2], [12, 6, 12]]],
    [[[30, 2, 3]], [[24, 23, 24]]],
]


@pytest.mark.parametrize("slices", PIECES)
@pytest.mark.parametrize("block", [1, 7, 64, 1 << 16])
def test_a_slice_is_a_slice_of_the_whole(slices: Any, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, whatever is computed at a time."""
    recipe = Recipe((30, 24), tuple(STEPS), 3)
    whole = recipe.values(torch.float64)
    monkeypatch.setitem(initialise._BLOCK, "cpu", block)
    assert torch.equal(recipe.values(torch.float64, slices=slices), pieces.read(whole, slices))


def test_steps() -> None:
    found = Recipe((30, 24), tuple(STEPS), 3).values(torch.float64)
    wanted = numbers(NORMAL, shape=(30, 24), seed=3) * 0.5
    wanted[2] = 0
    wanted[3::4, 5:17] = numbers(["uniform", 5.0, 6.0, {"draw": 1}], shape=(30, 24), seed=3)[3::4, 5:17]
    wanted = wanted + 1
    wanted[:, 20:].clamp_(max=4.5)
    assert torch.equal(found, wanted / 3)


def test_shapes_and_dtypes() -> None:
    assert Recipe((), (NORMAL,), 0).values(torch.float32).shape == ()
    assert Recipe((3, 0), (NORMAL,), 0).values(torch.float32).shape == (3, 0)
    wide = Recipe((2, 3, 4), (NORMAL,), 0).values(torch.float64)
    assert torch.equal(Recipe((2, 3, 4), (NORMAL,), 0).values(torch.bfloat16), wide.bfloat16())
    assert torch.equal(Recipe((24,), (NORMAL,), 0).values(torch.float64), wide.flatten())


def test_threads() -> None:
    before = torch.get_num_threads()
    one = numbers(NORMAL, shape=(700, 333))
    try:
        torch.set_num_threads(2)
        assert torch.equal(numbers(NORMAL, shape=(700, 333)), one)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_same_on_a_gpu() -> None:
    for step in (NORMAL, UNIFORM, TRUNCATED):
        recipe = Recipe((3000, 1000), (step,), 11)
        assert torch.equal(recipe.values(torch.float64, "cuda").cpu(), recipe.values(torch.float64))


def test_files(tmp_path: Path) -> None:
    recipes = {"b": Recipe((2, 2), (NORMAL,), 4), "a": Recipe((3,), (["fill", 0.0],), 4)}
    path = tmp_path / "recipe.json"
    path.write_text(to_json(recipes))
    assert Recipes(path).recipes == recipes
    assert json.loads(path.read_text())["seed"] == 4
    record = {"slices": [[[2, 1, 2]], [[2, 0, 2]]], "dtype": "float32"}
    found = Recipes(path).read("b", record, torch.device("cpu"))
    assert torch.equal(found, recipes["b"].values(torch.float32)[1:])
    with pytest.raises(BundleError, match=r"recipe of a has shape \[3\], the bundle needs \[4\]"):
        Recipes(path).read("a", {"slices": [[[4, 1, 2]]], "dtype": "float32"}, torch.device("cpu"))
    with pytest.raises(ValueError, match="several seeds"):
        to_json({"a": Recipe((), (), 1), "b": Recipe((), (), 2)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("uniap-recipe/1", "uniap-recipe/9"), "its format is 'uniap-recipe/9'"),
        (('"normal"', '"levy"'), "the recipe of b has a wrong step: ['levy'"),
        (("[1.0, ", "["), "cannot read the recipes"),
        (("2.0, {", "{"), "the recipe of b has a wrong step"),
        (('"draw": 7', '"drew": 7'), "the recipe of b has a wrong step"),
    ],
)
def test_wrong_files(change: tuple[str, str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    text = to_json({"b": Recipe((2, 2), (NORMAL,), 4)}).replace("\n}}", "\n}}" if change[0] != "[1.0, " else "\n}")
    path.write_text(text.replace(*change))
    with pytest.raises(BundleError) as error:
        Recipes(path)
    assert message in str(error.value)
