"""The user's own ops: importing the files of the bundle's folder `ops` that register them with torch.

    load(root, ["ops/gate_ops.py"], ["mylib::gate"])
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch

from .errors import BundleError


def load(root: Path, files: Sequence[str], ops: Sequence[str]) -> None:
    """Import the files unless this process has all of the ops already.  Raises BundleError when one is missing then."""
    if all(map(_known, ops)):
        return
    for name in files:
        import_file(root / name)
    missing = [name for name in ops if not _known(name)]
    if missing:
        raise BundleError(f"{', '.join(files)} does not define {', '.join(missing)}", "compile the bundle again")


def import_file(path: Path) -> ModuleType:
    """As a module of its own name, without its folder on sys.path."""
    name = f"uniap_ops_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _known(name: str) -> bool:
    namespace, _, op = name.partition("::")
    return hasattr(getattr(torch.ops, namespace), op)
