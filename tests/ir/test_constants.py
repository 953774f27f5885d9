"""The constants file: round trip, order, and the safetensors package as the referee."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from uniap_compiler.ir import ConstantStore, Diagnostic


def store() -> ConstantStore:
    result = ConstantStore()
    result.add("mask", np.array([[True, False]]), "i1")
    result.add("bits", np.array([0x3F80, 0x4000], dtype=np.uint16), "bf16")
    result.add("a scalar", np.array(2.5), "f64")
    result.add("empty", np.zeros((0, 3), dtype=np.float32), "f32")
    result.add("index", np.arange(6, dtype=np.int64).reshape(2, 3).T, "i64")
    return result


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "constants.safetensors"
    before = store()
    before.save(path)
    after = ConstantStore.load(path)
    assert list(after) == list(before) == ["a scalar", "bits", "empty", "index", "mask"]
    for name in before:
        assert after[name].dtype == before[name].dtype
        assert after[name].array.shape == before[name].array.shape
        assert after.digest(name) == before.digest(name)
    assert [p.name for p in tmp_path.iterdir()] == ["constants.safetensors"]


def test_other_readers_agree(tmp_path: Path) -> None:
    written = ConstantStore()
    for name in store():
        if name != "bits":  # numpy has no bf16
            written.add(name, store()[name].array, store()[name].dtype)
    written.save(tmp_path / "x")
    loaded = safetensors_numpy.load_file(tmp_path / "x")
    np.testing.assert_array_equal(loaded["index"], np.arange(6).reshape(2, 3).T)
    np.testing.assert_array_equal(loaded["mask"], [[True, False]])
    safetensors_numpy.save_file({"w": np.arange(3, dtype=np.float32)}, tmp_path / "y", metadata={"format": "pt"})
    np.testing.assert_array_equal(ConstantStore.load(tmp_path / "y")["w"].array, [0, 1, 2])


def test_bytes_do_not_depend_on_the_order_of_adding(tmp_path: Path) -> None:
    store().save(tmp_path / "x")
    other = ConstantStore()
    for name in reversed(list(store())):
        other.add(name, store()[name].array, store()[name].dtype)
    other.save(tmp_path / "y")
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_digest_sees_dtype_shape_and_bytes() -> None:
    result = ConstantStore()
    zeros = np.zeros(4, dtype=np.int16)
    digests = {
        result.add("x", zeros, "i16").digest,
        result.add("x", zeros.reshape(2, 2), "i16").digest,
        result.add("x", zeros.astype(np.float16), "f16").digest,
        result.add("x", np.array([0, 0, 0, 1], dtype=np.int16), "i16").digest,
    }
    assert len(digests) == 4


def test_an_array_of_another_dtype_is_refused() -> None:
    with pytest.raises(ValueError, match="float64, which does not hold f32"):
        ConstantStore().add("x", np.zeros(3), "f32")
    with pytest.raises(ValueError, match="f33 is not a dtype"):
        ConstantStore().add("x", np.zeros(3), "f33")


@pytest.mark.parametrize("data", [b"", b"12345678", b"\x02\0\0\0\0\0\0\0[]", b"\x08\0\0\0\0\0\0\0nonsense"])
def test_a_broken_file(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(Diagnostic, match="is not a file of constants"):
        ConstantStore.load(tmp_path / "x")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(Diagnostic, match="cannot read the constants"):
        ConstantStore.load(tmp_path / "x")
