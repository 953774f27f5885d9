"""Is a bundle the model that it was compiled from?  The bundle's ranks against eager autograd.

    report = verify(Path("build"))          # all ranks as threads of this process
    report.ok, report.worst()

Both start from the bundle's weights and see the same batches.  The reference is the user's own module, run over the
same micro-batches and averaged.  Compared: the loss of every step, every gradient of the first step, parameters after
three steps of SGD and after three of AdamW, buffers after those of SGD.  The error of a tensor is its largest
difference over its largest value, or over a thousandth of the largest value of all tensors of its kind where its own
are smaller: some true gradients are zero (the bias of an attention key), and what is left of them is rounding.

There is a second allowance, measured: three times the model's own noise.  Below float32 that is what the unsharded
model is off from float64.  Otherwise it counts for what comes after the first step alone, and only where the first
losses and gradients agree: how far the unsharded model comes to be from itself when its weights are rounded otherwise.
(Batch norm over few elements can make 1e-9 of 1e-16 in three steps.)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .capture import TrainingTask
from .capture.autocast import regions_on_this_machine
from .capture.batch import leaves, rows
from .capture.capture import converted
from .capture.copies import copied
from .capture.export import Step
from .capture.fake import with_memory, without_data
from .capture.precision import promoted
from .capture.random_ops import EagerDraws, without_checkpointing
from .ir import Diagnostic
from .master_weights import MasterWeights
from .runtime.bundle import Bundle
from .runtime.errors import BundleError
from .runtime.initial import InitialValues
from .runtime.random import Randomness
from .verify_report import FLOOR, Report, Row, Tensors, compare_tensors, trusted
from .zoo import find_task

STEPS = 3
SHAKEN = 3
"""How often the drift of the unsharded model is measured: a loss is one number and can be near by chance."""
TOLERANCES = {"float64": 1e-10, "float32": 1e-5, "bfloat16": 5e-2, "float16": 5e-3}
ADAMW_FLOORS = {"float64": FLOOR, "float32": 0.1, "bfloat16": 0.0, "float16": 0.0}
"""AdamW divides a gradient by its own size: an element's rounding, relative to the element, becomes a part of the step.
Below this share of the largest element that part is more than the tolerance."""
LOW_EPS = 1.0
"""AdamW's eps below float32.  Many small gradients are mostly rounding, so with a small eps two models differ after one
step; with a large one the step is the moment times a constant, and every element can be compared."""
_LOW = ("bfloat16", "float16")
_OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.01, "momentum": 0.9},
    "adamw": {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01},
}


def verify(
    folder: Path, *, spec: str | None = None, task: TrainingTask | None = None, processes: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> Report:
    """task, spec: where the model comes from, if not from the SPEC in the manifest.  Raises Diagnostic."""
    try:
        bundle = Bundle(folder.resolve())
        bundle.check()
    except BundleError as error:
        raise _diagnostic(error) from None
    manifest = bundle.manifest
    if task is None:
        task = _task(manifest, spec)
    dtype = str(manifest["dtype"])
    least = str(manifest.get("least_precise", dtype))
    report = Report(dtype, TOLERANCES[least], ranks=bundle.world_size, least=least)
    batches = make_batches(task, int(manifest["global_batch"]), STEPS)
    initial = _initial(bundle)
    optimizers = [_described(manifest, kind) for kind in _OPTIMIZERS]
    steps = f"{STEPS} steps of {' and of '.join(_OPTIMIZERS)}"
    progress(f"the unsharded model, {steps}")
    references = [run_reference(task, manifest, initial, batches, optimizer) for optimizer in optimizers]
    progress(f"{bundle.world_size} ranks, {steps}")
    outcomes = _run_bundle(bundle, batches, optimizers, processes)
    for optimizer, found, wanted in zip(optimizers, outcomes, references, strict=True):
        _compare(report, optimizer["kind"], found, wanted)
        if wanted.masters:
            _compare_masters(report, optimizer["kind"], found, wanted, initial)
        if not report.ok and least in _LOW:
            progress("the unsharded model in float64")
            exact = run_reference(task, {**manifest, "dtype": "float64"}, initial, batches, optimizer)
            _measure_noise(report, optimizer["kind"], wanted, exact, initial)
        elif not report.ok and report.agrees_at_first():
            progress("the unsharded model with its weights rounded otherwise")
            shaken = [run_reference(task, manifest, _shaken(initial, n), batches, optimizer) for n in range(SHAKEN)]
            _measure_drift(report, optimizer["kind"], wanted, shaken)
        report.disagreement = max(report.disagreement, found.disagreement)
    if processes:
        report.how = "gloo processes"
    return report


def _described(manifest: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """The settings of a comparison; groups are the task's own where the kind is."""
    own = manifest["optimizer"]
    groups = own["groups"] if own["kind"] == kind else []
    defaults = dict(_OPTIMIZERS[kind])
    if kind == "adamw" and manifest.get("least_precise", manifest["dtype"]) in _LOW:
        defaults["eps"] = LOW_EPS
    return {
        "kind": kind, "defaults": defaults, "groups": groups, "master_weights": own.get("master_weights", True)
    }  # fmt: skip


