"""Where a bundle's parameters and buffers start from, whatever the source: a checkpoint, a recipe, its own file.

    initial = InitialValues(bundle.root, bundle.manifest, weights=Path("llama"))
    initial.read("wq.weight", rank.PARAMETERS["wq.weight"], device)         # this rank's slice, in memory of its own

manifest: "weights": {"files": [...], "constants": [...], "recipe": "weights/recipe.json", "checkpoint": "/data/llama",
"unused": [names that the model has and the bundle does not need], "fixed": {buffer: digests of the values that became
constants (pretrained.py)}}; the last four may be absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from . import pieces
from .errors import BundleError
from .initialise import Recipes
from .pretrained import Pretrained
from .weights import Weights


class InitialValues:
    """weights: a checkpoint in place of the one that the manifest names.  partial: it need not fit in all names."""

    def __init__(
        self, root: Path, manifest: Mapping[str, Any], weights: Path | None = None, partial: bool = False
    ) -> None:
        told = manifest["weights"]
        self.files = Weights(root / name for name in told.get("files", ()))
        self.recipes = Recipes(root / told["recipe"]) if told.get("recipe") else None
        self.checkpoint: Pretrained | None = None
        recorded = told.get("checkpoint")
        path = weights if weights is not None else Path(recorded) if recorded else None
        if path is None:
            return
        if weights is None and not path.exists():
            raise BundleError(
                f"the checkpoint {path}, which the bundle was compiled with, is not here",
                "give its place on this machine: train.py --weights PATH",
                everywhere=True,
            )
        parameters, buffers = (
            {name: (entry["shape"], entry.get("aliases", [])) for name, entry in manifest.get(kind, {}).items()}
            for kind in ("parameters", "buffers")
        )
        self.checkpoint = Pretrained(path, parameters, buffers, told.get("unused", ()), partial, told.get("fixed"))

    def read(self, name: str, record: Mapping[str, Any], device: torch.device) -> torch.Tensor:
        """name: of the parameter or buffer at home.  record: its shape, dtype and slices (docs/bundle.md)."""
        if "unpadded" in record:
            slices = pieces.without_padding(record["slices"], record["unpadded"])
            told = self.read(name, {"dtype": record["dtype"], "slices": slices}, device)
            padded = torch.zeros(pieces.local_shape(record["slices"]), dtype=told.dtype, device=device)
            padded[tuple(slice(size) for size in told.shape)] = told
            return padded
        if self.checkpoint is not None and name in self.checkpoint:
            return self.checkpoint.read(name, record).to(device)
        if self.recipes is not None and name in self.recipes and name not in self.files:
            return self.recipes.read(name, record, device)
        return self.files.read(name, record).to(device)
