"""In which precision gradients are added up and sent, and what an optimizer keeps of a low-precision parameter.

    #optimizer<kind = "adamw", ..., master_weights = true, reduce_dtype = "bf16">

A bf16 weight that grows by less than a 256th of itself does not change, and a sum of many bf16 gradients stops growing.
So the optimizer works on a float32 copy of every bf16 or f16 parameter (its master weight, at the parameter's home and
as it is sharded), with float32 states; gradients are added up over micro-batches in float32, and the parameter is the
rounded master.  Between devices gradients are reduced in the precision in which they are added up, or in
`reduce_dtype`.
"""

from __future__ import annotations

from dataclasses import dataclass

from uniap_compiler.ir import Module, Struct

LOW = ("bf16", "f16")


@dataclass(frozen=True)
class Precision:
    """reduce: dtype of gradients between devices, None for the one in which they are added up."""

    master_weights: bool = True
    reduce: str | None = None

    @classmethod
    def of(cls, module: Module) -> Precision:
        given = module.attrs.get("optimizer")
        fields = given.asdict() if isinstance(given, Struct) else {}
        reduce = fields.get("reduce_dtype")
        return cls(fields.get("master_weights") is not False, str(reduce) if reduce is not None else None)

    def has_master(self, dtype: str) -> bool:
        """Whether a parameter of this dtype has a float32 master weight."""
        return self.master_weights and dtype in LOW

    def accumulated(self, dtype: str) -> str:
        """The dtype of the accumulator, the final gradient and the optimizer's state of a parameter of this dtype."""
        return "f32" if self.has_master(dtype) else dtype

    def reduced(self, dtype: str) -> str:
        """The dtype in which the gradient of such a parameter travels; float64 is there for comparisons, and stays."""
        return self.reduce if self.reduce is not None and dtype != "f64" else self.accumulated(dtype)
