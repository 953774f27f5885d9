"""Which part may import which: ir <- bridge <- capture <- zoo; ir, bridge, cluster, solver <- passes <- codegen <- cli.

The runtime imports nothing of ours, so what records, writes and checks bundles may import it.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

from .source import Source, sources

ALLOWED: dict[str, set[str]] = {
    "ir": set(),
    "bridge": {"ir"},
    "capture": {"ir", "bridge", "runtime"},
    "zoo": {"ir", "capture"},
    "cluster": set(),
    "solver": set(),
    "passes": {"ir", "bridge", "cluster", "solver"},
    "codegen": {"ir", "bridge", "cluster", "solver", "passes", "runtime", ""},
    "runtime": set(),
    "cli": {"ir", "bridge", "capture", "cluster", "solver", "passes", "codegen", "runtime", "zoo", ""},
    "": {"ir", "bridge", "capture", "cluster", "solver", "passes", "codegen", "runtime", "zoo"},
}
WITHOUT_TORCH = ("ir", "solver", "cluster")


def area_of(module: str) -> str | None:
    """The part of the package that an imported module belongs to; None for other packages."""
    parts = module.split(".")
    if parts[0] != "uniap_compiler":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in ALLOWED else ""


def wrong_edges(source: Source) -> list[str]:
    found = []
    for module, line in source.imports():
        area = area_of(module)
        if area is not None and area != source.area and area not in ALLOWED[source.area]:
            found.append(f"{source.path}:{line}: {source.area} imports {module}")
    return found


def test_edges() -> None:
    assert [edge for source in sources() for edge in wrong_edges(source)] == []


def test_every_folder_is_known() -> None:
    assert {source.area for source in sources()} <= set(ALLOWED)


@pytest.mark.parametrize("area", WITHOUT_TORCH)
def test_no_torch(area: str) -> None:
    found = [f"{s.path}:{n}" for s in sources() if s.area == area for m, n in s.imports() if m.split(".")[0] == "torch"]
    assert found == []


def test_the_runtime_needs_torch_only() -> None:
    known = sys.stdlib_module_names | {"torch", "uniap_compiler"}
    found = [f"{s.path}:{n}: {m}" for s in sources() if s.area == "runtime" for m, n in s.imports()
             if m.split(".")[0] not in known]  # fmt: skip
    assert found == []


def test_no_pickle() -> None:
    """Nothing in a bundle is pickled, and nothing that writes or reads one imports it."""
    found = [f"{s.path}:{n}" for s in sources() for m, n in s.imports() if m.split(".")[0] in ("pickle", "dill")]
    assert found == []


def test_the_joint_graph_api_has_one_user() -> None:
    """torch's private ahead-of-time autograd API is used in one module of the bridge."""
    found = {s.path.name for s in sources() for m, _ in s.imports() if m.startswith("torch._functorch")}
    assert len(found) <= 1
    assert all(s.area == "bridge" for s in sources() for m, _ in s.imports() if m.startswith("torch._functorch"))


@pytest.mark.parametrize(
    "code",
    [
        "import uniap_compiler.ir",
        "import uniap_compiler.solver",
        "import uniap_compiler.cluster",
        "import uniap_compiler",
        "from uniap_compiler.cli.main import application; application(['solve'])",
        "from uniap_compiler.cli.opt import run; run(['--help'])",
    ],
)
def test_starts_without_torch(code: str) -> None:
    check = "; import sys; assert 'torch' not in sys.modules, 'torch was imported'"
    done = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_check_can_fail() -> None:
    """A file of the solver that imported the passes would be found."""
    source = next(s for s in sources() if s.area == "passes" and any(area_of(m) == "ir" for m, _ in s.imports()))
    assert wrong_edges(source) == []
    ALLOWED["passes"].discard("ir")
    try:
        assert wrong_edges(source) != []
    finally:
        ALLOWED["passes"].add("ir")
