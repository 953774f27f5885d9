"""Safetensors files without the safetensors package: mapped into memory, read by slices.

Layout: 8 bytes length of the header (little endian), the header as JSON {name: {dtype, shape, data_offsets}}, the data.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from . import pieces
from .errors import BundleError

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class SafetensorsFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                # A private copy-on-write mapping: torch wants writable memory, the file stays as it is.
                self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            length = int.from_bytes(self._memory[:8], "little")
            self.header: dict[str, Any] = json.loads(self._memory[8 : 8 + length])
        except (OSError, ValueError) as error:
            raise BundleError(f"cannot read the weights {path}: {error}") from None
        self.header.pop("__metadata__", None)
        self._start = 8 + length

    def tensor(self, name: str) -> torch.Tensor:
        """A view of the file: copy what is to be kept."""
        entry = self.header[name]
        begin, end = entry["data_offsets"]
        dtype = DTYPES[entry["dtype"]]
        if begin == end:
            return torch.empty(entry["shape"], dtype=dtype)
        if self._start + end > len(self._memory):
            raise BundleError(f"{self.path} is cut off: {name} lies beyond its end")
        raw = torch.frombuffer(self._memory, dtype=torch.uint8, count=end - begin, offset=self._start + begin)
        if (self._start + begin) % dtype.itemsize:
            raw = raw.clone()
        return raw.view(dtype).view(entry["shape"])


class Weights:
    """Several files as one; `read` gives a rank's piece of a tensor as memory of its own."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._where: dict[str, SafetensorsFile] = {}
        self.paths = list(paths)
        for path in self.paths:
            file = SafetensorsFile(path)
            self._where.update(dict.fromkeys(file.header, file))

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def read(self, name: str, record: Mapping[str, Any]) -> torch.Tensor:
        if name not in self._where:
            raise BundleError(f"no weights for {name} in {', '.join(str(p) for p in self.paths) or 'this bundle'}")
        full = self._where[name].tensor(name)
        wanted = pieces.full_shape(record["slices"])
        if list(full.shape) != wanted:
            raise BundleError(f"the weights of {name} have shape {list(full.shape)}, the bundle needs {wanted}")
        return pieces.read(full, record["slices"]).to(getattr(torch, record["dtype"]))


def save(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file, atomically; the same tensors give the same bytes."""
    header: dict[str, Any] = {}
    offset = 0
    # Largest elements first keeps every tensor aligned.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    for name in order:
        x = tensors[name]
        size = x.numel() * x.element_size()
        header[name] = {"dtype": _NAMES[x.dtype], "shape": list(x.shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            x = tensors[name].detach().cpu().contiguous()
            if x.numel():
                file.write(ctypes.string_at(x.data_ptr(), x.numel() * x.element_size()))
    os.replace(temporary, path)
