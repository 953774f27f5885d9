"""One torch.export of a task at one batch size: a functional graph of kernels, with locations.

The task's model and loss become one module of flat tensor arguments, so that a nested batch needs nothing special.
"""

from __future__ import annotations

import warnings
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from uniap_compiler.ir import Diagnostic

from . import batch as batches
from .autocast import regions_for_any_device, write_casts
from .decompositions import table
from .functional import Capturable
from .in_place import write_values
from .places import user_line
from .precision import promoted
from .quiet import quiet
from .random_ops import has_rule, is_random, number, without_checkpointing
from .state import Registered, Seen, check_tensors, numbers, refused
from .state import tensors as plain_tensors
from .task import TrainingTask

MODEL = "model"


class Step(nn.Module):
    """forward(*tensors) -> the loss."""

    def __init__(self, task: TrainingTask) -> None:
        super().__init__()
        self.model = task.model
        if isinstance(task.loss, nn.Module):
            self.loss: Any = task.loss
        else:
            object.__setattr__(self, "loss", task.loss)
        self._batch, self._targets = task.batch, task.targets
        self.seen = Seen()

    def forward(self, *tensors: Tensor) -> Tensor:
        buffers = [(m._buffers, name, b) for m in self.modules() for name, b in m._buffers.items()]
        plain = plain_tensors(self)
        with Registered(self) if torch.compiler.is_exporting() else nullcontext():
            loss = self._loss(*tensors)
        after = plain_tensors(self)
        self.seen.replaced = {place for place, t in plain.items() if after.get(place) is not t}
        self.seen.numbers = numbers(self)
        for own, name, before in buffers:
            _settle(own, name, before)
        return loss

    def _loss(self, *tensors: Tensor) -> Tensor:
        rest = iter(tensors)
        batch = batches.rebuild(self._batch, lambda _: next(rest))
        targets = batches.rebuild(self._targets, lambda _: next(rest))
        if isinstance(batch, dict):
            output = self.model(**batch)
        elif isinstance(batch, (list, tuple)):
            output = self.model(*batch)
        else:
            output = self.model(batch)
        if self.loss is not None:
            output = self.loss(output, targets)
        return loss_of(output)


def _settle(own: dict[str, Tensor | None], name: str, before: Tensor | None) -> None:
    """`self.ema = 0.9 * self.ema + ...` is a change of the buffer; without a gradient, which no later step can use.

    A graph has changes in place only; in an eager run the old value may still be needed for backward.
    """
    after = own.get(name)
    if after is before:
        return
    if not torch.compiler.is_exporting():
        own[name] = after.detach() if after is not None else None
        return
    own[name] = before
    if before is None:
        return  # a cache that is filled by the first forward
    if after is None or after.shape != before.shape or after.dtype != before.dtype:
        kinds = [f"{list(t.shape)} of {t.dtype}" if t is not None else "nothing" for t in (before, after)]
        raise Diagnostic(
            f"forward changes the buffer {name} from {kinds[0]} to {kinds[1]}",
            help="a buffer keeps its shape and dtype; pass what changes in the batch",
        )
    before.copy_(after.detach())


def loss_of(output: Any) -> Tensor:
    """The scalar loss in what the model or the loss function returned."""
    if isinstance(output, dict) and "loss" in output:
        output = output["loss"]
    output = getattr(output, "loss", output)
    if not isinstance(output, Tensor):
        raise Diagnostic(
            f"the loss is a {type(output).__name__}, not a tensor",
            help="return a scalar from the model, or give the task loss=function(output, targets)",
        )
    if output.numel() != 1 or not output.is_floating_point():
        raise Diagnostic(
            f"the loss has shape {list(output.shape)} and dtype {output.dtype}; it must be one real number",
            help="average it over the batch, or give the task loss=function(output, targets)",
        )
    return output if output.dim() == 0 else output.reshape(())


def export(
    step: Step, task: TrainingTask, batch: int, dtype: torch.dtype | None, root: Path | None
) -> tuple[ExportedProgram, int]:
    """The step's graph at this batch size, composite ops and all; functional.  Raises Diagnostic.

    step: of the task.  Also how often it draws random numbers: what is drawn and not used may be missing in the graph.

    Making a graph functional costs as much again as exporting it, so torch does that only where in_place.py cannot;
    composite ops are then taken apart in passing, else lower.py does it.
    """
    inputs = tuple(
        batches.rows(t.to(dtype) if dtype is not None and t.is_floating_point() else t, batch)
        for _, t in (*batches.leaves(task.batch, "batch"), *batches.leaves(task.targets, "targets"))
    )
    before = plain_tensors(step)
    with ExitStack() as stack:
        for context in (
            warnings.catch_warnings(), quiet(), promoted(dtype), Capturable(), without_checkpointing(),
            regions_for_any_device(), refused(root),
        ):  # fmt: skip
            stack.enter_context(context)
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(step, inputs, strict=False)
            check_tensors(step, before, step.seen.replaced, program.constants, root)
            _check(program, root)
            _check_constants(program, root)
            write_casts(program, lambda node: user_line(node.meta.get("stack_trace") or "", root))
            sites = number(program.graph_module)
            _detach_no_grad_regions(program)
            write_values(program.graph_module)
            if not _mutates(program):
                return program, sites
            for module in program.graph_module.modules():
                if isinstance(module, torch.fx.GraphModule):
                    module.recompile()  # torch may run what was rewritten here; lower.py reads the graph
            return program.run_decompositions(table()), sites
        except Diagnostic:
            raise
        except Exception as error:
            raise failure(error, batch, root) from error


