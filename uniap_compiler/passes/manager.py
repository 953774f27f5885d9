"""Running passes: levels are checked before anything runs, the module is verified after each pass.

A pass is a frozen dataclass whose fields are its options:

    @dataclass(frozen=True)
    class Dce:
        name: ClassVar[str] = "dce"
        requires: ClassVar[tuple[str, ...]] = ()        # any level; else a level or several of which one must hold
        ensures: ClassVar[str | None] = None            # the level afterwards; None: unchanged

        def run(self, module: Module, session: Session) -> str | None:
            ...                                         # changes module in place; may return a one-line report

The manager writes the new level into `module.attrs["level"]`.  A pass that fails leaves `reproducer.mlir`, whose
first line is the command that repeats the failure.
"""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..ir import LEVELS, Atom, ConstantStore, Diagnostic, Module, print_module, verify
from ..ir.constants import FILE_NAME as CONSTANTS_FILE
from .instruments import Instrument, PassRecord

log = logging.getLogger(__name__)


@dataclass
class Session:
    """What travels with the module and is not in its text.

    Later passes may rely on constants and weights only; everything else that they need is in the module, so that
    a dump can be continued.  cluster, global_batch, task and options are what the caller asked for.
    """

    cluster: Any = None
    global_batch: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    constants: ConstantStore = field(default_factory=ConstantStore)
    weights: Mapping[str, Any] | None = None
    task: Any = None
    source_root: Path | None = None
    """The folder that locations are relative to (the task file's)."""
    ops: tuple[Path, ...] = ()
    """Files that define ops of the user's own; the bundle gets copies (docs/own-ops.md)."""
    found: dict[str, Any] = field(default_factory=dict)
    """What a pass leaves to the next one, which would find the same: nothing that is not in the module."""


class Pass(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def requires(self) -> str | tuple[str, ...]: ...
    @property
    def ensures(self) -> str | None: ...
    def run(self, module: Module, session: Session) -> str | None: ...


def source_root(module: Module) -> Path | None:
    """The folder of the task file that the module names: locations are relative to it."""
    file, _, _ = str(module.attrs.get("spec") or "").rpartition(":")
    return Path(file).parent if file.endswith(".py") else None


def required_levels(pass_: Pass) -> tuple[str, ...]:
    """The levels that the pass accepts; empty means any."""
    return (pass_.requires,) if isinstance(pass_.requires, str) else pass_.requires


def check_levels(passes: Iterable[Pass], level: str | None) -> None:
    """Raises Diagnostic when some pass would meet a module at a level that it does not accept."""
    found = f"this one is at level {level}" if level is not None else "this one does not say its level"
    for pass_ in passes:
        wanted = required_levels(pass_)
        if wanted and level not in wanted:
            message = f"the pass {pass_.name} needs a module at level {' or '.join(wanted)}, and {found}"
            raise Diagnostic(message, notes=[f"the levels are, in order: {', '.join(LEVELS)}"])
        if pass_.ensures is not None:
            level = pass_.ensures
            found = f"{pass_.name} leaves it at level {level}"


def run_passes(
    module: Module,
    passes: Sequence[Pass],
    session: Session | None = None,
    *,
    instruments: Sequence[Instrument] = (),
    verify_each: bool = True,
    reproducer: Path | None = None,
    reproduce_mistakes: bool = True,
    stop_after: str | None = None,
) -> Module:
    """Run the passes on the module, in place.  Raises Diagnostic for a user's mistake.

    reproducer: a folder (made when needed) for reproducer.mlir.  reproduce_mistakes: also when a pass itself says what
    is wrong, not only when it breaks or leaves a module that does not verify.  stop_after: the last pass to run.
    """
    session = session if session is not None else Session()
    level = module.attrs.get("level")
    check_levels(passes, str(level) if level is not None else None)
    if stop_after is not None and stop_after not in [p.name for p in passes]:
        raise Diagnostic(f"cannot stop after {stop_after}: the pipeline is {' '.join(p.name for p in passes)}")
    for instrument in instruments:
        instrument.start(module, session.constants)
    for number, pass_ in enumerate(passes, 1):
        before = print_module(module) if reproducer is not None else ""
        record = PassRecord(number, pass_.name)
        start = time.perf_counter()
        done = False
        try:
            before_last = dict(session.found)
            record.report = pass_.run(module, session)
            session.found = {k: v for k, v in session.found.items() if before_last.get(k) is not v}
            done = True
            if pass_.ensures is not None:
                module.attrs["level"] = Atom(pass_.ensures)
            record.seconds = time.perf_counter() - start
            if verify_each:
                verify(module)
            record.verify_seconds = time.perf_counter() - start - record.seconds
        except Exception as error:
            note = f"in the pass {pass_.name}"
            mistake = isinstance(error, Diagnostic) and not done
            if reproducer is not None and (reproduce_mistakes or not mistake):
                note += "; to repeat it: " + write_reproducer(reproducer, pass_, before, session.constants)
            if isinstance(error, Diagnostic):
                error.notes.append(note)
                error.source_root = error.source_root or session.source_root or source_root(module)
            else:
                error.add_note(note)
            for instrument in instruments:
                instrument.failed(record, module)
            raise
        log.info("%s: %s (%.2f s)", pass_.name, record.report or "done", record.seconds)
        for instrument in instruments:
            instrument.after(record, module)
        if pass_.name == stop_after:
            break
    for instrument in instruments:
        instrument.finish(module)
    return module


def write_reproducer(folder: Path, pass_: Pass, before: str, constants: ConstantStore) -> str:
    """Write the module as it was before the pass; returns the command."""
    from .registry import print_pass

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "reproducer.mlir"
    command = f"uniap-opt {shlex.quote(str(path))} -p {shlex.quote(print_pass(pass_))}"
    path.write_text(f"// {' '.join(command.splitlines())}\n{before}", encoding="utf-8")
    if len(constants):
        constants.save(folder / CONSTANTS_FILE)
    return command