# -- what the two sides start from ----------------------------------------------------------------------------------


def _task(manifest: Mapping[str, Any], spec: str | None) -> TrainingTask:
    name = spec or str(manifest["spec"])
    if not name:
        raise Diagnostic("the bundle does not say which model it was compiled from", help="give --spec FILE.py:factory")
    path = Path(name.rpartition(":")[0])
    if spec is None and path.suffix == ".py":
        if not path.is_file():
            raise Diagnostic(
                f"the bundle was compiled from {path}, which is not here",
                help="run verify in the folder where it was compiled, or give --spec FILE.py:factory",
            )
        check_fresh(manifest, path)
    return find_task(name)


def check_fresh(manifest: Mapping[str, Any], path: Path) -> None:
    """Raises Diagnostic when the model's file has changed since the bundle was compiled."""
    wanted = manifest.get("spec_sha256")
    if wanted and hashlib.sha256(path.read_bytes()).hexdigest() != wanted:
        raise Diagnostic(
            f"the bundle is stale: {path} has changed since it was compiled",
            help=f"compile {manifest['spec']} again, or name the file that belongs to the bundle with --spec",
        )


def _initial(bundle: Bundle) -> Tensors:
    """Every parameter and buffer whole, from wherever the ranks take their slices."""
    values = InitialValues(bundle.root, bundle.manifest)
    found: Tensors = {}
    for name, entry in [*bundle.manifest["parameters"].items(), *bundle.manifest["buffers"].items()]:
        whole = {"dtype": entry["dtype"], "slices": [[[size, 0, size]] for size in entry["shape"]]}
        found[name] = values.read(name, whole, torch.device("cpu"))
    return found


def _shaken(values: Tensors, seed: int) -> Tensors:
    """Every number is one of its neighbours."""
    generator = torch.Generator().manual_seed(seed)
    found = dict(values)
    for name, x in values.items():
        if x.is_floating_point():
            up = torch.rand(x.shape, generator=generator) < 0.5
            found[name] = torch.nextafter(x, torch.where(up, torch.inf, -torch.inf).to(x.dtype))
    return found


def make_batches(task: TrainingTask, count: int, steps: int) -> list[list[tuple[str, Tensor]]]:
    """Global batches by path.  Repeated example rows are shuffled inside, so that no two rows are equal.

    Equal rows would hide a slice that is shifted by one; shuffled ones keep every value legal.
    """
    generator = torch.Generator().manual_seed(0)
    items = [*leaves(task.batch, "batch"), *leaves(task.targets, "targets")]
    return [[(path, _varied(x, count, generator)) for path, x in items] for _ in range(steps)]


