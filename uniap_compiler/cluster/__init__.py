"""Clusters: devices, links, meshes, and what a collective costs.  Numbers only: no IR, no torch."""

from .description import COLLECTIVES, DTYPES, Cluster, ClusterError, Device, Link, Rate
from .files import load_cluster, presets
from .mesh import Mesh, prime_factors

__all__ = [
    "COLLECTIVES", "Cluster", "ClusterError", "DTYPES", "Device", "Link", "Mesh", "Rate", "load_cluster", "presets",
    "prime_factors",
]  # fmt: skip
