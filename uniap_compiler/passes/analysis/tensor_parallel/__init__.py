"""Tensor parallelism of one layer, found by a small exact problem over its forward and backward ops together.

`search(forward, backward, sizes, boundary, cost)` returns the pair of sharded funcs: every value with a layout over
the tensor axes t0 (major), t1, ..., every op with its `split`, and the collectives between them as `comm.*` ops.
docs/tensor-parallel-search.md has the formulation.
"""

from .costs import LayerCost, RooflineCost
from .problem import Weights
from .search import search

__all__ = ["LayerCost", "RooflineCost", "Weights", "search"]
