"""Initial values: beside a dump, and in the folder `weights` of a bundle.

    weights.safetensors  recipe.json          beside a dump: all that the model has, under every name
    weights/initial.safetensors  recipe.json  in a bundle: full tensors, and recipes by which ranks make their slices

A bundle that starts from a checkpoint holds what the checkpoint does not: running statistics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..ir import Diagnostic, Module, Op
from ..runtime import weights as weights_file
from ..runtime.errors import BundleError
from ..runtime.initialise import Recipe, Recipes, to_json
from ..runtime.pretrained import Pretrained
from .rank import shape_of, torch_name

if TYPE_CHECKING:
    from ..passes.manager import Session

WEIGHTS_FILE = "weights.safetensors"
RECIPE_FILE = "recipe.json"


def save_weights(path: Path, values: Mapping[str, Any], dtypes: Mapping[str, torch.dtype] | None = None) -> None:
    """Tensors to `path`, recipes to recipe.json beside; a value that is neither (nobody knows it) is left out."""
    tensors = {name: value.detach() for name, value in values.items() if isinstance(value, torch.Tensor)}
    recipes = {name: value for name, value in values.items() if isinstance(value, Recipe)}
    weights_file.save(path, tensors, dtypes)
    beside = path.with_name(RECIPE_FILE)
    if recipes:
        beside.write_text(to_json(recipes), encoding="utf-8", newline="\n")
    else:
        beside.unlink(missing_ok=True)


def load_weights(module: Module, path: Path, name: str) -> dict[str, Any]:
    """What lies beside the text `path`, in the file `name` and in recipe.json there.  Raises Diagnostic."""
    place = path.parent / name
    beside = place.with_name(RECIPE_FILE)
    if not place.is_file() and not beside.is_file() and "checkpoint" not in module.attrs:
        raise Diagnostic(
            f"the weights are missing: there is no {name} beside {path}",
            help="`uniap compile SPEC ... --dump DIR` writes it beside the dumps; keep the files together",
        )
    try:
        values: dict[str, Any] = dict(Recipes(beside).recipes) if beside.is_file() else {}
        if place.is_file():
            file = weights_file.SafetensorsFile(place)
            values.update({name: file.tensor(name) for name in file.header})
    except BundleError as error:
        raise Diagnostic(str(error)) from None
    return values


def save_initial(module: Module, session: Session, folder: Path) -> dict[str, Any]:
    """Fill the folder `weights` of a bundle, in the dtypes of the compilation; the manifest's entry.

    Raises Diagnostic for a parameter or buffer without initial values, and for a checkpoint that does not fit.
    """
    wanted = [op for op in module.ops if op.name == "plan.parameter" and op.attrs.get("home", True)]
    wanted += [op for op in module.ops if op.name == "plan.buffer"]
    given = session.weights or {}
    elsewhere = _in_checkpoint(module, wanted)
    missing, values, dtypes = [], {}, {}
    for op in wanted:
        name = str(op.symbol)
        if name in elsewhere:
            continue
        value = given.get(name)
        if value is None:
            missing.append(name)
        elif why := getattr(value, "why", None):
            raise Diagnostic(
                f"there are no initial values for {name}: {why}",
                help="build the model with uniap_compiler.on_meta, or take the weights from a checkpoint (--weights)",
            )
        else:
            values[name] = value if isinstance(value, Recipe) else torch.as_tensor(value)
            dtypes[name] = getattr(torch, torch_name(op.attrs["dtype"]))
    if missing:
        raise missing_weights(missing)
    save_weights(folder / "initial.safetensors", values, dtypes)
    if len(session.constants):
        session.constants.save(folder / "constants.safetensors")
    return described(module, len(session.constants) > 0, (folder / RECIPE_FILE).exists())


def described(module: Module, constants: bool, recipe: bool = False) -> dict[str, Any]:
    """`weights` of the manifest."""
    entry: dict[str, Any] = {
        "files": ["weights/initial.safetensors"],
        "constants": ["weights/constants.safetensors"] if constants else [],
    }
    if recipe:
        entry["recipe"] = f"weights/{RECIPE_FILE}"
    if checkpoint := module.attrs.get("checkpoint"):
        entry["checkpoint"] = str(checkpoint)
    if isinstance(unused := module.attrs.get("unused"), list):
        entry["unused"] = [str(name) for name in unused]
    return entry


def _in_checkpoint(module: Module, wanted: Iterable[Op]) -> set[str]:
    """The names that ranks will read from the checkpoint."""
    path = module.attrs.get("checkpoint")
    if not path:
        return set()
    tables: dict[str, dict[str, tuple[list[int], list[str]]]] = {"plan.parameter": {}, "plan.buffer": {}}
    for op in wanted:
        aliases = op.attrs.get("aliases")
        others = [str(a) for a in aliases] if isinstance(aliases, list) else []
        tables[op.name][str(op.symbol)] = (shape_of(op), others)
    unused = module.attrs.get("unused")
    known = [str(name) for name in unused] if isinstance(unused, list) else []
    try:
        found = Pretrained(Path(str(path)), tables["plan.parameter"], tables["plan.buffer"], known)
    except BundleError as error:
        message, _, _ = str(error).partition("\n")
        raise Diagnostic(message) from None
    return {name for table in tables.values() for name in table if name in found}


def missing_weights(names: Iterable[str]) -> Diagnostic:
    names = list(names)
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return Diagnostic(
        f"there are no initial weights for {shown}",
        help="a dump is continued with weights.safetensors beside it; `uniap compile SPEC --dump DIR` writes that file",
    )
