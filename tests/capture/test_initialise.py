"""Models without memory for weights: what their initialisers do is recorded, and gives what they would have made."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from uniap_compiler import on_meta
from uniap_compiler.capture import deferred, initial_values, load_task
from uniap_compiler.capture.deferred import Recorder, recording
from uniap_compiler.capture.initialise import NoValue, settle
from uniap_compiler.ir import Diagnostic
from uniap_compiler.runtime.initialise import Recipe
from uniap_compiler.zoo import zoo

from .initialisers import ALL, ByHand, Computed, Copies, Defaults, Looks, Truncated, values


def recorded(factory: Any, redirect: bool) -> tuple[nn.Module, Recorder]:
    with recording(redirect) as recorder:
        if redirect:
            model = factory()
        else:
            with torch.device("meta"):
                model = factory()
    return model, recorder


@pytest.mark.parametrize("redirect", [True, False], ids=["on_meta", "torch.device"])
@pytest.mark.parametrize("factory", ALL, ids=lambda f: f.__name__)
def test_recipes_are_what_the_code_did(factory: Any, redirect: bool) -> None:
    """A recipe is read off the writes; evaluate carries them out op by op, with the same draws."""
    model, recorder = recorded(factory, redirect)
    done = {
        name: recorder.evaluate(recorder.ref(p)) if p.is_meta else p.detach()
        for name, p in model.named_parameters(remove_duplicate=False)
    }
    settle(model, recorder)
    initial = initial_values(model)
    for name, wanted in done.items():
        found = values(initial[name])
        assert found.shape == wanted.shape and found.dtype == wanted.dtype
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("factory", ALL, ids=lambda f: f.__name__)
def test_what_is_not_random_is_what_torch_makes(factory: Any) -> None:
    """Real models of several seeds: ours agree where those agree, with them, and differ where they differ."""
    real, ours = [], []
    for seed in range(1, 9):
        torch.manual_seed(seed)
        model = factory()
        tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]
        real.append({name: t.detach() for name, t in tensors})
        torch.manual_seed(seed)
        ours.append(initial_values(on_meta(factory)))
    for name, wanted in real[0].items():
        found = values(ours[0][name])
        assert found.shape == wanted.shape and found.dtype == wanted.dtype, name
        same, ours_same = (
            torch.stack([values(m[name]) == values(models[0][name]) for m in models]).all(0) for models in (real, ours)
        )
        assert torch.equal(same, ours_same), name
        torch.testing.assert_close(found[same], wanted[same], rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("factory", [Defaults, ByHand, Truncated, Copies], ids=lambda f: f.__name__)
def test_most_things_are_recipes(factory: Any) -> None:
    """So that nothing of a parameter's size is held while compiling: only tables of ones and zeros are real."""
    for name, initial in initial_values(on_meta(factory)).items():
        if isinstance(initial, Tensor):
            assert initial.numel() <= 24 and ("batch" in name or bool((initial == initial.flatten()[0]).all())), name


def test_readable() -> None:
    initial = initial_values(on_meta(ByHand))
    steps = {name: r.steps for name, r in initial.items() if isinstance(r, Recipe)}
    assert steps["token"] == (["normal", 0.0, 1.0, {"draw": 0}], ["mul", 0.02])
    bound = 1 / math.sqrt(8)
    assert steps["qkv.bias"] == (["uniform", -bound, bound, {"draw": 3}], ["fill", 3.0, {"in": [[8, 24]]}])
    assert steps["filters"] == (
        ["normal", 0.0, 1.0, {"draw": 6}], ["clamp", -1.0, 0.5],
        ["mul", -1.0, {"in": [[0, 4], [1, 2], [0, 3], [0, 3]]}],
    )  # fmt: skip
    assert ["mul", 3.0, {"in": [[16, 24], [0, 7, 2]]}] in steps["qkv.weight"]
    assert steps["copied"] == steps["qkv.weight"][:-1], "a copy is of its moment"


