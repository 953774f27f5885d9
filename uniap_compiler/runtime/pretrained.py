"""A checkpoint of somebody else's as initial weights: safetensors, one file or several as Hugging Face writes them.

    found = Pretrained(Path("llama"), wanted, known)     # a file, an index, or the folder that holds one of them
    found.read("layers.0.wq.weight", record)             # the rank's slices only: files are mapped, not read

wanted: name -> its shape and its other names (tied parameters).  Names in the files may have a prefix more or less
(`model.`, `transformer.`, `net.`), the same one for all of them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .errors import BundleError
from .weights import Weights

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

Wanted = Mapping[str, tuple[list[int], list[str]]]

_HALVES = (torch.bfloat16, torch.float16)


class Pretrained:
    """optional: like wanted, for buffers: a file may have them.  known: names of the model that it may have in vain.

    partial: names may be missing, and the file may have others.  fixed: buffers that became constants of the programme,
    and the digests of their values.  Raises BundleError for names, shapes and values of such buffers that do not fit.
    """

    def __init__(
        self, path: Path, wanted: Wanted, optional: Wanted | None = None, known: Iterable[str] = (),
        partial: bool = False, fixed: Mapping[str, Sequence[str]] | None = None,
    ) -> None:  # fmt: skip
        self.path, self._fixed = path, fixed or {}
        self._files = Weights(files_of(path))
        self._name = self._match(wanted, optional or {}, [*known], partial)

    def __contains__(self, name: object) -> bool:
        return name in self._name

    def read(self, name: str, record: Mapping[str, Any]) -> torch.Tensor:
        return self._files.read(self._name[name], record)

    def _match(self, wanted: Wanted, optional: Wanted, known: list[str], partial: bool) -> dict[str, str]:
        there = set(self._files.names())
        shapes = {**optional, **wanted}
        every = [*shapes, *(other for _, others in shapes.values() for other in others), *known]
        renamed = _rename(there, every)
        found: dict[str, str] = {}
        for name, (_, others) in shapes.items():
            theirs = next((renamed[n] for n in (name, *others) if n in renamed), None)
            if theirs is not None:
                found[name] = theirs
        missing = [name for name in wanted if name not in found]
        unexpected = sorted(there - set(renamed.values()))
        if missing == [*wanted]:
            raise self._wrong(
                f"has none of the parameters: it has {_listed(sorted(there))}, the bundle needs {_listed([*wanted])}"
            )
        for what, names in (("lacks", missing), ("also has", unexpected)):
            if names and not partial:
                raise self._wrong(
                    f"{what} {_listed(names)}", "--partial-weights takes what fits and leaves the rest as it was"
                )
        for name, theirs in found.items():
            shape, wish = list(self._files.shape(theirs)), list(shapes[name][0])
            if shape != wish:
                raise self._wrong(f"has {theirs} of shape {shape}, the bundle needs {wish}")
        there_too = [name for name in self._fixed if name in renamed and not partial]
        others = [n for n in there_too if digest(self._files.whole(renamed[n])) not in self._fixed[n]]
        if others:
            raise self._wrong(
                f"has other values of {_listed(others)} than the model when it was compiled, which became constants",
                "load them into the model and compile it again; --partial-weights leaves them as they are",
            )
        return found

    def _wrong(self, what: str, help: str | None = None) -> BundleError:
        return BundleError(f"the checkpoint {self.path} {what}", help, everywhere=True)


def digest(x: torch.Tensor) -> str:
    """Of shape and values; the same for all dtypes but those of 16 bits, which round."""
    x = x.detach() if x.dtype in _HALVES else x.detach().float()
    raw = x.contiguous().view(-1).view(torch.uint8).numpy(force=True) if x.numel() else b""
    return hashlib.sha256(str(list(x.shape)).encode() + bytes(raw)).hexdigest()[:16]


def digests(x: torch.Tensor) -> list[str]:
    """Those of a tensor as files may have it."""
    return [digest(x.detach().to(dtype)) for dtype in (torch.float32, *_HALVES)]


def files_of(path: Path) -> list[Path]:
    """The safetensors files that a file, an index or a folder stands for."""
    if path.is_dir():
        places = [path / INDEX, path / SINGLE]
        found = next((p for p in places if p.is_file()), None)
        if found is None:
            others = sorted(path.glob("*.safetensors"))
            if len(others) != 1:
                raise BundleError(f"there is neither {INDEX} nor {SINGLE} in {path}", everywhere=True)
            found = others[0]
        path = found
    if not path.is_file():
        raise BundleError(f"there is no checkpoint {path}", everywhere=True)
    if path.suffix != ".json":
        return [path]
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names = sorted({str(name) for name in content["weight_map"].values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"cannot read the index {path}: {type(error).__name__}: {error}", everywhere=True) from None
    lacking = [name for name in names if not (path.parent / name).is_file()]
    if lacking:
        raise BundleError(f"{path} names {_listed(lacking)}, not there", everywhere=True)
    return [path.parent / name for name in names]


def _rename(there: set[str], every: list[str]) -> dict[str, str]:
    """Our name -> the file's.  As they are, or with the prefix, longer or shorter, that fits most of them."""
    votes: Counter[tuple[str, str]] = Counter()
    ends: dict[str, list[str]] = {}
    for theirs in there:
        parts = theirs.split(".")
        for n in range(1, len(parts)):
            ends.setdefault(".".join(parts[n:]), []).append(".".join(parts[:n]) + ".")
    for name in every:
        votes["", ""] += name in there
        for prefix in ends.get(name, ()):
            votes["", prefix] += 1
        parts = name.split(".")
        for n in range(1, len(parts)):
            if ".".join(parts[n:]) in there:
                votes[".".join(parts[:n]) + ".", ""] += 1
    ours, theirs = min(votes, key=lambda pair: (-votes[pair], pair)) if votes else ("", "")
    result: dict[str, str] = {}
    taken: set[str] = set()
    for exact in (True, False):  # a name that is there as it is needs no prefix (lm_head.weight beside model.layers...)
        for name in every:
            if name in result or not (exact or name.startswith(ours)):
                continue
            candidate = name if exact else theirs + name.removeprefix(ours)
            if candidate in there and candidate not in taken:
                result[name] = candidate
                taken.add(candidate)
    return result


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
