"""One local func as the source of one Python function.

    def block_dp2_tp2_forward(
        comm,
        x,  # f32[2, 64, 128]
        wq,  # f32[64, 128]
    ):
        \"\"\"layers.0 ... layers.3, forward.\"\"\"
        # llama.py:41 in layers.0.attn.wq
        q = nn.contract(x, wq, equation="b s k, n k -> b s n")  # f32[2, 64, 64]
        q = q.reshape(2, 64, 2, 32)                             # f32[2, 64, 2, 32]

Values keep their IR names; a value whose operand of the same stem dies here takes over the operand's name
(`q = q.reshape`), which gives the memory up as a person would.  Everything else is deleted at its last use.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from ..ir import ITEM_BYTES, Func, Loc, Op, TensorType, Value
from .expressions import Call, Scope, expression
from .layout import assignment, fill, returned
from .names import Namespace, comment, identifier
from .wishes import stem, wishes

_COLUMN = 92
"""How far to the right the comments behind lines may start."""
_TRANSIENT = ("input:", "saved:", "recv:", "recv_grad:", "seed:")
"""Roles of arguments that nobody else holds: given up at their last use."""


@dataclass
class Callee:
    """A function that others call: its Python name, the params it takes as lists, and who uses it."""

    func: Func
    python: str
    lists: list[tuple[int, int]] = field(default_factory=list)
    doc: str = ""
    wishes: dict[str, str] = field(default_factory=dict)


def shown_type(type: TensorType) -> str:
    """f32[2, 64, 128]"""
    return f"{type.dtype}[{', '.join(map(str, type.shape))}]"


def size_bytes(type: TensorType) -> int:
    for size in type.shape:
        if not isinstance(size, int):
            raise ValueError(f"a size of a local func depends on the batch: {type}")
    return math.prod(int(str(d)) for d in type.shape) * ITEM_BYTES[type.dtype]


def phase_of(call: Op, callee: Func) -> str:
    """forward, backward or recompute."""
    return str(call.attrs.get("phase") or callee.attrs.get("kind") or "call")


def write_layer(
    callee: Callee, callees: dict[str, Callee], reserved: frozenset[str], axes: tuple[str, ...]
) -> list[str]:
    """The function of one kind of layer and strategy."""
    return _Writer(callee.func, callees, reserved, axes, {}, callee.wishes).layer(callee)


def write_segment(
    func: Func, python: str, doc: str, callees: dict[str, Callee], packs: Iterable[tuple[Value, ...]],
    reserved: frozenset[str], axes: tuple[str, ...],
) -> list[str]:
    """A segment of a stage: `def forward(comm, args)`."""
    writer = _Writer(func, callees, reserved, axes, {pack: "" for pack in packs}, _segment_wishes(func))
    return writer.segment(python, doc)


def _segment_wishes(func: Func) -> dict[str, str]:
    """A gradient that arrives is called d_h, not like the value that it belongs to."""
    roles = func.attrs["args"]
    assert isinstance(roles, list)
    bound = zip(func.params, roles, strict=True)
    return wishes(func, gradients=[p.name for p, role in bound if str(role).startswith(("recv_grad:", "grad:"))])


class _Writer:
    def __init__(
        self, func: Func, callees: dict[str, Callee], reserved: frozenset[str], axes: tuple[str, ...],
        packs: dict[tuple[Value, ...], str], wished: dict[str, str],
    ) -> None:
        self.func, self.callees, self.packs, self.wished = func, callees, packs, wished
        self.names = Namespace(reserved)
        self.python: dict[Value, str] = {}
        self.scope = Scope(self._name, axes)
        self.lines: list[str] = []
        self.comments: dict[int, str] = {}
        end = len(func.ops)
        self.last: dict[Value, int] = {}
        for i, op in enumerate(func.ops):
            self.last.update({v: i for v in op.flat_operands() if v is not None})
        self.last.update({v: end for v in func.returns if v is not None})
        self.packed = {v: pack for pack in packs for v in pack}
        self.owned: set[Value] = {r for op in func.ops for r in op.results}
        self.largest = max((size_bytes(v.type) for v in func.values()), default=0)
        self.dead: list[Value] = []

    # -- heads ------------------------------------------------------------------------------------------------------

    def layer(self, callee: Callee) -> list[str]:
        starts = {start: stop for start, stop in callee.lists}
        head, unpack, i = [f"def {callee.python}(", "    comm,"], [], 0
        while i < len(self.func.params):
            stop = starts.get(i, i + 1)
            params = self.func.params[i:stop]
            if i in starts:
                name = self.names.create("saved")
                head.append(f"    {name},  # what the forward left, used up here")
                unpack.append((name, params))
            else:
                head.append(f"    {self._declare(params[0])},  # {shown_type(params[0].type)}")
            i = stop
        self.lines += [*head, "):", f'    """{callee.doc}"""']
        for name, params in unpack:
            self.owned.update(params)
            self.lines += assignment([self._declare(p) for p in params], name)
            self.lines.append(f"    {name}.clear()")
        return self._body()

    def segment(self, python: str, doc: str) -> list[str]:
        self.lines += [f"def {python}(comm, args):", f'    """{doc}"""']
        roles = self.func.attrs["args"]
        assert isinstance(roles, list) and len(roles) == len(self.func.params)
        for value, role in zip(self.func.params, roles, strict=True):
            if str(role).startswith(_TRANSIENT):
                self.owned.add(value)
        self._name_packs()
        self._unpack()
        if self.func.params:
            self.lines.append("    args.clear()")
        return self._body()

    def _unpack(self) -> None:
        """`a, b = args`, or slices of it where some of them stay together."""
        params = self.func.params
        runs: list[tuple[int, int, str]] = []
        i = 0
        while i < len(params):
            pack = self.packed.get(params[i])
            if pack is not None:
                runs.append((i, i + len(pack), self.packs[pack]))
            elif runs and not runs[-1][2]:
                runs[-1] = (runs[-1][0], i + 1, "")
            else:
                runs.append((i, i + 1, ""))
            i = runs[-1][1]
        for start, stop, name in runs:
            source = "args" if len(runs) == 1 else f"args[{start}:{stop}]"
            if name:
                self.lines.append(f"    {name} = {source}")
                continue
            names = [self._declare(p) for p in params[start:stop]]
            self.lines += assignment(names, source if len(names) > 1 else f"args[{start}]")

    def _name_packs(self) -> None:
        """saved_layers_0: a pack is called after the layer whose call makes or takes it."""
        persistent = {p for p in self.func.params if p not in self.owned}
        made: set[str] = set()
        for pack in self.packs:
            maker = next((op for op in self.func.ops if pack[0] in op.results), None)
            taker = next((op for op in self.func.ops if pack[0] in op.flat_operands()), None)
            call = maker or taker
            layer = call.attrs.get("layer") if call is not None else None
            backward = maker is not None and phase_of(maker, self._callee(maker).func) == "backward"
            wish = "grads" if backward else "weights" if pack[0] in persistent else "saved"
            wish = f"{wish}_{layer}" if layer else wish
            self.packs[pack] = self.names.create(f"more_{wish}" if wish in made else wish)
            made.add(wish)

    # -- the body ---------------------------------------------------------------------------------------------------

    def _body(self) -> list[str]:
        place: object = None
        self.dead += [p for p in self.func.params if p in self.owned and p not in self.last and p not in self.packed]
        for i, op in enumerate(self.func.ops):
            here = self._place(op)
            if here != place:
                self._delete(0)
                if here:
                    self.lines.append(f"    # {here}")
            place = here
            self._delete(self.largest // 4)
            self._statement(i, op)
        self.lines += returned(self._returned())
        # Comments stand in one column, as far to the right as all but a few long lines need.
        lengths = sorted(len(self.lines[n]) for n in self.comments if not self.lines[n].startswith("    )"))
        column = min(_COLUMN, lengths[-1 - len(lengths) // 8]) if lengths else 0
        for n, types in self.comments.items():
            self.lines[n] = f"{self.lines[n]:<{0 if self.lines[n].startswith('    )') else column}}  # {types}"
        return self.lines

    def _place(self, op: Op) -> str:
        if op.name == "plan.call":
            layer = op.attrs.get("layer")
            return comment(f"{layer}: {phase_of(op, self._callee(op).func)}") if layer else ""
        return _shown_loc(op.loc)

    def _statement(self, i: int, op: Op) -> None:
        value = self._call(op) if op.name == "plan.call" else expression(op, self.scope)
        if isinstance(value, Call) and (used := self._used(op)):
            value = replace(value, tail="[0]" if used == 1 else f"[:{used}]")
        dying = [v for v in dict.fromkeys(op.flat_operands()) if v is not None and self.last[v] == i]
        targets = self._targets(op, dying)
        self.lines += assignment(targets, value)
        types = ", ".join(shown_type(r.type) for r in op.results if r not in self.packed and r in self.python)
        if types:
            self.comments[len(self.lines) - 1] = types
        taken_over = {self.python.get(r) for r in op.results}
        self.dead += [
            v for v in dying if v in self.owned and v not in self.packed and self.python[v] not in taken_over
        ]
        self.dead += [r for r in op.results if r not in self.last and r in self.python]

    def _used(self, op: Op) -> int:
        """How many results of a call are wanted, when the rest of them is to be given up at once; else 0."""
        wanted = [r in self.last for r in op.results] if op.name == "plan.call" else []
        count = sum(wanted)
        return count if 0 < count < len(wanted) and all(wanted[:count]) else 0

    def _targets(self, op: Op, dying: list[Value]) -> list[str]:
        names: list[str] = []
        used = self._used(op)
        for result in op.results[: used or None]:
            pack = self.packed.get(result)
            if pack is not None:
                if result is pack[0]:
                    names.append("*" + self.packs[pack])
            elif result not in self.last and (size_bytes(result.type) <= self.largest // 4 or len(op.results) == 1):
                names.append("_")
            else:
                names.append(self._declare(result, self._heirs(op, result, dying, used)))
        if all(n == "_" for n in names):
            return ["_"] if names else []
        if len(names) == 1 and names[0].startswith("*"):
            return [f"({names[0]},)"]
        one = len(names) == 1 and used != 1 and (op.name == "plan.call" or len(op.results) > 1)
        return [f"({names[0]},)"] if one else names

    def _heirs(self, op: Op, result: Value, dying: list[Value], used: int) -> list[Value]:
        """The operands whose name a result may take over: any for one result, its own for several of a collective."""
        if used == 1 or len(op.results) == 1:
            return dying
        operands = op.flat_operands()
        if op.name.startswith("comm.") and len(operands) == len(op.results):
            own = operands[op.results.index(result)]
            return [own] if own is not None and own in dying and operands.count(own) == 1 else []
        return []

    def _call(self, op: Op) -> Call:
        callee = self._callee(op)
        starts = dict(callee.lists)
        args, i = ["comm"], 0
        while i < len(op.operands):
            operand = op.operands[i]
            if i in starts:
                group = [v for v in op.operands[i : starts[i]] if isinstance(v, Value)]
                pack = self.packed.get(group[0])
                args.append(self.packs[pack] if pack else f"[{', '.join(map(self._name, group))}]")
                i = starts[i]
            elif isinstance(operand, Value) and operand in self.packed:
                args.append("*" + self.packs[self.packed[operand]])
                i += len(self.packed[operand])
            else:
                args.append("None" if operand is None else self.scope.show(operand))
                i += 1
        return Call(callee.python, args)

    def _callee(self, op: Op) -> Callee:
        if op.symbol is None or op.symbol not in self.callees:
            raise ValueError(f"@{self.func.name} calls @{op.symbol}, which does not exist")
        return self.callees[op.symbol]

    def _returned(self) -> list[str]:
        names: list[str] = []
        for value in self.func.returns:
            pack = self.packed.get(value) if value is not None else None
            if value is None:
                names.append("None")
            elif pack is None:
                names.append(self._name(value))
            elif value is pack[0]:
                names.append("*" + self.packs[pack])
        return names

    def _delete(self, allowed: int) -> None:
        """Give up what is dead once it is more than `allowed` bytes."""
        if self.dead and sum(size_bytes(v.type) for v in self.dead) > allowed:
            names = [self.python[v] for v in self.dead]
            line = f"    del {', '.join(names)}"
            self.lines += [line] if len(line) <= 110 else ["    del (", *fill(names, " " * 8), "    )"]
            self.dead.clear()

    # -- names ------------------------------------------------------------------------------------------------------

    def _name(self, value: Value) -> str:
        return self.python[value]

    def _declare(self, value: Value, dying: Iterable[Value] = ()) -> str:
        wish = identifier(self.wished[value.name])
        for operand in dying:
            if stem(identifier(self.wished[operand.name])) == stem(wish) and operand not in self.packed:
                self.python[value] = self.python[operand]
                return self.python[value]
        self.python[value] = self.names.create(wish)
        return self.python[value]


def _shown_loc(loc: Loc | None) -> str:
    if loc is None:
        return ""
    return comment(f"{loc.file}:{loc.line} in {loc.module}" if loc.module else f"{loc.file}:{loc.line}")


