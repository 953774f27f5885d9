"""Models without memory for their weights, and what would have been in it.

    model = on_meta(lambda: Llama(config))      # in a task's factory also: with torch.device("meta"): ...
    initial_values(model)["wq.weight"]          # Recipe: [["normal", 0.0, 0.02, {"draw": 3}]]

What the model's code does to a parameter is recorded (deferred.py).  Where that is a chain of fills, draws and
arithmetic with numbers, perhaps on parts of it, it becomes a Recipe, and a rank makes its own slice
(runtime/initialise.py).  Anything else (orthogonal matrices, tables) is computed here if it is small.  Buffers always
are: they get their real values in the model itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from uniap_compiler.ir import Diagnostic
from uniap_compiler.runtime.initialise import Recipe, Step

from .deferred import RANDOM, TRUNCATED, Recorder, Ref, TooLarge, Unknown, Write, draw_step, recording


@dataclass(frozen=True)
class NoValue:
    """A parameter without data; why: half a sentence for the message, if somebody needs its initial values."""

    why: str


Initial = Tensor | Recipe | NoValue
NOT_RECORDED = NoValue("its model was built on the meta device before the compiler could see how")
CHANGED = NoValue("it was changed after its model was built, where the compiler could not see how")
_INITIAL: Any = WeakTensorKeyDictionary()
"""Parameter or buffer on the meta device -> (its state when that was found out, Initial)."""


def on_meta(factory: Callable[[], nn.Module]) -> nn.Module:
    """The model that the factory builds, with its parameters on the meta device and its buffers real.

    Works for code that checks for `torch.device("meta")` and then leaves its weights alone (transformers), and for
    code that looks into its small tables while it builds.  Initial values are those of the model's own initialiser,
    from the seed that torch.manual_seed was given.
    """
    with recording(redirect=True) as recorder:
        model = factory()
    if not isinstance(model, nn.Module):
        raise Diagnostic(f"on_meta was given a function that returns a {type(model).__name__}, not a torch.nn.Module")
    settle(model, recorder)
    return model


def initial_values(model: nn.Module) -> Mapping[str, Initial]:
    """By every name that the model has for a tensor: its values, or how a rank makes its slice of them.

    Complex buffers are constants of the programme (complex_ops.py).
    """
    real = [(name, t) for name, t in tensors_of(model) if not t.is_complex()]
    return {name: _initial_of(t) if _on_meta(t) else t.detach() for name, t in real}


def _initial_of(tensor: Tensor) -> Initial:
    state, initial = _INITIAL.get(tensor, (None, NOT_RECORDED))
    return initial if state is None or state == _state(tensor) else CHANGED


def _state(tensor: Tensor) -> tuple[int, int]:
    return tensor._version, tensor.untyped_storage()._cdata


def tensors_of(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Parameters and buffers, tied ones under each of their names."""
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def settle(model: nn.Module, recorder: Recorder) -> None:
    """After the recording: recipes for the parameters, real values for the buffers."""
    for p in model.parameters():
        if _on_meta(p) and recorder.knows(p):
            _INITIAL[p] = _state(p), _initial(recorder, p)
    real: dict[int, Tensor] = {}  # a shared buffer stays one
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is None or not _on_meta(buffer) or not recorder.knows(buffer):
                continue
            try:
                module._buffers[name] = real.setdefault(id(buffer), recorder.evaluate(recorder.ref(buffer)))
            except (TooLarge, Unknown):
                why = NoValue("it is a buffer that the compiler cannot compute: too large, or made of unknown tensors")
                _INITIAL[buffer] = _state(buffer), why


def _on_meta(tensor: Tensor) -> bool:
    return tensor.device.type == "meta"  # while a recorder looks on, `is_meta` says no


