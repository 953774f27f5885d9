"""From a SPEC to a task.

zoo:NAME[@small][,key=value...]          NAME as in models.toml
hf:PATH/config.json[,key=value...]       a local Hugging Face config (or the folder that holds it)

keys: task, seq (tokens of a row), image_size, mask (true: the batch has an attention_mask), dropout (0 switches every
kind of dropout off), dtype, and any field of the config: `zoo:llama-7b,num_hidden_layers=8`.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from uniap_compiler.capture import TrainingTask, load_task, on_meta
from uniap_compiler.ir import Diagnostic

from .models import zoo
from .tasks import example, kind_of

REAL = 50_000_000
"""Parameters; a larger model is built on the meta device and its ranks draw their own slices."""


@dataclass(frozen=True)
class Source:
    """type: of the Hugging Face config.  fields: what differs from its defaults."""

    type: str
    fields: dict[str, Any]
    task: str | None = None
    seq: int | None = None
    image_size: int | None = None


def find_task(spec: str) -> TrainingTask:
    """The task that a SPEC names: `zoo:...`, `hf:...`, or a factory of the user's.  Raises Diagnostic."""
    scheme, _, rest = spec.partition(":")
    if scheme == "zoo":
        return _task(spec, _named, rest)
    if scheme == "hf":
        return _task(spec, _file, rest)
    return load_task(spec)


def options_of(text: str) -> tuple[str, dict[str, Any]]:
    """`llama-7b@small,seq=8` -> ("llama-7b@small", {"seq": 8}).  A comma inside brackets belongs to a list."""
    name, *pairs = re.split(r",(?![^\[]*\])", text)
    options: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise Diagnostic(f"{pair!r} in the spec is not key=value")
        options[key] = _value(value)
    return name, options


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _named(name: str) -> Source:
    model, at, size = name.partition("@")
    row = zoo().get(model)
    if row is None or (at and size != "small"):
        raise Diagnostic(f"the zoo has no model {name!r}", help=f"it has {', '.join(zoo())}; each also as NAME@small")
    row = row | row["small"] if at else row
    return Source(row["type"], row["config"], row["task"], row.get("seq"), row.get("image_size"))


def _file(name: str) -> Source:
    path = Path(name)
    path = path / "config.json" if path.is_dir() else path
    try:
        fields = json.loads(path.read_text(encoding="utf-8"), object_hook=_float)
    except OSError as error:
        raise Diagnostic(f"cannot read {path}: {error.strerror}", help="hf: takes a local config.json") from None
    except ValueError as error:
        raise Diagnostic(f"{path} is not JSON: {error}") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("model_type"), str):
        raise Diagnostic(f"{path} is not a Hugging Face config: it has no `model_type`")
    return Source(fields["model_type"], {k: v for k, v in fields.items() if k != "model_type"})


def _float(value: dict[str, Any]) -> Any:
    """transformers writes what JSON has no word for as {"__float__": "Infinity"}."""
    return float(value["__float__"]) if value.keys() == {"__float__"} else value


def _task(spec: str, find: Any, text: str) -> TrainingTask:
    name, options = options_of(text)
    source: Source = find(name)
    if importlib.util.find_spec("transformers") is None:
        raise Diagnostic(f"{spec} needs transformers", help="pip install 'uniap-compiler[zoo]'")
    task = options.pop("task", None) or source.task or _guess(source.fields)
    seq = options.pop("seq", source.seq)
    image_size = options.pop("image_size", source.image_size)
    dropout, mask = options.pop("dropout", None), options.pop("mask", False)
    if not isinstance(mask, bool):
        raise Diagnostic(f"mask={mask} in the spec is neither true nor false")
    kind = kind_of(str(task))
    config = _config(source, options)
    if image_size is not None and hasattr(config, "image_size"):
        several = isinstance(config.image_size, (list, tuple)) and isinstance(image_size, int)
        config.image_size = [image_size] * len(config.image_size) if several else image_size
    if dropout is not None:
        _set_dropout(config, float(dropout))
    config.use_cache = False
    if hasattr(config, "_experts_implementation"):  # of the ways to run experts, the one that says most: see
        config._experts_implementation = "batched_mm"  # passes/simplify/fuse_experts.py
    model = _build(config, kind.auto_class, spec)
    return TrainingTask(model, example(config, str(task), seq, image_size, mask))


def _guess(fields: dict[str, Any]) -> str:
    """From the class that a config was saved for."""
    endings = {
        "ForCausalLM": "causal-lm", "LMHeadModel": "causal-lm", "ForMaskedLM": "masked-lm",
        "ForImageClassification": "image-classification", "ForSequenceClassification": "sequence-classification",
        "ForTokenClassification": "token-classification", "ForQuestionAnswering": "question-answering",
    }  # fmt: skip
    for architecture in fields.get("architectures") or []:
        for ending, task in endings.items():
            if architecture.endswith(ending):
                return task
    raise Diagnostic("the config does not say what to train", help="add ,task=causal-lm to the spec, or --task")


def _config(source: Source, options: dict[str, Any]) -> Any:
    from transformers import CONFIG_MAPPING, AutoConfig

    if source.type not in CONFIG_MAPPING:
        raise Diagnostic(f"transformers has no model type {source.type!r}", help="a newer transformers may have it")
    try:
        config = AutoConfig.for_model(source.type, **source.fields)
    except Exception as error:  # every config checks its fields in its own way
        raise Diagnostic(f"{source.type} does not take this config", notes=[_reason(error)]) from error
    for key, value in options.items():
        if not hasattr(config, key):
            raise Diagnostic(
                f"{key!r} is no field of {type(config).__name__}",
                help="the keys of a spec are task, seq, image_size, mask, dropout and the fields of the config",
            )
        try:
            setattr(config, key, value)
        except Exception as error:
            raise Diagnostic(f"the config does not take {key} = {value!r}", notes=[_reason(error)]) from error
    return config


def _reason(error: Exception) -> str:
    """Type and words of an error; some of transformers' have theirs on further lines."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _set_dropout(config: Any, p: float) -> None:
    """Every field that is a probability of dropping something: hidden_dropout_prob, resid_pdrop, drop_path_rate, ...

    LayerDrop is off in any case: which layers run would depend on a random number.
    """
    for key, value in vars(config).items():
        if "drop" in key and isinstance(value, (int, float)) and not isinstance(value, bool):
            rate = 0.0 if key.endswith("layerdrop") else p
            try:
                setattr(config, key, int(rate) if isinstance(value, int) and rate == int(rate) else rate)
            except Exception as error:  # some configs check the types of their fields
                raise Diagnostic(f"the config does not take {key} = {rate:g}", notes=[_reason(error)]) from error


def _build(config: Any, auto_class: str, spec: str) -> torch.nn.Module:
    """The model in training mode; on the meta device when it is large."""
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    auto = getattr(transformers, auto_class)
    config.architectures = config.architectures or []  # None is an error where a type has several classes (DeiT)
    try:
        model = on_meta(lambda: auto.from_config(config))  # transformers skips initialisation on torch.device("meta")
    except Exception as error:  # whatever transformers' code does with a config that does not fit together
        raise Diagnostic(f"{spec}: {auto_class} cannot build the model", notes=[_reason(error)]) from error
    if sum(p.numel() for p in model.parameters()) <= REAL:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = auto.from_config(config)
    model.train()
    return model
