"""Random plans of whole layers: every op runs on the shards that its rule promises, and the layer is still right.

The costs are random, so the optimum splits what nobody would split; see tests/tensor_parallel for the search itself.
"""

from __future__ import annotations

import pytest

from tests.models import TASKS
from tests.tensor_parallel.costs import RandomCost
from tests.tensor_parallel.spmd import check
from uniap_compiler.passes.analysis.tensor_parallel.search import search

from .models import MODELS
from .test_models import annotated, layers


def run(name: str, sizes: tuple[int, ...], seed: int) -> None:
    module, _, _ = annotated(name)
    for forward, backward in layers(module):
        if backward is not None:
            boundary = "replicated" if seed % 2 else "sequence"
            check((forward, backward), search(forward, backward, sizes, boundary, RandomCost(seed)), sizes)


@pytest.mark.parametrize("name", ["gpt", "bert", "convnet"])
def test_random_plans(name: str) -> None:
    run(name, (2,), 1)
    run(name, (3,), 2)


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [(2,), (3,), (2, 2)], ids=str)
@pytest.mark.parametrize("name", [*MODELS, *TASKS])
def test_random_plans_of_every_model(name: str, sizes: tuple[int, ...]) -> None:
    for seed in (1, 2, 3, 4):
        run(name, sizes, seed)
