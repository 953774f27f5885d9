"""The graph of one torch.export as an IR func of plain sizes; params carry role, path and grad.

p_model_up_weight: PARAMETER          ->  %up.weight: tensor<32x8xf32> {role = "param", path = "up.weight", grad = true}
b_bn_running_mean, BUFFER_MUTATION    ->  results = ["loss", "buffer:bn.running_mean"]
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from uniap_compiler.bridge.schema import type_of
from uniap_compiler.ir import Diagnostic, Func, Loc, Namer, TensorType, Value

from .complex_ops import is_complex
from .export import MODEL
from .lower import lower
from .places import user_line


@dataclass
class Graph:
    """func, the data of its params with role "constant", and the class of every called module path.

    random_sites: how many random ops the forward pass has.
    """

    func: Func
    constants: dict[str, Tensor] = field(default_factory=dict)
    classes: dict[str, str] = field(default_factory=dict)
    random_sites: int = 0


def from_fx(program: ExportedProgram, inputs: list[str], step: nn.Module, root: Path | None) -> Graph:
    """inputs: the paths of the batch's tensors, in order.  step: what was exported, for the names of its tensors."""
    graph = Graph(Func("main"))
    func, namer = graph.func, Namer()
    params: dict[torch.fx.Node, Value] = {}
    tied = _tied(step)
    trained = {_strip(n) for n, p in step.named_parameters(remove_duplicate=False) if p.requires_grad}
    first: dict[str, Value] = {}
    user_inputs = iter(inputs)
    specs = {s.arg.name: s for s in program.graph_signature.input_specs}
    for node in program.graph.find_nodes(op="placeholder"):
        spec = specs[node.name]
        params[node] = _param(node, spec, namer, tied, trained, user_inputs, first, program, graph, step)
        if params[node] not in func.params:
            func.params.append(params[node])

    def locate(node: torch.fx.Node) -> Loc | None:
        path = instance_path(node.meta.get("nn_module_stack") or {}, graph.classes)
        return user_line(node.meta.get("stack_trace") or "", root, path) or Loc("", 0, path)

    func.ops, outputs = lower(program.graph_module, params, namer, locate)
    _derive_keys(func, namer)
    func.params.sort(key=lambda p: ["input", "random", "param", "buffer", "constant"].index(str(p.attrs["role"])))
    losses, updates, kinds = [], [], []
    for spec, value in zip(program.graph_signature.output_specs, outputs, strict=True):
        if spec.kind == OutputKind.USER_OUTPUT:
            losses.append(value)
        elif spec.kind == OutputKind.BUFFER_MUTATION:
            updates.append(value)
            kinds.append(f"buffer:{_strip(str(spec.target))}")
        elif spec.kind == OutputKind.USER_INPUT_MUTATION:
            pass  # every micro-batch is new
        else:
            what = spec.kind.name.lower()
            raise Diagnostic(
                f"the model changes {spec.target} in place, which cannot be compiled ({what})",
                help="only registered buffers may be changed inside forward",
            )
    order = sorted(range(len(updates)), key=lambda i: kinds[i])
    func.returns = [*losses, *(updates[i] for i in order)]
    func.attrs["results"] = ["loss", *(kinds[i] for i in order)]
    return graph


def _derive_keys(func: Func, namer: Namer) -> None:
    """`nn.random_site {site = 3}` becomes `nn.random_key(%random) {site = 3}`: %random is new in every micro-batch."""
    sites = [op for op in func.ops if op.name == "nn.random_site"]
    if not sites:
        return
    random = Value(namer("random"), TensorType((), "i64"), {"role": "random"})
    func.params.append(random)
    for op in sites:
        op.name, op.operands = "nn.random_key", [random]
        op.results[0].name = namer("random_key")


