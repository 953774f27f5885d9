"""two_stages.mlir with the weights of mlp.py, as a module and a session for the bundle writer."""

import copy
from functools import lru_cache
from pathlib import Path

import torch

from uniap_compiler.capture import load_task
from uniap_compiler.ir import ConstantStore, Module, parse_module
from uniap_compiler.passes.manager import Session

HERE = Path(__file__).parent
SPEC = f"{HERE / 'mlp.py'}:task"


@lru_cache
def _parsed() -> Module:
    return parse_module((HERE / "two_stages.mlir").read_text(), "two_stages.mlir")


def two_stages() -> Module:
    return copy.deepcopy(_parsed())


def session() -> Session:
    return Session(constants=ConstantStore(), weights=dict(load_task(SPEC).model.state_dict()))


def random_weights(module: Module) -> dict[str, torch.Tensor]:
    parameters = [op for op in module.ops if op.name == "plan.parameter"]
    return {str(op.symbol): torch.randn(op.attrs["shape"], dtype=torch.float64) for op in parameters}