def _initial(recorder: Recorder, parameter: Tensor) -> Initial:
    ref = recorder.ref(parameter)
    try:
        return Recipe(ref.size, tuple(_recipe(recorder, ref)), recorder.seed)
    except _NoRecipe as reason:
        if str(reason) == _UNFILLED:
            return NoValue(_UNFILLED)
        try:
            return recorder.evaluate(ref)
        except TooLarge:
            return NoValue(f"it is initialised with {reason}, which a rank cannot do for its slice alone")
        except Unknown:
            return NoValue(f"it is initialised with {reason} of tensors that were there before")


# -- what was written into a storage, as steps -------------------------------------------------------------------------


class _NoRecipe(Exception):
    """What stands in the way."""


_UNFILLED = "nothing ever fills it"
_COPIES = {"clone", "_to_copy", "lift_fresh_copy", "detach_copy"}
_EMPTY = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "empty_permuted"}
_CONSTANTS = {"zeros": 0.0, "zeros_like": 0.0, "new_zeros": 0.0, "ones": 1.0, "ones_like": 1.0, "new_ones": 1.0}
_ARITHMETIC = {"mul": "mul", "div": "div", "add": "add", "sub": "add", "neg": "mul", "clamp": "clamp",
               "clamp_min": "clamp", "clamp_max": "clamp"}  # fmt: skip


@dataclass(frozen=True)
class _Part:
    """A step, and the part of the storage that it changes (None: all of it)."""

    step: Step
    ref: Ref | None


def _recipe(recorder: Recorder, ref: Ref) -> list[Step]:
    _require_whole(recorder, ref)
    parts = _parts(recorder, ref.storage, len(recorder.writes))
    steps: list[Step] = []
    boxes: list[list[list[int]]] = []
    filled = False
    for part in parts:
        box = _box(part.ref, ref.size) if part.ref is not None else None
        if part.step[0] in ("fill", "uniform", "normal", "trunc_normal"):
            if box is None:
                steps, filled = [], True  # whatever was there is gone
            else:
                boxes.append(box)
        options = dict(part.step[-1]) if isinstance(part.step[-1], dict) else {}
        if box is not None:
            options["in"] = box
        plain = part.step[:-1] if isinstance(part.step[-1], dict) else part.step
        steps.append([*plain, options] if options else [*plain])
    if not filled and not _cover(boxes, ref.size):
        raise _NoRecipe(_UNFILLED)
    return steps


def _parts(recorder: Recorder, storage: int, before: int) -> list[_Part]:
    """Raises _NoRecipe for a write that is none of the steps."""
    found: list[_Part] = []
    for n in recorder.storages[storage].writes:
        if n >= before:
            break
        write = recorder.writes[n]
        target = next((o for o in write.outputs if o is not None and o.storage == storage), None)
        if target is None:
            raise _NoRecipe(write.name)
        made = storage in write.makes
        part = None if made or _whole(recorder, target) else target
        if write.func == TRUNCATED or write.func in RANDOM:
            found.append(_Part(draw_step(write), part))
        elif made and write.name in _EMPTY:
            continue
        elif made and write.name in _CONSTANTS:
            found.append(_Part(["fill", _CONSTANTS[write.name]], None))
        elif made and write.name in ("full", "full_like", "new_full", "scalar_tensor"):
            found.append(_Part(["fill", _number(write.args[0 if write.name == "scalar_tensor" else -1])], None))
        elif write.name in ("fill_", "zero_"):
            found.append(_Part(["fill", _number(write.args[1]) if write.name == "fill_" else 0.0], part))
        elif made and write.name in _COPIES:
            found += _copied(recorder, write.args[0], target, n, None)
        elif write.name == "copy_":
            found += _copied(recorder, write.args[1], target, n, part)
        elif write.name.rstrip("_") in _ARITHMETIC and not (write.kwargs.keys() - {"min", "max"}):
            if made:
                found += _copied(recorder, write.args[0], target, n, None)
            found.append(_Part(_arithmetic(write), part))
        else:
            raise _NoRecipe(write.name)
    return found


