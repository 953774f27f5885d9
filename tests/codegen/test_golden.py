"""Generated files, compared with what they looked like when somebody last read them (`--update-golden` writes them)."""

from pathlib import Path

import pytest

from uniap_compiler.codegen.rank import World, write_rank
from uniap_compiler.codegen.stage import write_stage

from .hand_written import HERE, two_stages

GOLDEN = HERE / "golden"


def generated(name: str) -> str:
    module = two_stages()
    world = World.of(module)
    kind, number = name.removesuffix(".py").split("_")
    if kind == "stage":
        return write_stage(module, int(number), world.stages, tuple(world.mesh))
    return write_rank(module, world, int(number), "0" * 64)


@pytest.mark.parametrize("name", ["stage_0.py", "stage_1.py", "rank_0005.py"])
def test_golden(name: str, update_golden: bool) -> None:
    path, text = GOLDEN / f"{name}.txt", generated(name)
    if update_golden:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text(), f"read the difference, then: pytest {Path(__file__).name} --update-golden"


def test_generated_lines_are_short() -> None:
    for name in ("stage_0.py", "stage_1.py"):
        for line in generated(name).splitlines():
            assert len(line.split("  # ")[0].rstrip()) <= 110, line
