"""Split the batch over data axes: layouts and collectives of one func, op by op, by rules only.

The func arrives with layouts over its tensor axes.  Each value is, over all data axes together,
    split    in its batch factor (the factor whose size depends on B)
    sum, max pending: a reduction over the batch whose parts have not been added up yet
    whole    equal on every device (parameters, and what is computed from them alone)
and the op's rule says what follows.  Scalars are never touched: a mean over the micro-batch stays a sum of local
terms divided by the whole micro-batch's count, so what the data-parallel devices compute together is what one device
would compute.

    %s = aten.sum.dim_IntList(%x) {dim = [0]} : tensor<64xf32> @[_; sum a]      x is split over a in its batch dim
    %s_1 = comm.all_reduce(%s) {axes = ["a"], op = "sum"} : tensor<64xf32> @[_] ahead of an op that is not linear in s
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from uniap_compiler.ir import Affine, Atom, Diagnostic, Dim, Func, Layout, Namer, Op, Part, Rule, Struct, Value, at
from uniap_compiler.ir.layouts import DimLayout

from ..analysis.rules.table import has_rule
from ..analysis.shard_rules import no_rule
from .reshard import emit

SPLIT, SUM, MAX, WHOLE_ON_DATA = "split", "sum", "max", "whole"
Atoms = tuple[tuple[Dim, ...], ...]
"""For each dim of a value the sizes of its factors, major to minor."""


def atoms_of(value: Value, rule: Rule, position: int, *, result: bool) -> Atoms:
    """The factors that the (refined) rule gives to the dims of one operand or result."""
    dims = rule.results[position] if result else rule.operands[position]
    assert dims is not None
    sizes = dict(rule.sizes)
    return tuple(tuple(sizes[f] for f in group) or (1,) for group in dims)


def batch_atom(atoms: Atoms) -> tuple[int, int] | None:
    """(dim, factor) of the first factor whose size depends on B."""
    for d, sizes in enumerate(atoms):
        for k, size in enumerate(sizes):
            if isinstance(size, Affine):
                return d, k
    return None


def _per_atom(dim: DimLayout, sizes: Sequence[Dim], mesh: dict[str, int]) -> list[tuple[str, ...]]:
    """The axes that split each factor of a dim, read back from a canonical layout."""
    axes: list[tuple[str, ...]] = []
    parts = list(dim)
    if len(parts) == 1:  # contiguous: fill from the major factor on
        rest = parts[0].axes
        for size in sizes:
            here: list[str] = []
            left = at(size, 1 << 20)
            while rest and left % mesh[rest[0]] == 0 and left > 1:
                left //= mesh[rest[0]]
                here.append(rest[0])
                rest = rest[1:]
                if left == 1:
                    break
            axes.append(tuple(here))
        assert not rest, f"{dim} does not fit the factors {sizes}"
        return axes
    index, left = 0, 1
    for size in sizes:  # parts are unions of neighbouring factors; only the first factor of a part can be split
        if left == 1:
            left = at(parts[index].size, 1 << 20)  # type: ignore[arg-type]
            axes.append(parts[index].axes)
            index += 1
        else:
            axes.append(())
        left //= at(size, 1 << 20)
    return axes


def with_data(layout: Layout, atoms: Atoms, state: str, data: Sequence[str], mesh: dict[str, int]) -> Layout:
    """The layout over tensor axes, extended by the state over the data axes (in mesh order)."""
    if state == WHOLE_ON_DATA:
        return layout
    if state in (SUM, MAX):
        order = list(mesh)
        pending = (*layout.pending, *((state, axis) for axis in data))
        return Layout(layout.dims, tuple(sorted(pending, key=lambda q: order.index(q[1]))))
    place = batch_atom(atoms)
    assert place is not None
    d, k = place
    axes = _per_atom(layout.dims[d], atoms[d], mesh)
    assert not axes[k], "the batch is never split over tensor axes"
    axes[k] = tuple(data)
    sizes = atoms[d]
    dim = tuple(Part(a, s) for a, s in zip(axes, sizes)) if len(sizes) > 1 else (Part(axes[0]),)
    return Layout((*layout.dims[:d], dim, *layout.dims[d + 1 :]), layout.pending).canonical()


@dataclass
class DataAxes:
    """Rewrites one func in place.  mesh: axis -> size in mesh order; data: the axes that split the batch.

    After `run`, every value's layout names data axes too and every needed collective stands in the func.
    """

    func: Func
    data: tuple[str, ...]
    mesh: dict[str, int]
    param_states: dict[str, str]
    states: dict[Value, str] = field(default_factory=dict)
    atoms: dict[Value, Atoms] = field(default_factory=dict)

    def run(self, wanted: Sequence[str | None]) -> None:
        """wanted: for each return the state it must have, None for "as it is"."""
        self.namer = Namer(self.func)
        self.out: list[Op] = []
        self.emitted: dict[tuple[Value, str], Value] = {}
        self._collect_atoms()
        if not self.data:  # nothing is split, so nothing can stand in the way
            for whole in self.func.values():
                self._set(whole, WHOLE_ON_DATA)
            return
        for p in self.func.params:
            self._set(p, self.param_states[p.name])
        for op in self.func.ops:
            self._op(op)
        for n, (value, state) in enumerate(zip(self.func.returns, wanted, strict=True)):
            if value is not None and state is not None:
                self.func.returns[n] = self._as(value, state)
        self.func.ops = self.out

    def _collect_atoms(self) -> None:
        for op in self.func.ops:
            rule = op.attrs.get("rule")
            if isinstance(rule, Rule):
                for n, value in enumerate(op.flat_operands()):
                    if value is not None and value not in self.atoms:
                        self.atoms[value] = atoms_of(value, rule, n, result=False)
                for n, value in enumerate(op.results):
                    self.atoms[value] = atoms_of(value, rule, n, result=True)
            elif op.name.startswith("comm."):
                (operand,) = [v for v in op.flat_operands() if v is not None]
                known = self.atoms.get(operand) or self.atoms.get(op.results[0])
                if known is not None:
                    self.atoms[operand] = self.atoms[op.results[0]] = known
        changed = True
        while changed:  # comm chains on values that only a later rule describes
            changed = False
            for op in reversed(self.func.ops):
                if op.name.startswith("comm."):
                    (operand,) = [v for v in op.flat_operands() if v is not None]
                    for a, b in ((operand, op.results[0]), (op.results[0], operand)):
                        if a in self.atoms and b not in self.atoms:
                            self.atoms[b] = self.atoms[a]
                            changed = True
        for value in self.func.values():
            self.atoms.setdefault(value, tuple((d,) for d in value.type.shape))

    def has_batch(self, value: Value) -> bool:
        return batch_atom(self.atoms[value]) is not None

    def _set(self, value: Value, state: str) -> None:
        self.states[value] = state
        layout = value.type.layout or Layout.replicated(len(value.type.shape))
        value.type = value.type.with_layout(with_data(layout, self.atoms[value], state, self.data, self.mesh))

    def _as(self, value: Value, state: str) -> Value:
        """`value` in another state, through collectives that are shared by all readers."""
        if self.states[value] == state:
            return value
        key = (value, state)
        if key not in self.emitted:
            layout = value.type.layout
            assert layout is not None
            tensor_only = _without(layout, self.data)
            goal = with_data(tensor_only, self.atoms[value], state, self.data, self.mesh)
            loc = next((op.loc for op in self.out if value in op.results), None)
            new = emit(value, goal, list(self.mesh), self.out, self.namer, loc)
            self.atoms[new], self.states[new] = self.atoms[value], state
            self.emitted[key] = new
        return self.emitted[key]

    def _op(self, op: Op) -> None:
        operands = op.flat_operands()
        if op.name.startswith("comm."):
            (operand,) = [v for v in operands if v is not None]
            # A maximum over tensor axes of a value that is a partial sum over data axes would be wrong.
            if self.states[operand] != SPLIT and op.attrs.get("op") == "max" and self.states[operand] != MAX:
                op.replace_operands(lambda v: self._as(v, WHOLE_ON_DATA))
                operand = next(v for v in op.flat_operands() if v is not None)
            self._finish(op, [self.states[operand]] * len(op.results))
            return
        rule = op.attrs.get("rule")
        if not isinstance(rule, Rule):
            raise Diagnostic("an op without a sharding rule cannot be split over data axes", op=op, func=self.func)
        factor = self._batch_factor(op, rule, operands)
        if factor is None:
            linear = self._linear(rule, operands)
            if linear is not None:
                self._finish(op, [SUM] * len(op.results))
                return
            op.replace_operands(lambda v: self._as(v, WHOLE_ON_DATA) if self.states[v] in (SUM, MAX) else v)
            self._finish(op, [WHOLE_ON_DATA] * len(op.results))
            return
        reduce = dict(rule.reduce)
        carries = {
            v: any(factor in group for group in dims)
            for v, dims in zip(operands, rule.operands, strict=True)
            if v is not None and dims is not None
        }
        op.replace_operands(lambda v: self._as(v, SPLIT if carries[v] else WHOLE_ON_DATA))
        results = []
        for dims in rule.results:
            if any(factor in group for group in dims):
                results.append(SPLIT)
            else:
                results.append({"sum": SUM, "max": MAX, "copy": WHOLE_ON_DATA}[reduce[factor]])
        split = op.attrs.get("split")
        fields = dict(split.fields) if isinstance(split, Struct) else {}
        fields.update({axis: Atom(factor) for axis in self.data})
        op.attrs["split"] = Struct("split", tuple((a, fields[a]) for a in self.mesh if a in fields))
        self._finish(op, results)

    def _batch_factor(self, op: Op, rule: Rule, operands: Sequence[Value | None]) -> str | None:
        """The factor of the op that the batch split runs along, None when no operand is split."""
        found: dict[str, Value | None] = {}
        for n, value in enumerate(operands):
            if value is not None and self.states[value] == SPLIT:
                place = batch_atom(self.atoms[value])
                assert place is not None
                dims = rule.operands[n]
                assert dims is not None
                found[dims[place[0]][place[1]]] = value
        if not found:  # a constructor or an expansion: build the local slice only
            sizes = dict(rule.sizes)
            carried = {f for dims in rule.operands for group in dims or () for f in group}
            fresh = [f for f in rule.factors() if f not in carried and f not in rule.keep]
            found = {f: None for f in fresh if isinstance(sizes[f], Affine)}
        if len(found) > 1:
            raise Diagnostic(
                "two different dims of this op would be split over the data axes", op=op, func=self.func, loc=op.loc,
                notes=[f"factors {', '.join(found)} of the rule {rule} are both the batch"],
                help="every row meets every other one here: use tensor parallelism or pipeline stages for this layer "
                "(dp=1)",
            )
        factor = next(iter(found), None)
        if factor is not None and factor in rule.keep:
            if not has_rule(op.name):
                raise no_rule(op, self.func)
            raise Diagnostic(
                f"{op.name} cannot be split in its batch dim: its rule keeps factor `{factor}` whole",
                op=op, func=self.func, loc=op.loc, notes=[f"its rule is {rule}"],
                help="use tensor parallelism or pipeline stages for this layer (dp=1), or write it without this op",
            )
        return factor

    def _linear(self, rule: Rule, operands: Sequence[Value | None]) -> tuple[int, ...] | None:
        """The linear clause that lets the pending operands pass: exactly these pending, the others complete."""
        pending = {n for n, v in enumerate(operands) if v is not None and self.states[v] == SUM}
        if not pending or any(v is not None and self.states[v] == MAX for v in operands):
            return None
        for clause in rule.linear:
            if pending == {n for n in clause if operands[n] is not None}:
                return clause
        return None

    def _finish(self, op: Op, states: Sequence[str]) -> None:
        self.out.append(op)
        for value, state in zip(op.results, states, strict=True):
            self._set(value, state)


def _without(layout: Layout, axes: Sequence[str]) -> Layout:
    dims = tuple(tuple(Part(tuple(a for a in p.axes if a not in axes), p.size) for p in dim) for dim in layout.dims)
    return Layout(dims, tuple(q for q in layout.pending if q[1] not in axes)).canonical()
