"""zoo: and hf: specs: which models there are, what a spec may say, and the words for one that is wrong."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import transformers

from uniap_compiler.ir import Diagnostic
from uniap_compiler.zoo import find_task, with_options, zoo
from uniap_compiler.zoo.spec import _file, _set_dropout


def config(folder: Path, **fields: object) -> Path:
    path = folder / "config.json"
    small = {"model_type": "qwen2", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
             "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip
    path.write_text(json.dumps(small | fields))
    return path


@pytest.mark.parametrize("name", zoo())
def test_small_models(name: str) -> None:
    task = find_task(f"zoo:{name}@small")
    assert sum(p.numel() for p in task.model.parameters()) < 200_000
    assert task.model.training
    again = find_task(f"zoo:{name}@small").model.state_dict()
    assert all(torch.equal(v, again[k]) for k, v in task.model.state_dict().items())
    assert torch.isfinite(task.model(**task.batch).loss)


def test_full_size_is_not_materialised() -> None:
    task = find_task("zoo:gpt3-175b")
    assert sum(p.numel() for p in task.model.parameters() if not p.is_meta) < 20e6  # biases are small tables
    assert 170e9 < sum(p.numel() for p in task.model.parameters()) < 180e9
    assert task.batch["input_ids"].shape == (2, 2048)


def test_dropout_and_fields() -> None:
    task = find_task("zoo:bert-huge@small,dropout=0,num_hidden_layers=2,seq=8")
    assert {m.p for m in task.model.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}
    assert len(task.model.bert.encoder.layer) == 2
    assert task.batch["input_ids"].shape[1] == 8
    assert {m.p for m in find_task("zoo:bert-huge@small").model.modules() if isinstance(m, torch.nn.Dropout)} == {0.1}


def test_local_config(tmp_path: Path) -> None:
    task = find_task(f"hf:{config(tmp_path)},task=causal-lm,seq=8")
    assert type(task.model).__name__ == "Qwen2ForCausalLM"
    assert type(find_task(f"hf:{tmp_path},task=causal-lm,seq=8").model) is type(task.model)
    saved = config(tmp_path, architectures=["Qwen2ForCausalLM"])
    assert type(find_task(f"hf:{saved},seq=8").model) is type(task.model)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("zoo:llama-8b", "the zoo has no model 'llama-8b'"),
        ("zoo:llama-7b@tiny", "each also as NAME@small"),
        ("zoo:llama-7b@small,layers=2", "'layers' is no field of LlamaConfig"),
        ("zoo:llama-7b@small,seq", "'seq' in the spec is not key=value"),
        ("zoo:llama-7b@small,task=poetry", "there is no task 'poetry'"),
        ("zoo:llama-7b@small,mask=False", "mask=False in the spec is neither true nor false"),
        ("zoo:gpt2-xl@small,seq=64", "rows of 64 tokens are longer than the model's 32 positions"),
        ("zoo:resnet-50@small,task=causal-lm,seq=8", "AutoModelForCausalLM cannot build the model"),
        ("hf:nowhere/config.json", "cannot read nowhere/config.json"),
        ("hf:{folder}", "does not say what to train"),
        ("hf:{folder},task=causal-lm", "needs the tokens of a row"),
        ("hf:{folder}/other", "cannot read"),
        ("hf:{folder}/bad.json", "is not a Hugging Face config"),
        ("hf:{folder}/strange.json,task=causal-lm", "transformers has no model type 'strange'"),
        ("hf:{folder}/wrong.json,task=causal-lm", "bamba does not take this config"),
        ("hf:{folder}/wrong.json,task=causal-lm", "Field 'hidden_size' expected int"),
        ("zoo:llama-7b@small,hidden_size=wide", "the config does not take hidden_size = 'wide'"),
    ],
)
def test_words(spec: str, words: str, tmp_path: Path) -> None:
    config(tmp_path)
    (tmp_path / "bad.json").write_text("[]")
    (tmp_path / "strange.json").write_text('{"model_type": "strange"}')
    (tmp_path / "wrong.json").write_text('{"model_type": "bamba", "hidden_size": "wide"}')
    with pytest.raises(Diagnostic) as error:
        find_task(spec.format(folder=tmp_path))
    assert words in error.value.render()


def test_options_become_part_of_the_spec() -> None:
    assert with_options("hf:c.json", task="causal-lm", seq=8) == "hf:c.json,task=causal-lm,seq=8"
    assert with_options("mlp.py:task", task=None, seq=None) == "mlp.py:task"
    with pytest.raises(Diagnostic, match="only a zoo: or hf: SPEC"):
        with_options("mlp.py:task", seq=8)


def test_a_mask_where_the_task_leaves_it_open() -> None:
    batches = [find_task(f"zoo:llama-7b@small{more}").batch for more in ("", ",mask=true")]
    assert ["attention_mask" in batch for batch in batches] == [False, True]
    assert batches[1]["attention_mask"].sum(1).tolist() == [16, 12]


def test_infinity_as_transformers_writes_it(tmp_path: Path) -> None:
    transformers.AutoConfig.for_model("bamba", vocab_size=64).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["time_step_limit"][1] == {"__float__": "Infinity"}
    assert _file(str(tmp_path)).fields["time_step_limit"] == [0.0, math.inf]


def test_any_length_and_integer_fields(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "xlnet", "vocab_size": 64, "d_model": 32, "n_layer": 1, "n_head": 4, "d_inner": 48})
    )
    assert find_task(f"hf:{tmp_path},task=causal-lm,seq=8").batch["input_ids"].shape[1] == 8  # positions: -1
    bart = transformers.AutoConfig.for_model("bart", encoder_layerdrop=0.2)
    _set_dropout(bart, 0.1)
    assert (bart.dropout, bart.encoder_layerdrop, bart.decoder_layerdrop) == (0.1, 0.0, 0.0)
    levit = transformers.AutoConfig.for_model("levit")
    _set_dropout(levit, 0.0)
    assert levit.drop_path_rate == 0  # an integer, and checked
    with pytest.raises(Diagnostic, match="does not take drop_path_rate"):
        _set_dropout(levit, 0.1)
