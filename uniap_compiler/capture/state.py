"""What forward may not change, because a compiled step would see it once: everything that is no buffer.

    self.steps += 1                        a number in an attribute that every call changes
    self.center = 0.9 * self.center + c    a tensor in an attribute that is no buffer, read and then replaced
    random.random() < p                    Python's and numpy's random numbers
    h.register_hook(...), a Function       gradients other than those of the ops, which an exported graph does not have;
                                           except a Function that works element by element (own_gradients.py)

Each is refused where it happens.  An attribute that is only written (`self.attention = weights`) does no harm.
"""

from __future__ import annotations

import inspect
import random
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from uniap_compiler.ir import Diagnostic, Loc

from .own_gradients import elementwise
from .places import relative, user_line

Place = tuple[str, str]
"""Path of a module, name of an attribute."""


class Seen:
    """What forward left in attributes: an object of its own, because torch.export sets attributes back.

    replaced: tensors that are others than before.  numbers: all of them.
    """

    def __init__(self) -> None:
        self.replaced: set[Place] = set()
        self.numbers: dict[Place, int | float] = {}


def numbers(model: nn.Module) -> dict[Place, int | float]:
    return {
        (path, name): value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def tensors(model: nn.Module) -> dict[Place, Tensor]:
    """Tensors in attributes that are neither parameters nor buffers."""
    return {
        (path, name): value
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, Tensor)
    }


@contextmanager
def holding(model: nn.Module, values: Mapping[Place, int | float]) -> Iterator[None]:
    """Inside, these attributes have the values that an earlier call of forward left."""
    before = numbers(model)
    changed = [place for place in before if place in values and values[place] != before[place]]
    for source in (values, before):
        for path, name in changed:
            setattr(model.get_submodule(path), name, source[path, name])
        if source is values:
            yield


def check_numbers(model: nn.Module, runs: list[dict[Place, int | float]], root: Path | None) -> None:
    """runs: the numbers before the first call of forward, after it, and after the second.  Raises Diagnostic.

    A number that is made from the batch's size differs too, but does not go on by equal steps or factors.
    """
    for place, first in runs[0].items():
        second, third = (run.get(place, first) for run in runs[1:])
        if second == first or third == second:
            continue
        if third - second == second - first or third * first == second * second:
            raise Diagnostic(
                f"forward changes {_dotted(place)} every time it is called, which a compiled step would not see",
                loc=_assignment(model, place, root),
                notes=[f"it was {first}, then {second}, then {third}"],
                help="make it a buffer, which may be changed in forward: "
                f'self.register_buffer("{place[1]}", torch.tensor({float(first)}))',
            )


def check_tensors(
    model: nn.Module, before: Mapping[Place, Tensor], replaced: set[Place], constants: Mapping[str, Any],
    root: Path | None,
) -> None:
    """replaced: the attributes that forward assigned.  Raises Diagnostic for one whose old value it read."""
    read = {id(t) for t in constants.values()}
    for place in sorted(replaced):
        if place in before and id(before[place]) in read:
            raise Diagnostic(
                f"forward reads the tensor {_dotted(place)} and replaces it, which a compiled step would not see",
                loc=_assignment(model, place, root),
                help=f'make it a buffer, which forward may assign: self.register_buffer("{place[1]}", ...) in __init__',
            )


def _dotted(place: Place) -> str:
    return ".".join((*place[0].split(".")[1:], place[1]))


def _assignment(model: nn.Module, place: Place, root: Path | None) -> Loc | None:
    """The line of the module's class that assigns the attribute."""
    path, name = place
    kind = type(model.get_submodule(path))
    try:
        lines, start = inspect.getsourcelines(kind.forward)
        file = inspect.getsourcefile(kind)
    except (OSError, TypeError):
        return None
    for number, line in enumerate(lines, start):
        if file and re.search(rf"\.{re.escape(name)}\b\s*([-+*/|&]|//|\*\*)?=(?!=)", line):
            return Loc(relative(file, root), number, path)
    return None


@contextmanager
def refused(root: Path | None) -> Iterator[None]:
    """Inside, what an exported graph would silently leave out raises a Diagnostic at the user's line."""
    function: Any = torch.autograd.Function
    own = function.__dict__["apply"]

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if cls.__module__.partition(".")[0] == "torch":  # how torch runs an op's registered backward
            return own.__get__(None, cls)(*args, **kwargs)
        if not kwargs and (result := elementwise(cls, args)) is not None:
            return result
        raise Diagnostic(
            f"the model has an autograd Function, {cls.__name__}: its backward would be lost",
            loc=_here(root),
            notes=["only one whose gradients are the result's, element by element times a factor, is taken as it is"],
            help="make it an op with torch.library.custom_op and register_autograd (docs/own-ops.md); "
            "a straight-through estimator can be written x + (f(x) - x).detach()",
        )

    python, array = random.getstate(), _numpy_state()
    function.apply = classmethod(apply)
    try:
        yield
    finally:
        function.apply = own
    for name, same in (("Python's random", random.getstate() == python), ("numpy.random", _numpy_state() == array)):
        if not same:
            raise Diagnostic(
                f"forward draws numbers from {name}: a compiled step would use the same ones for ever",
                help="draw them with torch.rand, as a tensor, or outside of the model and pass them in the batch",
            )


def refuse_hook(*_: Any, **__: Any) -> Any:
    raise Diagnostic(
        "the model registers a hook for a gradient, which would be lost",
        loc=_here(None),
        help="scale a gradient with x * s + (x - x * s).detach(); clip gradients in the training loop",
    )


def check_hooks(step: nn.Module) -> None:
    """Raises Diagnostic for hooks on gradients of parameters and modules."""
    for path, module in step.named_modules():
        if module._backward_hooks or module._backward_pre_hooks:
            raise Diagnostic(
                f"the module {path.removeprefix('model.')} has a backward hook, which a compiled step would not call",
                help="remove it before compiling",
            )
    for name, p in step.named_parameters():
        if p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None):
            raise Diagnostic(
                f"the parameter {name.removeprefix('model.')} has a hook for its gradient, "
                "which a compiled step would not call",
                help="remove it before compiling",
            )


class Registered(TorchFunctionMode):
    """Inside, a trainable parameter that is not the module's own raises a Diagnostic."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.own = {id(p) for p in module.parameters()}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not (isinstance(result, Tensor) and result.requires_grad):
            return result  # no gradient: a frozen teacher, or a layer that forward only builds
        for x in tree_leaves((args, kwargs)):
            if isinstance(x, nn.Parameter) and x.requires_grad and id(x) not in self.own:
                raise Diagnostic(
                    f"forward uses a parameter of shape {list(x.shape)} that the model does not have",
                    loc=_here(None),
                    help="a list of modules is nn.ModuleList; for one that is not to be trained, requires_grad_(False)",
                )
        return result


def _here(root: Path | None) -> Loc | None:
    return user_line("".join(traceback.format_stack(sys._getframe(1))), root)


def _numpy_state() -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    kind, keys, *rest = numpy.random.get_state()
    return kind, keys.tobytes(), *rest
