"""nn.Module -> IR at level `captured`.

task = load_task("examples/mlp.py:task")
constants = ConstantStore()
module = capture(task, spec="examples/mlp.py:task", constants=constants)
"""

from uniap_compiler.bridge.specs import spec_of
from uniap_compiler.ir.ops import use_schemas

from .capture import capture
from .initialise import initial_values, on_meta
from .task import Optimizer, TrainingTask, load_task

__all__ = ["Optimizer", "TrainingTask", "capture", "initial_values", "load_task", "on_meta"]

use_schemas(spec_of)  # where torch is loaded anyway, the verifier checks aten ops against its schemas
