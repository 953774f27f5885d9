"""nn.experts: tokens [.., h], their k chosen experts and weights [.., k], and the experts' matrices.

Tokens pass through.  A device with a part of the experts (e), of their inner dim (i) or of the k choices makes a part
of the sum.  h is contracted ahead of the activation and stays whole; so do the two halves of a gated projection.
The route `exchange` splits tokens and experts over one axis: every token is sent to the devices that have its experts.
"""

from __future__ import annotations

from uniap_compiler.ir import Op, Rule

from .spell import shape_of, spell
from .table import rule


def _up(op: Op, gate_up: int) -> str:
    """How the dim of gate and up is made: two halves, or pairs where they are interleaved; i alone without a gate."""
    if shape_of(op, gate_up)[1] == shape_of(op, gate_up + 1)[2]:
        return "i"
    return "(i two)" if op.attrs.get("interleaved") else "(two i)"


@rule("nn.experts")
def experts(op: Op) -> Rule:
    u = _up(op, 3)
    return spell(
        op,
        f"t* h, t* k, t* k, e {u} h, e o i, e {u} -> t* o"
        " | sum e i k | keep h two | offset e | route exchange = t* e | linear 2 | linear 4",
        two=1 if u == "i" else 2,
    )


@rule("nn.experts_backward")
def experts_backward(op: Op) -> Rule:
    """Results: gradients of x, weights, gate_up, down and, where there is one, the bias."""
    u = _up(op, 4)
    bias = f", e {u}" if len(op.results) > 4 else ""
    return spell(
        op,
        f"t* o, t* h, t* k, t* k, e {u} h, e o i, e {u} -> t* h, t* k, e {u} h, e o i{bias}"
        " | sum t* e i o k | keep h two | offset e | route exchange = t* e | linear 0",
        two=1 if u == "i" else 2,
    )
