"""What a cluster is: nodes of equal devices, a link inside a node and one between nodes.

    Cluster.from_dict({"name": "two", "nodes": 2, "devices_per_node": 4, "device": {...}, "links": {...}})

`from_dict` checks every field; what is wrong is said as `file: field: what is allowed`.  `to_dict` is its inverse,
plain data that the compiler stores beside a plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .units import quantity

DTYPES = ("f64", "f32", "bf16", "f16")
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send")
KINDS = ("cpu", "cuda")

#: field -> (kind of quantity, lowest, highest).  Beyond these a figure is a slip of units, not a machine.
_BYTES = ("bytes", 2.0**20, 2.0**50)
_BANDWIDTH = ("bytes per second", 1e3, 1e15)
_FLOPS = ("operations per second", 1e6, 1e18)
_SECONDS = ("seconds", 0.0, 10.0)
_FRACTION = ("a number", 0.01, 1.0)


class ClusterError(ValueError):
    """A cluster file that cannot be used: which file, which field, what is allowed."""

    def __init__(self, file: str, path: str, message: str) -> None:
        super().__init__(": ".join(part for part in (file, path, message) if part))
        self.file, self.path, self.message = file, path, message


@dataclass(frozen=True)
class Rate:
    """What a collective costs on a link: `overhead` per call, `latency` per step of a ring, `bandwidth` per device."""

    overhead: float
    latency: float
    bandwidth: float


@dataclass(frozen=True)
class Link:
    """`shared`: all devices of a node use one port, so groups that cross it at the same time divide its bandwidth."""

    bandwidth: float
    latency: float
    overhead: float = 0.0
    shared: bool = False
    collectives: Mapping[str, Rate] = field(default_factory=dict)

    def rate(self, collective: str) -> Rate:
        given = self.collectives.get(collective)
        return given if given is not None else Rate(self.overhead, self.latency, self.bandwidth)


@dataclass(frozen=True)
class Device:
    """memory: bytes; flops: peak per dtype; efficiency: the part of the peak that large matrix products reach.

    launch: seconds that every op costs beside its arithmetic; parallelism: how many devices of a node compute at full
    speed at the same time (cores of a machine whose ranks share them), 0 = all.
    """

    kind: str
    memory: float
    memory_bandwidth: float
    flops: Mapping[str, float]
    efficiency: float
    launch: float
    parallelism: int = 0


@dataclass(frozen=True)
class Cluster:
    """overlap: the part kappa of min(compute, communication) that is lost when both run at once (0 none, 1 all).

    memory_reserve: bytes of each device that no plan may use (the runtime, the allocator's waste).
    reduce_scatter_is_all_reduce: the backend implements the one by the other, and it costs the same traffic.
    """

    name: str
    nodes: int
    devices_per_node: int
    device: Device
    intra: Link
    inter: Link | None
    memory_reserve: float = 0.0
    overlap: float = 1.0
    reduce_scatter_is_all_reduce: bool = False

    @property
    def devices(self) -> int:
        return self.nodes * self.devices_per_node

    @property
    def memory(self) -> float:
        """Bytes of one device that a plan may use."""
        return self.device.memory - self.memory_reserve

    def flops(self, dtype: str) -> float:
        """Operations per second that a large matrix product reaches on one device when all of its node work."""
        peak = self.device.flops.get(dtype, self.device.flops["f32"])
        return peak * self.device.efficiency * self._share()

    def memory_bandwidth(self) -> float:
        return self.device.memory_bandwidth * self._share()

    def launch(self) -> float:
        return self.device.launch / self._share()

    def _share(self) -> float:
        return min(1.0, self.device.parallelism / self.devices_per_node) if self.device.parallelism else 1.0

    def link(self, crosses_nodes: bool) -> Link:
        if not crosses_nodes:
            return self.intra
        assert self.inter is not None, "a cluster of several nodes has a link between them"
        return self.inter

    @staticmethod
    def from_dict(data: Mapping[str, Any], file: str = "") -> Cluster:
        return _Reader(file).cluster(data)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers in base units; `from_dict(to_dict())` is the same cluster."""
        device = {k: v for k, v in vars(self.device).items() if k != "flops"} | {"flops": dict(self.device.flops)}
        links = {"intra": _link_to_dict(self.intra)}
        if self.inter is not None:
            links["inter"] = _link_to_dict(self.inter)
        return {
            "name": self.name,
            "nodes": self.nodes,
            "devices_per_node": self.devices_per_node,
            "memory_reserve": self.memory_reserve,
            "overlap": self.overlap,
            "reduce_scatter_is_all_reduce": self.reduce_scatter_is_all_reduce,
            "device": device,
            "links": links,
        }


def _link_to_dict(link: Link) -> dict[str, Any]:
    data: dict[str, Any] = {
        "bandwidth": link.bandwidth, "latency": link.latency, "overhead": link.overhead, "shared": link.shared,
    }  # fmt: skip
    return data | {name: dict(vars(rate)) for name, rate in link.collectives.items()}


class _Reader:
    """Checks one decoded file, field by field."""

    def __init__(self, file: str) -> None:
        self.file = file

    def cluster(self, data: Mapping[str, Any]) -> Cluster:
        fields = self.table(data, "", {
            "name", "nodes", "devices_per_node", "memory_reserve", "overlap", "reduce_scatter_is_all_reduce",
            "device", "links",
        })  # fmt: skip
        nodes = self.count(fields, "nodes", "nodes", 1, 65536)
        per_node = self.count(fields, "devices_per_node", "devices_per_node", 1, 4096)
        device = self.device(self.need(fields, "device", ""))
        links = self.table(self.need(fields, "links", ""), "links", {"intra", "inter"})
        inter = self.link(links["inter"], "links.inter") if "inter" in links else None
        if nodes > 1 and inter is None:
            self.fail("links.inter", f"is missing: a cluster of {nodes} nodes needs the link between them")
        reserve = self.number(fields, "memory_reserve", "", ("bytes", 0.0, 2.0**50), default=0.0)
        if reserve >= device.memory:
            self.fail("memory_reserve", "leaves nothing of the device's memory")
        name = fields.get("name", self.file or "cluster")
        if not isinstance(name, str):
            self.fail("name", f"expected a string; found {name!r}")
        return Cluster(
            name=name,
            nodes=nodes,
            devices_per_node=per_node,
            device=device,
            intra=self.link(self.need(links, "intra", "links"), "links.intra"),
            inter=inter,
            memory_reserve=reserve,
            overlap=self.number(fields, "overlap", "", ("a number", 0.0, 1.0), default=1.0),
            reduce_scatter_is_all_reduce=self.flag(fields, "reduce_scatter_is_all_reduce", ""),
        )

    def device(self, data: object) -> Device:
        fields = self.table(data, "device", {
            "kind", "memory", "memory_bandwidth", "flops", "efficiency", "launch", "parallelism",
        })  # fmt: skip
        kind = self.need(fields, "kind", "device")
        if kind not in KINDS:
            self.fail("device.kind", f"expected {' or '.join(map(repr, KINDS))}; found {kind!r}")
        flops = self.table(self.need(fields, "flops", "device"), "device.flops", set(DTYPES))
        if "f32" not in flops:
            self.fail("device.flops.f32", "is missing: it also stands for the dtypes that are not listed")
        return Device(
            kind=str(kind),
            memory=self.number(fields, "memory", "device", _BYTES),
            memory_bandwidth=self.number(fields, "memory_bandwidth", "device", _BANDWIDTH),
            flops={dtype: self.number(flops, dtype, "device.flops", _FLOPS) for dtype in flops},
            efficiency=self.number(fields, "efficiency", "device", _FRACTION, default=1.0),
            launch=self.number(fields, "launch", "device", _SECONDS, default=0.0),
            parallelism=self.count(fields, "parallelism", "device.parallelism", 0, 4096, default=0),
        )

    def link(self, data: object, path: str) -> Link:
        fields = self.table(data, path, {"bandwidth", "latency", "overhead", "shared", *COLLECTIVES})
        link = Link(
            bandwidth=self.number(fields, "bandwidth", path, _BANDWIDTH),
            latency=self.number(fields, "latency", path, _SECONDS),
            overhead=self.number(fields, "overhead", path, _SECONDS, default=0.0),
            shared=self.flag(fields, "shared", path),
        )
        collectives = {}
        for name in COLLECTIVES:
            if name in fields:
                where = f"{path}.{name}"
                given = self.table(fields[name], where, {"overhead", "latency", "bandwidth"})
                collectives[name] = Rate(
                    self.number(given, "overhead", where, _SECONDS, default=link.overhead),
                    self.number(given, "latency", where, _SECONDS, default=link.latency),
                    self.number(given, "bandwidth", where, _BANDWIDTH, default=link.bandwidth),
                )
        return Link(link.bandwidth, link.latency, link.overhead, link.shared, collectives)

    def fail(self, path: str, message: str) -> None:
        raise ClusterError(self.file, path, message)

    def table(self, data: object, path: str, known: set[str]) -> dict[str, Any]:
        if not isinstance(data, Mapping):
            raise ClusterError(self.file, path, f"expected a table; found {data!r}")
        for name in data:
            if name not in known:
                where = f"{path}.{name}" if path else str(name)
                raise ClusterError(self.file, where, f"is not a field; known are {', '.join(sorted(known))}")
        return dict(data)

    def need(self, fields: Mapping[str, Any], name: str, path: str) -> Any:
        if name not in fields:
            raise ClusterError(self.file, f"{path}.{name}" if path else name, "is missing")
        return fields[name]

    def number(
        self,
        fields: Mapping[str, Any],
        name: str,
        path: str,
        limits: tuple[str, float, float],
        default: float | None = None,
    ) -> float:
        value = fields.get(name, default) if default is not None else self.need(fields, name, path)
        try:
            return quantity(value, *limits)
        except ValueError as error:
            raise ClusterError(self.file, f"{path}.{name}" if path else name, str(error)) from None

    def count(
        self, fields: Mapping[str, Any], name: str, path: str, low: int, high: int, default: int | None = None
    ) -> int:
        value = fields.get(name, default)
        if value is None:
            raise ClusterError(self.file, path, "is missing")
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ClusterError(self.file, path, f"expected an integer from {low} to {high}; found {value!r}")
        return value

    def flag(self, fields: Mapping[str, Any], name: str, path: str) -> bool:
        value = fields.get(name, False)
        if not isinstance(value, bool):
            raise ClusterError(
                self.file, f"{path}.{name}" if path else name, f"expected true or false; found {value!r}"
            )
        return value
