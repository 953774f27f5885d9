"""Batches: reading them from the user's function, flattening the nest to paths, cutting micro-batches.

    batches = load("mydata.py:batches", manifest["inputs"], seed=0)     # or "bytes:book.txt"
    micro_batches = cut(flatten(next(stream)), manifest)

Every rank reads the same stream and takes what its stage reads; nothing is broadcast.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .errors import BundleError

Paths = dict[str, torch.Tensor]


def flatten(batch: Any, targets: Any = None) -> Paths:
    """{"batch.tokens": ..., "batch.0.mask": ..., "targets": ...}: leaves that are no tensors are left out."""
    found: Paths = {}
    _flatten("batch", batch, found)
    _flatten("targets", targets, found)
    return found


def _flatten(path: str, nest: Any, found: Paths) -> None:
    if isinstance(nest, torch.Tensor):
        found[path] = nest
    elif isinstance(nest, Mapping):
        for key, value in nest.items():
            _flatten(f"{path}.{key}", value, found)
    elif isinstance(nest, (list, tuple)):
        for i, value in enumerate(nest):
            _flatten(f"{path}.{i}", value, found)


def from_item(item: Any, inputs: Sequence[Mapping[str, Any]]) -> Paths:
    """One item of the stream: the batch, or (batch, targets) when the programme has targets."""
    if any(i["path"].split(".")[0] == "targets" for i in inputs):
        if not isinstance(item, (list, tuple)) or len(item) != 2:
            raise BundleError(
                "the programme has targets: each item of the data must be a pair (batch, targets)", everywhere=True
            )
        return flatten(*item)
    return flatten(item)


def cut(batch: Paths, manifest: Mapping[str, Any], wanted: Iterable[str] | None = None) -> list[Paths]:
    """The micro-batches, contiguous rows of the global batch; only the `wanted` paths.  Checks shapes and dtypes."""
    count = int(manifest["micro_batches"])
    keep = set(wanted) if wanted is not None else None
    result: list[Paths] = [{} for _ in range(count)]
    for described in manifest["inputs"]:
        path, shape, dtype = described["path"], list(described["shape"]), getattr(torch, described["dtype"])
        if keep is not None and path not in keep:
            continue
        if path not in batch:
            raise BundleError(f"the data have no {path}; they have {', '.join(batch) or 'no tensor'}", everywhere=True)
        x = batch[path]
        needed = [shape[0] * count, *shape[1:]]
        if list(x.shape) != needed:
            raise BundleError(
                f"{path} has shape {list(x.shape)}, the bundle was compiled for {needed}", everywhere=True
            )
        if x.dtype != dtype:
            same_kind = x.dtype.is_floating_point == dtype.is_floating_point and torch.bool not in (x.dtype, dtype)
            if not same_kind:
                raise BundleError(f"{path} has dtype {x.dtype}, the bundle was compiled for {dtype}", everywhere=True)
            x = x.to(dtype)
        for m in range(count):
            result[m][path] = x[m * shape[0] : (m + 1) * shape[0]]
    return result


class Stream:
    """Batches without end: begins again when the data end.  `position` counts the batches given.

    A function is called with those of `batch_size` (the global batch), `seed` and `start` that it has parameters for.
    """

    def __init__(self, source: Any, seed: int = 0, start: int = 0, batch_size: int | None = None) -> None:
        self.source, self.seed, self.batch_size = source, seed, batch_size
        self.position = start
        self._iterator, skip = self._open(start)
        for _ in range(skip):
            self._raw()

    def _open(self, start: int) -> tuple[Iterator[Any], int]:
        """An iterator, and how many items must still be dropped."""
        source = self.source
        if callable(source):
            names = inspect.signature(source).parameters
            given = {"seed": self.seed, "start": start}
            if self.batch_size is not None:
                given["batch_size"] = self.batch_size
            source = source(**{k: v for k, v in given.items() if k in names})
            if "start" in names:
                start = 0
        try:
            return iter(source), start
        except TypeError:
            raise BundleError(f"the data are not iterable but {type(source).__name__}", everywhere=True) from None

    def _raw(self) -> Any:
        try:
            return next(self._iterator)
        except StopIteration:
            pass
        self._iterator, _ = self._open(0)
        try:
            return next(self._iterator)
        except StopIteration:
            raise BundleError(
                "the data are empty (or an iterator that was used up: give a function)", everywhere=True
            ) from None

    def __next__(self) -> Any:
        item = self._raw()
        self.position += 1
        return item


def load(where: str, manifest: Mapping[str, Any], seed: int = 0, start: int = 0) -> Stream:
    """`FILE.py:NAME` or `bytes:FILE`."""
    kind, _, rest = where.partition(":")
    if kind == "bytes":
        return Stream(byte_batches(Path(rest), manifest), seed, start)
    file, _, name = where.rpartition(":")
    if not file or not name.isidentifier():
        raise BundleError(f"--data {where}: expected FILE.py:NAME or bytes:FILE", everywhere=True)
    path = Path(file).resolve()
    if not path.is_file():
        raise BundleError(f"--data {where}: there is no file {file}", everywhere=True)
    spec = importlib.util.spec_from_file_location(f"uniap_data_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise BundleError(
            f"--data {where}: {file} cannot be imported: {type(error).__name__}: {error}", everywhere=True
        ) from error
    finally:
        sys.path.remove(str(path.parent))
    if not hasattr(module, name):
        raise BundleError(f"--data {where}: {file} has no {name}", everywhere=True)
    return Stream(getattr(module, name), seed, start, int(manifest["global_batch"]))


def byte_batches(path: Path, manifest: Mapping[str, Any]) -> Callable[..., Iterator[Any]]:
    """A file's bytes as tokens: random windows of the sequence length; a second integer input gets the next bytes."""
    inputs = manifest["inputs"]
    shapes = {tuple(i["shape"]) for i in inputs}
    integers = all(i["dtype"] in ("int64", "int32") for i in inputs)
    if len(shapes) != 1 or len(inputs) > 2 or len(inputs[0]["shape"]) != 2 or not integers:
        raise BundleError(
            "--data bytes: needs one or two integer inputs [batch, sequence]: give FILE.py:batches", everywhere=True
        )
    rows, length = int(inputs[0]["shape"][0]) * int(manifest["micro_batches"]), int(inputs[0]["shape"][1])
    # Of two inputs the targets are the one that is called so; else the second.
    order = sorted((i["path"] for i in inputs), key=lambda p: any(w in p for w in ("target", "label")))
    try:
        text = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    except (OSError, ValueError) as error:
        raise BundleError(f"--data bytes:{path}: {error}", everywhere=True) from None
    if len(text) <= length + 1:
        raise BundleError(
            f"--data bytes:{path}: {len(text)} bytes are fewer than a sequence of {length}", everywhere=True
        )

    def batches(seed: int = 0, start: int = 0) -> Iterator[Any]:
        window = torch.arange(length)
        while True:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + start)
            first = torch.randint(len(text) - length - 1, (rows, 1), generator=generator)
            found = {order[0]: text[first + window].long()}
            if len(order) == 2:
                found[order[1]] = text[first + window + 1].long()
            yield found
            start += 1

    batches.flat = True  # type: ignore[attr-defined]
    return batches


def next_batch(stream: Stream, manifest: Mapping[str, Any], wanted: Iterable[str] | None = None) -> list[Paths]:
    item = next(stream)
    flat = getattr(stream.source, "flat", False)
    return cut(item if flat else from_item(item, manifest["inputs"]), manifest, wanted)
