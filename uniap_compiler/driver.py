"""One compilation from end to end: capture, passes, bundle.

    compiled = compile(task, "laptop", 64, out="build")               # the same as `uniap compile`
    compiled = resume("dumps/08-solve-parallelism.mlir", out="build")  # --from: any dump, with what lies beside it
    compiled = lower_again("build", out="build64", dtype="float64")    # --plan: the shipped plan in another dtype

A module carries the name of the last pass in its attribute `after`, so a dump says by itself where to go on.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from .bridge.user_ops import OPS_FOLDER, copy_ops, defined_in, load_ops
from .capture import TrainingTask, capture
from .capture.capture import DTYPE_NAMES
from .capture.initialise import Initial, initial_values
from .capture.task import Optimizer
from .cluster.description import Cluster, ClusterError
from .cluster.files import load_cluster
from .codegen.bundle import check_output, write_bundle
from .codegen.initial import WEIGHTS_FILE, check_initial, load_weights, save_weights
from .ir import LEVELS, Atom, ConstantStore, Diagnostic, Module, parse_module, print_module
from .ir.constants import FILE_NAME as CONSTANTS_FILE
from .passes.analysis.rules.own import own_rules
from .passes.instruments import Dump, Instrument, PassRecord
from .passes.manager import Pass, Session, required_levels, run_passes
from .passes.pipelines import parse_pipeline
from .passes.solve.cluster_op import record_cluster
from .zoo import find_task

PIPELINE = "compile"
"""The named pipeline from `captured` to `local`."""

Progress = Callable[[str], None]
PathLike = str | Path


@dataclass
class Compiled:
    """bundle: the folder.  module: as it was lowered.  seconds: what each part of the way took, in order."""

    bundle: Path
    module: Module
    plan: str
    seconds: list[tuple[str, float]] = field(default_factory=list)


@dataclass
class _Clock(Instrument):
    """Marks the module with the last pass, keeps the text of the plan, reports progress, measures."""

    progress: Progress
    names: list[str]
    seconds: list[tuple[str, float]] = field(default_factory=list)
    plan: str | None = None

    def start(self, module: Module, constants: ConstantStore) -> None:
        if module.attrs.get("level") == "planned":
            self.plan = print_module(module)
        self._announce(0)

    def after(self, record: PassRecord, module: Module) -> None:
        module.attrs["after"] = record.name
        if module.attrs.get("level") == "planned":
            self.plan = print_module(module)
        self.seconds.append((record.name, record.seconds + record.verify_seconds))
        self._announce(record.number)

    def _announce(self, done: int) -> None:
        if done < len(self.names):
            self.progress(self.names[done])

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        self.progress(name)
        start = time.perf_counter()
        yield
        self.seconds.append((name, time.perf_counter() - start))


def compile(
    task: TrainingTask | str, cluster: Cluster | PathLike, global_batch: int, *, out: PathLike = "build",
    force: str | None = None, schedule: str | None = None, dtype: str | None = None, dump: PathLike | None = None,
    write_lp: PathLike | None = None, weights: PathLike | None = None, reduce_dtype: str | None = None,
    time_limit: float | None = None, progress: Progress = lambda text: None, instruments: Sequence[Instrument] = (),
) -> Compiled:
    """Find the fastest plan for the task on the cluster and write the bundle.  Raises Diagnostic for a user's mistake.

    task: a TrainingTask or a SPEC.  cluster: a Cluster, a preset's name or a TOML file.  force: as on the command line.
    dump: a folder for the module after every pass.  write_lp: a folder for the MIQPs.  time_limit: seconds for the
    solver (30); then the best plan so far is taken, with its bound and gap.
    weights: a safetensors checkpoint to start from, instead of the task's.  reduce_dtype: of gradients between devices,
    instead of the optimizer's.
    """
    clock = _Clock(progress, [])
    out = Path(out)
    check_output(out)
    if global_batch < 1:
        raise Diagnostic(f"a global batch of {global_batch}: it must be at least 1")
    found = find_cluster(cluster)
    passes = parse_pipeline(PIPELINE)
    with clock.measure("capture"):
        spec = task if isinstance(task, str) else ""
        loaded = find_task(task) if isinstance(task, str) else task
        if reduce_dtype is not None and isinstance(loaded.optimizer, Optimizer):
            loaded = replace(loaded, optimizer=replace(loaded.optimizer, reduce_dtype=reduce_dtype))
        constants = ConstantStore()
        load_ops(loaded.op_files())
        module = capture(loaded, spec=spec, dtype=dtype, constants=constants)
    record_cluster(module, found)
    values = weights_of(loaded)
    module.attrs["global_batch"] = global_batch
    module.attrs["spec_sha256"] = _source_sha256(loaded) if spec else ""
    if files := loaded.op_files():
        module.attrs["ops"] = [path.name for path in files]
    if rules := [[op, text] for op, text in own_rules() if defined_in(op, files)]:
        module.attrs["rules"] = rules
    if checkpoint := checkpoint_of(loaded, weights):
        module.attrs["checkpoint"] = checkpoint
    check_initial(module, values)
    session = Session(
        cluster=found, global_batch=global_batch, constants=constants, weights=values, task=loaded,
        source_root=loaded.source.resolve().parent if loaded.source is not None else None,
        ops=loaded.op_files(),
    )
    _set_options(module, session, force, schedule, write_lp, time_limit)
    return _finish(module, session, passes, out, clock, dump, instruments)


def resume(
    path: PathLike, *, out: PathLike = "build", cluster: Cluster | PathLike | None = None, force: str | None = None,
    schedule: str | None = None, dump: PathLike | None = None, write_lp: PathLike | None = None,
    time_limit: float | None = None, progress: Progress = lambda text: None, instruments: Sequence[Instrument] = (),
) -> Compiled:
    """Go on from a dump: the remaining passes, then the bundle."""
    path, out, clock = Path(path), Path(out), _Clock(progress, [])
    check_output(out)
    with clock.measure("parse"):
        module = read_module(path)
    passes = remaining_passes(module, path)
    _refuse_late(module, path, passes, force=force, schedule=schedule, cluster=cluster)
    session = _session_beside(module, path, CONSTANTS_FILE, WEIGHTS_FILE)
    if cluster is not None:
        session.cluster = find_cluster(cluster)
        record_cluster(module, session.cluster)
    if LEVELS.index(str(module.attrs["level"])) > LEVELS.index("planned"):
        clock.plan = _plan_beside(path)
    _set_options(module, session, force, schedule, write_lp, time_limit)
    return _finish(module, session, passes, out, clock, dump, instruments)


def lower_again(
    bundle: PathLike, *, out: PathLike, dtype: str | None = None, dump: PathLike | None = None,
    progress: Progress = lambda text: None, instruments: Sequence[Instrument] = (),
) -> Compiled:
    """The plan of a bundle, lowered again: the same stages and strategies, in another dtype where one is given."""
    bundle, out, clock = Path(bundle), Path(out), _Clock(progress, [])
    path = bundle / "plan.mlir"
    if not path.is_file():
        raise Diagnostic(f"{bundle} has no plan.mlir, so it is not a bundle")
    if out.resolve() == bundle.resolve():
        raise Diagnostic(f"{out} would replace the bundle that has the plan", help="name another folder with --out")
    check_output(out)
    with clock.measure("parse"):
        module = read_module(path)
    level = str(module.attrs.get("level"))
    if level != "planned":
        early = level in LEVELS and LEVELS.index(level) < LEVELS.index("planned")
        raise Diagnostic(
            f"{path} is at level {level}, " + ("where there is no plan yet" if early else "past the plan"),
            help=f"`uniap compile --from {path}` goes on from any level",
        )
    passes = remaining_passes(module, path)
    if dtype is not None:
        passes = [*parse_pipeline(f"promote-dtype{{dtype={dtype_name(dtype)}}}"), *passes]
    session = _session_beside(module, path, "weights/constants.safetensors", "weights/initial.safetensors")
    return _finish(module, session, passes, out, clock, dump, instruments)


# -- what a compilation starts from ---------------------------------------------------------------------------------


def find_cluster(cluster: Cluster | PathLike) -> Cluster:
    if isinstance(cluster, Cluster):
        return cluster
    try:
        return load_cluster(cluster)
    except ClusterError as error:
        raise Diagnostic(str(error)) from None


def dtype_name(name: str) -> str:
    """float64 -> f64.  Raises Diagnostic."""
    short = DTYPE_NAMES.get(name, name)
    if short not in DTYPE_NAMES.values():
        raise Diagnostic(f"{name!r} is not a dtype", help=f"use one of {', '.join(DTYPE_NAMES)}")
    return short


def weights_of(task: TrainingTask) -> dict[str, Initial]:
    """Initial values by every name that the model has for them, and of a loss that is a module by `loss.NAME`."""
    found: dict[str, Initial] = {}
    for prefix, module in (("loss.", task.loss), ("", task.model)):
        if isinstance(module, torch.nn.Module):
            found.update({prefix + name: value for name, value in initial_values(module).items()})
    return found


def checkpoint_of(task: TrainingTask, weights: PathLike | None) -> str:
    """The checkpoint to start from, as an absolute path; "" without one.  A task's is relative to its file."""
    if weights is not None:
        return str(Path(weights).resolve())
    if task.weights is None:
        return ""
    beside = task.source.resolve().parent if task.source is not None else Path()
    return str((beside / task.weights).resolve())