def test_distributions() -> None:
    torch.manual_seed(5)
    truncated = initial_values(on_meta(Truncated))
    usual, narrow = (values(truncated[name], torch.float64) for name in ("usual", "narrow"))
    assert abs(float(usual.std()) - 0.02) < 0.002 and float(usual.abs().max()) < 0.1
    assert 0.2 <= float(narrow.min()) < 0.3 and 1.05 < float(narrow.max()) <= 1.1
    embed = values(initial_values(on_meta(Defaults))["embed.weight"])
    assert bool((embed[2] == 0).all()) and int((embed == 0).sum()) == 8


def test_ties_and_copies() -> None:
    initial = initial_values(on_meta(Defaults))
    assert initial["head.weight"] is initial["embed.weight"]
    initial = initial_values(on_meta(Copies))
    assert torch.equal(values(initial["layers.0.weight"]), values(initial["layers.1.weight"]))
    assert torch.equal(values(initial["layers.0.weight"]), values(initial["shadow.weight"]))


def test_orthogonal() -> None:
    w = values(initial_values(on_meta(Computed))["linear.weight"])
    torch.testing.assert_close(w @ w.T, torch.eye(8), rtol=0, atol=1e-5)
    assert torch.equal(values(initial_values(on_meta(Computed))["joined"])[:2], w[:2])


def test_buffers_are_real() -> None:
    for redirect in (True, False):
        model, recorder = recorded(Computed, redirect)
        settle(model, recorder)
        wanted = dict(Computed().named_buffers())
        for name, found in model.named_buffers():
            assert not found.is_meta
            if name != "drawn":
                assert torch.equal(found, wanted[name])


def test_code_that_looks() -> None:
    """Into tables on the CPU, as on_meta leaves them; and into tensors without data, where they are small."""
    for redirect in (True, False):
        model, recorder = recorded(Looks, redirect)
        settle(model, recorder)
        third = initial_values(model)["blocks.2.weight"]
        assert isinstance(third, Recipe) and third.steps[-1] == ["mul", 0.5]


def test_seeds() -> None:
    def first() -> Tensor:
        return values(initial_values(on_meta(lambda: nn.Linear(4, 4)))["weight"])

    torch.manual_seed(1)
    one = first()
    torch.manual_seed(2)
    assert not torch.equal(first(), one)
    torch.manual_seed(1)
    assert torch.equal(first(), one)
    torch.seed()  # 64 random bits, as every process starts with: nobody gave a seed
    unseeded = first()
    torch.seed()
    assert torch.equal(first(), unseeded)


class Unfilled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(4, 4))
        self.partly = nn.Parameter(torch.empty(4, 4))
        with torch.no_grad():
            self.partly[:, :2].zero_()


def test_what_nothing_fills() -> None:
    initial = initial_values(on_meta(Unfilled))
    assert [getattr(initial[name], "why", None) for name in ("w", "partly")] == ["nothing ever fills it"] * 2


def test_too_large_to_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferred, "LARGEST", 60)
    initial = initial_values(on_meta(Computed))
    found = initial["linear.weight"]
    assert isinstance(found, NoValue) and "which a rank cannot do for its slice alone" in found.why

    class Decides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(20, 20))
            if self.w.sum() > 0:
                self.w.data.neg_()

    with pytest.raises(Diagnostic, match="looks into a tensor that has no data"):
        on_meta(Decides)


def test_no_module() -> None:
    with pytest.raises(Diagnostic, match="a function that returns a dict"):
        on_meta(dict)  # type: ignore[arg-type]


def test_a_model_made_before() -> None:
    with torch.device("meta"):
        model = nn.Linear(2, 2)
    found = initial_values(model)["weight"]
    assert isinstance(found, NoValue) and "before the compiler could see" in found.why


def test_a_model_that_changes_afterwards(tmp_path: Any) -> None:
    """Seen in a task's factory, refused elsewhere; never the recipe of what was there before."""
    model = on_meta(lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)))
    with torch.no_grad():
        model[0].weight.zero_()
    with torch.device("meta"):
        model[1] = nn.Linear(2, 2)
        model[2].weight.data = torch.empty(2, 2)
    initial = initial_values(model)
    whys = [getattr(initial[f"{n}.weight"], "why", "") for n in range(3)]
    assert "changed after" in whys[0] and "before the compiler" in whys[1] and "changed after" in whys[2]
    (tmp_path / "task.py").write_text(FACTORY)
    changed = initial_values(load_task(f"{tmp_path / 'task.py'}:changed").model)["weight"]
    assert isinstance(changed, Recipe) and changed.steps == (["fill", 0.0],)


