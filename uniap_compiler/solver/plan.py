"""What the solver answers: plans, and a `Result` that says how much of the answer is proven."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Plan:
    """One plan of candidate number `candidate`: the stage and the strategy (an index) of every layer."""

    candidate: int
    stages: int
    micro_batches: int
    stage: list[int]
    strategy: list[int]
    objective: float

    def differs(self, other: Plan) -> bool:
        """Another (stages, micro_batches), or at least 10 % of the layers on another stage or strategy."""
        if (self.stages, self.micro_batches) != (other.stages, other.micro_batches):
            return True
        mine, theirs = zip(self.stage, self.strategy, strict=True), zip(other.stage, other.strategy, strict=True)
        moved = sum(a != b for a, b in zip(mine, theirs, strict=True))
        return moved >= max(1, math.ceil(0.1 * len(self.stage)))

    def to_json(self) -> dict[str, Any]:
        return {
            "objective": self.objective,
            "candidate": self.candidate,
            "stages": self.stages,
            "micro_batches": self.micro_batches,
            "stage": self.stage,
            "strategy": self.strategy,
        }


@dataclass
class Result:
    """The answer of `solve`.

    `status`: "optimal" (`gap` is at most the gap asked for, and proven), "feasible" (a plan, and `bound` holds for
    every plan), "infeasible" (proven; see `explanation`). `proof` says which arguments the bound rests on.
    """

    status: str
    plans: list[Plan]
    bound: float | None
    gap: float | None
    seconds: float
    explanation: dict[str, Any] | None = None
    proof: dict[str, Any] = field(default_factory=dict)

    @property
    def best(self) -> Plan | None:
        return self.plans[0] if self.plans else None

    def to_json(self) -> dict[str, Any]:
        """The one object that `uniap solve` prints."""
        data: dict[str, Any] = {
            "status": self.status,
            "objective": None,
            "bound": self.bound,
            "gap": self.gap,
            "candidate": None,
            "stages": None,
            "micro_batches": None,
            "stage": None,
            "strategy": None,
        }
        if self.best is not None:
            data |= self.best.to_json()
        data["seconds"] = round(self.seconds, 3)
        if self.proof:
            data["proof"] = self.proof
        if len(self.plans) > 1:
            data["plans"] = [plan.to_json() for plan in self.plans]
        if self.explanation is not None:
            data["explanation"] = self.explanation
        return data
