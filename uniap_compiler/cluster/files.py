"""Cluster files: TOML, one building on another.

    extends = "a100-80gb"      # a preset, or a file (relative to this one)
    nodes = 4
    [device]
    memory = "40 GiB"          # everything else as in the preset

Tables are merged field by field; what stands in the file wins.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .description import Cluster, ClusterError

PRESETS = Path(__file__).parent / "presets"


def presets() -> list[str]:
    """Names of the clusters that come with the compiler."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load_cluster(name: str | Path) -> Cluster:
    """A preset by its name, or a TOML file by its path.  Raises ClusterError."""
    path = _find(str(name), Path.cwd(), "")
    label = path.stem if path.parent == PRESETS else str(name)
    data = _read(path, label, ())
    data.setdefault("name", path.stem)
    return Cluster.from_dict(data, label)


def _find(name: str, folder: Path, file: str) -> Path:
    """A path when it looks like one, else a preset, else a file of that name."""
    path = folder / name
    if name.endswith(".toml") or "/" in name or "\\" in name:
        if path.is_file():
            return path
    elif (PRESETS / f"{name}.toml").is_file():
        return PRESETS / f"{name}.toml"
    elif path.is_file():
        return path
    where = "extends" if file else ""
    known = ", ".join(presets())
    raise ClusterError(file, where, f"there is no cluster {name!r}: it is neither a file nor one of {known}")


def _read(path: Path, label: str, above: Iterable[Path]) -> dict[str, Any]:
    chain = (*above, path.resolve())
    if len(chain) != len(set(chain)):
        raise ClusterError(label, "extends", "the files extend each other in a circle")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterError(label, "", f"cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise ClusterError(label, "", f"is not TOML ({error})") from error
    base = data.pop("extends", None)
    if base is None:
        return data
    if not isinstance(base, str):
        raise ClusterError(label, "extends", f"expected the name of a preset or file; found {base!r}")
    below = _find(base, path.parent, label)
    inherited = _read(below, below.stem if below.parent == PRESETS else below.name, chain)
    if "name" not in data:
        inherited["name"] = path.stem  # a derived cluster is another one
    return _merge(inherited, data)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return merged
