"""The passes by name, and their options as text.

    dce                                      name
    find-tensor-parallelism{sizes=2,2 boundary="sequence"}

A pass is imported when it is asked for.  The pass `insert-communication` is the class InsertCommunication in
insert_communication.py; a test checks that the table keeps to this.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
from typing import Any

from ..ir import Diagnostic
from .manager import Pass

_HERE = __package__

PASSES: dict[str, str] = {
    # simplify: any level, or before the layers are cut
    "dce": "simplify.dce:Dce",
    "cse": "simplify.cse:Cse",
    "promote-dtype": "simplify.promote_dtype:PromoteDtype",
    # simplify: captured -> layered -> differentiated
    "canonicalize": "simplify.canonicalize:Canonicalize",
    "pad-classes": "simplify.pad_classes:PadClasses",
    "outline-layers": "simplify.outline_layers:OutlineLayers",
    "differentiate": "simplify.differentiate:Differentiate",
    "decompose-losses": "simplify.decompose_losses:DecomposeLosses",
    # analysis: differentiated -> annotated
    "shard-rules": "analysis.shard_rules:ShardRules",
    "find-tensor-parallelism": "analysis.find_tensor_parallelism:FindTensorParallelism",
    # solve: annotated -> planned
    "enumerate-strategies": "solve.enumerate_strategies:EnumerateStrategies",
    "solve-parallelism": "solve.solve_parallelism:SolveParallelism",
    # lower: planned -> sharded -> staged -> local
    "insert-communication": "lower.insert_communication:InsertCommunication",
    "partition-stages": "lower.partition_stages:PartitionStages",
    "localize": "lower.localize:Localize",
    "prefetch-parameters": "lower.prefetch_parameters:PrefetchParameters",
    "overlap-gradients": "lower.overlap_gradients:OverlapGradients",
    "bucket-collectives": "lower.bucket_collectives:BucketCollectives",
    "schedule": "lower.schedule:Schedule",
}
"""name -> "module:Class", the module relative to this package; in the order of the pipeline."""


def pass_class(name: str) -> type[Any]:
    """Raises Diagnostic for an unknown name."""
    if name not in PASSES:
        near = difflib.get_close_matches(name, PASSES, n=1)
        help = f"did you mean {near[0]}?" if near else f"the passes are: {', '.join(PASSES)}"
        raise Diagnostic(f"there is no pass {name}", help=help)
    module, _, attribute = PASSES[name].partition(":")
    found: type[Any] = getattr(importlib.import_module(f"{_HERE}.{module}"), attribute)
    return found


def make_pass(name: str, **options: Any) -> Pass:
    made: Pass = pass_class(name)(**options)
    return made


def print_pass(pass_: Pass) -> str:
    """`name{key=value}` with the options that differ from their defaults."""
    from .pipelines import print_value

    shown = []
    for field in dataclasses.fields(pass_):  # type: ignore[arg-type]
        value = getattr(pass_, field.name)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if value != default:  # MISSING differs from everything
            shown.append(f"{field.name}={print_value(value)}")
    return pass_.name + ("{" + " ".join(shown) + "}" if shown else "")
