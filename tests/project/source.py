"""The package's files, and what each imports."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "uniap_compiler"


@dataclass(frozen=True)
class Source:
    path: Path
    module: str
    text: str

    @property
    def area(self) -> str:
        """The folder below the package; "" for files of the package itself."""
        parts = self.path.relative_to(PACKAGE).parts
        return parts[0] if len(parts) > 1 else ""

    @property
    def tree(self) -> ast.Module:
        return _tree(self.path)

    def imports(self) -> list[tuple[str, int]]:
        """Absolute names of all imported modules, wherever they stand, with their lines."""
        found = []
        package = self.module if self.path.name == "__init__.py" else self.module.rpartition(".")[0]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                found += [(alias.name, node.lineno) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                    base = ".".join([*parents, *([node.module] if node.module else [])])
                if base == "uniap_compiler":
                    found += [(f"{base}.{alias.name}", node.lineno) for alias in node.names]
                else:
                    found.append((base, node.lineno))
        return found


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def sources() -> list[Source]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append(Source(path, module, path.read_text(encoding="utf-8")))
    return found