def failure(error: Exception, batch: int, root: Path | None) -> Diagnostic:
    """torch's reason in one or two lines, at the user's line."""
    text = str(error).split("\n\nWhile executing")[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    reason = lines[0] if lines else type(error).__name__
    notes = [f"torch says: {type(error).__name__}: {reason[:300]}"]
    loc = None
    if "from user code" in text or 'File "' in str(error):
        loc = user_line(str(error), root)
    trace = error.__traceback__
    frames = []
    while trace is not None:
        frames.append(f'File "{trace.tb_frame.f_code.co_filename}", line {trace.tb_lineno}, in x')
        trace = trace.tb_next
    loc = loc or user_line("\n".join(frames), root)
    help = None
    if "data-dependent" in text or "GuardOnDataDependent" in type(error).__name__ or "item()" in text:
        help = (
            "the model branches on a tensor's value; compute with torch.where, or move the decision out of forward "
            "(LayerDrop: set it to 0)"
        )
    elif "fake tensor in the exported program" in text:
        help = "forward calls something that cannot be recorded: torch.autograd.grad, or numpy on a tensor"
    return Diagnostic(
        f"torch.export cannot capture the model (at a batch of {batch} rows)", loc=loc, notes=notes, help=help
    )


def _check(program: ExportedProgram, root: Path | None) -> None:
    """Refuse what later stations cannot honour: some random ops, numbers that are read out of tensors."""
    for module in program.graph_module.modules():
        for node in getattr(module, "graph", torch.fx.Graph()).nodes:
            target = node.target
            if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
                continue
            name = target._schema.name.removeprefix("aten::")
            if name in ("item", "_local_scalar_dense"):
                raise Diagnostic(
                    "the model turns a tensor into a Python number (.item(), float(x), int(x))",
                    loc=user_line(node.meta.get("stack_trace") or "", root),
                    help="keep it a tensor: a 0-dim tensor can be multiplied and added like a number",
                )
            if name != "sym_size" and _sizes_are_data(node.meta.get("val")):
                raise Diagnostic(
                    f"how many elements {name} gives depends on values, and a compiled step has sizes that do not",
                    loc=user_line(node.meta.get("stack_trace") or "", root),
                    help="keep all elements and weigh them: torch.where or a product with the mask, ignore_index in a "
                    "loss, a one-hot einsum to choose experts",
                )
            if is_random(node) and not has_rule(node):
                own = node.kwargs.get("generator") is not None
                raise Diagnostic(
                    f"a random op with a generator of its own: {name}" if own else f"an unsupported random op: {name}",
                    loc=user_line(node.meta.get("stack_trace") or "", root),
                    help="dropout, rand, randn, randint, bernoulli, normal, uniform_ and exponential_ are supported; "
                    "draw other random numbers outside and pass them in the batch",
                )


def _check_constants(program: ExportedProgram, root: Path | None) -> None:
    """Refuse changes in place of tensors that are no buffers (and of views of them)."""
    constants = {
        s.arg.name: str(s.target) for s in program.graph_signature.input_specs if s.kind == InputKind.CONSTANT_TENSOR
    }

    def walk(module: torch.nn.Module, known: dict[torch.fx.Node, str]) -> None:
        for node in getattr(module, "graph", torch.fx.Graph()).nodes:
            if node.op != "call_function" or not node.args:
                continue
            if str(node.target) == "wrap_with_set_grad_enabled":
                body = getattr(module, str(node.args[1].target))
                inside = body.graph.find_nodes(op="placeholder")
                walk(body, {p: known[a] for p, a in zip(inside, node.args[2:]) if a in known})
            elif isinstance(node.target, torch._ops.OpOverload) and node.args[0] in known:
                if node.target._schema.is_mutable and node.target not in _HARMLESS:
                    raise Diagnostic(
                        f"forward changes the tensor {known[node.args[0]].removeprefix('model.')} in place",
                        loc=user_line(node.meta.get("stack_trace") or "", root),
                        help="make it a buffer, with register_buffer in __init__: buffers may be changed in forward",
                    )
                if node.target.is_view:
                    known[node] = known[node.args[0]]

    nodes = program.graph.find_nodes(op="placeholder")
    walk(program.graph_module, {n: constants[n.name] for n in nodes if n.name in constants})


def _sizes_are_data(value: Any) -> bool:
    values = value if isinstance(value, (list, tuple)) else [value]
    return any(isinstance(v, Tensor) and any(isinstance(size, torch.SymInt) for size in v.shape) for v in values)


_HARMLESS = {torch.ops.aten.detach_.default}  # on a constant that forward made


def _mutates(program: ExportedProgram) -> bool:
    for module in program.graph_module.modules():
        for node in getattr(module, "graph", torch.fx.Graph()).nodes:
            target = node.target
            if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload) or target in _HARMLESS:
                continue
            # torch's schema does not say that these two change their running statistics
            if target._schema.is_mutable or target._schema.name in ("aten::batch_norm", "aten::instance_norm"):
                return True
    return False


def _detach_no_grad_regions(program: ExportedProgram) -> None:
    """What a `torch.no_grad()` block computes is detached: the block itself is inlined later and forgotten."""
    for module in program.graph_module.modules():
        graph = getattr(module, "graph", None)
        if graph is None:
            continue
        for node in list(graph.nodes):
            if node.op != "call_function" or str(node.target) != "wrap_with_set_grad_enabled" or node.args[0]:
                continue
            for user in list(node.users):
                if user.target.__name__ == "getitem" and isinstance(user.meta.get("val"), Tensor):
                    with graph.inserting_after(user):
                        detached = graph.call_function(torch.ops.aten.detach.default, (user,))
                    detached.meta = dict(user.meta)
                    user.replace_all_uses_with(detached, delete_user_cb=lambda u, d=detached: u is not d)
