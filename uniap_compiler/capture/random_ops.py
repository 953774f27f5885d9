"""Random ops as functions of numbered keys: the k-th random op of the forward pass draws at site k.

    %y = aten.dropout(%x, 0.1, True)     ->     %key = uniap.random_site(3)
                                                %keep = uniap.bernoulli(%key, [5, 64], 0.9)
                                                %y = %x * %keep * (1 / 0.9)

One table serves two sides.  `number` rewrites an exported graph, where dropout and attention are ops of their own.
`EagerDraws` is active while the user's module runs (the reference of `uniap verify`): below autograd each of these
is one `bernoulli_`, which gets the same number and so the same mask.  What draws nothing (p of 0 or 1, eval mode)
takes no number on either side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils._python_dispatch import TorchDispatchMode

from uniap_compiler.bridge import draws
from uniap_compiler.bridge import ops as _ops  # noqa: F401  (registers the nn.* ops)

aten = torch.ops.aten
uniap = torch.ops.uniap
_ALPHA = 1.6732632423543772848170429916717 * 1.0507009873554804934193349852946  # of SELU, for alpha dropout


class Draws:
    """call: runs an op or puts it into the graph.  key: the key of the next site."""

    def __init__(self, call: Callable[..., Any], key: Callable[[], Any]) -> None:
        self.call, self.key = call, key

    def bernoulli(self, shape: Any, p: float) -> Any:
        return self.call(uniap.bernoulli.default, self.key(), list(shape), float(p))

    def uniform(self, shape: Any, dtype: torch.dtype) -> Any:
        return self.call(uniap.uniform.default, self.key(), list(shape), dtype)

    def normal(self, shape: Any, dtype: torch.dtype) -> Any:
        return self.call(uniap.normal.default, self.key(), list(shape), dtype)

    # arithmetic with a number

    def scaled(self, x: Any, factor: Any, offset: Any) -> Any:
        """x * factor + offset for numbers or tensors."""
        for op, value, nothing in ((aten.mul, factor, 1), (aten.add, offset, 0)):
            if isinstance(value, (int, float)):
                x = x if value == nothing else self.call(op.Tensor, x, value)
            else:
                x = self.call(op.Tensor, x, value)
        return x

    def cast(self, x: Any, dtype: torch.dtype) -> Any:
        return self.call(aten._to_copy.default, x, dtype=dtype)

    def write(self, x: Any, value: Any) -> Any:
        return self.call(aten.copy_.default, x, value)


def _meta(x: Any) -> Tensor:
    """What is known of an operand without its numbers."""
    found: Tensor = x.meta["val"] if isinstance(x, Node) else x
    return found


# -- dropout --------------------------------------------------------------------------------------------------------


def _dropout(d: Draws, x: Any, p: float, train: bool, feature: bool = False, alpha: bool = False) -> Any:
    like = _meta(x)
    if not train or p == 0 or like.numel() == 0:
        return d.call(aten.alias.default, x)
    if p == 1:
        return d.call(aten.mul.Tensor, x, 0.0)
    shape = [*like.shape[:2], *[1] * (like.dim() - 2)] if feature else like.shape
    keep = d.bernoulli(shape, 1 - p)
    if not alpha:
        return d.call(aten.mul.Tensor, d.call(aten.mul.Tensor, x, keep), 1 / (1 - p))
    a = 1 / math.sqrt((_ALPHA**2 * p + 1) * (1 - p))
    keep = d.cast(keep, like.dtype)
    dropped = d.scaled(keep, _ALPHA * a, _ALPHA * a * (p - 1))
    return d.call(aten.add.Tensor, d.call(aten.mul.Tensor, x, d.scaled(keep, a, 0)), dropped)


def _dropout_like(feature: bool, alpha: bool, in_place: bool) -> Callable[..., Any]:
    def run(d: Draws, x: Any, p: float, train: bool) -> Any:
        if in_place and (not train or p == 0):
            return x
        y = _dropout(d, x, p, train, feature, alpha)
        return d.write(x, y) if in_place else y

    return run


def _attention(
    d: Draws, q: Any, k: Any, v: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    *, scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    if dropout_p == 1:
        y = d.call(aten.scaled_dot_product_attention.default, q, k, v, attn_mask, 0.0, is_causal, scale=scale,
                   enable_gqa=enable_gqa)  # fmt: skip
        return d.call(aten.mul.Tensor, y, 0.0)
    return d.call(uniap.sdpa_dropout.default, q, k, v, attn_mask, d.key(), float(dropout_p), is_causal, scale)


# -- numbers --------------------------------------------------------------------------------------------------------


def _dtype(dtype: torch.dtype | None, like: Any = None) -> torch.dtype:
    return dtype or (_meta(like).dtype if like is not None else torch.get_default_dtype())


def _bernoulli(d: Draws, x: Any, p: Any = 0.5, *, generator: None = None) -> Any:
    return d.cast(d.bernoulli(_meta(x).shape, p), _meta(x).dtype)


def _bernoulli_of(d: Draws, p: Any, *, generator: None = None) -> Any:
    """p: a tensor of probabilities."""
    like = _meta(p)
    return d.cast(d.call(aten.lt.Tensor, d.uniform(like.shape, like.dtype), p), like.dtype)


def _bernoulli_tensor(d: Draws, x: Any, p: Any, *, generator: None = None) -> Any:
    below = d.call(aten.lt.Tensor, d.uniform(_meta(x).shape, _meta(p).dtype), p)
    return d.cast(below, _meta(x).dtype)


def _rand(d: Draws, size: Any, *, dtype: Any = None, **_: Any) -> Any:
    return d.uniform(size, _dtype(dtype))


def _rand_like(d: Draws, x: Any, *, dtype: Any = None, **_: Any) -> Any:
    return d.uniform(_meta(x).shape, _dtype(dtype, x))


def _randn(d: Draws, size: Any, *, dtype: Any = None, **_: Any) -> Any:
    return d.normal(size, _dtype(dtype))


def _randn_like(d: Draws, x: Any, *, dtype: Any = None, **_: Any) -> Any:
    return d.normal(_meta(x).shape, _dtype(dtype, x))


def _uniform(d: Draws, x: Any, *bounds: float, generator: None = None, **named: float) -> Any:
    low, high = bounds[0] if bounds else named.get("from", 0.0), bounds[1] if len(bounds) > 1 else named.get("to", 1.0)
    return d.scaled(d.uniform(_meta(x).shape, _meta(x).dtype), high - low, low)


def _normal(d: Draws, x: Any, mean: float = 0.0, std: float = 1.0, *, generator: None = None) -> Any:
    return d.scaled(d.normal(_meta(x).shape, _meta(x).dtype), std, mean)


def _normal_size(d: Draws, mean: float, std: float, size: Any, *, dtype: Any = None, **_: Any) -> Any:
    return d.scaled(d.normal(size, _dtype(dtype)), std, mean)


def _normal_of(d: Draws, mean: Any, std: Any = 1.0, *, generator: None = None) -> Any:
    tensors = [_meta(x) for x in (mean, std) if not isinstance(x, (int, float))]
    shape = torch.broadcast_shapes(*(t.shape for t in tensors))
    return d.scaled(d.normal(shape, tensors[0].dtype), std, mean)


def _exponential(d: Draws, x: Any, lambd: float = 1.0, *, generator: None = None) -> Any:
    u = d.uniform(_meta(x).shape, _meta(x).dtype)
    log = d.call(aten.log1p.default, d.call(aten.neg.default, u))
    return d.call(aten.mul.Tensor, log, -1.0 / lambd)


def _integers(d: Draws, low: int, high: int, shape: Any, dtype: torch.dtype) -> Any:
    u = d.uniform(shape, torch.float64)  # 53 digits: exact enough for any range that a model draws from
    return d.cast(d.scaled(d.call(aten.floor.default, d.scaled(u, float(high - low), 0)), 1, float(low)), dtype)


def _randint(d: Draws, *args: Any, dtype: Any = None, **_: Any) -> Any:
    low, high, size = args if len(args) == 3 else (0, *args)
    return _integers(d, low, high, size, dtype or torch.int64)


def _randint_like(d: Draws, x: Any, *args: int, dtype: Any = None, **_: Any) -> Any:
    low, high = args if len(args) == 2 else (0, *args)
    return _integers(d, low, high, _meta(x).shape, _dtype(dtype, x))


def _in_place(function: Callable[..., Any]) -> Callable[..., Any]:
    def run(d: Draws, x: Any, *args: Any, **kwargs: Any) -> Any:
        return d.write(x, function(d, x, *args, **kwargs))

    return run


TABLE: dict[Any, Callable[..., Any]] = {
    **{
        getattr(aten, f"{'feature_' * feature}{'alpha_' * alpha}dropout{'_' * in_place}").default: _dropout_like(
            feature, alpha, in_place
        )
        for feature in (False, True)
        for alpha in (False, True)
        for in_place in (False, True)
    },
    aten.scaled_dot_product_attention.default: _attention,
    aten.bernoulli.default: _bernoulli_of,
    aten.bernoulli.p: _bernoulli,
    aten.bernoulli.Tensor: _bernoulli_tensor,
    aten.bernoulli_.float: _in_place(_bernoulli),
    aten.bernoulli_.Tensor: _in_place(_bernoulli_tensor),
    aten.rand.default: _rand,
    aten.rand_like.default: _rand_like,
    aten.randn.default: _randn,
    aten.randn_like.default: _randn_like,
    aten.uniform.default: _uniform,
    aten.uniform_.default: _in_place(_uniform),
    aten.normal_.default: _in_place(_normal),
    aten.normal.float_float: _normal_size,
    aten.normal.Tensor_float: _normal_of,
    aten.normal.float_Tensor: _normal_of,
    aten.normal.Tensor_Tensor: _normal_of,
    aten.exponential.default: _exponential,
    aten.exponential_.default: _in_place(_exponential),
    aten.randint.default: _randint,
    aten.randint.low: _randint,
    aten.randint_like.default: _randint_like,
    aten.randint_like.low_dtype: _randint_like,
}
"""Every overload that is compiled; other random ops are refused (export.py)."""


def is_random(node: Node) -> bool:
    """Whether the node draws numbers: an op that may, with arguments with which it does."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return False
    values = {a.name: v for a, v in zip(target._schema.arguments, node.args)} | node.kwargs
    if "dropout" in target._schema.name.partition("::")[2]:
        return bool(values.get("train", True)) and values.get("p", 0.5) != 0
    if target is aten.scaled_dot_product_attention.default:
        return values.get("dropout_p", 0.0) != 0
    if "dropout" in values:  # a recurrent network of several layers
        return bool(values["train"]) and values["dropout"] != 0
    return (
        target in TABLE
        or torch.Tag.nondeterministic_seeded in target.tags
        or target._schema.name in ("aten::random", "aten::random_", "aten::_standard_gamma")
    )


