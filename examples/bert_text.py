"""A small BERT of Hugging Face's transformers, masked bytes of the text of Python's own help topics.

    uniap compile examples/bert_text.py:task --cluster laptop --global-batch 16 --out build/bert
    torchrun --standalone --nproc-per-node 4 build/bert/train.py --data examples/bert_text.py:batches --steps 300

Four layers, rows of 64 bytes of which 15 in 100 are to be found out, dropout of 0.1 as BERT's config has it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from uniap_compiler import TrainingTask

BYTES, MASK, SEQUENCE = 256, 256, 64
HELD_OUT = 40_000


def text() -> Tensor:
    """Some 700 kB of English that every Python installation carries, as bytes."""
    from pydoc_data import topics

    return torch.tensor(list("\n\n".join(topics.topics[k] for k in sorted(topics.topics)).encode()), dtype=torch.uint8)


def masked(window: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """The first byte of a row is always masked, so that no row is without a label."""
    chosen = torch.rand(window.shape, generator=generator) < 0.15
    chosen[:, 0] = True
    return {"input_ids": torch.where(chosen, MASK, window), "labels": torch.where(chosen, window, -100)}


def rows(data: Tensor, count: int, generator: torch.Generator) -> dict[str, Tensor]:
    starts = torch.randint(len(data) - SEQUENCE, (count, 1), generator=generator)
    return masked(data[starts + torch.arange(SEQUENCE)].long(), generator)


def held_out() -> dict[str, Tensor]:
    """Rows of the last part of the text, which `batches` never gives."""
    return rows(text()[-HELD_OUT:], 512, torch.Generator().manual_seed(1))


def batches(batch_size: int = 16, seed: int = 0) -> Iterator[dict[str, Tensor]]:
    data, generator = text()[:-HELD_OUT], torch.Generator().manual_seed(seed)
    while True:
        yield rows(data, batch_size, generator)


def task() -> TrainingTask:
    from transformers import BertConfig, BertForMaskedLM

    from uniap_compiler import TrainingTask  # here, so that `batches` needs torch only

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=BYTES + 8, hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=SEQUENCE,
    )  # fmt: skip
    return TrainingTask(BertForMaskedLM(config).train(), next(batches(2)))
