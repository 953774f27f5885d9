"""nn.Module -> IR at level `captured`.

    task = load_task("examples/mlp.py:task")
    constants = ConstantStore()
    module = capture(task, spec="examples/mlp.py:task", constants=constants)
"""

from .capture import capture
from .task import Optimizer, TrainingTask, load_task

__all__ = ["Optimizer", "TrainingTask", "capture", "load_task"]
