"""nn.Module -> IR: two exports at two batch sizes, made one func with sizes that are written in terms of B.

func @main(%batch.0: tensor<Bx64xf32> {role = "input", path = "batch.0"}, %up.weight: ... {role = "param", ...})
    -> (tensor<f32>) attributes {results = ["loss"]}
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from uniap_compiler.bridge.schema import TORCH_DTYPES, dtype_name, find_overload
from uniap_compiler.bridge.shapes import WrongShape, check_shapes
from uniap_compiler.bridge.unify import BATCHES, THIRD, Mismatch, unify
from uniap_compiler.bridge.user_ops import check_defined
from uniap_compiler.ir import Atom, ConstantStore, Diagnostic, Func, Module, Struct, struct
from uniap_compiler.ir.ops import is_own

from .batch import example_rows, leaves, rebuild
from .complex_ops import is_complex
from .copies import copied
from .dtypes import explicit_dtypes
from .export import Step, export
from .fake import faked, is_fake
from .fold import drop_identities, fold_constants, store_constants
from .from_fx import Graph, from_fx
from .places import user_line
from .precision import promoted
from .state import check_hooks, check_numbers, holding, numbers
from .task import Optimizer, TrainingTask

log = logging.getLogger(__name__)

DTYPE_NAMES = {"float64": "f64", "float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def capture(
    task: TrainingTask,
    *,
    spec: str = "",
    dtype: str | torch.dtype | None = None,
    constants: ConstantStore | None = None,
    name: str | None = None,
) -> Module:
    """The task's step as a module at level `captured`.  Raises Diagnostic.

    dtype: compute in another precision ("float64"), casts and constants included; the task itself is left alone.
    constants: gets the data of tensor constants.
    """
    inputs = [*leaves(task.batch, "batch"), *leaves(task.targets, "targets")]
    example_rows(inputs)
    wanted = _dtype(dtype)
    check_hooks(Step(task))
    if not any(p.requires_grad for p in Step(task).parameters()):
        raise Diagnostic("no parameter of the model needs a gradient", help="there is nothing to train")
    own = next((p.dtype for p in task.model.parameters() if p.is_floating_point()), torch.float32)
    if wanted is not None and wanted != own:
        task = converted(task, wanted)
    else:
        wanted = None
    root = task.source.resolve().parent if task.source is not None else None
    paths = [path for path, _ in inputs]
    task, mode = faked(task)
    step, graphs = Step(task), []
    runs = [numbers(step)]
    with mode:
        for batch in BATCHES:
            with holding(step, runs[-1]):
                graphs.append(_graph(step, task, batch, wanted, paths, root))
            runs.append(step.seen.numbers)
    check_numbers(step, runs, root)
    func = _unify(graphs[0], graphs[1])
    _locate_loss(func, task, root)
    explicit_dtypes(func)
    drop_identities(func)
    fold_constants(func, graphs[0].constants, task.model)
    prune(func)
    for op in func.ops:
        if is_own(op.name):
            check_defined(find_overload(op.name), task.op_files(), op.loc)
    module = Module(
        name or type(task.model).__name__,
        {
            "level": Atom("captured"),
            "spec": spec,
            "dtype": Atom(dtype_name(wanted or own)),
            "optimizer": optimizer_struct(task.optimizer),
        },
    )
    if graphs[0].random_sites:
        module.attrs["random_sites"] = graphs[0].random_sites
    module.ops += store_constants(func, graphs[0].constants, constants if constants is not None else ConstantStore())
    module.add(func)
    try:
        check_shapes(func, THIRD)
    except WrongShape as error:
        raise Diagnostic(
            "a size is neither constant nor a multiple of the batch plus a constant", op=error.op, notes=[str(error)]
        ) from None
    log.info("captured %d ops, %d parameters", len(func.ops), sum(p.attrs["role"] == "param" for p in func.params))
    return module


def _graph(
    step: Step, task: TrainingTask, batch: int, dtype: torch.dtype | None, paths: list[str], root: Path | None
) -> Graph:
    program, sites = export(step, task, batch, dtype, root)
    with promoted(dtype):
        graph = from_fx(program, paths, step, root)
    graph.random_sites = sites
    return graph


def _unify(first: Graph, second: Graph) -> Func:
    for name, data in first.constants.items():
        other = second.constants.get(name)
        if is_fake(data):
            raise Diagnostic(f"the constant {name} has no data", help="build it on the CPU, or the model without meta")
        if other is None or other.shape != data.shape or not torch.equal(other, data):
            raise Diagnostic(
                f"the constant {name} depends on the batch size",
                help="make it in forward with torch.arange, torch.zeros or torch.full",
            )
    try:
        func = unify(first.func, second.func)
    except Mismatch as error:
        raise Diagnostic(
            "the model does something else at another batch size",
            op=error.op,
            notes=[str(error)],
            help="forward may not branch on the number of rows",
        ) from None
    classes = [f"{path}={kind}" for path, kind in sorted(first.classes.items()) if path.rpartition(".")[2].isdigit()]
    if classes:
        func.attrs["classes"] = classes
    return func


def _locate_loss(func: Func, task: TrainingTask, root: Path | None) -> None:
    """torch.export knows lines inside `forward` only; what the loss function runs is placed at its definition."""
    code = getattr(task.loss, "__code__", None)
    trace = f'File "{code.co_filename}", line {code.co_firstlineno}, in {code.co_name}' if code is not None else ""
    loc = user_line(trace, root)
    for op in func.ops:
        if op.loc is not None and not op.loc.file:
            op.loc = loc if not op.loc.module else op.loc


def prune(func: Func) -> None:
    """Drop the ops that nobody reads; params stay."""
    live = {v for v in func.returns if v is not None}
    kept = []
    for op in reversed(func.ops):
        if any(r in live for r in op.results):
            kept.append(op)
            live.update(v for v in op.flat_operands() if v is not None)
    func.ops = kept[::-1]


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    short = DTYPE_NAMES.get(dtype, dtype)
    if short not in TORCH_DTYPES:
        raise Diagnostic(f"{dtype!r} is not a dtype", help=f"use one of {', '.join(DTYPE_NAMES)}")
    return TORCH_DTYPES[short]


def converted(task: TrainingTask, dtype: torch.dtype) -> TrainingTask:
    """A copy of the task whose model, batch and targets are in `dtype`."""

    def convert(t: torch.Tensor) -> torch.Tensor:
        return t.to(dtype) if t.is_floating_point() else t

    def module(source: torch.nn.Module) -> torch.nn.Module:
        """Complex buffers keep their imaginary parts, which `.to` of a real dtype drops."""
        result = copied(source)
        kept = [(m._buffers, n, b) for m in result.modules() for n, b in m._buffers.items() if is_complex(b)]
        for own, name, _ in kept:
            own[name] = None
        result.to(dtype)
        for own, name, buffer in kept:
            own[name] = buffer.to(torch.complex128) if dtype == torch.float64 else buffer
        return result

    loss: Any = module(task.loss) if isinstance(task.loss, torch.nn.Module) else task.loss
    return replace(
        task,
        model=module(task.model),
        batch=rebuild(task.batch, convert),
        loss=loss,
        targets=rebuild(task.targets, convert),
    )


def optimizer_struct(optimizer: Optimizer | str) -> Struct:
    """`#optimizer<kind = "adamw", betas = [0.9, 0.999], eps = 1e-08, weight_decay = 0.01, no_decay = ["*.bias"]>`."""
    o = Optimizer(optimizer) if isinstance(optimizer, str) else optimizer
    fields: dict[str, Any] = {"kind": o.kind}
    fields |= {"momentum": o.momentum} if o.kind == "sgd" else {"betas": list(o.betas), "eps": o.eps}
    fields |= {"weight_decay": o.weight_decay, "no_decay": list(o.no_decay)}
    if not o.master_weights:
        fields["master_weights"] = False
    if o.reduce_dtype is not None:
        fields["reduce_dtype"] = DTYPE_NAMES[o.reduce_dtype]
    return struct("optimizer", **fields)
