"""manifest.json: what was compiled, every parameter, the hash of every other file (docs/bundle.md).

    {"format": "uniap-bundle/1", "fingerprint": "8f3c...", "world_size": 4, "stages": 2, "micro_batches": 2, ...}

The fingerprint covers the programme (stages, ranks, plan, constants, runtime) and not the initial weights, so a
checkpoint fits every bundle that computes the same thing.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..ir import Attr, Layout, Module, Struct
from ..passes.analysis.precision import LOW, Precision
from .rank import World, layout_of, shape_of, torch_name

FORMAT = "uniap-bundle/1"

_MANTISSA = {"bf16": 8, "f16": 11, "f32": 24, "f64": 53}
_OPTIMIZERS: dict[str, dict[str, object]] = {
    "adamw": {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01},
    "sgd": {"lr": 1e-2, "momentum": 0.0, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0},
}


def build_manifest(
    module: Module, world: World, *, fingerprint: str, files: Mapping[str, str], versions: Mapping[str, str],
    spec_sha256: str, weights: Mapping[str, Any],
) -> dict[str, Any]:
    setting = settings_of(module)
    return {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "versions": dict(versions),
        "spec": setting["spec"],
        "spec_sha256": spec_sha256,
        "world_size": world.size,
        "nodes": _nodes(module),
        "stages": world.stages,
        "micro_batches": setting["micro_batches"],
        "global_batch": setting["global_batch"],
        "schedule": setting["schedule"],
        "dtype": torch_name(setting["dtype"]) if setting["dtype"] else "",
        **_least_precise(module, setting["dtype"]),
        "mesh": [[axis, size] for axis, size in world.mesh.items()],
        "optimizer": _optimizer(module),
        "inputs": [
            {"path": str(op.symbol), "shape": shape_of(op), "dtype": torch_name(op.attrs["dtype"])}
            for op in module.ops
            if op.name == "plan.input"
        ],
        "loss": {"dtype": _loss_dtype(module)},
        **({"random_sites": module.attrs["random_sites"]} if "random_sites" in module.attrs else {}),
        "parameters": _parameters(module),
        "buffers": {
            str(o.symbol): {"shape": shape_of(o), "dtype": torch_name(o.attrs["dtype"]), "stages": o.attrs["stages"]}
            for o in module.ops
            if o.name == "plan.buffer"
        },
        "weights": dict(weights),
        "files": {path: files[path] for path in sorted(files)},
    }


def _nodes(module: Module) -> int:
    """How many machines the plan was made for."""
    cluster = module.find("plan.cluster")
    nodes = cluster.attrs.get("nodes") if cluster is not None else None
    return nodes if isinstance(nodes, int) else 1


def settings_of(module: Module) -> dict[str, Any]:
    """Options of the compilation, from the chosen plan where it has them, else from the module."""
    plan = module.find("plan.plan")
    chosen = plan.attrs if plan is not None else {}
    keys = ("micro_batches", "global_batch", "schedule", "dtype", "spec")
    return {key: plain(chosen.get(key, module.attrs.get(key))) for key in keys}


def plain(attr: Attr) -> Any:
    """An attribute as JSON: structs are objects, atoms and symbols are strings."""
    if isinstance(attr, Struct):
        return {key: plain(value) for key, value in attr.fields}
    if isinstance(attr, (list, tuple)):
        return [plain(item) for item in attr]
    if attr is None or isinstance(attr, (bool, int, float)):
        return attr
    return str(attr)


def _optimizer(module: Module) -> dict[str, Any]:
    """#optimizer<kind = "adamw", lr = 0.01, groups = [#group<parameters = [...], weight_decay = 0.0>]>"""
    given = module.attrs.get("optimizer")
    fields = plain(given) if isinstance(given, Struct) else {}
    kind = str(fields.pop("kind", "adamw")).lower()
    groups = fields.pop("groups", None) or []
    own = fields.pop("defaults", {})
    patterns = fields.pop("no_decay", None) or []
    precision = Precision.of(module)
    own_precision: dict[str, Any] = {}
    if any(str(op.attrs["dtype"]) in LOW for op in module.ops if op.name == "plan.parameter"):
        own_precision["master_weights"] = precision.master_weights
    if precision.reduce is not None:
        own_precision["reduce_dtype"] = torch_name(precision.reduce)
    for key in ("master_weights", "reduce_dtype"):
        fields.pop(key, None)
    names = [str(op.symbol) for op in module.ops if op.name == "plan.parameter" and op.attrs.get("home", True)]
    spared = [n for n in names if any(fnmatch.fnmatchcase(n, pattern) for pattern in patterns)]
    if spared:
        groups = [*groups, {"parameters": spared, "weight_decay": 0.0}]
    defaults = {**_OPTIMIZERS.get(kind, {}), **own, **fields}
    return {"kind": kind, "defaults": defaults, "groups": groups, **own_precision}


def _least_precise(module: Module, dtype: Any) -> dict[str, str]:
    """Of what is computed and sent, where it is less than the model's own."""
    dtypes = {v.type.dtype for func in module.funcs.values() for v in func.values()} | {str(dtype)}
    least = min((d for d in ("bf16", "f16", "f32", "f64") if d in dtypes), key=_MANTISSA.__getitem__, default=dtype)
    return {"least_precise": torch_name(least)} if dtype and least != str(dtype) and least in LOW else {}


def _loss_dtype(module: Module) -> str:
    for func in module.funcs.values():
        roles = func.attrs.get("results")
        if func.attrs.get("args") is not None and isinstance(roles, list) and "loss" in roles:
            value = func.returns[roles.index("loss")]
            if value is not None:
                return torch_name(value.type.dtype)
    return "float32"


def _parameters(module: Module) -> dict[str, Any]:
    ops = [op for op in module.ops if op.name == "plan.parameter"]
    stages: dict[str, set[int]] = {}
    for op in ops:
        assert isinstance(op.attrs["stage"], int)
        stages.setdefault(str(op.attrs["of"]), set()).add(op.attrs["stage"])
    return {
        str(op.symbol): {
            "shape": shape_of(op, padded=False),
            "dtype": torch_name(op.attrs["dtype"]),
            "home_stage": op.attrs["stage"],
            "stages": sorted(stages[str(op.symbol)]),
            "layout": _axes(layout_of(op, "layout"), len(shape_of(op))),
            "grad": op.attrs["grad"],
            "aliases": plain(op.attrs.get("aliases")) or [],
        }
        for op in ops
        if op.attrs.get("home", True)
    }


def _axes(layout: Layout | None, rank: int) -> list[list[str]]:
    """Per dim the axes that split it, major to minor; a dim split inside reads `(_:8 c:512)`."""
    if layout is None:
        return [[] for _ in range(rank)]
    return [
        list(dim[0].axes) if len(dim) == 1 else ["(" + " ".join(map(str, dim)) + ")"] for dim in layout.dims
    ]


def to_json(manifest: Mapping[str, Any]) -> str:
    """One line per key, and one per entry of a table, so that a diff of two manifests reads well."""
    lines = []
    for key, value in manifest.items():
        text = _compact(value)
        if len(text) > 100 and isinstance(value, (dict, list)):
            rows = [f"{_compact(k)}: {_compact(v)}" for k, v in value.items()] if isinstance(value, dict) else [
                _compact(item) for item in value
            ]
            text = ",\n  ".join(rows)
            text = "{\n  " + text + "\n }" if isinstance(value, dict) else "[\n  " + text + "\n ]"
        lines.append(f" {_compact(key)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=True, allow_nan=False)


def sha256_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
