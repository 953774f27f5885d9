"""Attention on [.., heads, sequence, head size], with grouped queries: query head h*G + g reads key/value head h.

Batch dims, heads and groups may be split; the query sequence only without `causal` (a slice of it would need the
position of its first row); the key sequence (forward) and the head sizes stay whole.  The last operand is the key of
dropout, where there is one.
"""

from __future__ import annotations

from uniap_compiler.ir import Op, Rule

from .spell import shape_of, spell
from .table import rule


def _sizes(op: Op, q: int, k: int) -> dict[str, int]:
    queries, keys = shape_of(op, q), shape_of(op, k)
    heads = keys[-3]
    return {"h": heads, "g": queries[-3] // heads, "b*": len(queries) - 3}


def _causal(op: Op) -> bool:
    return bool(op.attrs.get("causal", False))


def _mask(op: Op, position: int) -> str:
    """The mask is broadcast from the right: it may lack leading dims."""
    flat = op.flat_operands()
    if position >= len(flat) or flat[position] is None:
        return "1"
    rank = len(shape_of(op, position))
    batch = len(shape_of(op, 0)) - 3
    dims = [f"b{i}" for i in range(batch)] + ["(h g)", "s", "t"]
    return " ".join(dims[len(dims) - rank :])


@rule("nn.attention")
def attention(op: Op) -> Rule:
    operands = f"b* (h g) s d, b* h t d, b* h t e, {_mask(op, 3)}, "
    keep = "keep t d e s" if _causal(op) else "keep t d e"
    return spell(op, f"{operands} -> b* (h g) s e, b* (h g) s | {keep}", **_sizes(op, 0, 1))


@rule("nn.attention_backward")
def attention_backward(op: Op) -> Rule:
    """A split of queries (g, s) gives parts of dk and dv, one of keys (t) parts of dq: the log-sum-exp of the whole row
    is an operand.  What the mask is broadcast over is summed in its gradient."""
    mask = _mask(op, 4)
    keep = "keep d e s t" if _causal(op) else "keep d e"
    results = "b* (h g) s d, b* h t d, b* h t e" + (f", {mask}" if len(op.results) > 3 else "")
    return spell(
        op,
        f"b* (h g) s e, b* (h g) s d, b* h t d, b* h t e, {mask}, b* (h g) s e, b* (h g) s,  -> {results}"
        f" | sum b* h g s t | {keep} | linear 0",
        **_sizes(op, 1, 2),
    )
