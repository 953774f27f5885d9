"""`uniap-opt` (also `uniap opt`): run passes on IR text.

    uniap-opt plan.mlir -p "cse,dce" --print-after=cse
    uniap-opt tests/ir/verifier.mlir --split-input --verify-diagnostics

The module is parsed, verified, taken through the pipeline and printed.  Everything but the module goes to stderr.
`constants.safetensors` beside the file is read when it is there.

--verify-diagnostics turns mistakes into tests: each piece must fail with exactly the message that a comment
`// expected-error@+1 {{part of the message}}` announces for that line (`@*` for any line), and no other may fail.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import typer

from ..ir import ConstantStore, Diagnostic, Loc, Module, parse_module, print_module, verify
from ..ir.constants import FILE_NAME as CONSTANTS_FILE
from ..passes.instruments import Diff, Dump, Instrument, PrintAfter, Stats, Timing
from ..passes.manager import Pass, Session, required_levels, run_passes, source_root
from ..passes.pipelines import PIPELINES, parse_pipeline, print_value
from ..passes.registry import PASSES, pass_class

SEPARATOR = re.compile(r"^// -----.*$", re.MULTILINE)
_EXPECTED = re.compile(r"//\s*expected-error\s*(?:@([+-]\d+|\*))?\s*\{\{(.*?)\}\}")


def register(app: typer.Typer) -> None:
    @app.command(
        "opt",
        help="Run passes on IR text (the same as uniap-opt).",
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )
    def opt(context: typer.Context) -> None:
        raise typer.Exit(run(context.args))


def main() -> None:
    raise SystemExit(run(sys.argv[1:]))


def arguments_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("uniap-opt", description="Run passes on IR text.", allow_abbrev=False)
    add = parser.add_argument
    add("file", nargs="?", default="-", help="IR text; - (the default) is standard input")
    add("-p", "--passes", default="", metavar="PIPELINE", help='such as "cse,dce" or name{key=value list=1,2}')
    add("-o", "--output", type=Path, metavar="FILE", help="write the module there, not to standard output")
    add("--print-after", nargs="?", const="", metavar="NAMES", help="print the module after these passes (none: all)")
    add("--print-after-change", action="store_true", help="print the module after each pass that changed it")
    add("--dump", type=Path, metavar="DIR", help="one numbered file per pass")
    add("--diff", action="store_true", help="show what each pass changed")
    add("--timing", action="store_true", help="seconds per pass")
    add("--stats", action="store_true", help="ops per pass, reports, and how often each op occurs")
    add("--stop-after", metavar="NAME", help="stop after this pass")
    add("--reproducer", type=Path, metavar="DIR", help="where a failing pass leaves reproducer.mlir (default: --dump)")
    add("--list-passes", action="store_true", help="the passes and pipelines, with options and levels")
    add("--split-input", action="store_true", help="treat the parts between `// -----` lines one by one")
    add("--verify-diagnostics", action="store_true", help="check `// expected-error {{...}}` comments")
    return parser


def run(arguments: Sequence[str], out: TextIO | None = None, err: TextIO | None = None) -> int:
    """Returns the exit code: 0, 1 (a diagnosed error), 2 (usage)."""
    out, err = out or sys.stdout, err or sys.stderr
    try:
        options = arguments_parser().parse_args(arguments)
    except SystemExit as usage:
        return int(usage.code or 0)
    if options.list_passes:
        out.write(list_passes())
        return 0
    try:
        text = _read(options.file)
        passes = parse_pipeline(options.passes)
        failures = 0
        texts = []
        for piece in _pieces(text) if options.split_input else [text]:
            result, caught = _process(piece, passes, options, err)
            if options.verify_diagnostics:
                failures += _check_expectations(piece, caught, options.file, err)
            elif caught is not None:
                _show(caught[0], err)
                failures += 1
            if result:
                texts.append(result)
        if failures == 0 or options.split_input:
            _write("// -----\n".join(texts), options.output, out)
    except Diagnostic as diagnostic:
        _show(diagnostic, err)
        return 1
    return 1 if failures else 0


def _read(file: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Diagnostic(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from None


def _write(text: str, path: Path | None, out: TextIO) -> None:
    if path is None:
        out.write(text)
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Diagnostic(f"cannot write {path}: {error.strerror}") from None


def _pieces(text: str) -> list[str]:
    """The parts between separators, each with empty lines in front so that its line numbers are the file's."""
    pieces, start = [], 0
    for separator in [*SEPARATOR.finditer(text), None]:
        end = separator.start() if separator else len(text)
        pieces.append("\n" * text.count("\n", 0, start) + text[start:end])
        start = separator.end() if separator else end
    return pieces


