"""examples/mlp.py at level `annotated`, captured once per test process."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from uniap_compiler.ir import ConstantStore, print_module
from uniap_compiler.passes.manager import Session, run_passes
from uniap_compiler.passes.pipelines import parse_pipeline

ROOT = Path(__file__).parents[2]
BEFORE = "canonicalize,outline-layers,differentiate,decompose-losses,shard-rules"


def annotated_mlp(global_batch: int) -> str:
    return _annotated().replace("global_batch = 64", f"global_batch = {global_batch}", 1)


@cache
def _annotated() -> str:
    from uniap_compiler.capture import capture, load_task

    constants = ConstantStore()
    spec = f"{ROOT / 'examples' / 'mlp.py'}:task"
    module = capture(load_task(spec), spec=spec, dtype=None, constants=constants)
    module.attrs["global_batch"] = 64
    run_passes(module, parse_pipeline(BEFORE), Session(constants=constants, global_batch=64))
    return print_module(module)
