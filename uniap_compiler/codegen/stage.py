"""stages/stage_N.py: the local programme of one stage, the same text for all of its ranks.

First one function per kind of layer and strategy, in the order in which the stage uses them, then the segments
(prelude, forward, backward, reduce_gradients, refresh_parameters), then ARGS, RESULTS and TRANSFERS: what the
runtime hands to each segment and stores of it (docs/bundle.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..ir import Func, Module, Struct, Value
from ..ir.ops import is_own
from .function import Callee, phase_of, shown_type, write_layer, write_segment
from .names import Namespace, comment, dtype, string
from .packs import find_packs
from .wishes import wishes

SEGMENTS = ("prelude", "forward", "backward", "backward_last", "reduce_gradients", "refresh_parameters")
_SEGMENT_DOCS = {
    "prelude": "What is computed from inputs and constants alone, for the layers of this stage.",
    "forward": "One micro-batch through the layers of this stage.",
    "backward": "The gradients of one micro-batch.  Those of parameters are added up over the micro-batches.",
    "backward_last": "The same for the last micro-batch: complete sums are reduced over the ranks meanwhile.",
    "reduce_gradients": "Once per step: the added-up gradients, complete, in the layout of the parameters.",
    "refresh_parameters": "Once per step, after the optimizer: copies of parameters get the new values.",
}
_FILE_NAMES = frozenset(
    {"torch", "aten", "Path", "own_ops", "nn", "comm", "args", "ARGS", "RESULTS", "TRANSFERS", "_", *SEGMENTS}
)


@dataclass
class _Use:
    """Which layers call a function, in which phase and strategy."""

    layers: list[str]
    phase: str
    strategy: str


def write_stage(module: Module, stage: int, stages: int, axes: tuple[str, ...]) -> str:
    """axes: the mesh's, in order."""
    segments = segments_of(module, stage)
    order = list(dict.fromkeys(_called(module, segments.values())))
    names = Namespace(_FILE_NAMES)
    uses = _uses(module, segments.values())
    bodies = {name: module.funcs[name] for name in order}
    packs = find_packs(list(segments.values()), bodies)
    callees = {
        name: Callee(body, names.create(name), packs.params.get(name, []), _doc(uses.get(name)), _wishes(module, body))
        for name, body in bodies.items()
    }
    blocks = [
        *(write_layer(callee, callees, names.taken(), axes) for callee in callees.values()),
        *(
            write_segment(func, segment, _SEGMENT_DOCS[segment], callees, packs.of[func.name], names.taken(), axes)
            for segment, func in segments.items()
        ),
        _roles("ARGS", segments, arguments=True),
        _roles("RESULTS", segments, arguments=False),
        _transfers(segments),
    ]
    layers = _ranges(dict.fromkeys(layer for use in uses.values() for layer in use.layers))
    # Nothing that comes from a name may stand in the first two lines, where Python looks for an encoding.
    head = [
        f'"""Stage {stage} of {stages}, as every one of its ranks runs it.  Written by uniap-compiler.',
        "",
        f"Layers: {layers or 'none'}.  Shapes are those of one rank and one micro-batch.",
        '"""',
        "",
        *_imports(module, bodies.values()),
        "",
        "aten = torch.ops.aten",
    ]
    return "\n".join(head) + "".join("\n\n\n" + "\n".join(block) for block in blocks) + "\n"


def _imports(module: Module, bodies: Iterable[Func]) -> list[str]:
    """torch and the kernels; files of the user's ops where this stage runs some."""
    own = sorted({"::".join(op.name.split(".")[:2]) for body in bodies for op in body.ops if is_own(op.name)})
    if not own:
        return ["import torch", "", "from ..runtime import kernels as nn"]
    names = module.attrs.get("ops", [])
    assert isinstance(names, list)
    files = ", ".join(string(f"ops/{name}") for name in names)
    return [
        "from pathlib import Path", "", "import torch", "", "from ..runtime import kernels as nn",
        "from ..runtime import own_ops", "",
        f"own_ops.load(Path(__file__).parents[1], [{files}], [{', '.join(map(string, own))}])",
    ]  # fmt: skip


def _wishes(module: Module, func: Func) -> dict[str, str]:
    """A function that belongs to a forward one (`of`) speaks of its values by the names that they have there."""
    of = func.attrs.get("of")
    forward = module.funcs.get(str(of)) if of is not None else None
    if forward is None:
        return wishes(func)
    return wishes(func, wishes(forward)) if func.attrs.get("kind") == "backward" else wishes(forward) | wishes(func)


