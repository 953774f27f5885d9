"""Hugging Face models, unmodified and small, under the plans that people use: equal to the unsharded model in float64.

A few of each in `make test`; every model under every plan, with and without dropout, behind `slow`
(`benchmarks/parity.py` prints the same as a table).
"""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from uniap_compiler.zoo import find_task, zoo

from .plans import ROOT, Workshop, check, strategies

PARITY = runpy.run_path(str(ROOT / "benchmarks" / "parity.py"))
RANKS, ROWS, PLANS = PARITY["RANKS"], PARITY["ROWS"], PARITY["PLANS"]
QUICK = [
    ("llama-7b", 0.0, "own choice"),
    ("bert-huge", 0.1, "dp x tp"),
    ("t5-large", 0.1, "pp"),
    ("vit-huge", 0.1, "selective"),
    ("swin-huge", 0.1, "pp x tp, sequence"),
    ("gpt2-xl", 0.1, "recompute"),
    ("mixtral-8x7b", 0.0, "dp x tp"),
    ("resnet-50", 0.0, "dp"),
]
"""Model, dropout, plan."""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("zoo"))


def _check(workshop: Workshop, spec: str, plan: str, out: Path) -> None:
    force = PLANS[plan]
    bundle = workshop.compile(spec, RANKS, force, out, global_batch=ROWS)
    wanted = dict(pair.split("=") for pair in force.split(",") if pair)
    for layer, (_, strategy) in strategies(bundle).items():
        for key in ("dp", "tp", "shard", "recompute", "boundary"):
            assert key not in wanted or str(strategy[key]) == wanted[key], f"{key} of {layer}"
    check(bundle)


@pytest.mark.parametrize(("model", "dropout", "plan"), QUICK)
def test_models(model: str, dropout: float, plan: str, workshop: Workshop, tmp_path: Path) -> None:
    _check(workshop, f"zoo:{model}@small,dropout={dropout:g}", plan, tmp_path / "bundle")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("model", zoo())
def test_every_plan(model: str, dropout: float, plan: str, workshop: Workshop, tmp_path: Path) -> None:
    if dropout and not _drops(f"zoo:{model}@small,dropout={dropout:g}"):
        pytest.skip("the model drops nothing")
    _check(workshop, f"zoo:{model}@small,dropout={dropout:g}", plan, tmp_path / "bundle")


def _drops(spec: str) -> bool:
    config = find_task(spec).model.config
    return any("drop" in key and value for key, value in vars(config).items() if isinstance(value, float))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("plan", ["dp x tp", "tp"])
def test_a_layer_of_thousands_of_ops(plan: str, workshop: Workshop, tmp_path: Path) -> None:
    """Qwen3-Next's linear attention is an unrolled recurrence: its search is bounded, its patterns are not wrong."""
    config = {
        "model_type": "qwen3_next", "architectures": ["Qwen3NextForCausalLM"], "vocab_size": 256, "hidden_size": 64,
        "num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"], "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 16, "linear_value_head_dim": 16, "intermediate_size": 128, "moe_intermediate_size": 32,
        "shared_expert_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "use_cache": False,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    _check(workshop, f"hf:{tmp_path}/config.json,task=causal-lm,seq=64", plan, tmp_path / "bundle")
