"""Tensor constants beside a module: masks and index tables, by name, in one safetensors file.

    plan.constant @cos {digest = "3f2a.."}                  in the module
    constants.safetensors                                   beside the dump

numpy has no bf16: its 16 bits are kept as uint16 and the dtype name says what they are.  Writing the format directly
(an 8-byte length, a JSON header, the bytes) keeps files equal byte for byte for equal contents.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .diagnostics import Diagnostic

FILE_NAME = "constants.safetensors"

_FORMATS: dict[str, tuple[str, str]] = {  # our dtype -> (safetensors name, little-endian numpy dtype)
    "f64": ("F64", "<f8"),
    "f32": ("F32", "<f4"),
    "bf16": ("BF16", "<u2"),
    "f16": ("F16", "<f2"),
    "i64": ("I64", "<i8"),
    "i32": ("I32", "<i4"),
    "i16": ("I16", "<i2"),
    "i8": ("I8", "|i1"),
    "u8": ("U8", "|u1"),
    "i1": ("BOOL", "|b1"),
}
_DTYPE_OF = {name: dtype for dtype, (name, _) in _FORMATS.items()}


@dataclass(frozen=True, eq=False)
class Constant:
    """array: C-contiguous, little-endian; uint16 bits when dtype is bf16."""

    array: NDArray[np.generic]
    dtype: str

    @property
    def digest(self) -> str:
        """sha256 over dtype, shape and bytes."""
        head = f"{self.dtype}{list(self.array.shape)}".encode()
        return hashlib.sha256(head + self.array.tobytes()).hexdigest()


class ConstantStore:
    """name -> Constant, saved in the order of the names."""

    def __init__(self) -> None:
        self._constants: dict[str, Constant] = {}

    def add(self, name: str, array: NDArray[np.generic], dtype: str) -> Constant:
        """Replaces a constant of that name.  Raises ValueError when the array does not hold that dtype."""
        if dtype not in _FORMATS:
            raise ValueError(f"{dtype} is not a dtype: {' '.join(_FORMATS)}")
        wanted = np.dtype(_FORMATS[dtype][1])
        array = np.ascontiguousarray(array).reshape(array.shape)
        if array.dtype != wanted:
            if array.dtype.newbyteorder("<") != wanted:
                raise ValueError(f"constant {name} is {array.dtype}, which does not hold {dtype}")
            array = array.astype(wanted)
        constant = self._constants[name] = Constant(array, dtype)
        return constant

    def __getitem__(self, name: str) -> Constant:
        return self._constants[name]

    def __contains__(self, name: object) -> bool:
        return name in self._constants

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._constants))

    def __len__(self) -> int:
        return len(self._constants)

    def digest(self, name: str) -> str:
        return self._constants[name].digest

    def save(self, path: Path) -> None:
        """Atomically: a reader sees the old file or the new one."""
        header: dict[str, object] = {}
        position = 0
        for name in self:
            constant = self[name]
            end = position + constant.array.nbytes
            shape = list(constant.array.shape)
            header[name] = {"dtype": _FORMATS[constant.dtype][0], "shape": shape, "data_offsets": [position, end]}
            position = end
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with open(temporary, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name in self:
                file.write(self[name].array.tobytes())
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> ConstantStore:
        """Raises Diagnostic when the file is not there or is not safetensors of our dtypes."""
        try:
            data = path.read_bytes()
        except OSError as error:
            raise Diagnostic(f"cannot read the constants {path}: {error.strerror}") from None
        store = cls()
        try:
            size = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + size])
            body = memoryview(data)[8 + size :]
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                dtype = _DTYPE_OF[entry["dtype"]]
                start, end = entry["data_offsets"]
                array = np.frombuffer(body[start:end], np.dtype(_FORMATS[dtype][1])).reshape(entry["shape"])
                store.add(name, array, dtype)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Diagnostic(f"{path} is not a file of constants: {error}") from None
        return store
