"""Reading the small languages inside the IR text: types, layouts, rules, locations, numbers.

    tensor<Bx64xf32>      @[a*b, (_:8 c:512); sum d]      #rule<b k, n k -> b n | sum k>      loc("mlp.py":9 in "up")

Each function is the inverse of a str() or of a function in printer.py, raises ValueError with a sentence, and is
cached: equal text gives the identical object.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache

from .affine import Affine, Dim, parse_dim
from .core import Loc, TensorType
from .layouts import Layout, Part
from .rules import Dims, Rule

DTYPES = ("f64", "f32", "bf16", "f16", "i64", "i32", "i16", "i8", "u8", "i1")

_TENSOR = re.compile(r"tensor<((?:[-+*0-9B]+x)*)([a-z][a-z0-9]*)>").fullmatch
_LOC = re.compile(r'loc\(("(?:[^"\\]|\\.)*"):(-?\d+)(?: in ("(?:[^"\\]|\\.)*"))?\)').fullmatch
_AXIS = re.compile(r"[A-Za-z][A-Za-z0-9_]*").fullmatch
_FACTOR = re.compile(r"[A-Za-z_][A-Za-z0-9_.']*").fullmatch
_TOKEN = re.compile(r"[()]|[^\s()]+").findall


def unquote(text: str) -> str:
    """`"a\\n"` -> the str.  Raises ValueError."""
    try:
        return str(json.loads(text, strict=False))
    except json.JSONDecodeError as error:
        raise ValueError(f"{text} is not a string: {error.msg}") from None


@lru_cache(maxsize=65536)
def parse_name(token: str) -> str:
    """`%x`, `@x`, `%"any text"` -> the name."""
    return unquote(token[1:]) if token[1] == '"' else token[1:]


@lru_cache(maxsize=16384)
def parse_number(text: str) -> int | float | Affine:
    if "B" in text:
        dim = parse_dim(text)
        if not isinstance(dim, Affine):
            raise ValueError(f"{text} does not depend on B: write {dim}")
        return dim
    return float(text) if "." in text or "e" in text or "E" in text or text == "-inf" else int(text)


@lru_cache(maxsize=16384)
def parse_type(text: str, layout: Layout | None = None) -> TensorType:
    """`tensor<Bx64xf32>` with the layout that followed it."""
    match = _TENSOR(text)
    if match is None:
        raise ValueError(f"{text} is not a tensor type such as tensor<Bx64xf32>")
    if match[2] not in DTYPES:
        raise ValueError(f"{match[2]} is not a dtype: {' '.join(DTYPES)}")
    shape = tuple(map(_dim, match[1].split("x")[:-1]))
    if layout is not None and len(layout.dims) != len(shape):
        raise ValueError(f"the layout {layout} has {len(layout.dims)} dims and {text} has {len(shape)}")
    return TensorType(shape, match[2], layout)


def _dim(text: str) -> Dim:
    try:
        return parse_dim(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a size such as 512, B or 2*B+1") from None


@lru_cache(maxsize=4096)
def parse_loc(text: str) -> Loc:
    match = _LOC(text)
    if match is None:
        raise ValueError(f'{text} is not a location such as loc("mlp.py":9 in "up")')
    return Loc(unquote(match[1]), int(match[2]), unquote(match[3]) if match[3] else "")


@lru_cache(maxsize=4096)
def parse_layout(text: str) -> Layout:
    """`@[a*b, _, (_:8 c:512); sum d, max e]`."""
    if not (text.startswith("@[") and text.endswith("]")):
        raise ValueError(f"{text} is not a layout such as @[a*b, _; sum c]")
    dims_text, semicolon, pending_text = text[2:-1].partition(";")
    dims = []
    for part in dims_text.split(",") if dims_text.strip() else []:
        part = part.strip()
        inside = part[1:-1].split() if part.startswith("(") and part.endswith(")") else [part]
        dims.append(tuple(map(_part, inside)))
    pending = []
    for item in pending_text.split(",") if semicolon else []:
        words = item.split()
        if len(words) != 2 or words[0] not in ("sum", "max") or not _AXIS(words[1]):
            raise ValueError(f"{item.strip()!r} is not a pending axis such as `sum d` or `max d`")
        pending.append((words[0], words[1]))
    layout = Layout(tuple(dims), tuple(pending))
    used = layout.split_axes() + layout.pending_axes()
    for axis in used:
        if used.count(axis) > 1:
            raise ValueError(f"axis {axis} is used twice in {text}")
    return layout


def _part(text: str) -> Part:
    axes_text, colon, size = text.partition(":")
    axes = () if axes_text == "_" else tuple(axes_text.split("*"))
    if not all(map(_AXIS, axes)):
        raise ValueError(f"{text!r} is not a dim of a layout such as `_`, `a*b` or `(_:8 a:512)`")
    return Part(axes, _dim(size) if colon else None)


@lru_cache(maxsize=4096)
def parse_rule(text: str) -> Rule:
    """`#rule<b s k, n k -> b s n | sum k | keep .. | linear 0 1 | size k=64>`."""
    if not (text.startswith("#rule<") and text.endswith(">")):
        raise ValueError(f"{text} is not a rule such as #rule<b k, n k -> b n | sum k>")
    signature, *clauses = text[6:-1].split("|")
    left, arrow, right = signature.partition("->")
    if not arrow:
        raise ValueError(f"{text} lacks the -> between operands and results")
    results = []
    for dims in _tensors(right):
        if dims is None:
            raise ValueError(f"a result of {text} is `none`")
        results.append(dims)
    reduce: list[tuple[str, str]] = []
    keep: list[str] = []
    offset: list[str] = []
    linear: list[tuple[int, ...]] = []
    sizes: list[tuple[str, Dim]] = []
    route: list[tuple[str, tuple[str, ...]]] = []
    for clause in clauses:
        kind, *words = clause.split() or [""]
        if kind in ("sum", "max", "copy"):
            reduce += [(word, kind) for word in words]
        elif kind == "keep":
            keep += words
        elif kind == "offset":
            offset += words
        elif kind == "route":
            if len(words) < 4 or words[1] != "=" or not _FACTOR(words[0]):
                raise ValueError(f"`{clause.strip()}` is not a route such as `route exchange = s e`")
            route.append((words[0], tuple(words[2:])))
        elif kind == "linear":
            linear.append(tuple(map(int, words)))
        elif kind == "size":
            for word in words:
                name, _, size = word.partition("=")
                sizes.append((name, _dim(size)))
        else:
            raise ValueError(f"{kind!r} is not a clause of a rule: sum, max, copy, keep, offset, route, linear or size")
    operands = tuple(_tensors(left))
    rule = Rule(
        operands, tuple(results), tuple(reduce), tuple(keep), tuple(offset), tuple(linear), tuple(sizes), tuple(route)
    )  # fmt: skip
    known = set(rule.factors())
    for name in [f for f, _ in reduce] + keep + offset + [f for f, _ in sizes] + [f for _, fs in route for f in fs]:
        if name not in known:
            raise ValueError(f"a clause of {text} names the factor {name}, which no operand and no result has")
    for position in (p for group in linear for p in group):
        if not 0 <= position < len(rule.operands):
            raise ValueError(f"`linear {position}` in {text}: there are {len(rule.operands)} operands")
    return rule


def _tensors(text: str) -> list[Dims | None]:
    return [_tensor(part) for part in text.split(",")] if text.strip() else []


def _tensor(text: str) -> Dims | None:
    words = _TOKEN(text)
    if words == ["none"]:
        return None
    if words == ["[]"]:
        return ()
    dims: list[tuple[str, ...]] = []
    group: list[str] | None = None
    for word in words:
        if word == "(" and group is None:
            group = []
        elif word == ")" and group is not None:
            dims.append(tuple(group))
            group = None
        elif word == "1" and group is None:
            dims.append(())
        elif not _FACTOR(word):
            raise ValueError(f"{word!r} is not a factor's name in {text.strip()!r}")
        elif group is not None:
            group.append(word)
        else:
            dims.append((word,))
    if group is not None or not dims:
        raise ValueError(f"{text.strip()!r} does not list the dims of a tensor such as `b (h d) 1` or `[]`")
    return tuple(dims)
