"""Cluster files, meshes and the alpha-beta cost of collectives."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from uniap_compiler.cluster import Cluster, ClusterError, Mesh, load_cluster, presets, prime_factors
from uniap_compiler.cluster.units import quantity, show

SMALL = {
    "name": "small",
    "nodes": 2,
    "devices_per_node": 4,
    "device": {"kind": "cpu", "memory": "1 GiB", "memory_bandwidth": "10 GB/s", "flops": {"f32": 1e11}},
    "links": {"intra": {"bandwidth": 1e10, "latency": 1e-6}, "inter": {"bandwidth": 1e9, "latency": 1e-5}},
}


def small(**changes: object) -> Cluster:
    return Cluster.from_dict({**SMALL, **changes})


def test_presets_load_and_round_trip() -> None:
    assert {"a100-40gb-pcie", "a100-80gb", "h100-80gb", "h200-141gb", "laptop", "v100-32gb"} < set(presets())
    for name in presets():
        cluster = load_cluster(name)
        assert cluster.name == name
        assert Cluster.from_dict(cluster.to_dict()) == cluster
    a100 = load_cluster("a100-80gb")
    assert (a100.devices, a100.device.kind) == (8, "cuda")
    assert a100.inter is not None and a100.inter.bandwidth == 25e9
    assert a100.flops("bf16") == pytest.approx(312e12 * 0.6)
    assert load_cluster("laptop").devices == 4


@pytest.mark.parametrize(
    ("name", "nodes", "per_node", "gib", "f32"),
    [
        ("v100-32gb", 1, 8, 32, 15.7e12),
        ("a100-40gb-pcie", 1, 8, 40, 19.5e12),
        ("h100-80gb", 1, 8, 80, 67e12),
        ("h200-141gb", 1, 8, 141, 67e12),
        ("titan-xp-12gb-2x4", 2, 4, 12, 12.1e12),
        ("titan-xp-12gb-4x4", 4, 4, 12, 12.1e12),
    ],
)
def test_presets_of_machines(name: str, nodes: int, per_node: int, gib: int, f32: float) -> None:
    cluster = load_cluster(name)
    assert (cluster.nodes, cluster.devices_per_node) == (nodes, per_node)
    assert 0.9 * gib < cluster.device.memory / 2**30 < gib
    assert cluster.device.flops["f32"] == f32
    if nodes > 1:  # ordinary Ethernet that the devices of a node share
        assert cluster.inter is not None and cluster.inter.shared and 1.1e9 < cluster.inter.bandwidth < 1.25e9


def test_every_figure_of_a_preset_has_its_source_beside_it() -> None:
    for path in (Path(__file__).parents[2] / "uniap_compiler" / "cluster" / "presets").glob("*.toml"):
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            figure = re.match(r"(memory|memory_bandwidth|efficiency|bandwidth|latency|launch|memory_reserve) =", line)
            if figure and "#" not in line:
                table = next(above for above in reversed(lines[:number]) if above.startswith("["))
                assert "#" in table, f"{path.name}:{number + 1}: {line}"


def test_ranks_that_share_cores_are_slower() -> None:
    laptop = load_cluster("laptop")
    assert laptop.flops("f32") == pytest.approx(110e9 * 0.9 / 2)  # four ranks on two cores
    assert laptop.launch() == pytest.approx(6e-6)


def test_extends_merges_tables(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text('extends = "a100-80gb"\nnodes = 4\n[device]\nmemory = "40 GiB"\n')
    (tmp_path / "top.toml").write_text(
        'extends = "base.toml"\ndevices_per_node = 4\n[links.inter]\nbandwidth = "100 Gbit/s"\n'
    )
    cluster = load_cluster(tmp_path / "top.toml")
    assert (cluster.name, cluster.nodes, cluster.devices_per_node) == ("top", 4, 4)
    assert cluster.device.memory == 40 * 2**30
    assert cluster.device.memory_bandwidth == 2039e9
    assert cluster.inter is not None and (cluster.inter.bandwidth, cluster.inter.latency) == (12.5e9, 14e-6)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('extends = "a100-80gb"\nnodes = 0', "nodes: expected an integer from 1 to 65536; found 0"),
        ('extends = "a100-80gb"\nnodes = "four"', "nodes: expected an integer"),
        ('extends = "laptop"\n[device]\nmemory = "80 G"', "device.memory: expected bytes, such as"),
        ('extends = "laptop"\n[device]\nmemory = 80', "device.memory: expected bytes from 1 MiB to 1024 TiB; found 80"),
        ('extends = "laptop"\n[device]\nmemory = -1', "device.memory: expected bytes from"),
        (
            'extends = "laptop"\n[device]\nefficiency = 60',
            "device.efficiency: expected a number from 0.01 to 1; found 60",
        ),
        ('extends = "laptop"\n[device]\ncolour = 1', "device.colour: is not a field; known are"),
        ('extends = "laptop"\n[device]\nkind = "tpu"', "device.kind: expected 'cpu' or 'cuda'; found 'tpu'"),
        ('extends = "laptop"\n[links.intra]\nbandwidth = inf', "links.intra.bandwidth: expected bytes per second from"),
        ('extends = "laptop"\nmemory_reserve = "4 GiB"', "memory_reserve: leaves nothing"),
        (
            'extends = "nowhere"',
            "extends: there is no cluster 'nowhere': it is neither a file nor one of a100-40gb-pcie, a100-80gb, ",
        ),
        ('extends = "c.toml"', "extends: the files extend each other in a circle"),
        ("nodes = 1\ndevices_per_node = 2", "device: is missing"),
        ("nodes = 1", "devices_per_node: is missing"),
        ("nodes = ", "is not TOML"),
    ],
)
def test_bad_files_name_file_and_field(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(ClusterError) as error:
        load_cluster(path)
    assert words in str(error.value)
    assert "c.toml" in str(error.value)


def test_a_cluster_of_nodes_needs_the_link_between_them() -> None:
    with pytest.raises(ClusterError, match="links.inter: is missing: a cluster of 2 nodes needs"):
        small(links={"intra": SMALL["links"]["intra"]})  # type: ignore[index]


def test_unknown_cluster_names_the_presets() -> None:
    with pytest.raises(ClusterError) as error:
        load_cluster("a100")
    assert str(error.value).endswith(f"it is neither a file nor one of {', '.join(presets())}")


def test_quantities() -> None:
    assert quantity("200 Gbit/s", "bytes per second", 0, 1e15) == 25e9
    assert quantity("5us", "seconds", 0, 1) == pytest.approx(5e-6)
    assert quantity("1 GiB", "bytes", 0, 1e15) == 2**30
    assert show(2**30, "bytes") == "1 GiB" and show(5e-6, "seconds") == "5 us"
    with pytest.raises(ValueError, match="found True"):
        quantity(True, "a number", 0, 1)


def test_axes_are_prime_factors_nodes_first() -> None:
    assert prime_factors(12) == [3, 2, 2]
    assert prime_factors(1) == []
    cluster = small(nodes=3, devices_per_node=4)
    assert Mesh.of(cluster, 1, 0).axes == {"a": 3, "b": 2, "c": 2}
    assert Mesh.of(cluster, 3, 2).axes == {"a": 2, "b": 2}
    assert Mesh.of(cluster, 2, 1).axes == {"a": 3, "b": 2}  # six devices straddle nodes of four
    assert Mesh.of(cluster, 12, 5).axes == {}
    with pytest.raises(ValueError, match="12 devices do not divide into 5 stages"):
        Mesh.of(cluster, 5, 0)


def test_groups_and_links() -> None:
    mesh = Mesh.of(small(), 1, 0)  # two nodes of four: a crosses nodes, b and c do not
    assert mesh.groups(("a",)).tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert mesh.groups(("c",)).tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert mesh.groups(("b", "c")).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert mesh.groups(()).shape == (8, 1)
    assert mesh.link(("b", "c"))[0].bandwidth == 1e10
    assert mesh.link(("a", "c"))[0].bandwidth == 1e9
    assert Mesh.of(small(), 2, 1).groups(("a",)).tolist() == [[4, 6], [5, 7]]


def test_uneven_stages_cost_the_slowest_link_that_they_cross() -> None:
    cluster = small(nodes=2, devices_per_node=3)
    stages = [Mesh.of(cluster, 3, i) for i in range(3)]  # devices 01 | 23 | 45, nodes 012 | 345
    seconds = [float(mesh.seconds("all_reduce", ("a",), 1e6)) for mesh in stages]
    assert seconds[0] == seconds[2] < seconds[1]
    assert stages[0].profile() == stages[2].profile() != stages[1].profile()


def test_tensor_axes_are_the_fastest() -> None:
    mesh = Mesh.of(small(nodes=2, devices_per_node=6), 1, 0)  # a=2, b=3, c=2
    assert mesh.tensor_axes(2) == ("c",)
    assert mesh.tensor_axes(3) == ("b",)
    assert mesh.tensor_axes(4) == ("a", "c")
    assert mesh.tensor_axes(6) == ("b", "c")
    assert mesh.tensor_axes(5) is None
    assert mesh.tensor_axes(1) == ()
    assert mesh.data_axes(6) == ("a",)


def test_alpha_beta() -> None:
    mesh = Mesh.of(small(), 2, 0)  # four devices in one node: 1e10 bytes/s, 1 us per step
    size = np.array([0.0, 4e6])
    np.testing.assert_allclose(mesh.seconds("all_reduce", ("a", "b"), size), [6e-6, 6e-6 + 1.5 * 4e-4])
    np.testing.assert_allclose(mesh.seconds("all_gather", ("a", "b"), size), [3e-6, 3e-6 + 0.75 * 4e-4])
    np.testing.assert_allclose(mesh.seconds("reduce_scatter", ("a", "b"), size), [3e-6, 3e-6 + 0.75 * 4e-4])
    np.testing.assert_allclose(mesh.seconds("all_to_all", ("a",), size), [1e-6, 1e-6 + 0.5 * 4e-4])
    np.testing.assert_allclose(mesh.seconds("all_reduce", (), size), [0, 0])
    np.testing.assert_allclose(mesh.send_seconds(size), [1e-5, 1e-5 + 4e6 / 1e9])  # stage 1 is another node
    with pytest.raises(ValueError, match="unknown collective 'gather'"):
        mesh.seconds("gather", ("a",), size)


def test_groups_share_a_port() -> None:
    shared = small(
        links={"intra": {"bandwidth": 1e10, "latency": 0}, "inter": {"bandwidth": 1e9, "latency": 0, "shared": True}}
    )
    mesh = Mesh.of(shared, 1, 0)
    assert float(mesh.seconds("all_reduce", ("a",), 1e6)) == pytest.approx(4 * 1e-3)  # four groups through one port
    assert float(mesh.seconds("all_reduce", ("a", "b", "c"), 1e6)) == pytest.approx(1.75e-3)  # one ring
    assert float(Mesh.of(shared, 2, 0).send_seconds(1e6)) == pytest.approx(4e-3)


def test_gloo_reduce_scatter_costs_an_all_reduce() -> None:
    mesh = Mesh.of(load_cluster("laptop"), 1, 0)
    per_byte = (
        float(mesh.seconds("reduce_scatter", ("a", "b"), 1e9) - mesh.seconds("reduce_scatter", ("a", "b"), 0)) / 1e9
    )
    assert per_byte == pytest.approx(1.5 / (4.6e9 / 8))
    # 1 MB on four ranks: 1.15 ms + 1.5 MB at 8.2 Gbit/s
    assert float(mesh.seconds("all_reduce", ("a", "b"), 1e6)) == pytest.approx(1.135e-3 + 1.5e6 / 1.025e9, rel=1e-9)
