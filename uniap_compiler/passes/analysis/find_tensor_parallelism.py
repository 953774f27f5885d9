"""find-tensor-parallelism: one tensor pattern for every kind of layer, on a plain roofline.

    find-tensor-parallelism{sizes=2,2 boundary=sequence}
    func @block.forward(...)   func @block.backward(...)
    -> also func @block.tp4.sequence.forward(...)   func @block.tp4.sequence.backward(...)

For looking at what the search finds, with `uniap-opt`.  A compilation uses `enumerate-strategies`, which searches all
tensor degrees and boundaries with the cost of the cluster.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, ClassVar

from uniap_compiler.ir import Diagnostic, Func, Module

if TYPE_CHECKING:
    from uniap_compiler.passes.manager import Session


@dataclass(frozen=True)
class FindTensorParallelism:
    name: ClassVar[str] = "find-tensor-parallelism"
    requires: ClassVar[str] = "annotated"
    ensures: ClassVar[str] = "annotated"

    sizes: tuple[int, ...] = (2,)
    """Prime sizes of the tensor axes t0, t1, ..., major to minor."""
    boundary: str = "replicated"
    batch: int = 1
    """The local batch for which costs are compared."""
    micro_batches: int = 4

    def run(self, module: Module, session: Session) -> str:
        from .tensor_parallel import RooflineCost, search
        from .tensor_parallel.search import BOUNDARIES

        if self.boundary not in BOUNDARIES:
            raise Diagnostic(f"{self.boundary!r} is not a boundary", help=f"use one of {', '.join(BOUNDARIES)}")
        bad = [n for n in self.sizes if n < 2 or any(n % p == 0 for p in range(2, n))]
        if bad or not self.sizes:
            raise Diagnostic(f"tensor axes need prime sizes, not {bad}", help="four devices are sizes=2,2")
        cost = RooflineCost(self.sizes, batch=self.batch, gradient_share=1 / self.micro_batches)
        backwards = {str(f.attrs.get("of")): f for f in module.funcs.values() if f.attrs.get("kind") == "backward"}
        found = 0
        for forward in list(module.funcs.values()):
            if forward.attrs.get("kind") != "forward" or "tensor_axes" in forward.attrs:
                continue
            backward = backwards.get(forward.name) or empty_backward(forward)
            for func in search(forward, backward, self.sizes, self.boundary, cost):
                module.funcs.pop(func.name, None)
                module.add(func)
            found += 1
        return f"{found} layers on {prod(self.sizes)} devices"


def empty_backward(forward: Func) -> Func:
    """Of a layer in which nothing needs a gradient."""
    name = f"{forward.name.removesuffix('.forward')}.backward"
    return Func(name, attrs={"kind": "backward", "of": forward.name, "results": []})
