"""Objectives for tests."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True)
class RandomCost:
    """Every choice of every op and every collective costs something else: the optimum is a random plan."""

    seed: int
    collectives: float = 1.0
    batch: int = 2
    gradient_share: float = 0.5

    def op_seconds(self, op, operands, results) -> float:
        return Random(f"{self.seed} {op.results[0].name} {operands} {results}").random()

    def collective_seconds(self, kind, axes, size) -> float:
        return self.collectives * Random(f"{self.seed} {kind} {axes} {size}").random()
