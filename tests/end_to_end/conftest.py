"""What the tests of whole compilations share: a model is captured once per test process, each plan goes on from there.

The way is the user's: the dump after `shard-rules` is continued with --from, with another cluster and other forces.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from .plans import Workshop


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    torch.set_num_threads(1)
    return Workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "build"
