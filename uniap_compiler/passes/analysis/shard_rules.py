"""The pass `shard-rules`: every op of every forward/backward pair gets its sharding rule, with consistent factors.

    %q = aten.view(%p) {size = [B, 128, 8, 64], rule = #rule<d2 d1 d3 d4 -> d2 d1 d3 d4 ...>} : tensor<Bx128x8x64xf32>

`rule_of` looks at one op; `refine` at a forward func and its backward together: a dim of a value has one list of
factors in all rules that mention it, and so do a parameter and its gradient, an activation and its tangent, a
forward value and its saved copy.  Every rule then carries the size of every factor; those that depend on the batch
are the batch factors, the only ones that data axes split.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, ClassVar

from uniap_compiler.ir import Affine, Diagnostic, Dim, Func, Module, Op, Rule, Value

from .factors import Conflict, Refinement, as_dim, as_int
from .rules.own import add_rules
from .rules.table import alternatives, has_rule, opaque, packet

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from uniap_compiler.passes.manager import Session

Atoms = dict[Value, tuple[tuple[Dim, ...], ...]]
"""For each value the sizes of the factors of each dim, major to minor; () for a dim of size one."""

ACCUMULATING = ("aten.index_put", "aten._unsafe_index_put", "aten.index_add")
ZEROS = ("aten.zeros", "aten.new_zeros", "aten.zeros_like")

# Which ops may choose a weaker rule when their factors clash with those of others, in the order of their claims.
VIEWS = ("aten.view", "aten._unsafe_view", "aten.reshape")


def rule_of(op: Op) -> Rule:
    """The rule of one op by itself, as detailed as its own shapes allow."""
    return alternatives(op)[0]


def refine(forward: Func, backward: Func | None = None) -> Atoms:
    """Sets the attribute `rule` of every op of the two funcs and returns the factors of every value."""
    return _Refiner(forward, backward).run()


class _Refiner:
    def __init__(self, forward: Func, backward: Func | None) -> None:
        self.forward, self.backward = forward, backward
        self.ops = [op for f in (forward, backward) if f is not None for op in f.ops if _is_compute(op)]
        self.nodes = Refinement()
        self.dims: dict[Value, list[int]] = {}
        self.kept: set[int] = set()  # nodes of factors that an attention never splits

    def run(self) -> Atoms:
        for func in (self.forward, self.backward):
            for value in func.values() if func is not None else ():
                self.dims[value] = [self.nodes.node(as_int(d)) for d in value.type.shape]
        for a, b in same_factors(self.forward, self.backward):
            if a.type.shape == b.type.shape:
                pairs = zip(self.dims[a], self.dims[b])
                self.nodes.tie([(y, [x]) for x, y in pairs if x != y])
        self._mark_fresh_tables()
        chosen: dict[Op, tuple[Rule, dict[str, int]]] = {}
        choices = {op: alternatives(op) for op in self.ops}
        # The least detailed rules first: they only tie equal dims.  Then views, then joins and slices, may ask for
        # factors, as long as these do not clash.
        for op in self.ops:
            chosen[op] = self._tie_weakest(op, choices[op])
        pieces = {op: self._pieces(op, rules[0]) for op, rules in choices.items() if len(rules) > 1}
        useless = self.nodes.equal(self.kept, pieces.values())
        for claim in (True, False):
            for op in self.ops:
                if len(choices[op]) > 1 and (packet(op.name) in VIEWS) == claim:
                    if not pieces[op].isdisjoint(useless):
                        continue
                    for rule in choices[op][:-1]:
                        try:
                            chosen[op] = self._tie(op, rule)
                            break
                        except Conflict:
                            continue
        for op, (rule, factors) in chosen.items():
            op.attrs["rule"] = self._refined(op, rule, factors)
        return {v: tuple(tuple(map(as_dim, self.nodes.atoms(n))) for n in dims) for v, dims in self.dims.items()}

    def _mark_fresh_tables(self) -> None:
        """Gradients of looked-up tables are added to zeros, so that devices may add up parts of the rows."""
        zeros = {op.results[0] for op in self.ops if op.name in ZEROS}
        for op in self.ops:
            if op.name in ACCUMULATING and op.operands[0] in zeros:
                op.attrs["onto_zeros"] = True

    def _tie_weakest(self, op: Op, choices: Sequence[Rule]) -> tuple[Rule, dict[str, int]]:
        try:
            rule, factors = self._tie(op, choices[-1])
        except Conflict:
            return self._tie(op, opaque(op))
        if op.name.startswith("nn.attention"):
            self.kept |= {factors[f] for f in rule.keep if f in ("d", "e")}
        return rule, factors

    def _tie(self, op: Op, rule: Rule) -> tuple[Rule, dict[str, int]]:
        factors = {f: self.nodes.node(as_int(size)) for f, size in rule.sizes}
        ties = []
        for value, groups in _tensors(op, rule):
            for node, group in zip(self.dims[value], groups, strict=True):
                if group:
                    ties.append((node, [factors[f] for f in group]))
        self.nodes.tie(ties)
        return rule, factors

    def _pieces(self, op: Op, rule: Rule) -> set[int]:
        """The dims that a slice or a join cuts or puts together.

        Where one of them is a head size, directly or by way of other slices and joins, cutting it helps nobody:
        attention needs heads whole.  This keeps rotary embeddings from cutting every head into halves.
        """
        return {
            node
            for value, groups in _tensors(op, rule)
            for node, group in zip(self.dims[value], groups)
            if "piece" in group
        }

    def _refined(self, op: Op, rule: Rule, nodes: dict[str, int]) -> Rule:
        """The rule with every factor cut at its points; the pieces of `h` are called h0, h1, ..."""
        taken = set(nodes)
        names: dict[str, tuple[str, ...]] = {}
        sizes: list[tuple[str, Dim]] = []
        for f, node in nodes.items():
            atoms = self.nodes.atoms(node)
            spelt = (f,) if len(atoms) == 1 else tuple(_fresh(f"{f}{i}", taken) for i in range(len(atoms)))
            names[f] = spelt
            sizes += zip(spelt, map(as_dim, atoms))

        def spell(groups: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
            return tuple(tuple(x for f in group for x in names[f]) for group in groups)

        # Only the most major piece of a class or row dim is a contiguous slice, which is what an offset can tell.
        offset = tuple(names[f][0] for f in rule.offset)
        keep = [x for f in rule.keep for x in names[f]] + [x for f in rule.offset for x in names[f][1:]]
        route = [(name, fs) for name, factors in rule.route for fs in product(*(names[f] for f in factors))]
        whole = {f for f, size in sizes if not isinstance(size, int)} | set(keep)
        route = [(name, fs) for name, fs in route if whole.isdisjoint(fs)]  # the batch belongs to data axes
        return Rule(
            operands=tuple(None if g is None else spell(g) for g in rule.operands),
            results=tuple(spell(g) for g in rule.results),
            reduce=tuple((x, kind) for f, kind in rule.reduce for x in names[f] if x not in keep),
            keep=tuple(keep),
            offset=offset,
            linear=rule.linear,
            sizes=tuple(sizes),
            route=tuple((_fresh(f"{name}{n if n else ''}", taken), fs) for n, (name, fs) in enumerate(route)),
        )


def _fresh(wish: str, taken: set[str]) -> str:
    while wish in taken:
        wish += "_"
    taken.add(wish)
    return wish


def _is_compute(op: Op) -> bool:
    return not op.name.startswith(("plan.", "comm.", "mesh.", "sched."))


def _tensors(op: Op, rule: Rule) -> Iterator[tuple[Value, tuple[tuple[str, ...], ...]]]:
    """Every operand and result with its dims' factors."""
    for value, groups in zip(op.flat_operands(), rule.operands, strict=True):
        if value is not None and groups is not None:
            yield value, groups
    yield from zip(op.results, rule.results, strict=True)


