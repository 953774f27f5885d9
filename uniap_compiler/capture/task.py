"""What a user hands to the compiler: a model, one example batch, how the loss is made, which optimizer trains it.

    def task() -> TrainingTask:                       # examples/mlp.py
        return TrainingTask(Mlp(), (x,), loss=F.cross_entropy, targets=y)

On the command line a task is a SPEC, `examples/mlp.py:task` or `package.module:task`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import torch

from uniap_compiler.ir import Diagnostic, Loc

from .deferred import recording
from .initialise import settle

REDUCE_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Optimizer:
    """The kind decides the memory of a parameter's state.  Learning rate and clipping are given at run time.

    no_decay: parameters whose name matches one of these patterns (`*.bias`) get no weight decay.
    master_weights: parameters in bfloat16 or float16 are updated in float32: gradients are added up in float32, and the
    optimizer keeps a float32 copy of such a parameter beside its states.  reduce_dtype: "float32", "bfloat16" or
    "float16", in which gradients travel between devices; None: as they are added up.
    """

    kind: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    momentum: float = 0.0
    no_decay: tuple[str, ...] = ()
    master_weights: bool = True
    reduce_dtype: str | None = None

    def __post_init__(self) -> None:
        if self.reduce_dtype not in (None, *REDUCE_DTYPES):
            raise Diagnostic(
                f"gradients cannot be reduced in {self.reduce_dtype!r}", help=f"use {' or '.join(REDUCE_DTYPES)}"
            )
        if self.kind not in ("adamw", "sgd"):
            raise Diagnostic(f"the optimizer {self.kind!r} is not known", help='use "adamw" or "sgd"')


@dataclass
class TrainingTask:
    """The model is called as `model(**batch)` (a dict), `model(*batch)` (a tuple or list) or `model(batch)` (a tensor).

    Without `loss` the model returns its loss: a scalar, or an output with `.loss` or ["loss"].  With it the loss is
    `loss(output, targets)`.  batch and targets are nests of dicts, lists and tuples of tensors whose first dim is the
    batch; example rows are repeated or cut to the batch that is compiled for.
    """

    model: torch.nn.Module
    batch: Any
    loss: Optional[Callable[[Any, Any], Any]] = None
    targets: Any = None
    optimizer: Optimizer | str = field(default_factory=Optimizer)
    source: Path | None = None
    """The file that names and lines are relative to; `load_task` sets it."""
    ops: Sequence[str | Path] = ()
    """Files that register ops of your own with torch.library, relative to the task file (docs/own-ops.md)."""
    weights: str | Path | None = None
    """A safetensors checkpoint to start from: a file, or a folder or index as Hugging Face writes them."""

    def op_files(self) -> tuple[Path, ...]:
        """Where the files of `ops` are."""
        folder = self.source.resolve().parent if self.source is not None else Path.cwd()
        return tuple(folder / path for path in self.ops)

    def __post_init__(self) -> None:
        if isinstance(self.optimizer, str):
            self.optimizer = Optimizer(self.optimizer)
        if not isinstance(self.optimizer, Optimizer):
            kind = type(self.optimizer)
            raise Diagnostic(f"the optimizer of the task is a {kind.__module__}.{kind.__name__}",
                             help='give its kind, "adamw" or "sgd", or uniap_compiler.capture.Optimizer(...)')
        if not isinstance(self.model, torch.nn.Module):
            is_class = isinstance(self.model, type)
            what = f"the class {self.model.__name__}" if is_class else f"a {type(self.model).__name__}"
            raise Diagnostic(f"the model of the task is {what}, not a torch.nn.Module", help="hand over an instance")


def load_task(spec: str) -> TrainingTask:
    """The task that SPEC's factory returns.  Raises Diagnostic for a missing file, factory or a wrong result."""
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name.isidentifier():
        raise Diagnostic(
            f"{spec!r} does not name a task", help="write path/to/file.py:factory or package.module:factory"
        )
    module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    factory = getattr(module, name, None)
    if factory is None:
        offered = [n for n, v in vars(module).items() if inspect.isfunction(v) and v.__module__ == module.__name__]
        raise Diagnostic(
            f"{place} has no factory {name!r}",
            help=f"it defines {', '.join(offered)}" if offered else "it defines no function",
        )
    if not callable(factory):
        raise Diagnostic(f"{spec} is {_describe(factory)}, not a function that returns a TrainingTask")
    source = Path(module.__file__) if getattr(module, "__file__", None) else None
    try:
        with recording() as recorder:
            task = factory()
    except Diagnostic:
        raise
    except Exception as error:
        raise Diagnostic(f"{spec} failed: {type(error).__name__}: {error}", loc=_raised_at(error, source)) from error
    if not isinstance(task, TrainingTask):
        raise Diagnostic(
            f"{spec} returned {_describe(task)}, not a TrainingTask",
            help="return uniap_compiler.TrainingTask(model, batch, loss=..., targets=...)",
        )
    for module in (task.model, task.loss):
        if isinstance(module, torch.nn.Module):
            settle(module, recorder)
    task.source = task.source or source
    return task


def _describe(value: Any) -> str:
    if value is None:
        return "nothing"
    kind = type(value).__name__
    return f"{'an' if kind[0] in 'AEIOUaeiou' else 'a'} {kind}"


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise Diagnostic(f"there is no file {path}")
    name = f"uniap_task_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)  # a task file may import its neighbours, as it may when it is run
    try:
        spec.loader.exec_module(module)
    except Diagnostic:
        raise
    except SyntaxError as error:
        raise Diagnostic(f"{path} is not valid Python: {error.msg}", loc=Loc(path.name, error.lineno or 1)) from error
    except Exception as error:
        raise Diagnostic(
            f"{path} cannot be imported: {type(error).__name__}: {error}", loc=_raised_at(error, path)
        ) from error
    finally:
        sys.path.remove(folder)
    return module


def _load_module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise Diagnostic(
            f"there is no module {error.name}", help="a file is named by its path, which ends in .py"
        ) from None
    except Exception as error:
        raise Diagnostic(f"{name} cannot be imported: {type(error).__name__}: {error}") from error


def _raised_at(error: BaseException, source: Path | None) -> Loc | None:
    """The innermost line of the task file that the error passed through."""
    if source is None:
        return None
    frames = [f for f in traceback.extract_tb(error.__traceback__) if Path(f.filename).resolve() == source.resolve()]
    return Loc(source.name, frames[-1].lineno or 1) if frames else None