def read_module(path: Path) -> Module:
    """Raises Diagnostic when it is not text of ours."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Diagnostic(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    return parse_module(text, filename=str(path))


def remaining_passes(module: Module, path: Path) -> list[Pass]:
    """The passes of the pipeline that are still to run.  Raises Diagnostic when the module cannot be continued."""
    level, after = module.attrs.get("level"), module.attrs.get("after")
    if level not in LEVELS:
        raise Diagnostic(
            f"{path} is at no level of a compilation" + (f" ({level})" if level else ": it has no attribute `level`"),
            notes=[f"the levels are, in order: {', '.join(LEVELS)}"],
        )
    passes = parse_pipeline(PIPELINE)
    names = [p.name for p in passes]
    if after in names:
        return passes[len(names) - names[::-1].index(str(after)) :]
    # A module of another origin: from the first pass that takes its level.
    for n, pass_ in enumerate(passes):
        if level in required_levels(pass_):
            return passes[n:]
    if module.find("sched.stage") is None:
        raise Diagnostic(f"no pass of the compilation goes on from level {level}, where {path} is")
    return []


def _refuse_late(module: Module, path: Path, passes: Sequence[Pass], **given: object) -> None:
    """Options of the search are no use once there is a plan: say so rather than ignore them."""
    level = str(module.attrs["level"])
    if LEVELS.index(level) < LEVELS.index("planned"):
        return
    for name, value in given.items():
        if value is not None:
            raise Diagnostic(
                f"--{name} comes too late: {path} is at level {level} and its plan is made",
                help="continue from a dump before solve-parallelism, or compile again",
            )


def _plan_beside(path: Path) -> str | None:
    """The text of the plan that a dump past it was lowered from: the last dump before it that is at level planned."""
    for other in sorted(path.parent.glob("[0-9][0-9]-*.mlir"), reverse=True):
        if other.name < path.name:
            text = other.read_text(encoding="utf-8")
            if re.search(r"^module [^%]*?\blevel = planned\b", text, re.MULTILINE):  # % begins with the first func
                return text
    return None


def _session_beside(module: Module, path: Path, constants: str, weights: str) -> Session:
    """Constants and weights that lie beside the text."""
    session = Session()
    batch = module.attrs.get("global_batch")
    session.global_batch = batch if isinstance(batch, int) else None
    if module.find("plan.constant") is not None:
        session.constants = ConstantStore.load(path.parent / constants)
    session.weights = load_weights(module, path, weights)
    names = module.attrs.get("ops", [])
    assert isinstance(names, list)
    session.ops = tuple(path.parent / OPS_FOLDER / str(name) for name in names)
    load_ops(session.ops)
    return session


def _source_sha256(task: TrainingTask) -> str:
    return hashlib.sha256(task.source.read_bytes()).hexdigest() if task.source is not None else ""


def _set_options(
    module: Module, session: Session, force: str | None, schedule: str | None, write_lp: PathLike | None,
    time_limit: float | None,
) -> None:
    """In the module what later passes need, so that a dump has it; in the session what only this run wants."""
    if force:
        module.attrs["force"] = force
    if schedule:
        module.attrs["schedule"] = Atom(schedule)
    session.options = {"force": module.attrs.get("force"), "schedule": module.attrs.get("schedule")}
    if write_lp is not None:
        session.options["write_lp"] = Path(write_lp)
    if time_limit is not None:
        session.options["time_limit"] = time_limit


def _finish(
    module: Module, session: Session, passes: Sequence[Pass], out: Path, clock: _Clock, dump: PathLike | None,
    instruments: Sequence[Instrument],
) -> Compiled:
    clock.names = [p.name for p in passes]
    watching: list[Instrument] = [clock, *instruments]
    if dump is not None:
        first = "capture" if module.attrs["level"] == "captured" and "after" not in module.attrs else "input"
        watching.append(Dump(Path(dump), first))
        Path(dump).mkdir(parents=True, exist_ok=True)
        save_weights(Path(dump) / WEIGHTS_FILE, session.weights or {})
        copy_ops(session.ops, Path(dump))
    # Without dumps a reproducer is left for a bug of ours only, beside the bundle's folder, which must stay as it is.
    folder = Path(dump) if dump is not None else out.with_name(f"{out.name}.failed")
    run_passes(
        module, passes, session, instruments=watching, reproducer=folder, reproduce_mistakes=dump is not None,
    )
    with clock.measure("codegen"):
        write_bundle(module, session, out, plan=clock.plan)
    return Compiled(out, module, clock.plan or print_module(module), clock.seconds)

