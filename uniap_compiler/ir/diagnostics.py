"""A user's mistake, with everything needed to show it: where, in which op, why, and what to do.

    error: operand 1 is pending over t0, and aten.relu takes complete values only
      --> mlp.py:9 in up
       9 |         return torch.relu(self.up(x))
      in func @up.forward:
          %h = nn.contract(%x, %w) {...} : tensor<Bx64xf32> @[_, _; sum t0]
        > %y = aten.relu(%h) : tensor<Bx64xf32> @[_, _]
          return %y
      help: insert comm.all_reduce

The window of ops stays small whatever the size of the func; the module is never printed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .core import Func, Loc, Op
from .printer import print_op, print_value, symbol_name

NEIGHBOURS = 3
_WIDEST = 240


class Diagnostic(Exception):
    """message: one sentence without a full stop.  source, column: the line itself where the raiser has it (IR text).

    source_root: the folder that loc.file is relative to; the pass manager fills it in from the session.
    """

    def __init__(
        self,
        message: str,
        *,
        loc: Loc | None = None,
        op: Op | None = None,
        func: Func | None = None,
        notes: Iterable[str] = (),
        help: str | None = None,
        column: int | None = None,
        source: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.loc = loc if loc is not None else op.loc if op is not None else None
        self.op, self.func = op, func
        self.notes = list(notes)
        self.help = help
        self.column, self.source = column, source
        self.source_root: Path | None = None

    def render(self, source_root: Path | None = None) -> str:
        """Plain text without a final newline; the first line starts with `error: `."""
        lines = [f"error: {self.message}", *self._where(source_root or self.source_root or Path())]
        if self.op is not None:
            lines += self._window(self.op)
        elif self.func is not None:
            lines.append(f"  in func {symbol_name(self.func.name)}")
        for label, text in [*(("note", note) for note in self.notes), *([("help", self.help)] if self.help else [])]:
            lines.append(f"  {label}: " + text.replace("\n", "\n        "))
        return "\n".join(lines)

    __str__ = render

    def _where(self, root: Path) -> list[str]:
        if self.loc is None:
            return []
        place = f"  --> {self.loc.file}:{self.loc.line}" + (f":{self.column}" if self.column is not None else "")
        lines = [place + (f" in {self.loc.module}" if self.loc.module else "")]
        source = self.source if self.source is not None else _read_line(root / self.loc.file, self.loc.line)
        if source is not None:
            gutter = f"   {self.loc.line} | "
            lines.append((gutter + source)[:_WIDEST].rstrip())
            if self.column is not None and len(gutter) + self.column <= _WIDEST:
                blank = "".join("\t" if c == "\t" else " " for c in source[: self.column - 1])
                lines.append(" " * (len(gutter) - 2) + "| " + blank + "^")
        return lines

    def _window(self, op: Op) -> list[str]:
        if self.func is None or op not in self.func.ops:
            return [f"    > {_show(op)}"]
        at = self.func.ops.index(op)
        first, last = max(0, at - NEIGHBOURS), at + NEIGHBOURS + 1
        lines = [f"  in func {symbol_name(self.func.name)}:"] + (["      ..."] if first else [])
        for near in self.func.ops[first:last]:
            lines.append(("    > " if near is op else "      ") + _show(near))
        if last > len(self.func.ops):
            lines.append(_short("      return " + ", ".join(map(print_value, self.func.returns))).rstrip())
        else:
            lines.append("      ...")
        return lines


def _show(op: Op) -> str:
    try:
        return _short(print_op(op))
    except (TypeError, ValueError):
        return _short(repr(op))  # an op that cannot be printed must not hide the message about it


def _short(text: str) -> str:
    return text if len(text) <= _WIDEST else text[: _WIDEST - 4] + " ..."


def _read_line(path: Path, number: int) -> str | None:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except (OSError, ValueError):
        return None
    return lines[number - 1] if 0 < number <= len(lines) else None
