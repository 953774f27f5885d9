"""Writing a bundle: every file into a temporary folder beside, then one rename (docs/bundle.md).

    write_bundle(module, session, Path("build"), plan=text)       module: level `local`, with its schedule

A folder that is already there is replaced only when it is a bundle of ours and holds nothing else.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import uniap_compiler

from ..bridge.user_ops import copy_ops
from ..ir import Diagnostic, Module, print_module
from .initial import RECIPE_FILE, described, missing_weights, save_initial
from .manifest import FORMAT, build_manifest, settings_of, sha256_file, sha256_text, to_json
from .rank import Common, World, fingerprint_line, write_rank
from .readme import write_readme
from .stage import write_stage

if TYPE_CHECKING:
    from ..passes.manager import Session

_RUNTIME = Path(__file__).parent.parent / "runtime"
_LEFT_BY_RUNS = ("__pycache__", "metrics.jsonl")
"""What running a bundle leaves in its folder and may be thrown away."""


def write_bundle(module: Module, session: Session, out_dir: Path, *, plan: str | None = None) -> Path:
    """plan: the text of plan.mlir (the module at level `planned`); without it the module itself.

    Raises Diagnostic when out_dir may not be replaced or a parameter has no initial value.
    """
    check_output(out_dir)
    world = World.of(module)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    temporary = out_dir.parent / f".{out_dir.name}.{os.getpid()}.new"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        _fill(module, session, world, temporary, plan if plan is not None else print_module(module))
        _swap(temporary, out_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out_dir


def check_output(out_dir: Path) -> None:
    """Refuse a folder that a bundle must not replace: worth asking before the work, too."""
    if not out_dir.exists():
        return
    help = "choose another folder with --out, or remove this one"
    if not out_dir.is_dir():
        raise Diagnostic(f"{out_dir} is a file, and a bundle is a folder", help=help)
    if not any(out_dir.iterdir()):
        return
    try:
        manifest = json.loads((out_dir / "manifest.json").read_text(encoding="utf-8"))
        ours = str(manifest["format"]).startswith("uniap-bundle/")
        files = set(manifest["files"]) if ours else set()
    except (OSError, ValueError, KeyError, TypeError):
        ours, files = False, set()
    if not ours:
        raise Diagnostic(f"{out_dir} is not empty and not a bundle, so it is not replaced", help=help)
    extra = [
        path.relative_to(out_dir).as_posix()
        for path in sorted(out_dir.rglob("*"))
        if path.is_file() and not any(part in _LEFT_BY_RUNS for part in path.relative_to(out_dir).parts)
    ]
    extra = [name for name in extra if name not in files and name != "manifest.json"]
    if extra:
        shown = ", ".join(extra[:3]) + (f" and {len(extra) - 3} more" if len(extra) > 3 else "")
        raise Diagnostic(
            f"the bundle {out_dir} also holds files that the compiler did not write, so it is not replaced: {shown}",
            help="move them away (checkpoints belong outside a bundle), or choose another folder with --out",
        )


def _swap(new: Path, out_dir: Path) -> None:
    """Put `new` in the place of `out_dir`; after a failure the old one is back."""
    old = new.with_suffix(".old")
    shutil.rmtree(old, ignore_errors=True)
    if out_dir.exists():
        out_dir.rename(old)
    try:
        new.rename(out_dir)
    except OSError:
        if old.exists():
            old.rename(out_dir)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _fill(module: Module, session: Session, world: World, root: Path, plan: str) -> None:
    for folder in ("stages", "ranks", "runtime", "weights"):
        (root / folder).mkdir()
    axes = tuple(world.mesh)
    for stage in range(world.stages):
        _write(root / f"stages/stage_{stage}.py", write_stage(module, stage, world.stages, axes))
    _copy_runtime(root)
    copy_ops(session.ops, root)
    _write(root / "plan.mlir", plan)
    weights = save_initial(module, session, root / "weights")
    hashes = hash_files(root)
    versions = {"uniap": compiler_version(), "torch": torch.__version__}
    spec_sha256 = str(module.attrs.get("spec_sha256") or "")

    def manifest(fingerprint: str, files: Mapping[str, str], weights: Mapping[str, Any]) -> dict[str, Any]:
        return build_manifest(
            module, world, fingerprint=fingerprint, files=files, versions=versions, spec_sha256=spec_sha256,
            weights=weights,
        )

    # The rank files carry the fingerprint, so it is taken over their text without it; and not over initial values.
    initial = {"weights/initial.safetensors", f"weights/{RECIPE_FILE}"}
    programme = {path: digest for path, digest in hashes.items() if path not in initial}
    common = Common.of(module, world)
    texts = [write_rank(module, world, rank, "", common) for rank in range(world.size)]
    programme |= {f"ranks/{rank_name(rank, world)}": sha256_text(text) for rank, text in enumerate(texts)}
    fingerprint = sha256_text(to_json(manifest("", programme, described(module, len(session.constants) > 0))))
    for rank, text in enumerate(texts):
        signed = text.replace(fingerprint_line(""), fingerprint_line(fingerprint), 1)
        _write(root / "ranks" / rank_name(rank, world), signed)
    _write(root / "README.md", write_readme(manifest(fingerprint, {}, weights), module))
    _write(root / "manifest.json", to_json(manifest(fingerprint, hash_files(root), weights)))


def rank_name(rank: int, world: World) -> str:
    """Four digits, more when the world needs them."""
    return f"rank_{rank:0{max(4, len(str(world.size - 1)))}d}.py"


def compiler_version() -> str:
    return str(getattr(uniap_compiler, "__version__", "0.1.0"))


def hash_files(root: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file, in the order of the paths."""
    paths = sorted((p.relative_to(root).as_posix(), p) for p in root.rglob("*") if p.is_file())
    return {name: sha256_file(path) for name, path in paths}


def _copy_runtime(root: Path) -> None:
    for path in sorted(_RUNTIME.glob("*.py")):
        target = root / "train.py" if path.name == "train.py" else root / "runtime" / path.name
        shutil.copyfile(path, target)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


__all__ = ["FORMAT", "check_output", "compiler_version", "missing_weights", "rank_name", "settings_of", "write_bundle"]