def has_rule(node: Node) -> bool:
    """Whether `number` can rewrite it."""
    return node.target in TABLE and node.kwargs.get("generator") is None


# -- a graph --------------------------------------------------------------------------------------------------------


def number(module: GraphModule) -> int:
    """Rewrite every random op of the graph, and of the graphs that it calls, in order; returns how many drew."""
    count = 0

    def key(call: Callable[..., Any]) -> Any:
        nonlocal count
        count += 1
        return call(uniap.random_site.default, count - 1)

    def walk(owner: GraphModule) -> None:
        for node in list(owner.graph.nodes):
            for argument in node.all_input_nodes if node.op == "call_function" else ():
                body = getattr(owner, str(argument.target), None) if argument.op == "get_attr" else None
                if isinstance(body, GraphModule):
                    walk(body)
            if is_random(node):
                _replace(owner, node, key)

    walk(module)
    return count


def _replace(owner: GraphModule, node: Node, key: Callable[..., Any]) -> None:
    def call(op: Any, *args: Any, **kwargs: Any) -> Node:
        made = owner.graph.call_function(op, args, kwargs)
        made.meta = {k: v for k, v in node.meta.items() if k != "val"}
        return made

    with owner.graph.inserting_before(node):
        new = TABLE[node.target](Draws(call, lambda: key(call)), *node.args, **node.kwargs)
    if new not in node.all_input_nodes:
        new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    owner.graph.erase_node(node)