Caught = tuple[Diagnostic, "int | None"]


def _process(text: str, passes: list[Pass], options: argparse.Namespace, err: TextIO) -> tuple[str, Caught | None]:
    """The printed result (empty after a mistake) and the mistake with its line in the text (None: not known)."""
    lines: dict[object, int] = {}
    module: Module | None = None
    try:
        module = parse_module(text, options.file, lines)
        verify(module)
        session = Session(constants=_constants(options.file))
        instruments, timing = _instruments(options, err)
        try:
            run_passes(
                module,
                passes,
                session,
                instruments=instruments,
                reproducer=options.reproducer or options.dump,
                stop_after=options.stop_after,
            )
        finally:
            if timing is not None:
                err.write(timing.table() + "\n")
        return print_module(module), None
    except Diagnostic as diagnostic:
        loc = diagnostic.loc
        if module is None:
            return "", (diagnostic, loc.line if loc is not None else None)
        diagnostic.source_root = diagnostic.source_root or source_root(module)
        line = lines.get(diagnostic.op) or lines.get(diagnostic.func)
        if loc is None and line is not None:
            diagnostic.loc = Loc(options.file, line)
            diagnostic.source = text.split("\n")[line - 1]
        return "", (diagnostic, line)


def _constants(file: str) -> ConstantStore:
    beside = Path(file).parent / CONSTANTS_FILE
    return ConstantStore.load(beside) if file != "-" and beside.exists() else ConstantStore()


def _instruments(options: argparse.Namespace, err: TextIO) -> tuple[list[Instrument], Timing | None]:
    found: list[Instrument] = []
    timing = Timing() if options.timing else None
    if options.dump is not None:
        found.append(Dump(options.dump))
    if options.print_after is not None:
        found.append(PrintAfter(err.write, set(options.print_after.split(",")) if options.print_after else None))
    if options.print_after_change:
        found.append(PrintAfter(err.write, changed=True))
    if options.diff:
        found.append(Diff(err.write))
    if options.stats:
        found.append(Stats(err.write))
    if timing is not None:
        found.append(timing)
    return found, timing


def _check_expectations(text: str, caught: Caught | None, file: str, err: TextIO) -> int:
    """How many things were not as the comments say."""
    expected: list[tuple[int | None, str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        for match in _EXPECTED.finditer(line):
            where = match[1] or "+0"
            expected.append((None if where == "*" else number + int(where), match[2]))
    if caught is not None:
        diagnostic, line_caught = caught
        for item in expected:
            if item[1] in diagnostic.message and (item[0] is None or line_caught is None or item[0] == line_caught):
                expected.remove(item)
                break
        else:
            err.write(f"{file}:{line_caught or '?'}: this was not expected:\n")
            _show(diagnostic, err)
            return 1 + len(expected)
    for line_expected, message in expected:
        err.write(f"{file}:{line_expected or '?'}: expected an error that did not come: {message}\n")
    return len(expected)


def _show(diagnostic: Diagnostic, err: TextIO) -> None:
    if err is sys.stderr:
        from .main import show

        show(diagnostic)
    else:
        err.write(diagnostic.render() + "\n")


def list_passes() -> str:
    """One line per pass: name, options with defaults, levels, and the first sentence of its file."""
    lines = []
    for name in PASSES:
        cls = pass_class(name)
        options = [
            f.name + "=" + (print_value(f.default) if f.default is not dataclasses.MISSING else "")
            for f in dataclasses.fields(cls)
        ]
        before = "|".join(required_levels(cls)) or "any"
        after = cls.ensures or "same"
        summary = (sys.modules[cls.__module__].__doc__ or "").strip().split("\n")[0]
        summary = re.sub(rf"^([Tt]he )?([Pp]ass )?`?{name}`?: ", "", summary)
        lines.append(f"{name}{'{' + ' '.join(options) + '}' if options else ''}  [{before} -> {after}]  {summary}")
    lines += [f"{name} = {text}" for name, text in PIPELINES.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
