"""What each kind of task feeds a Hugging Face model: example batches with the names of the model's own forward.

causal-lm             input_ids [B, seq], labels [B, seq]; with `mask=true` attention_mask [B, seq]
masked-lm             input_ids, attention_mask [B, seq], labels [B, seq], -100 where a token was not masked
seq2seq-lm            input_ids [B, seq], labels [B, seq]; with `mask=true` attention_mask [B, seq]
image-classification  pixel_values [B, channels, size, size], labels [B]
sequence-classification, token-classification, question-answering     as the auto class of that name expects
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from uniap_compiler.ir import Diagnostic

ROWS = 2
"""Of an example batch; the compiler repeats them."""
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Kind:
    """auto_class: of transformers.  batch(config, seq, image_size, generator) -> an example batch."""

    auto_class: str
    batch: Callable[[Any, int, int, torch.Generator], Batch]
    tokens: bool = True


def _tokens(config: Any, seq: int, generator: torch.Generator) -> Tensor:
    vocab = int(config.get_text_config().vocab_size)
    return torch.randint(min(3, vocab - 1), vocab, (ROWS, seq), generator=generator)


def _causal(config: Any, seq: int, image: int, g: torch.Generator) -> Batch:
    ids = _tokens(config, seq, g)
    return {"input_ids": ids, "labels": ids.clone()}


def _masked(config: Any, seq: int, image: int, g: torch.Generator) -> Batch:
    ids = _tokens(config, seq, g)
    chosen = torch.rand(ids.shape, generator=g) < 0.15
    chosen[:, 0] = True
    return {"input_ids": ids, "attention_mask": _mask(seq), "labels": torch.where(chosen, ids, -100)}


def _mask(seq: int) -> Tensor:
    """The second row is padded, so that the mask matters."""
    mask = torch.ones(ROWS, seq, dtype=torch.int64)
    mask[1, seq - seq // 4 :] = 0
    return mask


def _seq2seq(config: Any, seq: int, image: int, g: torch.Generator) -> Batch:
    return {"input_ids": _tokens(config, seq, g), "labels": _tokens(config, seq, g)}


def _images(config: Any, seq: int, image: int, g: torch.Generator) -> Batch:
    channels = int(getattr(config, "num_channels", 3))
    pixels = torch.randn(ROWS, channels, image, image, generator=g)
    return {"pixel_values": pixels, "labels": torch.randint(0, _labels(config), (ROWS,), generator=g)}


def _labels(config: Any) -> int:
    return int(config.num_labels)


def _classified(config: Any, seq: int, image: int, g: torch.Generator) -> Batch:
    labels = torch.randint(0, _labels(config), (ROWS,), generator=g)
    return {"input_ids": _tokens(config, seq, g), "attention_mask": _mask(seq), "labels": labels}


def _each_token(config: Any, seq: int, image: int, g: torch.Generator) -> Batch:
    labels = torch.randint(0, _labels(config), (ROWS, seq), generator=g)
    return {"input_ids": _tokens(config, seq, g), "attention_mask": _mask(seq), "labels": labels}


def _spans(config: Any, seq: int, image: int, g: torch.Generator) -> Batch:
    start, end = torch.randint(0, seq, (2, ROWS), generator=g)
    ids = _tokens(config, seq, g)
    return {"input_ids": ids, "attention_mask": _mask(seq), "start_positions": start, "end_positions": end}


KINDS = {
    "causal-lm": Kind("AutoModelForCausalLM", _causal),
    "masked-lm": Kind("AutoModelForMaskedLM", _masked),
    "seq2seq-lm": Kind("AutoModelForSeq2SeqLM", _seq2seq),
    "image-classification": Kind("AutoModelForImageClassification", _images, tokens=False),
    "sequence-classification": Kind("AutoModelForSequenceClassification", _classified),
    "token-classification": Kind("AutoModelForTokenClassification", _each_token),
    "question-answering": Kind("AutoModelForQuestionAnswering", _spans),
}


def kind_of(name: str) -> Kind:
    if name not in KINDS:
        raise Diagnostic(f"there is no task {name!r}", help=f"the tasks are {', '.join(KINDS)}")
    return KINDS[name]


def example(config: Any, name: str, seq: int | None, image_size: int | None, mask: bool = False) -> Batch:
    """An example batch, the same in every run.  Raises Diagnostic when a length does not fit the model.

    mask: rows of tokens are padded, and the batch says where, for tasks that leave it open.
    """
    kind = kind_of(name)
    length = seq or 0
    if kind.tokens:
        longest = getattr(config.get_text_config(), "max_position_embeddings", None)
        if length < 1:
            raise Diagnostic(f"the task {name} needs the tokens of a row", help="add ,seq=512 to the spec, or --seq")
        if isinstance(longest, int) and 0 < longest < length:  # XLNet says -1: any
            raise Diagnostic(
                f"rows of {length} tokens are longer than the model's {longest} positions",
                help=f"use seq={longest} or less, or a config with more max_position_embeddings",
            )
    size = image_size or getattr(config, "image_size", None) or 224
    size = size[0] if isinstance(size, (list, tuple)) else size
    batch = kind.batch(config, length, int(size), torch.Generator().manual_seed(1))
    return {"attention_mask": _mask(length)} | batch if mask and kind.tokens else batch
