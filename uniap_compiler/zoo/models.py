"""The table models.toml, and command line options as a part of a SPEC.  No torch."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from uniap_compiler.ir import Diagnostic


@cache
def zoo() -> dict[str, dict[str, Any]]:
    """Name of a model -> its row."""
    return tomllib.loads((Path(__file__).parent / "models.toml").read_text(encoding="utf-8"))


def with_options(spec: str, **options: object) -> str:
    """The SPEC with command line options written into it, so that it says all by itself."""
    given = "".join(f",{key}={value}" for key, value in options.items() if value is not None)
    if given and spec.partition(":")[0] not in ("zoo", "hf"):
        raise Diagnostic(f"{given[1:]}: only a zoo: or hf: SPEC has it", help="a factory decides such things itself")
    return spec + given