def same_factors(forward: Func, backward: Func | None) -> Iterator[tuple[Value, Value]]:
    """Pairs of values that are laid out alike: copies of forward values, tangents and outputs, gradients and params."""
    params = {p.name: p for p in forward.params}
    names = _result_names(forward)
    for value, name in zip(forward.returns, names):
        if value is not None and name.startswith("buffer:"):
            updated = name.removeprefix("buffer:")
            for param in forward.params:
                if param.attrs.get("role") == "buffer" and updated in (param.name, param.attrs.get("path")):
                    yield param, value
    if backward is None:
        return
    known = {v.name: v for v in forward.values()}
    for param in backward.params:
        of = param.attrs.get("of")
        source = known.get(str(of)) if of is not None else known.get(param.name)
        if source is not None:
            yield source, param
    for value, name in zip(backward.returns, _result_names(backward)):
        target = params.get(name.removeprefix("grad:"))
        if value is not None and target is not None:
            yield target, value


def _result_names(func: Func) -> list[str]:
    names = func.attrs.get("results")
    return [str(n) for n in names] if isinstance(names, (list, tuple)) else [""] * len(func.returns)


def batch_obstacles(func: Func) -> list[tuple[Op, str]]:
    """Ops (with the factor) that need the whole batch on every device although the batch is in their shapes."""
    found = []
    for op in func.ops:
        rule = op.attrs.get("rule")
        if isinstance(rule, Rule):
            sizes = dict(rule.sizes)
            found += [(op, f) for f in rule.keep if isinstance(sizes[f], Affine)][:1]
    return found


