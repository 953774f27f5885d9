"""Looking at a pipeline while it runs: numbered dumps, prints, diffs, timing, counts.

run_passes(module, passes, session, instruments=[Dump(folder), timing := Timing()])
print(timing.table())
"""

from __future__ import annotations

import difflib
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..ir import ConstantStore, Module, print_module
from ..ir.constants import FILE_NAME as CONSTANTS_FILE

Write = Callable[[str], object]


@dataclass
class PassRecord:
    """One run of one pass.  number counts from 1; report is the pass's own line."""

    number: int
    name: str
    report: str | None = None
    seconds: float = 0.0
    verify_seconds: float = 0.0


class Instrument:
    """Called around every pass; each method does nothing here."""

    def start(self, module: Module, constants: ConstantStore) -> None: ...
    def after(self, record: PassRecord, module: Module) -> None: ...
    def failed(self, record: PassRecord, module: Module) -> None: ...
    def finish(self, module: Module) -> None: ...


class Dump(Instrument):
    """`00-capture.mlir`, `01-canonicalize.mlir`, ... with constants.safetensors beside.

    A pass that fails leaves what it made of the module as `05-name.failed.txt`.  Older dumps in the folder are removed.
    """

    def __init__(self, folder: Path, first: str = "input") -> None:
        self.folder, self.first = folder, first
        self._constants = ConstantStore()
        self._saved: list[str] = []

    def start(self, module: Module, constants: ConstantStore) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for pattern in ("[0-9][0-9]-*.mlir", "[0-9][0-9]-*.failed.txt"):
            for old in self.folder.glob(pattern):
                old.unlink()
        self._constants = constants
        self._write(f"00-{self.first}.mlir", module)

    def after(self, record: PassRecord, module: Module) -> None:
        self._write(f"{record.number:02}-{record.name}.mlir", module)

    def failed(self, record: PassRecord, module: Module) -> None:
        try:
            self._write(f"{record.number:02}-{record.name}.failed.txt", module)
        except (TypeError, ValueError):
            pass  # half-built IR may not print; the failure itself is what the user must see

    def _write(self, name: str, module: Module) -> None:
        (self.folder / name).write_text(print_module(module), encoding="utf-8")
        names = list(self._constants)
        if names != self._saved:
            self._constants.save(self.folder / CONSTANTS_FILE)
            self._saved = names


class PrintAfter(Instrument):
    """Print the module after the named passes (None: all); changed: only after a pass that changed it."""

    def __init__(self, write: Write, names: Collection[str] | None = None, changed: bool = False) -> None:
        self.write, self.names, self.changed = write, names, changed
        self._last = ""

    def start(self, module: Module, constants: ConstantStore) -> None:
        self._last = print_module(module)

    def after(self, record: PassRecord, module: Module) -> None:
        if self.names is not None and record.name not in self.names:
            return
        text = print_module(module)
        if not self.changed or text != self._last:
            self.write(f"// ----- after {record.name}\n{text}")
        self._last = text


class Diff(Instrument):
    """What each pass changed, as a unified diff."""

    def __init__(self, write: Write) -> None:
        self.write = write
        self._last: list[str] = []

    def start(self, module: Module, constants: ConstantStore) -> None:
        self._last = print_module(module).splitlines()

    def after(self, record: PassRecord, module: Module) -> None:
        lines = print_module(module).splitlines()
        before, after = f"before {record.name}", f"after {record.name}"
        diff = difflib.unified_diff(self._last, lines, before, after, lineterm="", n=1)
        if text := "\n".join(diff):
            self.write(text + "\n")
        self._last = lines


class Timing(Instrument):
    """Seconds per pass; `measure` adds work that is not a pass (capture, code generation)."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, float]] = []
        self._verify = 0.0

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.rows.append((name, time.perf_counter() - start))

    def after(self, record: PassRecord, module: Module) -> None:
        self.rows.append((record.name, record.seconds))
        self._verify += record.verify_seconds

    def failed(self, record: PassRecord, module: Module) -> None:
        self.rows.append((f"{record.name} (failed)", record.seconds))

    def finish(self, module: Module) -> None:
        self.rows.append(("verification", self._verify))
        self._verify = 0.0

    def table(self) -> str:
        total = sum(seconds for _, seconds in self.rows)
        width = max([5, *(len(name) for name, _ in self.rows)])
        lines = [f"{name:<{width}}  {s:8.3f} s  {100 * s / total if total else 0:5.1f} %" for name, s in self.rows]
        return "\n".join([*lines, f"{'total':<{width}}  {total:8.3f} s"])


class Stats(Instrument):
    """Funcs and ops after each pass, the pass's report, and at the end how often each op occurs."""

    def __init__(self, write: Write) -> None:
        self.write = write
        self._ops = 0

    def start(self, module: Module, constants: ConstantStore) -> None:
        self._ops = sum(count_ops(module).values())
        self.write(f"input: {len(module.funcs)} funcs, {self._ops} ops\n")

    def after(self, record: PassRecord, module: Module) -> None:
        ops = sum(count_ops(module).values())
        report = f"; {record.report}" if record.report else ""
        self.write(f"{record.name}: {len(module.funcs)} funcs, {ops} ops ({ops - self._ops:+d}){report}\n")
        self._ops = ops

    def finish(self, module: Module) -> None:
        for name, count in sorted(count_ops(module).items(), key=lambda item: (-item[1], item[0])):
            self.write(f"{count:8d}  {name}\n")


def count_ops(module: Module) -> Counter[str]:
    return Counter([op.name for op in module.ops] + [op.name for func in module.funcs.values() for op in func.ops])
