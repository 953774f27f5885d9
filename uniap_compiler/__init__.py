"""uniap-compiler: a torch.nn.Module, a global batch and a cluster in; a directory of plain Python for torchrun out.

    nn.Module + batch --capture--> one func of aten ops                 torch.export -> IR
      --outline-layers--> one func per distinct layer, a chain of calls
      --differentiate--> forward and backward per distinct layer
      --shard-rules, enumerate-strategies--> strategies per layer with time and memory
      --solve-parallelism--> one mixed-integer quadratic programme: stage and strategy of every layer, micro-batches
      --partition-stages, localize, insert-communication, schedule--> one programme per stage, collectives explicit
      --codegen--> bundle: ranks/, stages/, runtime/, manifest.json, plan.mlir --torchrun--> training

After capture everything is IR in, IR out, and every step can be dumped, edited and continued from text.
Public names load lazily: importing the package does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .capture import Optimizer, TrainingTask, on_meta
    from .driver import compile
    from .ir import Diagnostic, parse_module, print_module
    from .passes.analysis.rules.own import add_rule

_LAZY = {
    "Optimizer": "capture",
    "TrainingTask": "capture",
    "add_rule": "passes.analysis.rules.own",
    "compile": "driver",
    "on_meta": "capture",
    "Diagnostic": "ir",
    "parse_module": "ir",
    "print_module": "ir",
}
"""Public name -> the part that defines it."""

__all__ = ["Diagnostic", "Optimizer", "TrainingTask", "add_rule", "compile", "on_meta", "parse_module", "print_module"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
    raise AttributeError(f"module {__name__} has no attribute {name}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_LAZY))
