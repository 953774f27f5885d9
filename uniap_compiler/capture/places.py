"""Lines of the user's code in the stack traces that torch keeps."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

import torch

from uniap_compiler.ir import Loc

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)')
_TORCH = str(Path(torch.__file__).parent)
_OURS = str(Path(__file__).parent.parent)


def user_line(trace: str, root: Path | None, module: str = "") -> Loc | None:
    """The innermost frame that is neither torch's nor ours, else the innermost of torch's modules."""
    place = _innermost(trace, root)
    return Loc(*place, module) if place is not None else None


@lru_cache(maxsize=4096)  # equal layers have equal traces
def _innermost(trace: str, root: Path | None) -> tuple[str, int] | None:
    found = fallback = None
    for file, line, _ in _FRAME.findall(trace):
        if is_users(file):
            found = (file, int(line), root)
        elif "/torch/nn/" in file:
            fallback = (file, int(line), None)
    if (frame := found or fallback) is None:
        return None
    file, line, folder = frame
    return relative(file, folder), line


def is_users(file: str) -> bool:
    """Neither torch's, nor ours, nor Python's own."""
    return not file.startswith(("<", _OURS, _TORCH)) and ("/lib/python3" not in file or "site-packages" in file)


def relative(file: str, root: Path | None) -> str:
    """`mlp.py` beside the task file, `transformers/models/...` in site-packages, else the bare name."""
    path = Path(file).resolve()
    if root is not None and path.is_relative_to(root):
        return path.relative_to(root).as_posix()
    if "site-packages" in path.parts:
        return "/".join(path.parts[path.parts.index("site-packages") + 1 :])
    return path.name