FACTORY = """
import torch
from torch import nn
from uniap_compiler import TrainingTask, on_meta

def plain():
    with torch.device("meta"):
        model = nn.Linear(4, 4)
    return TrainingTask(model, torch.zeros(2, 4), loss=lambda y, t: y.mean(), targets=torch.zeros(2))

def wrapped():
    inner = on_meta(lambda: nn.Linear(4, 4))
    return TrainingTask(nn.Sequential(inner), torch.zeros(2, 4), loss=lambda y, t: y.mean(), targets=torch.zeros(2))

def changed():
    model = on_meta(lambda: nn.Linear(4, 4))
    nn.init.zeros_(model.weight)
    return TrainingTask(model, torch.zeros(2, 4), loss=lambda y, t: y.mean(), targets=torch.zeros(2))

def real():
    return TrainingTask(nn.Linear(4, 4), torch.zeros(2, 4), loss=lambda y, t: y.mean(), targets=torch.zeros(2))
"""


def test_factories(tmp_path: Any) -> None:
    (tmp_path / "task.py").write_text(FACTORY)
    plain, wrapped, real = (load_task(f"{tmp_path / 'task.py'}:{name}").model for name in ("plain", "wrapped", "real"))
    assert isinstance(initial_values(plain)["weight"], Recipe)
    assert initial_values(plain)["weight"] == initial_values(wrapped)["0.weight"]
    assert isinstance(real.weight, nn.Parameter) and initial_values(real)["weight"].data_ptr() == real.weight.data_ptr()


@pytest.mark.parametrize("redirect", [True, False], ids=["on_meta", "torch.device"])
def test_transformers(redirect: bool) -> None:
    """Its models leave their weights alone where an empty tensor comes out on the meta device: here none does."""
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_attention_heads=4, num_hidden_layers=2, vocab_size=256,
        initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    real = transformers.AutoModelForCausalLM.from_config(config)
    model, recorder = recorded(lambda: transformers.AutoModelForCausalLM.from_config(config), redirect)
    settle(model, recorder)
    initial = initial_values(model)
    for name, wanted in [*real.named_parameters(), *real.named_buffers()]:
        found = values(initial[name])
        assert found.shape == wanted.shape
        torch.testing.assert_close(found.mean(), wanted.detach().mean(), rtol=0, atol=0.03)
        torch.testing.assert_close(found.std(), wanted.detach().std(), rtol=0.08, atol=1e-6)
    assert torch.equal(model.model.rotary_emb.inv_freq, real.model.rotary_emb.inv_freq)


QUICK = ("gpt2-xl", "swin-huge")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in zoo()])
def test_zoo(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every parameter has the mean and spread that transformers gives it, every buffer its values."""
    pytest.importorskip("transformers")
    from uniap_compiler.zoo import spec

    real = spec.find_task(f"zoo:{name}@small").model
    monkeypatch.setattr(spec, "REAL", 0)
    model = spec.find_task(f"zoo:{name}@small").model
    initial = initial_values(model)
    for n, buffer in real.named_buffers():
        assert torch.equal(values(initial[n]), buffer), n
    for n, p in real.named_parameters():
        assert model.get_parameter(n).is_meta or bool((p == p.flatten()[0]).all())
        wanted, found = p.detach().double(), values(initial[n]).double()
        assert found.shape == wanted.shape and torch.equal((found == 0).sum(), (wanted == 0).sum()), n
        spread = max(float(found.std(correction=0)), float(wanted.std(correction=0)))
        count = math.sqrt(wanted.numel())
        assert abs(float(found.mean() - wanted.mean())) <= 9 * spread / count + 1e-12, n
        assert abs(float(found.std(correction=0) - wanted.std(correction=0))) <= 5 * spread / count, n