def check_batch(func: Func) -> None:
    """Raises a Diagnostic for the first op that data axes cannot split."""
    for op, factor in batch_obstacles(func):
        if not has_rule(op.name):
            raise no_rule(op, func)
        message = f"{op.name} cannot be split over the batch: its factor {factor} must stay whole"
        hint = "use tensor parallelism or pipeline stages for this layer (dp=1), or write it without this op"
        raise Diagnostic(message, loc=op.loc, op=op, func=func, notes=[f"rule: {op.attrs['rule']}"], help=hint)


def no_rule(op: Op, func: Func) -> Diagnostic:
    """What to add, and where, for an op that no table knows."""
    shapes = ", ".join(str(v.type) for v in op.flat_operands() if v is not None)
    return Diagnostic(
        f"{op.name} has no sharding rule, so the batch cannot be split over data axes", loc=op.loc, op=op, func=func,
        notes=[f"its operands are {shapes}; its results {', '.join(str(r.type) for r in op.results)}"],
        help="say how its dims are tied, in one line of the task file: "
        f'uniap_compiler.add_rule("{qualified(op.name)}", "b* d, d -> b* d") (docs/own-ops.md); or force dp=1',
    )  # fmt: skip


def qualified(name: str) -> str:
    """mylib.gate.overload -> mylib::gate"""
    return "::".join(name.split(".")[:2])


def unruled(func: Func) -> list[Op]:
    """The first op of each name that no table knows: whole on tensor axes."""
    first: dict[str, Op] = {}
    for op in func.ops:
        if _is_compute(op) and not has_rule(op.name):
            first.setdefault(op.name, op)
    return list(first.values())


@dataclass(frozen=True)
class ShardRules:
    """Annotate every op of the differentiated layers with its sharding rule."""

    name: ClassVar[str] = "shard-rules"
    requires: ClassVar[str] = "differentiated"
    ensures: ClassVar[str] = "annotated"

    def run(self, module: Module, session: Session) -> str:
        rules = module.attrs.get("rules", [])
        assert isinstance(rules, list)
        add_rules((str(op), str(text)) for op, text in rules)
        count, unknown = 0, set()
        for func in list(module.funcs.values()):
            if func.attrs.get("kind") != "forward":
                continue
            backward = _backward_of(module, func)
            refine(func, backward)
            for f in (func, backward):
                if f is not None:
                    count += len(f.ops)
                    unknown |= {op.name for op in unruled(f)}
        for name in sorted(unknown):
            log.warning(
                "%s has no sharding rule: every device of a tensor-parallel group computes all of it, and its layer is "
                'not split over data axes; uniap_compiler.add_rule("%s", ...) gives it one', name, qualified(name),
            )  # fmt: skip
        text = f"{count} ops"
        return f"{text}; without a rule, kept whole: {', '.join(sorted(unknown))}" if unknown else text


def _backward_of(module: Module, forward: Func) -> Func | None:
    for func in module.funcs.values():
        if func.attrs.get("kind") == "backward" and str(func.attrs.get("of")) == forward.name:
            return func
    return None
