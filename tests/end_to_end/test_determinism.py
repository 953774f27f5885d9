"""The same input gives the same bytes: other hash seed, folder and threads, and from every dump on the way.

(A pipeline of the MLP: tests/codegen/test_driver.py.  Here the Llama's pattern search and the solver's own choice.)
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from uniap_compiler import driver
from uniap_compiler.ir import parse_module, print_module

from .plans import MLP, ROOT, SMALL_LLAMA

PLANS = {
    "memory": (SMALL_LLAMA, "pp=2,tp=2,shard=parameters,recompute=full,micro_batches=3"),
    "mixed": (SMALL_LLAMA, "layers.[01]:dp=2,tp=2;layers.[23]:dp=4,shard=optimizer"),
    "solver": (SMALL_LLAMA, ""),
    "solver mlp": (MLP, ""),
}
QUICK = ("memory", "solver mlp")


def compile_apart(spec: str, force: str, out: Path, dump: Path, seed: str, threads: str) -> None:
    words = ["compile", spec, "--cluster", "laptop", "--global-batch", "12", "--out", str(out), "--dump", str(dump)]
    done = subprocess.run(
        [sys.executable, "-m", "uniap_compiler.cli.main", *words, "--json", *(["--force", force] if force else [])],
        cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": threads},
        capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_equal_files(found: Path, wanted: Path, when: str = "") -> None:
    a, b = contents(found), contents(wanted)
    assert a.keys() == b.keys(), when
    differing = [name for name in a if a[name] != b[name]]
    assert not differing, f"{when} differs in {differing}"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("plan", [p if p in QUICK else pytest.param(p, marks=pytest.mark.slow) for p in PLANS])
def test_twice(plan: str, tmp_path: Path) -> None:
    spec, force = PLANS[plan]
    first, second = tmp_path / "one", tmp_path / "a deeper" / "folder"
    compile_apart(spec, force, first / "build", first / "dumps", "1", "1")
    compile_apart(spec, force, second / "other", second / "dumps", "4711", "2")
    assert_equal_files(second / "other", first / "build", "the bundle")
    assert_equal_files(second / "dumps", first / "dumps", "the dumps")
    dumps = sorted((first / "dumps").glob("*.mlir"))
    assert len(dumps) >= 12
    for path in dumps:
        text = path.read_text()
        assert print_module(parse_module(text)) == text, f"{path.name} does not parse back to itself"
    for path in dumps:
        again = driver.resume(path, out=tmp_path / f"from {path.stem}").bundle
        assert_equal_files(again, first / "build", f"the bundle from {path.name}")