def _copied(recorder: Recorder, source: Any, target: Ref, before: int, part: Ref | None) -> list[_Part]:
    """The values of `source` before that write, put into the target."""
    if isinstance(source, Tensor):
        if source.numel() and bool((source == source.reshape(-1)[0]).all()):
            return [_Part(["fill", _number(source.reshape(-1)[0])], part)]
        raise _NoRecipe("a table of numbers")
    if not isinstance(source, Ref):
        raise _NoRecipe("copy_")
    parts = _parts(recorder, source.storage, before)
    if parts and all(p.ref is None and p.step[0] == "fill" for p in parts):
        return [_Part(parts[-1].step, part)]
    if part is None and source.size == target.size and _whole(recorder, source) and _whole(recorder, target):
        return parts
    raise _NoRecipe("a copy of a part of another tensor")


def _arithmetic(write: Write) -> Step:
    name = write.name.rstrip("_")
    if name == "neg":
        return ["mul", -1.0]
    if name.startswith("clamp"):
        given = dict(zip(("min", "max"), write.args[1:])) | write.kwargs
        if name == "clamp_max":
            given = {"max": given.get("max", given.get("min"))}
        return ["clamp", *(None if given.get(k) is None else _number(given[k]) for k in ("min", "max"))]
    number = _number(write.args[1]) if len(write.args) == 2 else _number(None)
    return [_ARITHMETIC[name], -number if name == "sub" else number]


def _number(value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, (bool, int, float)) and math.isfinite(value):
        return float(value)
    raise _NoRecipe("arithmetic with another tensor")


def _whole(recorder: Recorder, ref: Ref) -> bool:
    """Is the tensor all of its storage, in order?"""
    expected = 1
    for size, stride in zip(reversed(ref.size), reversed(ref.stride), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return ref.offset == 0 and expected * ref.dtype.itemsize == recorder.storages[ref.storage].bytes


def _require_whole(recorder: Recorder, ref: Ref) -> None:
    if not _whole(recorder, ref):
        raise _NoRecipe("a view of a larger tensor")


def _box(part: Ref, shape: tuple[int, ...]) -> list[list[int]]:
    """The part of a contiguous tensor of this shape as [start, stop, step] per dim.  Raises _NoRecipe."""
    strides = [math.prod(shape[d + 1 :]) for d in range(len(shape))]
    starts = [part.offset // stride % size if size else 0 for stride, size in zip(strides, shape, strict=True)]
    box = [[start, start + 1, 1] for start in starts]
    for size, stride in zip(part.size, part.stride, strict=True):
        while size > 1:
            d = next((d for d, s in enumerate(strides) if s <= stride and shape[d] > 1), None)
            if d is None or stride % strides[d] or box[d][1] != starts[d] + 1:
                raise _NoRecipe("a write into elements that are no box")
            step = stride // strides[d]
            count = size
            if starts[d] + (size - 1) * step >= shape[d]:  # runs on into the dim before
                if starts[d] or step != 1 or size % shape[d]:
                    raise _NoRecipe("a write into elements that are no box")
                count = shape[d]
            box[d] = [starts[d], starts[d] + (count - 1) * step + 1, step]
            size, stride = size // count, stride * count
    return [dim[:2] if dim[2] == 1 else dim for dim in box]


def _cover(boxes: list[list[list[int]]], shape: tuple[int, ...]) -> bool:
    """Do the boxes fill the tensor?"""
    dense = [box for box in boxes if all(len(dim) == 2 for dim in box)]
    cuts = [sorted({0, size, *(end for box in dense for end in box[d])}) for d, size in enumerate(shape)]
    if math.prod(len(cut) for cut in cuts) > 1 << 16:
        return False
    corners = itertools.product(*(cut[:-1] for cut in cuts))
    return bool(dense) and all(
        any(all(start <= c < stop for c, (start, stop) in zip(corner, box, strict=True)) for box in dense)
        for corner in corners
    )


__all__ = ["Initial", "NoValue", "initial_values", "on_meta", "settle", "tensors_of"]
