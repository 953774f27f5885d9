"""Checks a sharding rule against the op itself, in float64: wrong rules and missing splits both show.

    problems = check(Case("aten.sum.dim_IntList", [torch.randn(4, 6)], {"dim": [1]}))

For every factor that the rule lets split, and for pairs of factors, the op runs on the parts with the attributes that
`localize_op` gives; the results are put together as the rule says and must equal the op on the whole tensors.  Then
for every factor that is kept, the split is tried as well: where it would have been right, the rule misses something.
The same for operands in which the op would be linear although the rule does not say so.
"""

from __future__ import annotations

import faulthandler
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from uniap_compiler.bridge.interpret import run_op
from uniap_compiler.bridge.schema import from_attr
from uniap_compiler.ir import Attrs, Op, Rule, Struct, TensorType, Value
from uniap_compiler.passes.analysis.rules.table import alternatives
from uniap_compiler.passes.lower.local_ops import localize_op
from uniap_compiler.runtime import kernels

DTYPES = {torch.float64: "f64", torch.float32: "f32", torch.int64: "i64", torch.bool: "i1"}
Operands = list[Any]  # Tensor, None, or a list of these


@dataclass
class Case:
    """One op on concrete operands."""

    name: str
    operands: Operands
    attrs: Attrs = field(default_factory=dict)

    def __str__(self) -> str:
        shapes = [tuple(t.shape) if t is not None else None for t in flatten(self.operands)]
        return f"{self.name}{shapes}{self.attrs}"


def flatten(operands: Operands) -> list[Tensor | None]:
    return [t for o in operands for t in (o if isinstance(o, list) else [o])]


def nest(flat: list[Any], like: Operands) -> Operands:
    rest = iter(flat)
    return [[next(rest) for _ in o] if isinstance(o, list) else next(rest) for o in like]


def execute(name: str, operands: Operands, attrs: Attrs) -> list[Tensor | None]:
    if name.startswith("nn.") and "index" in attrs:  # random numbers on one device: only the runtime knows of parts
        settings = {k: from_attr(v, None) for k, v in attrs.items()}
        result = getattr(kernels, name.removeprefix("nn."))(*operands, **settings)
        return list(result) if isinstance(result, tuple) else [result]
    return run_op(Op(name, attrs=attrs), operands)


def as_op(case: Case, results: list[Tensor | None]) -> Op:
    """The case as an op of the IR, with the types of its operands and results."""

    def value(tensor: Tensor | None, name: str) -> Value | None:
        return None if tensor is None else Value(name, TensorType(tuple(tensor.shape), DTYPES[tensor.dtype]))

    flat = [value(t, f"x{i}") for i, t in enumerate(flatten(case.operands))]
    # A result that the op does not compute (an output mask) is typed as an empty tensor.
    outs = [value(t if t is not None else torch.empty(0), f"y{i}") for i, t in enumerate(results)]
    return Op(case.name, nest(flat, case.operands), [v for v in outs if v is not None], dict(case.attrs))


class Mismatch(Exception):
    """The parts do not make up the whole."""


