"""A small Vision Transformer of Hugging Face's transformers on scikit-learn's 1,797 handwritten digits (8 x 8 pixels).

    uniap compile examples/digits_vit.py:task --cluster laptop --global-batch 32 --out build/digits
    torchrun --standalone --nproc-per-node 4 build/digits/train.py --data examples/digits_vit.py:batches --steps 300

Four layers, 16 patches and a class token, 0.2 million parameters.  Needs scikit-learn: pip install scikit-learn.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from uniap_compiler import TrainingTask

HELD_OUT = 360


def digits() -> tuple[Tensor, Tensor]:
    """Images [1797, 1, 8, 8] with mean 0, and their digits, in a fixed order without any."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise SystemExit("this example needs scikit-learn: pip install scikit-learn") from None
    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1)[order]
    return (images - images.mean()) / images.std(), torch.tensor(found.target, dtype=torch.int64)[order]


def held_out() -> dict[str, Tensor]:
    """What `batches` never gives."""
    images, labels = digits()
    return {"pixel_values": images[:HELD_OUT], "labels": labels[:HELD_OUT]}


def batches(batch_size: int = 32, seed: int = 0) -> Iterator[dict[str, Tensor]]:
    images, labels = digits()
    generator = torch.Generator().manual_seed(seed)
    while True:
        rows = HELD_OUT + torch.randint(len(labels) - HELD_OUT, (batch_size,), generator=generator)
        yield {"pixel_values": images[rows], "labels": labels[rows]}


def task() -> TrainingTask:
    from transformers import ViTConfig, ViTForImageClassification

    from uniap_compiler import TrainingTask  # here, so that `batches` needs torch only

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4, image_size=8, patch_size=2,
        num_channels=1, num_labels=10, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1,
    )  # fmt: skip
    model = ViTForImageClassification(config).train()
    example = {"pixel_values": torch.zeros(2, 1, 8, 8), "labels": torch.zeros(2, dtype=torch.int64)}
    return TrainingTask(model, example)
