"""Where one layer ends and the next begins: the ops of a step as a sequence of segments.

    embed | layers.0 | layers.1 | ... | norm, head and the loss

The tree of module paths is walked from the root; a module is opened while its children form a chain that carries most
of its FLOPs: between two neighbours exactly one value is alive.  A transformer block stays whole, because its skip
connection keeps a second value alive; a ModuleList of blocks is opened.  Ops that belong to no segment's module join
the segment that makes what they read, so that every edge leads forward and the calls stay acyclic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod

from uniap_compiler.ir import Op, Value, at

BATCH = 8
"""Where the share of FLOPs is measured."""
MOST = 0.8
"""The share of a module's FLOPs that its children must carry for it to be opened."""
MOST_OF_MODEL = 0.5
"""The same for the model itself, which is opened even where its children are no chain (skip connections)."""
LIGHT = 0.05
"""A segment with less than this share of the mean segment's FLOPs and parameters joins a neighbour."""

Path = tuple[str, ...]


@dataclass
class Segment:
    """path: the module instance that gives it its name."""

    path: Path
    ops: list[Op]
    owned: list[Op] = field(default_factory=list)

    @property
    def layer(self) -> str:
        return ".".join(self.path)


def path_of(op: Op) -> Path:
    return tuple(op.loc.module.split(".")) if op.loc is not None and op.loc.module else ()


def flops(op: Op) -> float:
    """A rough count at batch 8: contractions, experts, attention and convolutions; everything else by its results."""

    def numel(v: Value | None) -> int:
        return prod(at(d, BATCH) for d in v.type.shape) if v is not None else 0

    values = op.flat_operands()
    if op.name == "nn.contract":
        terms = str(op.attrs["equation"]).partition("->")[0].split(",")
        sizes: dict[str, int] = {}
        for term, v in zip(terms, values, strict=True):
            if v is not None:
                sizes.update(zip(term.split(), (at(d, BATCH) for d in v.type.shape)))
        return 2.0 * prod(sizes.values())
    if op.name == "nn.attention":
        return 4.0 * numel(values[0]) * at(values[1].type.shape[-2], BATCH) if values[1] is not None else 0.0
    if op.name == "nn.experts":
        choices, matrices = numel(values[1]), [v for v in values[3:5] if v is not None]
        return 2.0 * choices * sum(numel(m) / at(m.type.shape[0], BATCH) for m in matrices)
    if op.name == "aten.convolution" and values[1] is not None:
        return 2.0 * numel(op.results[0]) * numel(values[1]) / max(1, at(values[1].type.shape[0], BATCH))
    return float(sum(numel(r) for r in op.results))


def segments(ops: Sequence[Op], params: set[Value]) -> list[Segment]:
    """The segments in order; together they hold `ops`.  params: the values that weigh (model parameters)."""
    if not ops:
        return []
    parts = _open((), list(ops))
    return _merge_light(_even_out(parts), params)


# Opening modules.


def _open(prefix: Path, inside: list[Op]) -> list[Segment]:
    """The segments of one module's ops (and of the ops between them that joined it)."""
    depth = len(prefix)
    owner = {op: path[: depth + 1] for op in inside if len(path := path_of(op)) > depth and path[:depth] == prefix}
    names = set(owner.values())
    carried = sum(map(flops, owner)) / (sum(map(flops, inside)) or 1.0)
    whole = [Segment(prefix, inside, [op for op in inside if path_of(op)[:depth] == prefix])]
    if not names or carried < (MOST if prefix else MOST_OF_MODEL):
        return whole
    parts = _place(inside, owner)
    if len(names) > 1 and prefix and not _is_chain(inside, parts):
        return whole
    opened = [segment for part in parts for segment in _open(part.path, part.ops)]
    weighty = sum(
        any(v is not None and v.attrs.get("role") == "param" for op in s.ops for v in op.flat_operands())
        for s in opened
    )
    return opened if weighty > 1 or not prefix else whole  # an activation after the only child is no layer


def _is_chain(inside: list[Op], parts: list[Segment]) -> bool:
    """One value alive between neighbours; or several, if all parts but one are equal and each reads the one before."""
    if len(parts) < 2:
        return False
    index = {op: i for i, part in enumerate(parts) for op in part.ops}
    made = {r: index[op] for op in inside for r in op.results}
    readers: dict[Value, set[int]] = {}
    arguments: dict[Value, set[int]] = {}  # the same, read by the parts' own modules
    owned = {op for part in parts for op in part.owned}
    for op in inside:
        for v in op.flat_operands():
            if v is not None and v.attrs.get("role") in (None, "input"):
                readers.setdefault(v, set()).add(index[op])
                if op in owned:
                    arguments.setdefault(v, set()).add(index[op])
    signatures = Counter(_signature(part.owned) for part in parts)
    usual = signatures.most_common(1)[0][1]
    if usual == len(parts) or usual == len(parts) - 1 > 1:  # the first one may make something for the others
        linked = {(made[v], i) for v in made if v in readers for i in readers[v]}
        return all((i, i + 1) in linked for i in range(len(parts) - 1))
    for cut in range(len(parts) - 1):
        alive = [v for v, where in readers.items() if max(where) > cut and made.get(v, min(where)) <= cut]
        # what every part is given (an encoder's output, a time embedding) is no link of the chain
        if sum(v in made or len(arguments.get(v, ())) < len(parts) for v in alive) != 1:
            return False
    return True


