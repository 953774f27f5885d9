"""What `uniap solve` and `python -m uniap_compiler.solver` do: one JSON object on stdout, progress on stderr.

Exit codes: 0 a plan, 1 no plan (infeasible, or none found in the time given) or a diagnosed error, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from uniap_compiler.solver.backend import BackendError, left_alone
from uniap_compiler.solver.problem import Problem, ProblemError
from uniap_compiler.solver.uop import solve


def run_command(
    path: str,
    *,
    backend: str = "cbc",
    time_limit: float | None = None,
    gap: float = 1e-6,
    top: int = 1,
    write_lp: str | None = None,
    certify: bool = False,
    quiet: bool = False,
) -> int:
    """Solve one file and print the answer. Returns the exit code."""
    with _clean_stdout() as out, _leaving_at_once():
        try:
            problem = Problem.load(path)
            result = solve(
                problem,
                backend=backend,
                time_limit=time_limit,
                gap=gap,
                top=top,
                write_lp=None if write_lp is None else Path(write_lp),
                certify=certify,
                progress=None if quiet else _show_progress,
            )
        except (ProblemError, BackendError, ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        print(json.dumps(result.to_json()), file=out, flush=True)
        code = 0 if result.plans else 1
        if left_alone():  # C code that is still at work would keep the process
            os._exit(code)
    return code


@contextlib.contextmanager
def _leaving_at_once() -> Iterator[None]:
    """Ctrl-C ends the process with 130, nothing left behind.

    Not by an exception: inside a callback from C code it would be swallowed, and a solver's thread may still run.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, lambda *_: (os.write(2, b"interrupted\n"), os._exit(130)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _clean_stdout() -> Iterator[TextIO]:
    """The real stdout for the answer; whatever C code prints meanwhile goes to stderr."""
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError, AttributeError):  # captured by a test: nothing to protect
        yield sys.stdout
        return
    sys.stdout.flush()
    kept = os.dup(number)
    os.dup2(sys.stderr.fileno() if _has_fileno(sys.stderr) else 2, number)
    try:
        with os.fdopen(kept, "w", encoding="utf-8") as out:
            yield out
            out.flush()
            os.dup2(out.fileno(), number)
    finally:
        sys.stdout.flush()


def _has_fileno(stream: TextIO) -> bool:
    try:
        stream.fileno()
    except (OSError, ValueError, AttributeError):
        return False
    return True


def _show_progress(event: dict[str, Any]) -> None:
    incumbent, bound = event["incumbent"], event["bound"]
    print(
        f"{event['seconds']:7.2f} s  candidates {event['done']}/{event['candidates']}"
        f"  incumbent {'-' if incumbent is None else format(incumbent, '.9g')}"
        f"  bound {'-' if bound is None else format(bound, '.9g')}  {event['note']}",
        file=sys.stderr,
        flush=True,
    )