# -- a run ----------------------------------------------------------------------------------------------------------


class EagerDraws(TorchDispatchMode):
    """While active, random ops below autograd draw at sites 0, 1, ... under `random`.  sites: how many so far."""

    def __init__(self, random: Tensor) -> None:
        super().__init__()
        self.random, self.sites = random, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        function = TABLE.get(func)
        if function is None:
            return func(*args, **(kwargs or {}))
        return function(Draws(lambda op, *a, **k: op(*a, **k), self._key), *args, **(kwargs or {}))

    def _key(self) -> Tensor:
        self.sites += 1
        return draws.random_key(self.random, self.sites - 1)


@contextmanager
def without_checkpointing() -> Iterator[None]:
    """torch.utils.checkpoint only calls its function: run again for backward, it would draw at other sites."""
    module: Any = torch.utils.checkpoint
    before = module.CheckpointFunction, module._checkpoint_without_reentrant_generator

    class Once:
        @staticmethod
        def apply(function: Any, preserve: Any, *args: Any) -> Any:
            return function(*args)

    def once(*_: Any, **__: Any) -> Iterator[None]:
        yield

    module.CheckpointFunction, module._checkpoint_without_reentrant_generator = Once, once
    try:
        yield
    finally:
        module.CheckpointFunction, module._checkpoint_without_reentrant_generator = before


__all__ = ["TABLE", "EagerDraws", "has_rule", "is_random", "number", "without_checkpointing"]
