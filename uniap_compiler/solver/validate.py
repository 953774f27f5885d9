"""Reading `uniap-problem/1` with every field checked; what is wrong is named by its path.

    candidates[2].memory.blk[0][3]: expected a finite number >= 0, found NaN

Each `_read_x(data, path)` returns the checked value or raises `ProblemError`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from uniap_compiler.solver.problem import FORMAT, Candidate, Fixed, Matrix, Problem, ProblemError, Row, Value

MAX_LAYERS = 4096
MAX_STAGES = 4096
MAX_STRATEGIES = 4096
MAX_CANDIDATES = 65536

_PROBLEM_FIELDS = {"format", "name", "memory", "schedule", "layers", "values", "fixed", "same", "candidates"}
_CANDIDATE_FIELDS = {
    "stages", "micro_batches", "strategies", "layout", "allowed", "time", "memory",
    "memory_limit", "reshard", "transfer", "step_time", "workspace", "values",
}  # fmt: skip

T = TypeVar("T")


def read_problem(data: Any) -> Problem:
    """A checked `Problem` from one decoded JSON object."""
    fields = _object(data, "problem")
    if fields.get("format") != FORMAT:
        raise ProblemError("format", f"expected {FORMAT!r}, found {_show(fields.get('format'))}")
    _known(fields, _PROBLEM_FIELDS, "")
    schedule = fields.get("schedule")
    if schedule not in (None, "1f1b"):
        raise ProblemError("schedule", f"expected '1f1b' or nothing, found {_show(schedule)}")
    layers = _list(_get(fields, "layers", ""), "layers", _string, longest=MAX_LAYERS)
    if not layers:
        raise ProblemError("layers", "a problem needs at least one layer")
    count = len(layers)
    candidates = _list(
        _get(fields, "candidates", ""),
        "candidates",
        lambda item, path: _candidate(item, path, layers),
        longest=MAX_CANDIDATES,
    )
    if not candidates:
        raise ProblemError("candidates", "a problem needs at least one candidate")
    classes = 1 + max(max(candidate.layout) for candidate in candidates)
    return Problem(
        name=_string(fields.get("name", ""), "name"),
        memory=_number(_get(fields, "memory", ""), "memory"),
        schedule=schedule,
        layers=layers,
        values=_list(fields.get("values", []), "values", lambda item, path: _value(item, path, count, classes)),
        fixed=_list(fields.get("fixed", []), "fixed", lambda item, path: _fixed(item, path, count)),
        same=_list(fields.get("same", []), "same", lambda item, path: _pair(item, path, count)),
        candidates=candidates,
    )


def _candidate(data: Any, path: str, layers: list[str]) -> Candidate:
    fields = _object(data, path)
    _known(fields, _CANDIDATE_FIELDS, path)
    stages = _integer(_get(fields, "stages", path), f"{path}.stages", 1, MAX_STAGES)
    micro_batches = _integer(_get(fields, "micro_batches", path), f"{path}.micro_batches", 1, 2**31)
    strategies = _list(_get(fields, "strategies", path), f"{path}.strategies", _string, longest=MAX_STRATEGIES)
    if not strategies:
        raise ProblemError(f"{path}.strategies", "a candidate needs at least one strategy")
    if len(set(strategies)) < len(strategies):
        raise ProblemError(f"{path}.strategies", "two strategies have the same name")
    k = len(strategies)
    layout = _list(
        _get(fields, "layout", path), f"{path}.layout", lambda x, p: _integer(x, p, 0, MAX_STRATEGIES), length=k
    )
    classes = 1 + max(layout)
    types = list(dict.fromkeys(layers))
    pairs = list(dict.fromkeys(f"{a}>{b}" for a, b in zip(layers, layers[1:], strict=False)))

    def row(item: Any, where: str) -> Row:
        return _list(item, where, _number, length=k)

    def rows(item: Any, where: str) -> Matrix:
        return _list(item, where, row, length=stages)

    def row_or_rows(item: Any, where: str) -> Row | Matrix:
        return rows(item, where) if isinstance(item, list) and item and isinstance(item[0], list) else row(item, where)

    def square(item: Any, where: str) -> Matrix:
        return _square(item, where, classes)

    def indices(item: Any, where: str) -> list[int]:
        return _list(item, where, lambda x, p: _integer(x, p, 0, k - 1), longest=k)

    def limit(item: Any, where: str) -> float | Row:
        return _list(item, where, _number, length=stages) if isinstance(item, list) else _number(item, where)

    def table(name: str, read: Callable[[Any, str], T], needed: Iterable[str]) -> dict[str, T]:
        where = f"{path}.{name}"
        given = _object(_get(fields, name, path), where)
        for key in needed:
            if key not in given:
                raise ProblemError(f"{where}.{key}", "is missing")
        return {str(key): read(item, f"{where}.{key}") for key, item in given.items()}

    return Candidate(
        stages=stages,
        micro_batches=micro_batches,
        strategies=strategies,
        layout=layout,
        allowed=table("allowed", indices, ()) if "allowed" in fields else {},
        time=table("time", row_or_rows, types),
        memory=table("memory", rows, types),
        memory_limit=limit(fields["memory_limit"], f"{path}.memory_limit") if "memory_limit" in fields else None,
        reshard=table("reshard", square, pairs),
        transfer=table("transfer", square, pairs if stages > 1 else ()),
        step_time=table("step_time", row, ()) if "step_time" in fields else {},
        workspace=table("workspace", row, ()) if "workspace" in fields else {},
        values=_list(fields["values"], f"{path}.values", lambda x, p: _value(x, p, len(layers), classes))
        if "values" in fields
        else None,
    )


def _value(data: Any, path: str, layers: int, classes: int) -> Value:
    fields = _object(data, path)
    _known(fields, {"from", "to", "reshard", "transfer"}, path)
    source = _integer(_get(fields, "from", path), f"{path}.from", 0, layers - 1)
    readers = _list(
        _get(fields, "to", path), f"{path}.to", lambda x, p: _integer(x, p, source + 1, layers - 1), longest=layers
    )
    if not readers:
        raise ProblemError(f"{path}.to", "a value needs at least one reader")
    return Value(
        source,
        readers,
        _square(_get(fields, "reshard", path), f"{path}.reshard", classes),
        _number(_get(fields, "transfer", path), f"{path}.transfer"),
    )


def _fixed(data: Any, path: str, layers: int) -> Fixed:
    fields = _object(data, path)
    _known(fields, {"layer", "stage", "strategies"}, path)
    return Fixed(
        _integer(_get(fields, "layer", path), f"{path}.layer", 0, layers - 1),
        _integer(fields["stage"], f"{path}.stage", 0, MAX_STAGES) if "stage" in fields else None,
        _list(fields["strategies"], f"{path}.strategies", _string) if "strategies" in fields else None,
    )


def _pair(data: Any, path: str, layers: int) -> tuple[int, int]:
    u, v = _list(data, path, lambda x, p: _integer(x, p, 0, layers - 1), length=2)
    return u, v


def _square(data: Any, path: str, classes: int) -> Matrix:
    """A table by (class, class); it may be larger than the classes in use, but every row has the same length."""
    rows = _list(data, path, lambda item, where: _list(item, where, _number), longest=MAX_STRATEGIES)
    for n, row in enumerate(rows):
        if len(row) != len(rows):
            raise ProblemError(f"{path}[{n}]", f"expected {len(rows)} numbers (the table is square), found {len(row)}")
    if len(rows) < classes:
        raise ProblemError(path, f"expected a table of {classes} x {classes} layout classes, found {len(rows)} rows")
    return rows


def _list(
    data: Any, path: str, read: Callable[[Any, str], T], length: int | None = None, longest: int | None = None
) -> list[T]:
    if not isinstance(data, list):
        raise ProblemError(path, f"expected a list, found {_show(data)}")
    if length is not None and len(data) != length:
        raise ProblemError(path, f"expected {length} entries, found {len(data)}")
    if longest is not None and len(data) > longest:
        raise ProblemError(path, f"has {len(data)} entries, more than the {longest} supported")
    return [read(item, f"{path}[{n}]") for n, item in enumerate(data)]


def _object(data: Any, path: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ProblemError(path, f"expected an object, found {_show(data)}")
    return data


def _get(fields: dict[str, Any], name: str, path: str) -> Any:
    if name not in fields:
        raise ProblemError(f"{path}.{name}" if path else name, "is missing")
    return fields[name]


def _known(fields: dict[str, Any], known: set[str], path: str) -> None:
    for name in fields:
        if name not in known:
            raise ProblemError(f"{path}.{name}" if path else str(name), "is not a field of this format")


def _string(data: Any, path: str) -> str:
    if not isinstance(data, str):
        raise ProblemError(path, f"expected a string, found {_show(data)}")
    return data


def _integer(data: Any, path: str, lowest: int, highest: int) -> int:
    if isinstance(data, bool) or not isinstance(data, int):
        raise ProblemError(path, f"expected an integer, found {_show(data)}")
    if not lowest <= data <= highest:
        raise ProblemError(path, f"expected an integer from {lowest} to {highest}, found {data}")
    return data


def _number(data: Any, path: str) -> float:
    if isinstance(data, bool) or not isinstance(data, (int, float)):
        raise ProblemError(path, f"expected a number, found {_show(data)}")
    if not (math.isfinite(data) and 0 <= data <= 1e30):
        raise ProblemError(path, f"expected a finite number >= 0, found {_show(data)}")
    return float(data)


def _show(data: Any) -> str:
    if isinstance(data, float) and not math.isfinite(data):
        return "NaN" if math.isnan(data) else ("infinity" if data > 0 else "-infinity")
    text = repr(data)
    return text if len(text) <= 40 else text[:37] + "..."
