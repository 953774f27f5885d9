"""Small buckets force @stage_i.backward_last on a small model; the bundle still equals the unsharded one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from uniap_compiler import driver
from uniap_compiler.passes.pipelines import parse_pipeline
from uniap_compiler.verify import verify

SMALL = 40_000


@pytest.fixture
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(text: str):
        return [replace(p, bucket_bytes=SMALL) if p.name == "overlap-gradients" else p for p in parse_pipeline(text)]

    monkeypatch.setattr(driver, "parse_pipeline", parse)


@pytest.mark.parametrize(
    ("force", "starts", "rest"),
    [
        ("dp=4,micro_batches=2", "comm.all_reduce_many_start(", False),
        ("dp=4,micro_batches=1", "comm.all_reduce_many_start(", False),
        ("pp=2,dp=2,shard=optimizer,micro_batches=4", "comm.reduce_scatter_many_start(", False),
    ],
)
def test_the_last_backward_reduces(
    small_buckets: None, tmp_path: Path, force: str, starts: str, rest: bool
) -> None:
    compiled = driver.compile("examples/mlp.py:task", "laptop", 16, out=tmp_path / "b", force=force, dtype="float64")
    stage = (compiled.bundle / "stages/stage_0.py").read_text()
    assert "def backward_last(" in stage and stage.count(starts) >= 2
    assert ("def reduce_gradients(" in stage) == rest
    assert '["backward_last", ' in (compiled.bundle / "ranks/rank_0000.py").read_text()
    report = verify(compiled.bundle)
    assert report.ok, report.failures()[:3]


def test_a_stage_with_little_to_send_is_left_alone(tmp_path: Path) -> None:
    compiled = driver.compile("examples/mlp.py:task", "laptop", 16, out=tmp_path / "b", force="pp=2,dp=2")
    assert "backward_last" not in (compiled.bundle / "stages/stage_0.py").read_text()