@dataclass
class Checker:
    case: Case
    rule: Rule

    def __post_init__(self) -> None:
        self.whole = execute(self.case.name, self.case.operands, self.case.attrs)
        self.op = as_op(self.case, self.whole)
        self.sizes = {f: int(n) for f, n in self.rule.sizes}  # type: ignore[call-overload]

    def split(self, split: dict[str, str], mesh: dict[str, int], rule: Rule | None = None) -> None:
        """Runs the op on a mesh with its factors split; raises Mismatch when the assembled results differ."""
        rule = rule or self.rule
        op = Op(self.op.name, self.op.operands, self.op.results, {**self.case.attrs, "rule": rule})
        flat = flatten(self.case.operands)
        parts: dict[tuple[int, ...], list[Any]] = {}
        for place in itertools.product(*(range(n) for n in mesh.values())):
            at = dict(zip(mesh, place))
            local = [
                t if t is None or g is None else self.cut(t, g, split, mesh, at) for t, g in zip(flat, rule.operands)
            ]
            types = [None if t is None else TensorType(tuple(t.shape), DTYPES[t.dtype]) for t in local]
            outs = [
                TensorType(self.local_shape(v.type.shape, g, split, mesh), v.type.dtype)
                for v, g in zip(op.results, rule.results)
            ]
            name, attrs = localize_op(op, types, outs, split, mesh)
            attrs = {k: evaluate_offset(v, at, mesh) for k, v in attrs.items()}
            results = execute(name, nest(local, self.case.operands), attrs)
            for type, result, whole in zip(outs, results, self.whole):
                if whole is not None and (result is None or tuple(result.shape) != type.shape):
                    raise Mismatch(f"a local result has the shape {result if result is None else result.shape}")
            parts[place] = results
        for i, whole in enumerate(self.whole):
            if whole is None:
                continue
            made = self.assemble(
                {place: results[i] for place, results in parts.items()}, rule, rule.results[i], split, mesh
            )
            compare(made, whole, f"result {i}")

    def local_shape(self, shape: Any, groups: Any, split: dict[str, str], mesh: dict[str, int]) -> tuple[int, ...]:
        result = []
        for size, group in zip(shape, groups, strict=True):
            for axis, factor in split.items():
                if factor in group:
                    size //= mesh[axis]
            result.append(size)
        return tuple(result)

    def cut(
        self, tensor: Tensor, groups: Any, split: dict[str, str], mesh: dict[str, int], at: dict[str, int]
    ) -> Tensor:
        """The part of a tensor that a device holds."""
        atoms, sizes = self.atoms(tensor, groups)
        out = tensor.reshape(sizes)
        for axis, factor in split.items():  # major axes first: each cuts what the others left
            if factor in atoms:
                dim = atoms.index(factor)
                length = out.shape[dim] // mesh[axis]
                out = out.narrow(dim, at[axis] * length, length)
        return out.reshape(self.local_shape(tensor.shape, groups, split, mesh)).contiguous()

    def atoms(self, tensor: Tensor, groups: Any) -> tuple[list[str], list[int]]:
        atoms: list[str] = []
        sizes: list[int] = []
        for size, group in zip(tensor.shape, groups, strict=True):
            atoms += group or ("1",)
            sizes += [self.sizes[f] for f in group] if group else [size]
        return atoms, sizes

    def assemble(
        self, parts: dict[tuple[int, ...], Any], rule: Rule, groups: Any, split: dict[str, str], mesh: dict[str, int]
    ) -> Tensor:
        """Puts a result together axis by axis, the minor axis first."""
        reduce = dict(rule.reduce)
        left = dict(split)
        for axis in reversed(list(mesh)):
            factor = left.pop(axis)
            joined = {}
            for place in {p[:-1] for p in parts}:
                pieces = [parts[(*place, i)] for i in range(mesh[axis])]
                if any(factor in g for g in groups):
                    joined[place] = self.join(pieces, groups, factor, left, mesh, mesh[axis])
                elif reduce.get(factor) == "sum":
                    joined[place] = sum(pieces[1:], start=pieces[0])
                elif reduce.get(factor) == "max":
                    joined[place] = torch.stack(pieces).amax(0)
                elif reduce.get(factor) == "copy":
                    for piece in pieces[1:]:
                        compare(piece, pieces[0], "copies")
                    joined[place] = pieces[0]
                elif factor == PENDING:
                    joined[place] = sum(pieces[1:], start=pieces[0])
                else:
                    raise Mismatch(f"the rule does not say what becomes of {factor}")
            parts = joined
        return parts[()]

    def join(
        self, pieces: list[Tensor], groups: Any, factor: str, left: dict[str, str], mesh: dict[str, int], count: int
    ) -> Tensor:
        """Pieces along a factor become one tensor; `left` are the axes that are still split."""
        shape, view, where = [], [], 0
        for group, size in zip(groups, pieces[0].shape):
            atoms = [self.sizes[f] for f in group] if group else [size]
            for i, f in enumerate(group):
                for axis, other in left.items():
                    if other == f:
                        atoms[i] //= mesh[axis]
                if f == factor:
                    where = len(view) + i
                    atoms[i] //= count
                    size *= count
            view += atoms
            shape.append(size)
        return torch.cat([p.reshape(view) for p in pieces], where).reshape(shape)

    def linear(self, positions: tuple[int, ...]) -> None:
        """Splits the operands at `positions` into two random terms; the results must add up."""
        flat = flatten(self.case.operands)
        if any(flat[p].dtype == torch.bool for p in positions):  # type: ignore[union-attr]
            return  # a bool is never pending
        terms = [dict[int, Tensor](), dict[int, Tensor]()]
        for p in positions:
            tensor = flat[p]
            assert tensor is not None
            noise = torch.randn_like(tensor) if tensor.is_floating_point() else torch.randint_like(tensor, 5)
            terms[0][p], terms[1][p] = noise, tensor - noise
        runs = []
        for term in terms:
            operands = nest([term.get(i, x) for i, x in enumerate(flat)], self.case.operands)
            runs.append(execute(self.case.name, operands, self.case.attrs))
        for i, whole in enumerate(self.whole):
            if whole is not None:
                if not whole.is_floating_point() and whole.dtype != torch.int64:
                    raise Mismatch("a bool is not a sum")
                compare(runs[0][i] + runs[1][i], whole, f"result {i}")  # type: ignore[operator]