def _varied(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    result = rows(x, count)
    if x.dim() == 1:
        return result[torch.randperm(count, generator=generator)]
    for row in range(count):
        flat = result[row].reshape(-1)
        result[row] = flat[torch.randperm(flat.numel(), generator=generator)].view_as(result[row])
    return result


# -- the two sides --------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """losses: per step.  gradients: per step.  parameters, buffers: after the last step.  notes: what went wrong."""

    losses: list[float]
    gradients: list[Tensors]
    parameters: Tensors
    buffers: Tensors
    masters: Tensors = field(default_factory=dict)
    disagreement: float = 0.0
    disagreeing: str = ""


def run_reference(
    task: TrainingTask, manifest: Mapping[str, Any], initial: Tensors, batches: Sequence[list[tuple[str, Tensor]]],
    optimizer: Mapping[str, Any],
) -> Outcome:
    """The user's module over the same micro-batches, one after the other, with the same random numbers; gradients
    are averaged."""
    dtype = getattr(torch, manifest["dtype"])
    own = next((p.dtype for p in task.model.parameters() if p.is_floating_point()), torch.float32)
    other = dtype if dtype != own else None
    task = replace(task, **{
        part: with_memory(module)
        for part, module in (("model", task.model), ("loss", task.loss))
        if isinstance(module, torch.nn.Module) and without_data(module)
    })
    task = converted(task, dtype) if other is not None else _copied(task)
    step = Step(task)
    _load(step, initial)
    micro_batches = int(manifest["micro_batches"])
    named = _canonical(step, manifest)
    masters = MasterWeights(named if optimizer.get("master_weights", True) else {})
    torch_optimizer = _torch_optimizer(named | masters.copies, optimizer)
    losses, gradients = [], []
    with promoted(other), without_checkpointing(), regions_on_this_machine():
        for n, batch in enumerate(batches):
            torch_optimizer.zero_grad(set_to_none=True)
            total = 0.0
            for m, key in enumerate(Randomness().keys(n, micro_batches)):
                try:
                    with EagerDraws(key) as draws:
                        loss = step(*(_micro_batch(x, m, micro_batches, dtype) for _, x in batch)) / micro_batches
                    _check_draws(draws.sites, manifest)
                    loss.backward()
                except (RuntimeError, IndexError, ValueError, TypeError) as error:
                    reason = (str(error).splitlines() or [type(error).__name__])[0]
                    raise Diagnostic(f"the model itself fails under eager autograd: {reason}") from error
                masters.collect()
                total += float(loss.detach())
            losses.append(total)
            updated = named | masters.copies
            gradients.append({n: p.grad.clone() for n, p in updated.items() if p.grad is not None})
            torch_optimizer.step()
            masters.round()
    parameters = {name: p.detach() for name, p in named.items()}
    return Outcome(losses, gradients, parameters, dict(_plain(step.named_buffers())), masters.copies)


def _check_draws(sites: int, manifest: Mapping[str, Any]) -> None:
    """The k-th random op of the model is the k-th of the bundle only where both have as many."""
    known = int(manifest.get("random_sites", 0))
    if sites != known:
        raise Diagnostic(
            f"the model draws random numbers {sites} times in a forward pass, the bundle {known} times",
            help="forward must draw as often every time; compile it again if the model has changed",
        )


def _copied(task: TrainingTask) -> TrainingTask:
    loss = copied(task.loss) if isinstance(task.loss, torch.nn.Module) else task.loss
    return replace(task, model=copied(task.model), loss=loss)


def _plain(named: Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """The names of a bundle: the model's tensors under their own, a loss module's behind `loss.`."""
    return [(name.removeprefix("model."), tensor) for name, tensor in named]


def _micro_batch(x: Tensor, m: int, count: int, dtype: torch.dtype) -> Tensor:
    size = x.shape[0] // count
    part = x[m * size : (m + 1) * size]
    return part.to(dtype, copy=True) if part.is_floating_point() else part.clone()  # forward may change it in place


def _load(step: Step, initial: Tensors) -> None:
    tensors = _plain([*step.named_parameters(remove_duplicate=False), *step.named_buffers()])
    with torch.no_grad():
        for name, value in tensors:
            if name in initial:
                if value.shape != initial[name].shape:
                    shapes = f"{list(value.shape)}, in the bundle {list(initial[name].shape)}"
                    raise _not_the_model(f"{name} has shape {shapes}")
                value.copy_(initial[name])
    unknown = sorted(set(initial) - {name for name, _ in tensors})
    if unknown:
        raise _not_the_model(f"it has no {unknown[0]}")


def _not_the_model(why: str) -> Diagnostic:
    return Diagnostic(f"the model is not the one that the bundle was compiled from: {why}", help="compile it again")


def _canonical(step: Step, manifest: Mapping[str, Any]) -> dict[str, Tensor]:
    """Every parameter once: a tied one under the name that the bundle has for it."""
    every = dict(_plain(step.named_parameters(remove_duplicate=False)))
    found = {name: every[name] for name in manifest["parameters"] if name in every}
    known = {id(p) for p in found.values()}
    return found | {name: p for name, p in _plain(step.named_parameters()) if id(p) not in known}


def _torch_optimizer(
    parameters: Mapping[str, Tensor], described: Mapping[str, Any]
) -> torch.optim.Optimizer:
    named = dict(parameters)
    groups: list[dict[str, Any]] = []
    for group in described["groups"]:
        own = {k: v for k, v in group.items() if k != "parameters"}
        groups.append({"params": [named.pop(name) for name in group["parameters"] if name in named], **own})
    groups.append({"params": list(named.values())})
    make: Any = torch.optim.AdamW if described["kind"] == "adamw" else torch.optim.SGD
    defaults = {k: tuple(v) if isinstance(v, list) else v for k, v in described["defaults"].items()}
    optimizer: torch.optim.Optimizer = make([g for g in groups if g["params"]], **defaults)
    return optimizer


def _run_bundle(
    bundle: Bundle, batches: Sequence[list[tuple[str, Tensor]]], optimizers: Sequence[Mapping[str, Any]],
    processes: bool,
) -> list[Outcome]:
    from .runtime.simulate import simulate

    inputs = [dict(batch) for batch in batches]
    try:
        if processes:
            from .verify_processes import run_processes

            results = run_processes(bundle.root, inputs, optimizers)
        else:
            results = [simulate(bundle.root, inputs, optimizer=optimizer, check=False) for optimizer in optimizers]
    except (BundleError, Diagnostic) as error:
        raise (_diagnostic(error) if isinstance(error, BundleError) else error) from None
    except Exception as error:  # whatever generated code can raise: the bundle is wrong, and says where
        notes = [*str(error).splitlines()[1:9], *getattr(error, "__notes__", ())]
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Diagnostic(f"the bundle's ranks fail: {reason}", notes=notes) from error
    return [
        Outcome(list(r.losses), [r.gradients], r.parameters, r.buffers, r.masters, r.disagreement, r.disagreeing)
        for r in results
    ]


def _diagnostic(error: BundleError) -> Diagnostic:
    message, _, help = str(error).partition("\n  help: ")
    return Diagnostic(message, help=help or None)


# -- the comparison -------------------------------------------------------------------------------------------------


def _compare(report: Report, kind: str, found: Outcome, wanted: Outcome) -> None:
    for step, (a, b) in enumerate(zip(found.losses, wanted.losses, strict=True), 1):
        report.rows.append(Row("loss", f"step {step} of {kind}", abs(a - b) / max(abs(b), 1e-30)))
    first = wanted.gradients[0]
    if kind == "sgd":  # the first gradients are the same in both runs
        report.rows += compare_tensors("gradient", found.gradients[0], first)
    after = f"after {STEPS} steps of {kind}"
    keep = trusted(wanted.gradients, ADAMW_FLOORS[report.least]) if kind == "adamw" else {}
    report.rows += compare_tensors(f"parameter {after}", found.parameters, wanted.parameters, keep)
    if kind == "sgd":  # AdamW moves parameters with a gradient of zero by its rounding, and statistics with them
        report.rows += compare_tensors(f"buffer {after}", found.buffers, wanted.buffers, only=found.buffers)
    if found.disagreement > report.tolerance:
        note = "ranks that hold the same values differ"
        report.rows.append(Row("copies on different ranks", found.disagreeing, found.disagreement, note))


def _compare_masters(report: Report, kind: str, found: Outcome, wanted: Outcome, initial: Tensors) -> None:
    """How far the masters have moved: bfloat16 shows hardly anything of a few steps.  And the rounding, exactly."""
    moved = [
        {name: x.detach().double() - initial[name].double() for name, x in side.masters.items() if name in initial}
        for side in (found, wanted)
    ]
    still = {name for name in wanted.masters if name not in wanted.gradients[0]}
    for side in moved:
        for name in still:
            side.pop(name, None)
    report.rows += compare_tensors(f"change of masters in {STEPS} steps of {kind}", *moved)
    for name, master in found.masters.items():
        if not torch.equal(found.parameters[name], master.to(found.parameters[name].dtype)):
            report.rows.append(Row("rounded master", name, math.inf, "the parameter is not its master rounded"))


def _measure_noise(report: Report, kind: str, reference: Outcome, exact: Outcome, initial: Tensors) -> None:
    """Where a tensor is mostly cancellation, a tolerance for all of them says nothing: how far is the model off?"""
    noise = Report(report.dtype, report.tolerance, least=report.least)
    _compare(noise, kind, reference, exact)
    if reference.masters:
        masters = {name: exact.parameters[name] for name in reference.masters}
        _compare_masters(noise, kind, reference, replace(exact, masters=masters), initial)
    known = {(row.what, row.name): row.error for row in noise.rows if math.isfinite(row.error) and not row.note}
    report.rows = [replace(r, noise=r.noise or known.get((r.what, r.name), 0.0)) for r in report.rows]


def _measure_drift(report: Report, kind: str, reference: Outcome, shaken: Sequence[Outcome]) -> None:
    """What rounding becomes in the steps after the first: the most of all tensors of a kind."""
    noise = Report(report.dtype, report.tolerance, least=report.least)
    for other in shaken:
        _compare(noise, kind, reference, other)
    known = {what: row.error for what, row in noise.worst().items() if math.isfinite(row.error) and not row.note}
    report.rows = [r if r.first else replace(r, noise=r.noise or known.get(r.what, 0.0)) for r in report.rows]
