"""Training tasks out of Hugging Face configs: models by name, and any local config.json.

    find_task("zoo:llama-7b@small")                       # models.toml
    find_task("hf:configs/mistral.json,task=causal-lm,seq=2048")
    find_task("examples/mlp.py:task")                     # everything else: the user's own factory

Nothing is downloaded: weights are drawn by the model's own initialiser.  Needs the extra `zoo` (transformers).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .models import with_options, zoo

if TYPE_CHECKING:
    from .spec import find_task

__all__ = ["find_task", "with_options", "zoo"]


def __getattr__(name: str) -> Any:
    """The list of models is read without torch."""
    if name == "find_task":
        from .spec import find_task

        return find_task
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