PENDING = "<pending>"


def compare(a: Tensor, b: Tensor, what: str) -> None:
    if a.shape != b.shape:
        raise Mismatch(f"{what}: shape {tuple(a.shape)} instead of {tuple(b.shape)}")
    if a.dtype != b.dtype:
        raise Mismatch(f"{what}: {a.dtype} instead of {b.dtype}")
    near = 1e-9 if b.dtype == torch.float64 else 1e-5
    same = torch.allclose(a, b, near, near, equal_nan=True) if b.is_floating_point() else torch.equal(a, b)
    if not same:
        error = (a.double() - b.double()).abs().max().item()
        raise Mismatch(f"{what}: differs by {error:.2e}")


def evaluate_offset(value: Any, at: dict[str, int], mesh: dict[str, int]) -> Any:
    """`#offset<axes = [..], size = n>` on one device, as the code generator's code computes it, and `#part<..>`."""
    if isinstance(value, list):
        return [evaluate_offset(v, at, mesh) for v in value]
    if not isinstance(value, Struct) or value.name not in ("offset", "part"):
        return value
    coordinate = 0
    for axis in value["axes"]:  # type: ignore[union-attr]
        coordinate = coordinate * mesh[str(axis)] + at[str(axis)]
    if value.name == "part":
        return value["size"], coordinate * value["count"], value["count"]  # type: ignore[operator]
    return coordinate * value["size"]  # type: ignore[operator]


def splittable(rule: Rule) -> list[str]:
    return [f for f in rule.factors() if f not in rule.keep]


def check_rule(case: Case, rule: Rule, pairs: bool = True) -> list[str]:
    """What is wrong with a rule; [] when nothing is."""
    checker = Checker(case, rule)
    problems = []

    def attempt(what: str, action: Callable[[], None]) -> None:
        try:
            action()
        except (Mismatch, RuntimeError, ValueError, IndexError) as error:
            problems.append(f"{case}: {what}: {error}\n    {rule}")

    factors = splittable(rule)
    for f in factors:
        for n in (2, 3):
            if checker.sizes[f] % n == 0:
                attempt(f"{f} in {n}", lambda f=f, n=n: checker.split({"t0": f}, {"t0": n}))  # type: ignore[misc]
    for f, g in itertools.product(factors, factors) if pairs else ():
        first, second = (2, 3) if checker.sizes[g] % 3 == 0 else (2, 2)
        need = first * second if f == g else first
        if checker.sizes[f] % need == 0 and checker.sizes[g] % second == 0:
            split, mesh = {"t0": f, "t1": g}, {"t0": first, "t1": second}
            attempt(f"{f} over t0, {g} over t1", lambda s=split, m=mesh: checker.split(s, m))  # type: ignore[misc]
    for positions in rule.linear:
        attempt(f"linear {positions}", lambda p=positions: checker.linear(p))  # type: ignore[misc]
    return problems


