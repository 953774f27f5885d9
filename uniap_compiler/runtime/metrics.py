"""metrics.jsonl on rank 0: one line per step, and the progress line on the terminal.

{"step": 10, "loss": 4.15, "grad_norm": 0.91, "seconds": 0.213, "samples_per_second": 37.6, "tokens_per_second": 4807.5}

A loss or norm that is not finite is null: JSON has no other word for it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any


def tokens_per_sample(manifest: Mapping[str, Any]) -> int | None:
    """The sequence length, when the first integer input is [batch, sequence]."""
    if "tokens_per_sample" in manifest:
        return int(manifest["tokens_per_sample"])
    for described in manifest["inputs"]:
        if described["dtype"] in ("int64", "int32") and len(described["shape"]) == 2:
            return int(described["shape"][1])
    return None


class Metrics:
    def __init__(self, manifest: Mapping[str, Any], path: Path | None, append: bool = False) -> None:
        self.samples, self.tokens = int(manifest["global_batch"]), tokens_per_sample(manifest)
        self._file: IO[str] | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a" if append else "w")  # closed with the process; every line is flushed

    def record(self, step: int, loss: float, grad_norm: float, seconds: float) -> dict[str, Any]:
        line: dict[str, Any] = {"step": step, "loss": loss, "grad_norm": grad_norm, "seconds": round(seconds, 6)}
        line["samples_per_second"] = round(self.samples / seconds, 3)
        if self.tokens is not None:
            line["tokens_per_second"] = round(self.samples * self.tokens / seconds, 1)
        if self._file is not None:
            finite = {name: value if math.isfinite(value) else None for name, value in line.items()}
            self._file.write(json.dumps(finite, allow_nan=False) + "\n")
            self._file.flush()
        return line


def progress(line: Mapping[str, Any], last: int) -> str:
    rate = (
        f"{line['tokens_per_second']:,.0f} tokens/s"
        if "tokens_per_second" in line
        else f"{line['samples_per_second']:,.1f} samples/s"
    )
    step = f"step {line['step']:>{len(str(last))}}/{last}"
    return f"{step}  loss {line['loss']:.4f}  grad norm {line['grad_norm']:.3f}  {line['seconds']:.3f} s  {rate}"