def segments_of(module: Module, stage: int) -> dict[str, Func]:
    """Segment -> func, those that have work."""
    found = {s: module.funcs[f"stage_{stage}.{s}"] for s in SEGMENTS if f"stage_{stage}.{s}" in module.funcs}
    return {s: f for s, f in found.items() if f.params or f.ops or f.returns}


def _called(module: Module, funcs: Iterable[Func]) -> Iterator[str]:
    """Every func that is called, callees before callers, else in order of first use."""
    for func in funcs:
        for op in func.ops:
            if op.name == "plan.call":
                if op.symbol not in module.funcs:
                    raise ValueError(f"@{func.name} calls @{op.symbol}, which does not exist")
                yield from _called(module, [module.funcs[op.symbol]])
                yield op.symbol


def _uses(module: Module, funcs: Iterable[Func]) -> dict[str, _Use]:
    uses: dict[str, _Use] = {}
    for func in funcs:
        for op in func.ops:
            if op.name != "plan.call" or op.symbol is None:
                continue
            strategy = op.attrs.get("strategy")
            phase = phase_of(op, module.funcs[op.symbol])
            use = uses.setdefault(op.symbol, _Use([], phase, _shown_strategy(strategy)))
            layer = op.attrs.get("layer")
            if layer is not None and str(layer) not in use.layers:
                use.layers.append(str(layer))
    return uses


def _doc(use: _Use | None) -> str:
    if use is None or not use.layers:
        return "Part of the functions below."
    layers = use.layers[::-1] if use.phase == "backward" else use.layers
    text = f"{use.phase} of {_ranges(layers)}"
    return comment(text[0].upper() + text[1:] + (f": {use.strategy}" if use.strategy else "")) + "."


def _shown_strategy(strategy: object) -> str:
    if not isinstance(strategy, Struct):
        return ""
    dull = {"shard": "none", "recompute": "none", "boundary": "replicated"}
    return ", ".join(f"{k}={v}" for k, v in strategy.fields if dull.get(k) != v)


def _ranges(names: Iterable[str]) -> str:
    """layers.0, layers.1, layers.2, layers.3 -> layers.0 ... layers.3"""
    names = list(names)
    if len(names) > 3:
        return comment(f"{names[0]} ... {names[-1]} ({len(names)} layers)")
    return comment(", ".join(names))


def _roles(constant: str, segments: dict[str, Func], arguments: bool) -> list[str]:
    lines = [f"{constant} = {{"]
    for segment, func in segments.items():
        roles = func.attrs["args" if arguments else "results"]
        values: list[Value | None] = [*func.params] if arguments else func.returns
        if not isinstance(roles, list) or len(roles) != len(values):
            raise ValueError(f"@{func.name} has {len(values)} {'params' if arguments else 'returns'}, but other roles")
        if not roles:
            lines.append(f"    {string(segment)}: [],")
            continue
        lines.append(f"    {string(segment)}: [")
        for role, value in zip(roles, values, strict=True):
            shown = f"  # {shown_type(value.type)}" if value is not None else ""
            lines.append(f"        {string(str(role))},{shown}")
        lines.append("    ],")
    return [*lines, "}"]


def _transfers(segments: dict[str, Func]) -> list[str]:
    found: dict[str, tuple[tuple[object, ...], str]] = {}
    for func in segments.values():
        bound = [*zip(_list(func.attrs["args"]), func.params), *zip(_list(func.attrs["results"]), func.returns)]
        for role, value in bound:
            kind, _, name = str(role).partition(":")
            if kind not in ("send", "recv", "send_grad", "recv_grad") or value is None:
                continue
            type = (value.type.shape, value.type.dtype)
            if found.setdefault(name, type) != type:
                raise ValueError(f"the transfer {name} has two types: {found[name]} and {type}")
    if not found:
        return ["TRANSFERS = {}"]
    lines = [
        f"    {string(name)}: ([{', '.join(map(str, shape))}], {string(dtype(kind).removeprefix('torch.'))}),"
        for name, (shape, kind) in found.items()
    ]
    return ["TRANSFERS = {", *lines, "}"]


def _list(roles: object) -> list[object]:
    assert isinstance(roles, list)
    return roles