def missing(case: Case, rule: Rule) -> list[str]:
    """What `search_missing` finds, from a process of its own: a kernel may crash on indices that fit no shard."""
    if not rule.keep:
        return list(search_missing(case, rule))
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        faulthandler.disable()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            for found in search_missing(case, rule):
                os.write(write, f"{found}\n".encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as lines:
        found = lines.read().splitlines()
    os.waitpid(child, 0)
    return found


def search_missing(case: Case, rule: Rule) -> Iterator[str]:
    """Splits (`x0`), pairs of splits (`x0=y0`) and linear clauses (`linear 0`) that the rule could have had."""
    checker = Checker(case, rule)
    for factor in (f for f in rule.keep if checker.sizes[f]):
        freed = [
            replace(
                rule,
                keep=tuple(f for f in rule.keep if f != factor),
                reduce=(*(r for r in rule.reduce if r[0] != factor), (factor, kind)),
            )
            for kind in ("sum", "max", "copy")
        ]
        parts = [n for n in (2, 3) if checker.sizes[factor] % n == 0]
        if parts and any(all(right(checker.split, {"t0": factor}, {"t0": n}, r) for n in parts) for r in freed):
            yield factor
    inside = {f for g in rule.operands for d in g or () for f in d}
    outside = {f for g in rule.results for d in g for f in d}
    for x, y in itertools.product(rule.keep, rule.keep):
        if x in inside - outside and y in outside - inside:
            parts = [n for n in (2, 3) if checker.sizes[x] % n == 0 and checker.sizes[y] % n == 0]
            if any(right(split_pair, case, rule, x, y, n) for n in parts):
                yield f"{x}={y}"
    floats = [i for i, t in enumerate(flatten(case.operands)) if t is not None and t.is_floating_point()]
    found: list[tuple[int, ...]] = []
    for count in range(1, len(floats) + 1):
        for positions in itertools.combinations(floats, count):
            known = any(set(c) <= set(positions) for c in (*rule.linear, *found))
            if not known and right(checker.linear, positions):
                found.append(positions)
                yield f"linear {' '.join(map(str, positions))}"


def right(action: Callable[..., None], *arguments: Any) -> bool:
    """Whatever goes wrong on a split that nobody promised: it is not legal."""
    try:
        action(*arguments)
    except Exception:
        return False
    return True


def split_pair(case: Case, rule: Rule, x: str, y: str, parts: int) -> None:
    """One kept factor of the operands and another, of another size, of the results, split alike."""
    tied = replace(rule, results=tuple(tuple(tuple(x if f == y else f for f in d) for d in g) for g in rule.results))
    checker = Checker(case, tied)
    op = Op(case.name, checker.op.operands, checker.op.results, {**case.attrs, "rule": tied})
    split, mesh, flat = {"t0": x}, {"t0": parts}, flatten(case.operands)
    pieces: dict[tuple[int, ...], list[Any]] = {}
    for place in range(parts):
        local = [
            t if t is None or g is None else checker.cut(t, g, split, mesh, {"t0": place})
            for t, g in zip(flat, rule.operands)
        ]
        types = [None if t is None else TensorType(tuple(t.shape), DTYPES[t.dtype]) for t in local]
        outs = [
            TensorType(checker.local_shape(v.type.shape, g, split, mesh), v.type.dtype)
            for v, g in zip(op.results, tied.results)
        ]
        name, attrs = localize_op(op, types, outs, split, mesh)
        pieces[(place,)] = execute(name, nest(local, case.operands), attrs)
    checker.sizes[x] = checker.sizes.get(y, dict(rule.sizes)[y])  # type: ignore[assignment]
    for i, whole in enumerate(checker.whole):
        if whole is not None:
            made = checker.assemble({p: r[i] for p, r in pieces.items()}, tied, tied.results[i], split, mesh)
            compare(made, whole, f"result {i}")


def rules_for(case: Case) -> list[Rule]:
    """All the rules of the case's op, the most detailed first."""
    return alternatives(as_op(case, execute(case.name, case.operands, case.attrs)))
