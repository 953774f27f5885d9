"""The unsharded model trained with float32 masters of its low-precision parameters, as a bundle does it.

    masters = MasterWeights(parameters);  optimizer = AdamW([...masters.copies...])
    loss.backward();  masters.collect()         after every micro-batch: its gradient is added up in float32
    optimizer.step();  masters.round()          the parameters are the masters rounded
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_LOW = (torch.bfloat16, torch.float16)


class MasterWeights:
    """copies: by name, of the parameters below float32; the others are left alone."""

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        self.rounded = {name: p for name, p in parameters.items() if p.dtype in _LOW}
        self.copies = {name: p.detach().float().requires_grad_() for name, p in self.rounded.items()}

    def collect(self) -> None:
        for name, p in self.rounded.items():
            if p.grad is not None:
                held = self.copies[name].grad
                self.copies[name].grad = p.grad.float() if held is None else held + p.grad
                p.grad = None

    def round(self) -> None:
        with torch.no_grad():
            for name, p in self.rounded.items():
                p.copy_(self.copies[name])
