"""What `verify` compares and how it is judged: rows of errors, and the report that says whether they pass.

    rows = compare_tensors("gradient", found, wanted)       one per tensor
    Report("float64", 1e-10, rows).ok

The error of a tensor is its largest difference over its largest value, or over FLOOR times the largest value of all
tensors of its kind where its own are smaller.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

FLOOR = 1e-3
NOISES = 3.0
"""How many times the model's own error a bundle may be away from it."""
Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Row:
    """One comparison: what ("gradient"), of which tensor, its error; `note` says what is wrong beyond a number.

    noise: the error of the unsharded model itself, where it was measured.
    """

    what: str
    name: str
    error: float
    note: str = ""
    noise: float = 0.0

    @property
    def first(self) -> bool:
        """Before any step of an optimizer: nothing has had time to grow."""
        return self.what == "gradient" or self.name.startswith("step 1 ")


@dataclass
class Report:
    """rows: every comparison.  least: the least precise dtype of the bundle.  ranks: how many, and how they ran."""

    dtype: str
    tolerance: float
    rows: list[Row] = field(default_factory=list)
    ranks: int = 1
    how: str = "threads of one process"
    disagreement: float = 0.0
    least: str = "float64"

    @property
    def ok(self) -> bool:
        return all(self.passes(row) for row in self.rows)

    def passes(self, row: Row) -> bool:
        return row.error <= self.allowed(row) and not row.note  # NaN does not pass

    def agrees_at_first(self) -> bool:
        """Whether what does not pass is only that numbers after the first step are apart."""
        return not any(row.first or row.note or not math.isfinite(row.error) for row in self.failures())

    def allowed(self, row: Row) -> float:
        """Two computations that round differently are at most the sum of their own errors apart."""
        return max(self.tolerance, NOISES * row.noise)

    def failures(self) -> list[Row]:
        return sorted((r for r in self.rows if not self.passes(r)), key=lambda r: -_rank(r.error))

    def excused(self) -> list[Row]:
        """Beyond the tolerance, but no more than the model's own noise."""
        return [row for row in self.rows if row.error > self.tolerance and self.passes(row)]

    def worst(self) -> dict[str, Row]:
        """What -> its largest error."""
        found: dict[str, Row] = {}
        for row in self.rows:
            if row.what not in found or _rank(row.error) > _rank(found[row.what].error):
                found[row.what] = row
        return found


def _rank(error: float) -> float:
    return math.inf if math.isnan(error) else error


def compare_tensors(
    what: str, found: Tensors, wanted: Tensors, keep: Mapping[str, Tensor] | None = None,
    only: Iterable[str] | None = None,
) -> list[Row]:
    """keep: name -> mask of the elements that count.  only: names that both sides must have (default: either's)."""
    names = list(dict.fromkeys([*wanted, *found])) if only is None else list(only)
    largest = max((_largest(wanted[n]) for n in names if n in wanted), default=0.0)
    found_rows = []
    for name in names:
        if name not in found or name not in wanted:
            where = "the bundle" if name not in found else "the model"
            found_rows.append(Row(what, name, math.inf, f"{where} has none"))
            continue
        a, b = found[name].double(), wanted[name].detach().double()
        if a.shape != b.shape:
            found_rows.append(Row(what, name, math.inf, f"shapes {list(a.shape)} and {list(b.shape)}"))
            continue
        difference = (a - b).abs()
        if keep and name in keep:
            difference = difference[keep[name]]
            if not difference.numel():  # nothing to be said about it: no row that could only pass
                continue
        scale = max(_largest(b), FLOOR * largest)
        error = float(difference.max()) if difference.numel() else 0.0
        found_rows.append(Row(what, name, error / scale if scale else error))
    return found_rows


def _largest(x: Tensor) -> float:
    return float(x.detach().double().abs().max()) if x.numel() else 0.0


def trusted(gradients: Sequence[Tensors], floor: float) -> Tensors:
    """Where AdamW's result means something: it divides a gradient by its size, so rounding becomes a full step."""
    masks: Tensors = {}
    for step in gradients:
        largest = max(map(_largest, step.values()), default=0.0)
        for name, g in step.items():
            own = _largest(g)
            mask = (g.abs() > floor * own) | (g == 0)
            if own <= FLOOR * largest:
                mask = torch.zeros_like(mask)
            masks[name] = masks[name] & mask if name in masks else mask
    return masks
