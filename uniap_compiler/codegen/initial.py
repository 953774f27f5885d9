"""Initial values: beside a dump, and in the folder `weights` of a bundle.

    weights.safetensors  recipe.json          beside a dump: all that the model has, under every name
    weights/initial.safetensors  recipe.json  in a bundle: full tensors, and recipes by which ranks make their slices

A bundle that starts from a checkpoint holds what the checkpoint does not: running statistics.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..ir import Diagnostic, Module
from ..runtime import weights as weights_file
from ..runtime.errors import BundleError
from ..runtime.initialise import Recipe, Recipes, to_json
from ..runtime.pretrained import Pretrained, Wanted, digests
from .rank import shape_of, torch_name

if TYPE_CHECKING:
    from ..passes.manager import Session

WEIGHTS_FILE = "weights.safetensors"
RECIPE_FILE = "recipe.json"


def save_weights(path: Path, values: Mapping[str, Any], dtypes: Mapping[str, torch.dtype] | None = None) -> None:
    """Tensors to `path`, recipes to recipe.json beside; a value that is neither (nobody knows it) is left out."""
    recipes = {name: value for name, value in values.items() if isinstance(value, Recipe)}
    known = {name: value for name, value in values.items() if name not in recipes and not hasattr(value, "why")}
    tensors = {name: torch.as_tensor(value).detach() for name, value in known.items()}
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
    homes = [op for op in module.ops if op.name == "plan.parameter" and op.attrs.get("home", True)]
    buffers = [op for op in module.ops if op.name == "plan.buffer"]
    parameters = {str(op.symbol): (shape_of(op, padded=False), _names(op.attrs.get("aliases"))) for op in homes}
    values = _values(module, session.weights or {}, parameters, {str(op.symbol): (shape_of(op), []) for op in buffers})
    dtypes = {str(op.symbol): getattr(torch, torch_name(op.attrs["dtype"])) for op in (*homes, *buffers)}
    save_weights(folder / "initial.safetensors", values, dtypes)
    if len(session.constants):
        session.constants.save(folder / "constants.safetensors")
    return described(module, len(session.constants) > 0, (folder / RECIPE_FILE).exists())


def check_initial(module: Module, given: Mapping[str, Any]) -> None:
    """What save_initial would refuse, of a captured module: before the work.  Notes names that nothing reads."""
    main = module.funcs["main"]
    read = {v for op in main.ops for v in op.flat_operands()} | set(main.returns)
    tables: dict[str, Any] = {"param": {}, "buffer": {}}
    for param in main.params:
        role = str(param.attrs["role"])
        if param in read and role in tables:
            shape = param.attrs.get("unpadded", param.type.shape)
            tables[role][str(param.attrs["path"])] = (list(shape), _names(param.attrs.get("aliases")))
    names = {name for table in tables.values() for name, (_, others) in table.items() for name in (name, *others)}
    if unused := sorted(set(given) - names):
        module.attrs["unused"] = unused
    folded = [str(p.attrs["path"]) for p in main.params if p.attrs.get("folded")]
    if fixed := [[name, *digests(given[name])] for name in folded if isinstance(given.get(name), torch.Tensor)]:
        module.attrs["fixed"] = fixed
    _values(module, given, tables["param"], tables["buffer"])


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
    if unused := _names(module.attrs.get("unused")):
        entry["unused"] = unused
    if fixed := _fixed(module):
        entry["fixed"] = fixed
    return entry


def _values(module: Module, given: Mapping[str, Any], parameters: Wanted, buffers: Wanted) -> dict[str, Any]:
    """What the bundle must hold: not what ranks will read from the checkpoint.  Raises Diagnostic."""
    elsewhere: Container[str] = ()
    if path := module.attrs.get("checkpoint"):
        try:
            unused = _names(module.attrs.get("unused"))
            elsewhere = Pretrained(Path(str(path)), parameters, buffers, unused, fixed=_fixed(module))
        except BundleError as error:
            raise Diagnostic(str(error).partition("\n")[0]) from None
    values = {name: given.get(name) for name in (*parameters, *buffers) if name not in elsewhere}
    if missing := [name for name, value in values.items() if value is None]:
        raise missing_weights(missing)
    for name, value in values.items():
        if why := getattr(value, "why", None):
            raise Diagnostic(
                f"there are no initial values for {name}: {why}",
                help="build the model with uniap_compiler.on_meta, or take the weights from a checkpoint (--weights)",
            )
    return values


def _fixed(module: Module) -> dict[str, list[str]]:
    """Buffers whose values became constants of the programme, and the digests of these values."""
    rows = module.attrs.get("fixed")
    return {str(name): [str(d) for d in found] for name, *found in rows} if isinstance(rows, list) else {}  # type: ignore[misc]


def _names(attr: object) -> list[str]:
    return [str(name) for name in attr] if isinstance(attr, list) else []


def missing_weights(names: Iterable[str]) -> Diagnostic:
    names = list(names)
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return Diagnostic(
        f"there are no initial weights for {shown}",
        help="a dump is continued with weights.safetensors beside it; `uniap compile SPEC --dump DIR` writes that file",
    )
