"""The cluster as an op of the module, so that a dump can be continued without the cluster file.

    plan.cluster @laptop {nodes = 1, devices_per_node = 4, ..., device = #device<kind = "cpu", memory = 4294967296.0,
                          ...>, links = #links<intra = #link<bandwidth = 3625000000.0, ...>>}

Numbers are in base units, whatever units the file has.
"""

from __future__ import annotations

from typing import Any

from uniap_compiler.cluster import Cluster, ClusterError
from uniap_compiler.ir import Attr, Diagnostic, Module, Op, Struct

NAME = "plan.cluster"


def record_cluster(module: Module, cluster: Cluster) -> None:
    """Put the cluster into the module, in the place of an earlier one."""
    data = cluster.to_dict()
    name = str(data.pop("name"))
    attrs: dict[str, Attr] = {key: _attr(key, value) for key, value in data.items()}
    module.ops = [op for op in module.ops if op.name != NAME]
    module.ops.insert(0, Op(NAME, symbol=name, attrs=attrs))


def cluster_of(module: Module) -> Cluster:
    """Raises Diagnostic when the module has none, or one with a field that cannot be."""
    op = module.find(NAME)
    if op is None:
        raise Diagnostic("the module has no plan.cluster op", help="give the cluster again: --cluster FILE or PRESET")
    try:
        return Cluster.from_dict({"name": str(op.symbol), **{key: _plain(value) for key, value in op.attrs.items()}})
    except ClusterError as error:
        raise Diagnostic(f"{NAME}: {error}", op=op) from None


def _attr(key: str, value: Any) -> Attr:
    if isinstance(value, dict):
        return Struct(key, tuple((k, _attr(k, v)) for k, v in value.items()))
    result: Attr = value
    return result


def _plain(value: Attr) -> Any:
    if isinstance(value, Struct):
        return {key: _plain(field) for key, field in value.fields}
    return value