# Ops to segments.


def _place(ops: Sequence[Op], leaf: dict[Op, Path]) -> list[Segment]:
    """Segments in order of their first op; the others join; segments between which an edge leads back are merged."""
    order: dict[Path, int] = {}
    for op in ops:
        if op in leaf:
            order.setdefault(leaf[op], len(order))
    if not order:
        return [Segment((), list(ops))]
    while True:
        made: dict[Value, int] = {}
        where: dict[Op, int] = {}
        back: tuple[int, int] | None = None
        for op in ops:
            reads = [made[v] for v in op.flat_operands() if v in made]
            if op in leaf:
                where[op] = order[leaf[op]]
                if reads and max(reads) > where[op]:
                    back = (where[op], max(reads))
                    break
            elif reads:
                where[op] = max(reads)
            else:
                where[op] = -1  # reads parameters only: joins its first reader, below
            if where[op] >= 0:
                made.update((r, where[op]) for r in op.results)
        if back is None:
            break
        low, high = back
        order = {path: (i if i < low else low if i <= high else i - (high - low)) for path, i in order.items()}
    _join_readers(ops, where)
    count = max(order.values()) + 1
    paths: list[Path] = [
        max((p for p, i in order.items() if i == k), key=lambda p: _weight(ops, leaf, p)) for k in range(count)
    ]
    parts = [Segment(paths[k], [], []) for k in range(count)]
    for op in ops:
        parts[where[op]].ops.append(op)
        if op in leaf:
            parts[where[op]].owned.append(op)
    return [p for p in parts if p.ops]


def _join_readers(ops: Sequence[Op], where: dict[Op, int]) -> None:
    first_reader: dict[Value, int] = {}
    for op in reversed(ops):
        if where[op] < 0:
            where[op] = min((first_reader[r] for r in op.results if r in first_reader), default=0)
        for v in op.flat_operands():
            if v is not None:
                first_reader[v] = min(first_reader.get(v, where[op]), where[op])


def _weight(ops: Iterable[Op], leaf: dict[Op, Path], path: Path) -> float:
    return sum(flops(op) for op in ops if leaf.get(op) == path)


# Keeping repeated layers equal.


def _signature(ops: Iterable[Op]) -> tuple[str, ...]:
    return tuple(
        f"{op.name} {op.results[0].type if op.results else ''} {sorted(map(str, op.attrs.items()))}" for op in ops
    )


def _even_out(parts: list[Segment]) -> list[Segment]:
    """Unowned ops that only one of several equal segments has (pooling after the last block) move to its neighbour."""
    owned = [_signature(p.owned) for p in parts]
    result: list[Segment] = []
    carry: list[Op] = []
    for i, part in enumerate(parts):
        ops, carry = [*carry, *part.ops], []
        peers = [p for j, p in enumerate(parts) if owned[j] == owned[i]]
        if len(peers) > 1:
            usual = Counter(len(p.ops) for p in peers).most_common(1)[0][0]
            extra = len(part.ops) - usual
            mine = set(part.owned)
            if extra > 0 and not any(op in mine for op in part.ops[-extra:]):
                ops, carry = ops[:-extra], ops[-extra:]
            elif extra > 0 and not any(op in mine for op in part.ops[:extra]):
                head, ops = ops[:extra], ops[extra:]
                if result and owned[i - 1] != owned[i]:
                    result[-1].ops += head
                else:
                    result.append(Segment((*part.path, "before"), head))
        result.append(Segment(part.path, ops, part.owned))
    if carry:
        result.append(Segment((*result[-1].path, "after"), carry))
    return result


def _merge_light(parts: list[Segment], params: set[Value]) -> list[Segment]:
    """Segments without parameters join the one before; light ones join a neighbour that is not one of several equal."""

    def reads(part: Segment) -> set[Value]:
        return {v for op in part.ops for v in op.flat_operands() if v in params}

    def size(part: Segment) -> int:
        return sum(prod(at(d, 1) for d in v.type.shape) for v in reads(part))

    merged: list[Segment] = []
    for part in parts:
        if merged and not reads(part):
            _absorb(merged[-1], part, False)
        elif merged and not reads(merged[-1]):
            part.ops = merged.pop().ops + part.ops
            merged.append(part)
        else:
            merged.append(part)
    work = [sum(map(flops, p.ops)) for p in merged]
    mean_work, mean_size = sum(work) / len(work), sum(map(size, merged)) / len(merged)
    light = [w < LIGHT * mean_work and size(p) < LIGHT * mean_size for w, p in zip(work, merged)]
    counts = Counter(_signature(p.ops) for p in merged)
    repeated = [counts[_signature(p.ops)] > 1 for p in merged]
    result: list[Segment] = []
    free = False  # whether result[-1] may take a light segment
    pending: Segment | None = None
    for i, part in enumerate(merged):
        if pending is not None:
            _absorb(part, pending, True)
            pending = None
        if light[i] and not repeated[i]:
            if i + 1 < len(merged) and not repeated[i + 1]:
                pending = part
                continue
            if result and free:
                _absorb(result[-1], part, False)
                continue
        result.append(part)
        free = not repeated[i]
    return result


def _absorb(into: Segment, other: Segment, before: bool) -> None:
    into.ops = other.ops + into.ops if before else into.ops + other.ops
