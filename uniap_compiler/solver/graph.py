"""Graphs that are not chains: a topological order, the neighbours that are joined, and the values that skip ahead.

    order = linearise(graph)      # a networkx.DiGraph: two towers, U-Net skips, an encoder read by every decoder layer
    order.nodes                   # the layers, in the order in which stages will hold them
    order.joined[u]               # whether layer u reads layer u-1; where not, their "reshard" and "transfer" are zero
    order.values                  # (source, readers): what goes to "values" of the problem

Of all topological orders one is taken that keeps few values alive: a layer follows the one just placed when it can, and
among the others those come first that free a value.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import networkx as nx

from uniap_compiler.solver.problem import ProblemError


@dataclass(frozen=True)
class Order:
    nodes: list[Hashable]
    joined: list[bool]
    values: list[tuple[int, list[int]]]


def linearise(graph: nx.DiGraph) -> Order:
    """A deterministic topological order of the graph; ties are broken by the order in which nodes were added."""
    if not nx.is_directed_acyclic_graph(graph):
        cycle = " -> ".join(str(edge[0]) for edge in nx.find_cycle(graph))
        raise ProblemError("graph", f"the layers are not acyclic: {cycle}")
    rank = {node: n for n, node in enumerate(graph)}
    missing = {node: graph.in_degree(node) for node in graph}
    unread = {node: graph.out_degree(node) for node in graph}
    ready = {node for node, count in missing.items() if count == 0}
    nodes: list[Hashable] = []

    def urgency(node: Hashable) -> tuple[bool, int, int]:
        follows = bool(nodes) and graph.has_edge(nodes[-1], node)
        freed = sum(unread[before] == 1 for before in graph.predecessors(node))
        return (not follows, -freed, rank[node])

    while ready:
        node = min(ready, key=urgency)
        ready.remove(node)
        for before in graph.predecessors(node):
            unread[before] -= 1
        nodes.append(node)
        for after in graph.successors(node):
            missing[after] -= 1
            if missing[after] == 0:
                ready.add(after)
    place = {node: u for u, node in enumerate(nodes)}
    joined = [u > 0 and graph.has_edge(nodes[u - 1], node) for u, node in enumerate(nodes)]
    values = []
    for u, node in enumerate(nodes):
        readers = sorted(place[after] for after in graph.successors(node) if place[after] > u + 1)
        if readers:
            values.append((u, readers))
    return Order(nodes, joined, values)
