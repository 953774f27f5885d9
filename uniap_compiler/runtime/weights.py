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
        raw, dtype = self._bytes(name)
        if raw.storage_offset() % dtype.itemsize:
            raw = raw.clone()
        return raw.view(dtype).view(self.header[name]["shape"])

    def piece(self, name: str, slices: pieces.Slices) -> torch.Tensor:
        """A copy of the part that the slices describe; nothing else of the file is read."""
        raw, dtype = self._bytes(name)
        if raw.storage_offset() % dtype.itemsize == 0:
            return pieces.read(self.tensor(name), slices)
        # The file does not keep elements where torch can address them: its bytes as one more dim.
        size = dtype.itemsize
        found = pieces.read(raw.view(*self.header[name]["shape"], size), [*slices, [[size, 0, size]]])
        return found.view(dtype).view(pieces.local_shape(slices))

    def _bytes(self, name: str) -> tuple[torch.Tensor, torch.dtype]:
        entry = self.header[name]
        begin, end = entry["data_offsets"]
        if entry["dtype"] not in DTYPES:
            raise BundleError(f"{self.path}: {name} is {entry['dtype']}, which is not supported")
        dtype = DTYPES[entry["dtype"]]
        if begin == end:
            return torch.empty(0, dtype=torch.uint8), dtype
        if self._start + end > len(self._memory):
            raise BundleError(f"{self.path} is cut off: {name} lies beyond its end")
        whole = torch.frombuffer(self._memory, dtype=torch.uint8)
        return whole[self._start + begin : self._start + end], dtype


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

    def names(self) -> list[str]:
        return list(self._where)

    def shape(self, name: str) -> list[int]:
        return list(self._where[name].header[name]["shape"])

    def whole(self, name: str) -> torch.Tensor:
        """A view of the file."""
        return self._where[name].tensor(name)

    def read(self, name: str, record: Mapping[str, Any]) -> torch.Tensor:
        if name not in self._where:
            raise BundleError(f"no weights for {name} in {', '.join(str(p) for p in self.paths) or 'this bundle'}")
        shape, wanted = self.shape(name), pieces.full_shape(record["slices"])
        if shape != wanted:
            raise BundleError(f"the weights of {name} have shape {shape}, the bundle needs {wanted}")
        return self._where[name].piece(name, record["slices"]).to(getattr(torch, record["dtype"]))


def save(path: Path, tensors: Mapping[str, torch.Tensor], dtypes: Mapping[str, torch.dtype] | None = None) -> None:
    """Write a safetensors file, atomically; the same tensors give the same bytes.

    dtypes: what to convert to, by name; only one tensor at a time is held in both.
    """
    header: dict[str, Any] = {}
    offset = 0
    dtype = {name: (dtypes or {}).get(name, x.dtype) for name, x in tensors.items()}
    # Largest elements first keeps every tensor aligned.
    order = sorted(tensors, key=lambda name: (-dtype[name].itemsize, name))
    for name in order:
        size = tensors[name].numel() * dtype[name].itemsize
        shape = list(tensors[name].shape)
        header[name] = {"dtype": _NAMES[dtype[name]], "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            x = tensors[name].detach().cpu().to(dtype[name]).contiguous()
            if x.numel():
                size = x.numel() * x.element_size()
                file.write(memoryview((ctypes.c_char * size).from_address(x.data_ptr())))
    os.replace(temporary, path)
