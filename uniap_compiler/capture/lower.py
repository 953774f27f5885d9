"""The nodes of an exported graph as IR ops: each is run once on fake tensors, and what it dispatches is recorded.

    %linear = aten.linear(%x, %w, %b)       ->      %contract = nn.contract(%x, %w) {...}
                                                    %add = aten.add.Tensor(%contract, %b)

A composite op is replaced by our definition of it where there is one (decompositions.py), else torch takes it apart.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from uniap_compiler.bridge.recorder import Recorder
from uniap_compiler.ir import Diagnostic, Loc, Namer, Op, Value

from .complex_ops import Pair, is_complex
from .complex_ops import call as complex_call
from .decompositions import OWN

Node = torch.fx.Node


def lower(
    module: torch.fx.GraphModule, params: dict[Node, Value], namer: Namer, locate: Callable[[Node], Loc | None]
) -> tuple[list[Op], list[Value]]:
    """The ops and the values of the graph's outputs.  params: the value of every placeholder."""
    current: list[Loc | None] = [None]
    recorder = Recorder(namer, lambda _: current[-1], rewrite=OWN, detach=True)
    inputs = {}
    mode = next((n.meta["val"].fake_mode for n in params if hasattr(n.meta.get("val"), "fake_mode")), FakeTensorMode())
    for node, value in params.items():
        tensor = node.meta["val"]
        if is_complex(tensor):  # a constant, whose value is one of pairs
            with mode:
                tensor = torch.view_as_real(tensor)
        inputs[node] = Pair(tensor) if is_complex(node.meta["val"]) else tensor
        recorder.bind(tensor, value)
    with mode, torch.no_grad(), recorder:
        outputs = _run(module, inputs, locate, current)
    if any(isinstance(t, Pair) for t in outputs):
        raise Diagnostic(
            "the model changes a complex buffer",
            help="keep it as pairs of numbers, and use torch.view_as_complex on them",
        )
    return recorder.ops, [recorder.value_of(t) for t in outputs]


def _run(
    module: torch.fx.GraphModule, env: dict[Node, Any], locate: Callable[[Node], Loc | None], current: list[Loc | None]
) -> list[Any]:
    for node in module.graph.nodes:
        if node.op == "placeholder":
            continue
        if node.op == "output":
            return list(torch.fx.node.map_arg(node.args[0], env.__getitem__))
        if node.op == "get_attr":
            env[node] = getattr(module, str(node.target))
            if isinstance(env[node], torch.Tensor):
                raise Diagnostic(f"a constant tensor is used without being registered: {node.target}", loc=locate(node))
            continue
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
        if node.target is operator.getitem:
            env[node] = args[0][args[1]]
            continue
        current.append(locate(node))
        try:
            env[node] = _call(node, args, kwargs, locate, current)
        except NotImplementedError as error:
            raise Diagnostic(str(error).splitlines()[0], loc=current[-1]) from error
        current.pop()
    raise AssertionError("a graph without output")


def _call(node: Node, args: Any, kwargs: Any, locate: Callable[[Node], Loc | None], current: list[Loc | None]) -> Any:
    if isinstance(node.target, torch._ops.OpOverload):
        if is_complex(node.meta.get("val")) or any(isinstance(a, Pair) for a in pytree.tree_leaves(args)):
            return complex_call(node.target, args, kwargs)
        result = OWN[node.target](*args, **kwargs) if node.target in OWN else NotImplemented
        return node.target(*args, **kwargs) if result is NotImplemented else _as_torch(result, node.meta.get("val"))
    if str(node.target) == "wrap_with_set_grad_enabled":
        _, body, *rest = args
        return _run(body, dict(zip(body.graph.find_nodes(op="placeholder"), rest, strict=True)), locate, current)
    raise Diagnostic(f"torch.export left something that cannot be compiled: {node.target}", loc=current[-1])


def _as_torch(result: Any, known: Any) -> Any:
    """In the dtype that the op itself gives: a definition of ours may promote other operands than torch's kernel."""
    if isinstance(result, torch.Tensor) and isinstance(known, torch.Tensor) and known.is_floating_point():
        return result.to(known.dtype)
    return result
