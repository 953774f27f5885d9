"""In-place ops on tensors that forward itself has made, as ordinary ops on values.

    shifted = zeros(..)                            %zeros = ..
    shifted[:, 1:] = ids[:, :-1]         ->        %copy = aten.copy(%slice, %ids_slice)
    shifted.masked_fill_(m, 0)                     %slice_scatter = aten.slice_scatter(%zeros, %copy, ..)
                                                   %masked_fill = aten.masked_fill(%slice_scatter, %m, 0)

torch can do this for every graph, but it traces the whole of it again for that, as long as the export took.  Here is
the frequent case: what is written is a whole tensor or a slice of one, and nobody reads the memory by another view
afterwards.  Everything else, changes of inputs and buffers among it, is left as it is.
"""

from __future__ import annotations

from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

_SCATTER = {aten.slice.Tensor: aten.slice_scatter.default, aten.select.int: aten.select_scatter.default}


def write_values(module: GraphModule) -> None:
    """Rewrite the in-place ops of the graph itself (not of graphs inside) where that is simple."""
    graph = module.graph
    place = {node: i for i, node in enumerate(graph.nodes)}
    sharing: dict[int, list[Node]] = {}
    for node in graph.nodes:
        for memory in _memories(node):
            sharing.setdefault(memory, []).append(node)
    made: set[Node] = set()
    for node in list(graph.nodes):
        if (twin := _twin(node)) is None or (path := _path(node.args[0], made)) is None:
            continue
        known = sharing[_memory(node.args[0])]  # type: ignore[index]
        before = [n for n in known if place[n] < place[node]]
        if any(n.op != "call_function" for n in before) or not _fits(twin, node):
            continue
        if any(place[user] > place[node] for n in before if n not in path for user in n.users):
            continue  # seen through another view
        value = node
        node.target = twin
        for view, base in zip(path, path[1:], strict=False):
            _replace(view, value, place[node], place)
            value = _scatter(graph, view, base, value, node)
            place[value] = place[node]
            known.append(value)
        _replace(path[-1], value, place[node], place)
        made.add(value)


def _memory(node: Any) -> int | None:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value.untyped_storage()._cdata if isinstance(value, Tensor) else None


def _memories(node: Node) -> set[int]:
    """Of one tensor or several; a node that says nothing about itself may show any that it reads."""
    if "val" in node.meta:
        tensors = [v for v in tree_leaves(node.meta["val"]) if isinstance(v, Tensor)]
        return {v.untyped_storage()._cdata for v in tensors}
    return {m for n in node.all_input_nodes for m in _memories(n)}


def _twin(node: Node) -> Any:
    """The op that makes a new tensor where the node's writes into its first operand."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload) or _memory(node) is None:
        return None
    name = target._schema.name.removeprefix("aten::")
    writes = [a for a in target._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    if target.namespace != "aten" or not name.endswith("_") or writes != [target._schema.arguments[0]]:
        return None
    if not isinstance(node.args[0], Node):
        return None
    twin = getattr(getattr(aten, name[:-1], None), target._overloadname, None)
    return None if twin is None or twin._schema.is_mutable else twin


def _path(view: Any, made: set[Node]) -> list[Node] | None:
    """From the node that is written up to the one that made the memory, through slices; None on another way."""
    path = [view]
    while path[-1] not in made and any(_memory(view) in _memories(n) for n in _operands(path[-1])):
        if path[-1].target not in _SCATTER or path[-1].kwargs or _memory(path[-1].args[0]) != _memory(view):
            return None
        path.append(path[-1].args[0])
    return path


def _operands(node: Node) -> list[Node]:
    """Of the op that made the node's value, which may be one of several."""
    source = node.all_input_nodes[0] if node.target is getitem else node
    return source.all_input_nodes


def _fits(twin: Any, node: Node) -> bool:
    """Whether the new value has the dtype and the shape of what is written."""

    if any("val" not in n.meta for n in node.all_input_nodes):
        return False

    def value(n: Node) -> Any:
        return n.meta["val"]

    into = node.args[0].meta["val"]  # type: ignore[union-attr]
    with into.fake_mode, torch.no_grad():
        result = twin(*torch.fx.node.map_arg(node.args, value), **torch.fx.node.map_arg(node.kwargs, value))
    return bool(result.dtype == into.dtype and result.shape == into.shape)


def _scatter(graph: Any, view: Node, base: Node, value: Node, behind: Node) -> Node:
    """The base with `value` in the place of its view."""
    with graph.inserting_after(value):
        made: Node = graph.call_function(_SCATTER[view.target], (base, value, *view.args[1:]))  # type: ignore[index]
    made.meta = {**behind.meta, "val": base.meta["val"]}
    return made


def _replace(old: Node, new: Node, after: int, place: dict[Node, int]) -> None:
    """Whoever stands behind `after` reads the new value."""
    if old is not new:
        old.replace_all_uses_with(new, delete_user_cb=lambda user: place.get(user, after) > after)
