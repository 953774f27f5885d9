"""Graphs that are not chains become a topological order with values; every edge is accounted for exactly once."""

from __future__ import annotations

import random

import networkx as nx
import pytest

from uniap_compiler.solver import ProblemError, linearise


def check(graph: nx.DiGraph) -> None:
    order = linearise(graph)
    place = {node: u for u, node in enumerate(order.nodes)}
    assert sorted(map(str, order.nodes)) == sorted(map(str, graph))
    assert all(place[u] < place[v] for u, v in graph.edges)
    edges = [(u - 1, u) for u, joined in enumerate(order.joined) if joined]
    edges += [(source, reader) for source, readers in order.values for reader in readers]
    assert sorted(edges) == sorted((place[u], place[v]) for u, v in graph.edges)


def test_two_towers() -> None:
    graph = nx.DiGraph()
    for tower in "ab":
        nx.add_path(graph, [f"{tower}{n}" for n in range(4)])
    graph.add_edges_from([("a3", "loss"), ("b3", "loss")])
    check(graph)
    order = linearise(graph)
    assert order.nodes == ["a0", "a1", "a2", "a3", "b0", "b1", "b2", "b3", "loss"]  # one tower, then the other
    assert order.values == [(3, [8])]
    assert not order.joined[4]


def test_u_net() -> None:
    graph = nx.DiGraph()
    nx.add_path(graph, range(7))
    graph.add_edges_from([(0, 6), (1, 5), (2, 4)])
    check(graph)
    assert linearise(graph).values == [(0, [6]), (1, [5]), (2, [4])]


def test_random_graphs() -> None:
    rng = random.Random(0)
    for _ in range(200):
        nodes = list(range(rng.randint(1, 9)))
        rng.shuffle(nodes)
        graph = nx.DiGraph()
        graph.add_nodes_from(nodes)
        graph.add_edges_from((u, v) for n, u in enumerate(nodes) for v in nodes[n + 1 :] if rng.random() < 0.3)
        check(graph)


def test_cycles_are_refused() -> None:
    with pytest.raises(ProblemError, match="acyclic"):
        linearise(nx.DiGraph([("a", "b"), ("b", "a")]))
