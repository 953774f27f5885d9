"""Reading a bundle: its manifest, its generated modules, and whether its files are what the compiler wrote.

    bundle = Bundle(Path("build"));  bundle.check();  rank = bundle.rank(3);  rank.stage.forward(comm, args)

The folder becomes a Python package under a name of its own, so several bundles can live in one process.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import importlib.util
import itertools
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import BundleError

FORMAT = "uniap-bundle/1"
_numbers = itertools.count()


def make_package(root: Path, name: str | None = None) -> str:
    """Make the folder importable as the package `name`; returns the name."""
    name = name or f"uniap_bundle_{next(_numbers)}"
    spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = [str(root)]
    sys.modules[name] = importlib.util.module_from_spec(spec)
    importlib.invalidate_caches()
    return name


def forget_package(name: str) -> None:
    for key in [k for k in sys.modules if k == name or k.startswith(name + ".")]:
        del sys.modules[key]


class Bundle:
    """A bundle's folder.  package: the name under which its modules are imported."""

    def __init__(self, root: Path, package: str | None = None) -> None:
        self.root = root
        try:
            self.text = (root / "manifest.json").read_bytes()
            self.manifest: dict[str, Any] = json.loads(self.text)
        except FileNotFoundError:
            raise BundleError(f"{root} is not a bundle: it has no manifest.json", everywhere=True) from None
        except ValueError as error:
            raise BundleError(f"{root / 'manifest.json'} is not JSON ({error})", everywhere=True) from None
        found = self.manifest.get("format") if isinstance(self.manifest, dict) else None
        if found != FORMAT:
            raise BundleError(
                f"{root} has format {found!r}, this runtime reads {FORMAT!r}", "compile it again", everywhere=True
            )
        self.package = package or make_package(root)

    @property
    def world_size(self) -> int:
        return int(self.manifest["world_size"])

    @property
    def fingerprint(self) -> str:
        return str(self.manifest["fingerprint"])

    @property
    def identity(self) -> str:
        """Equal on all ranks that run the same files: the manifest names the hash of every other file."""
        return hashlib.sha256(self.text).hexdigest()

    def rank_name(self, rank: int) -> str:
        return f"rank_{rank:0{max(4, len(str(self.world_size - 1)))}d}"

    def rank(self, rank: int) -> ModuleType:
        name = self.rank_name(rank)
        try:
            module = importlib.import_module(f"{self.package}.ranks.{name}")
        except ModuleNotFoundError as error:
            if error.name is None or not error.name.endswith(name):
                raise
            raise BundleError(f"the bundle has no ranks/{name}.py", "compile it again") from None
        if module.FINGERPRINT != self.fingerprint:
            raise mixed(f"ranks/{name}.py", module.FINGERPRINT, self.fingerprint)
        return module

    def check(self, code_only: bool = False) -> None:
        """Refuse a bundle whose files are not those that the manifest names."""
        for name, wanted in sorted(self.manifest["files"].items()):
            if code_only and not name.endswith(".py"):
                continue
            path = self.root / name
            try:
                found = _sha256(path)
            except OSError:
                raise BundleError(
                    f"{name} is missing from the bundle {self.root}", "compile it again", everywhere=True
                ) from None
            if found == wanted:
                continue
            if name.startswith("ranks/"):
                match = re.search(r'^FINGERPRINT = ["\'](.*)["\']$', path.read_text(errors="replace"), re.MULTILINE)
                if match and match[1] != self.fingerprint:
                    raise mixed(name, match[1], self.fingerprint)
            raise BundleError(
                f"{name} was changed by hand after the bundle was written, or comes from another bundle",
                "compile again, or start with --allow-changes",
                everywhere=True,
            )


def mixed(name: str, theirs: str, ours: str) -> BundleError:
    return BundleError(
        f"the bundle is mixed from two: {name} has fingerprint {theirs[:12]}, manifest.json {ours[:12]}",
        "compile again into an empty folder",
        everywhere=True,
    )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