def _tied(step: nn.Module) -> dict[str, str]:
    """Every name of a parameter or buffer -> the name that stands for it: the first in the order of the model."""
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    for group in (step.named_parameters(remove_duplicate=False), step.named_buffers(remove_duplicate=False)):
        for path, tensor in group:
            name = _strip(path)
            if name in names:
                raise Diagnostic(
                    f"the loss and the model both have a tensor {name}",
                    help="rename it in one of them: the loss's tensors are called loss.NAME",
                )
            names[name] = first.setdefault(id(tensor), name)
    return names


def _strip(path: str) -> str:
    return path.removeprefix(f"{MODEL}.")


def _param(
    node: torch.fx.Node,
    spec: Any,
    namer: Namer,
    tied: dict[str, str],
    trained: set[str],
    user_inputs: Any,
    first: dict[str, Value],
    program: ExportedProgram,
    graph: Graph,
    step: nn.Module,
) -> Value:
    if is_complex(node.meta["val"]):
        return _complex_constant(node, spec, namer, step, program, graph)
    type_ = type_of(node.meta["val"])
    if spec.kind == InputKind.USER_INPUT:
        path = next(user_inputs)
        return Value(namer(path), type_, {"role": "input", "path": path})
    if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
        name = _strip(str(spec.target))
        path = tied.get(name, name)
        if path in first:
            return first[path]
        role = "param" if spec.kind == InputKind.PARAMETER else "buffer"
        attrs: dict[str, Any] = {"role": role, "path": path}
        aliases = [n for n, p in tied.items() if p == path and n != path]
        if role == "param":
            attrs["grad"] = path in trained
        if aliases:
            attrs["aliases"] = aliases
        first[path] = Value(namer(path), type_, attrs)
        return first[path]
    if spec.kind == InputKind.CONSTANT_TENSOR:
        data = program.constants[spec.target]
        value = Value(namer(re.sub(r"^c_", "", node.name)), type_, {"role": "constant"})
        graph.constants[value.name] = data
        return value
    raise Diagnostic(f"torch.export made an input of an unknown kind: {spec.kind.name.lower()}")


def _complex_constant(
    node: torch.fx.Node, spec: Any, namer: Namer, step: nn.Module, program: ExportedProgram, graph: Graph
) -> Value:
    """A buffer or tensor of complex numbers as a constant of pairs (complex_ops.py)."""
    if spec.kind not in (InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
        raise Diagnostic(
            f"the model has complex parameters or inputs: {_strip(str(spec.target or node.name))}",
            help="make it real, [.., 2], and use torch.view_as_complex on it in forward",
        )
    buffers = dict(step.named_buffers(remove_duplicate=False))
    data = buffers[str(spec.target)] if spec.kind == InputKind.BUFFER else program.constants[spec.target]
    pairs = torch.view_as_real(data.resolve_conj()).contiguous()
    value = Value(namer(re.sub(r"^[bc]_(model_)?", "", node.name)), type_of(pairs), {"role": "constant"})
    graph.constants[value.name] = pairs
    return value


def instance_path(stack: dict[str, Any], classes: dict[str, str]) -> str:
    """The module path with call numbers: `shared@2.up` is module shared.up in the third call of shared.

    Containers that are not called (ModuleList, ModuleDict) take the number of the called module below them; a number
    is written where it changes.
    """
    parts: list[str] = []
    before = 0
    done = ""
    for key, (path, kind) in stack.items():
        path = _strip(path) if path != MODEL else ""
        if not path:
            continue
        number = int(key.rpartition("@")[2]) if "@" in key else 0
        name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
        classes[path] = name.rpartition(".")[2]
        own = path[len(done) + 1 :] if done and path.startswith(done + ".") else path
        if own == path and done:
            parts, before = [], 0
        for i, part in enumerate(own.split(".")):
            parts.append(f"{part}@{number}" if number != before and i == 0 else part)
        before = number
        done = path
    return ".".join(parts)


__all__ = ["Graph", "from_fx", "instance_path"]
