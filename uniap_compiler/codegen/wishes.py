"""What a value would like to be called: after the module that makes it, as a person would.

    %contract = nn.contract(%x, %up.weight) ... loc(... in "blocks.0.up")      up = nn.contract(x, up_weight, ...)
    %add = aten.add.Tensor(%contract, %up.bias) ... in "blocks.0.up"           up = up + up_bias
    %view = aten.view(%contract) {size = [2, 64, 4, 32]}                       up = up.reshape(2, 64, 4, 32)
    %gelu_backward = aten.gelu_backward(%g, %add)                              d_gelu = aten.gelu_backward(g, up)

Only values that are called after their own op get another name; everything else keeps the one that it has in the IR.
A backward function calls the values of its forward function what they are called there.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

import torch

from ..ir import Func, Op, Value

_SAME_THING = frozenset({
    "view", "_unsafe_view", "reshape", "transpose", "permute", "t", "expand", "unsqueeze", "squeeze", "_to_copy", "to",
    "clone", "contiguous", "detach", "slice",
})  # fmt: skip
"""Another shape, dtype or place of the same values: such a result is called like its operand."""
_MODULES = ("contract", "native_layer_norm", "embedding", "convolution")
_SHORT = {
    "native_layer_norm": "norm", "native_group_norm": "norm", "contract": "product", "_softmax": "softmax",
    "_log_softmax": "log_softmax", "scalar_tensor": "scalar",
}  # fmt: skip
_TAILS = {
    "native_layer_norm": ("", "mean", "rstd"),
    "native_group_norm": ("", "mean", "rstd"),
    "attention": ("", "lse"),
    "cross_entropy": ("", "lse"),
}
"""Names of further results."""


def wishes(
    func: Func, forward: Mapping[str, str] | None = None, gradients: Collection[str] = ()
) -> dict[str, str]:
    """IR name -> wish.  forward: the wishes of the forward function, for a backward one.

    gradients: params that are gradients though their names do not say so.
    """
    found: dict[str, str] = {}
    for param in func.params:
        of = str(param.attrs.get("of", param.name))
        name = (forward or {}).get(of) or _gradient_first(of)
        gradient = param.attrs.get("role") == "tangent" or param.name in gradients
        found[param.name] = f"d_{name}" if gradient and not name.startswith("d_") else name
    modules = _Modules(func)
    for op in func.ops:
        for n, result in enumerate(op.results):
            known = (forward or {}).get(result.name)
            found[result.name] = known or _wish(op, n, result, found, modules, forward is not None)
    return found


def stem(wish: str) -> str:
    """The name without a trailing number that only makes it unique."""
    return re.sub(r"(?<=[^\d_])_\d+$", "", wish)


def _wish(op: Op, n: int, result: Value, found: Mapping[str, str], modules: _Modules, backward: bool) -> str:
    base = op.name.split(".")[1]
    if base.endswith("_start"):
        return "on_its_way"
    operands = [v for v in op.flat_operands() if v is not None]
    first = operands[n if len(operands) == len(op.results) else 0] if operands else None
    if op.name.startswith("comm.") and first is not None and result.name.startswith(stem(first.name)):
        return stem(found[first.name])  # h_reduced, h_gathered: h
    if not _automatic(result.name, base):
        return _gradient_first(result.name)
    if first is not None and base in _SAME_THING:
        return stem(found[first.name])
    name = modules.name(op) or _operation(base)
    tails = _TAILS.get(base, ())
    if n:
        name += "_" + (tails[n] if n < len(tails) else str(n))
    return f"d_{name}" if backward else name


def _automatic(name: str, base: str) -> bool:
    """Called after an op: this one, or the one that it was before some pass."""
    plain = stem(name)
    if plain == base.lstrip("_"):
        return True
    return len(plain) > 1 and (hasattr(torch.ops.aten, plain) or hasattr(torch.ops.aten, f"_{plain}"))


def _operation(base: str) -> str:
    return _SHORT.get(base, base.removesuffix("_backward"))


class _Modules:
    """The module paths of a function's ops, seen from the path that all of them share."""

    def __init__(self, func: Func) -> None:
        paths = dict.fromkeys(op.loc.module for op in func.ops if op.loc is not None and op.loc.module)
        self.root = _common([path.split(".") for path in paths])
        self.containers = {path.rpartition(".")[0] for path in paths}

    def name(self, op: Op) -> str:
        """What a submodule computes is called like it; what its container does between them is not."""
        path = op.loc.module if op.loc is not None else ""
        if path == self.root:
            # What a function that is one module does first of all is that module: head, norm.
            return _last(path) if op.name.split(".")[1] in _MODULES else ""
        if path in self.containers or not path.startswith(self.root):
            return ""
        return _last(path[len(self.root) :].lstrip("."))


def _common(paths: list[list[str]]) -> str:
    common = paths[0] if paths else []
    for path in paths[1:]:
        same = 0
        while same < min(len(common), len(path)) and common[same] == path[same]:
            same += 1
        common = common[:same]
    return ".".join(common)


def _last(module: str) -> str:
    """attn.wq -> wq; mlp.0 -> mlp_0 (a number alone says nothing)."""
    parts = [p for p in module.split(".") if p]
    if not parts:
        return ""
    if parts[-1].isdigit():
        return "_".join(parts[-2:]) if len(parts) > 1 else ""
    return parts[-1]


def _gradient_first(name: str) -> str:
    """h.grad -> d_h: one way to spell a gradient."""
    match = re.fullmatch(r"(.*)\.grad(_\d+)?", name)
    return f"d_{match[1]}{match[2] or ''}" if match else name
