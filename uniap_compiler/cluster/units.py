"""Quantities in cluster files: a number in base units, or a string with a unit, `"80 GiB"`, `"200 Gbit/s"`, `"5 us"`.

Base units are bytes, bytes per second, operations per second and seconds.
"""

from __future__ import annotations

import math
import re

_PREFIX = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}


def _units(base: str, scale: float = 1.0, binary: bool = False) -> dict[str, float]:
    table = {prefix + base: factor * scale for prefix, factor in _PREFIX.items()}
    if binary:
        table |= {prefix + base: factor * scale for prefix, factor in _BINARY.items()}
    return table


UNITS: dict[str, dict[str, float]] = {
    "bytes": _units("B", binary=True),
    "bytes per second": _units("B/s", binary=True) | _units("bit/s", 1 / 8),
    "operations per second": _units("FLOP/s") | _units("FLOPS"),
    "seconds": {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9},
    "a number": {},
}
"""For each kind of quantity its units; "a number" has none."""

_EXAMPLE = {
    "bytes": '85899345920 or "80 GiB"',
    "bytes per second": '25e9, "25 GB/s" or "200 Gbit/s"',
    "operations per second": '312e12 or "312 TFLOP/s"',
    "seconds": '5e-6 or "5 us"',
    "a number": "0.6",
}


def quantity(value: object, kind: str, low: float, high: float) -> float:
    """The number in base units.  Raises ValueError with what is allowed."""
    expected = f"expected {kind}, such as {_EXAMPLE[kind]}"
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([-+0-9.eE]+)\s*([A-Za-z/]+)\s*", value)
        units = UNITS[kind]
        if match is None or match[2] not in units:
            raise ValueError(f"{expected}; found {value!r}")
        try:
            number = float(match[1]) * units[match[2]]
        except ValueError:
            raise ValueError(f"{expected}; found {value!r}") from None
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{expected}; found {value!r}")
    else:
        number = float(value)
    if not math.isfinite(number) or not low <= number <= high:
        raise ValueError(f"expected {kind} from {show(low, kind)} to {show(high, kind)}; found {value!r}")
    return number


def show(number: float, kind: str) -> str:
    """For people: `80 GiB`, `25 GB/s`, `312 TFLOP/s`, `5 us`."""
    if kind == "bytes":
        for prefix in ("Ti", "Gi", "Mi", "Ki"):
            if number >= _BINARY[prefix]:
                return f"{number / _BINARY[prefix]:.4g} {prefix}B"
        return f"{number:g} B"
    if kind == "seconds":
        for unit, factor in UNITS["seconds"].items():
            if number >= factor:
                return f"{number / factor:.4g} {unit}"
        return f"{number:g} s"
    if kind == "a number":
        return f"{number:g}"
    unit = "B/s" if kind == "bytes per second" else "FLOP/s"
    for prefix in ("P", "T", "G", "M", "k"):
        if number >= _PREFIX[prefix]:
            return f"{number / _PREFIX[prefix]:.4g} {prefix}{unit}"
    return f"{number:g} {unit}"
