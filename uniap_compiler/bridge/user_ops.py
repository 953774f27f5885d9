"""Ops of a user's own: torch.library ops that a file of theirs defines.

    load_ops([Path("gate_ops.py")])         # now torch.ops.mylib.gate is there, and `mylib.gate` can stand in the IR

The file is copied into the bundle and imported by its ranks, so it may import torch and the standard library only.
"""

from __future__ import annotations

import ast
import importlib.util
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from torch._ops import OpOverload

from uniap_compiler.ir import Diagnostic, Loc

OPS_FOLDER = "ops"
BUILT_IN = frozenset({"aten", "prim", "prims", "uniap", "inductor", "quantized", "c10d", "_c10d_functional"})
"""Namespaces of torch and ours: what is defined there needs no file."""


def load_ops(paths: Iterable[Path]) -> None:
    """Import the files that are not imported yet.  Raises Diagnostic."""
    for path in paths:
        _check_imports(path)
        if _imported(path) is None:
            try:
                _import(path)
            except Exception as error:
                raise Diagnostic(f"{path.name} cannot be imported: {type(error).__name__}: {error}") from error


def copy_ops(paths: Iterable[Path], folder: Path) -> None:
    """Copies of the files beside a dump or in a bundle: FOLDER/ops/gate_ops.py."""
    for path in paths:
        target = folder / OPS_FOLDER / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.resolve() != target.resolve():
            shutil.copyfile(path, target)


def _imported(path: Path) -> ModuleType | None:
    """The module of this file or of a copy of it, under whatever name: a second import would define its ops again,
    and torch's handles of the first definition would point to nothing."""
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if isinstance(file, str) and Path(file).name == path.name and _same(Path(file), path):
            return module
    return None


def _same(a: Path, b: Path) -> bool:
    return a.resolve() == b.resolve() or (a.is_file() and a.read_bytes() == b.read_bytes())


def _import(path: Path) -> None:
    name = f"uniap_ops_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise


def _check_imports(path: Path) -> None:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except OSError:
        raise Diagnostic(f"there is no file {path}", help="TrainingTask(ops=[...]) names files by the task") from None
    except SyntaxError as error:
        raise Diagnostic(f"{path} is not valid Python: {error.msg}", loc=Loc(path.name, error.lineno or 1)) from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "" if not node.level else ""]
        else:
            continue
        for name in names:
            top = name.partition(".")[0]
            if top != "torch" and top not in sys.stdlib_module_names and name != "__future__":
                raise Diagnostic(
                    f"{path.name} imports {name or 'its neighbours'}, which a machine that trains need not have",
                    loc=Loc(path.name, node.lineno),
                    help="a file of ops is copied into the bundle: let it import torch and the standard library only",
                )


def defined_in(op: str, paths: Iterable[Path]) -> bool:
    """Whether torch has `namespace::name` of itself, or one of the files speaks of its namespace."""
    namespace = op.partition("::")[0]
    return namespace in BUILT_IN or any(namespace in path.read_text(encoding="utf-8") for path in paths)


def check_defined(op: OpOverload, paths: Iterable[Path], loc: Loc | None) -> None:
    """Raises Diagnostic unless one of the files speaks of the op's namespace: the bundle must be able to run it."""
    if not defined_in(op._schema.name, paths):
        raise Diagnostic(
            f"{op._schema.name} is not an op of torch, and no file of the task defines it",
            loc=loc,
            help="name the file that registers it, so that it goes into the bundle: "
            'TrainingTask(..., ops=["my_ops.py"]); docs/own-ops.md',
        )
