"""A user's mistake, on the whole way through the command line: exit code 1, the words, the line, never a traceback.

One case of each kind here.  More of each: factories and models that cannot be captured in tests/capture/test_task.py,
cluster files in tests/cluster/test_cluster.py, forces in tests/cost/test_force.py, plans that do not fit in
tests/cost/test_solve_parallelism.py, ops without a rule in tests/rules/test_batch.py, IR text in tests/ir/errors,
what --from and --plan refuse in tests/codegen/test_driver.py, stale bundles in tests/codegen/test_verify.py, ranks that
run different bundles in tests/runtime/test_processes.py, torchrun with too few ranks in test_standalone.py.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from uniap_compiler.cli.main import main

from .plans import MLP, Workshop

TASKS = """\
import torch
import torch.nn.functional as F
from torch import nn

from uniap_compiler import TrainingTask


class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.up = nn.Linear(4, width)
        self.down = nn.Linear(width, 3)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


class Branching(Net):
    def forward(self, x):
        if x.sum() > 0:                     # LINE 20
            return self.down(self.up(x))
        return self.down(x @ x.T @ self.up(x))


class Sorting(Net):
    def forward(self, x):
        x, _ = torch.sort(self.up(x), dim=0)    # LINE 27
        return self.down(x)


class Inverting(Net):
    def forward(self, x):
        y = self.up(x).unflatten(1, (2, 4))
        y = torch.linalg.pinv(y)                # LINE 34
        return self.down(y.flatten(1))


def make(model):
    return TrainingTask(model, (torch.randn(4, 4),), F.cross_entropy, torch.randint(3, (4,)))


def good(): return make(Net())
def branching(): return make(Branching())
def sorting(): return make(Sorting())
def inverting(): return make(Inverting())
def wide(): return make(Net(1 << 18))
def nothing(): pass
def a_model(): return Net()
def crash(): return TrainingTask(1 / 0)         # LINE 49
NUMBER = 3
"""

CLUSTERS = {
    "negative": 'extends = "laptop"\n[device]\nmemory = "-4 GiB"\n',
    "unit": 'extends = "laptop"\n[device]\nmemory = "4 bananas"\n',
    "missing": "nodes = 1\ndevices_per_node = 2\n",
    "zero": 'extends = "laptop"\ndevices_per_node = 0\n',
    "typo": 'extends = "laptop"\nnodse = 3\n',
    "syntax": 'extends = "laptop\n',
    "small": 'extends = "laptop"\nmemory_reserve = "1 MiB"\n[device]\nmemory = "6 MiB"\n',
}

Uniap = Callable[..., str]


@pytest.fixture
def uniap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Uniap:
    """Runs the command in a folder with the files above, expects exit code 1; what it said on stderr."""
    (tmp_path / "tasks.py").write_text(TASKS)
    for name, text in CLUSTERS.items():
        (tmp_path / f"{name}.toml").write_text(text)
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(words)
        captured = capsys.readouterr()
        assert ended.value.code == 1, captured.out + captured.err
        assert "Traceback" not in captured.out + captured.err
        return str(captured.err)

    return run


def compile(uniap: Uniap, task: str, *words: str, cluster: str = "laptop", batch: int = 8) -> str:
    said = uniap("compile", f"tasks.py:{task}", "--cluster", cluster, "--global-batch", str(batch), *words)
    assert not Path("build").exists(), "a mistake leaves no bundle"
    return said


def line(number: int) -> str:
    """The text of TASKS there, as a diagnostic shows it."""
    text = TASKS.splitlines()[number - 1]
    assert f"LINE {number}" in text, "TASKS has moved"
    return f"--> tasks.py:{number}"


# -- the model ------------------------------------------------------------------------------------------------------


def test_a_model_that_cannot_be_captured(uniap: Uniap) -> None:
    said = compile(uniap, "branching")
    assert "error: torch.export cannot capture the model" in said and line(20) in said
    assert "def forward(" not in said and "Unable to find user code" not in said  # torch prints the graph so far
    assert "if x.sum() > 0:" in said
    assert "help: the model branches on a tensor's value; compute with torch.where" in said


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("godo", "error: tasks.py has no factory 'godo'\n  help: it defines"),
        ("nothing", "error: tasks.py:nothing returned nothing, not a TrainingTask\n  help: return uniap_compiler."),
        ("a_model", "error: tasks.py:a_model returned a Net, not a TrainingTask"),
        ("NUMBER", "error: tasks.py:NUMBER is an int, not a function that returns a TrainingTask"),
        ("crash", "error: tasks.py:crash failed: ZeroDivisionError: division by zero\n  --> tasks.py:49"),
    ],
)
def test_factories(factory: str, words: str, uniap: Uniap) -> None:
    assert words in compile(uniap, factory)


def test_a_batch_that_cannot_be_split(uniap: Uniap) -> None:
    said = compile(uniap, "sorting", "--force", "pp=1,dp=4")
    assert "error: aten.sort cannot be split in its batch dim: its rule keeps factor" in said and line(27) in said
    assert "help: use tensor parallelism or pipeline stages for this layer (dp=1)" in said


def test_an_op_without_a_rule(uniap: Uniap) -> None:
    said = compile(uniap, "inverting", "--force", "pp=1,dp=4")
    assert "error: aten.linalg_pinv.atol_rtol_tensor has no sharding rule, so the batch cannot be split" in said
    assert line(34) in said and 'in one line of the task file: uniap_compiler.add_rule("aten::linalg_pinv"' in said


# -- numbers --------------------------------------------------------------------------------------------------------


def test_a_batch_that_does_not_divide(uniap: Uniap) -> None:
    said = compile(uniap, "good", "--force", "dp=4", batch=6)
    assert "error: a global batch of 6 does not divide over dp=4" in said
    assert "help: the nearest that do are 4 and 8" in said
    assert "help: the nearest that does is 4" in compile(uniap, "good", "--force", "dp=4", batch=2)
    said = compile(uniap, "good", "--force", "micro_batches=2", batch=7)
    assert "error: micro_batches=2 does not divide the global batch of 7" in said
    assert "help: the nearest is micro_batches=1; or a global batch of 6 and 8" in said


@pytest.mark.parametrize(
    ("force", "words", "help"),
    [
        ("dp=3", "dp=3 is not possible for layer up: pp * dp * tp must be the 4 devices of the cluster", "dp=4"),
        ("pp=4", "pp=4 is not possible: the model has only 2 layers, and every stage needs one", "pp=2"),
        ("foo=3", "--force does not know 'foo': its keys are pp, dp, tp", ""),
        ("nolayer:dp=2", "'nolayer' in --force matches no layer\n  note: the layers are up, down", ""),
    ],
)
def test_forces(force: str, words: str, help: str, uniap: Uniap) -> None:
    said = compile(uniap, "good", "--force", force)
    assert f"error: {words}" in said
    assert not help or f"help: the nearest is {help}" in said


def test_a_plan_that_cannot_fit(uniap: Uniap) -> None:
    """2.1 million parameters: 8 MiB, and as much for the gradients and twice as much for AdamW."""
    said = compile(uniap, "wide", cluster="small.toml")
    assert re.search(r"error: no plan fits: 0\.\d+ GiB are missing on", said), said
    assert re.search(r"note: stage \d \(.*\) needs 0\.\d+ GiB of the 0\.0049 GiB that a device gives", said), said
    assert re.search(r"help: devices with 0\.\d+ GiB of memory", said), said


# -- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        ("negative", "device.memory: expected bytes from 1 MiB to 1024 TiB; found '-4 GiB'"),
        ("unit", "device.memory: expected bytes, such as 85899345920 or \"80 GiB\"; found '4 bananas'"),
        ("missing", "device: is missing"),
        ("zero", "devices_per_node: expected an integer from 1 to 4096; found 0"),
        ("typo", "nodse: is not a field; known are device, devices_per_node"),
        ("syntax", "is not TOML (Illegal character '\\n' (at line 1, column 18))"),
    ],
)
def test_cluster_files(cluster: str, words: str, uniap: Uniap) -> None:
    assert f"error: {cluster}.toml: {words}" in compile(uniap, "good", cluster=f"{cluster}.toml")


def test_ir_text(workshop: Workshop, uniap: Uniap, tmp_path: Path) -> None:
    dumps = workshop.dumps(MLP, MLP, "float64", 12)
    for path in dumps.glob("*.safetensors"):
        shutil.copy(path, tmp_path)
    (path,) = dumps.glob("*-shard-rules.mlir")
    text = path.read_text().splitlines()
    at = next(n for n, row in enumerate(text) if "nn.contract(" in row)

    broken = [*text[:at], text[at].replace("nn.contract(", "nn.contract{"), *text[at + 1 :]]
    Path("syntax.mlir").write_text("\n".join(broken))
    said = uniap("compile", "--from", "syntax.mlir")
    assert f"--> syntax.mlir:{at + 1}:" in said and "nn.contract{" in said

    unknown = [*text[:at], re.sub(r"nn\.contract\(%[\w.]+", "nn.contract(%nobody", text[at]), *text[at + 1 :]]
    Path("value.mlir").write_text("\n".join(unknown))
    said = uniap("compile", "--from", "value.mlir")
    assert "nobody" in said and re.search(rf"--> value\.mlir:{at + 1}", said), said

    level = "\n".join(text).replace("level = annotated", "level = planned")
    Path("level.mlir").write_text(level)
    said = uniap("compile", "--from", "level.mlir")
    words = "error: the pass enumerate-strategies needs a module at level annotated, and this one is at level planned"
    assert words in said
    assert not Path("build").exists()


# -- bundles --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(workshop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return workshop.compile(MLP, 4, "pp=2,dp=2", tmp_path_factory.mktemp("bundle") / "build")


def train(bundle: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(bundle / "train.py"), "--data", "nothing.py:batches"],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr


def test_the_wrong_number_of_ranks(bundle: Path) -> None:
    said = train(bundle)
    assert "error: this bundle is for 4 ranks, 1 was started" in said
    assert "help: torchrun --nproc-per-node 4" in said


def test_a_bundle_changed_by_hand(bundle: Path, tmp_path: Path, uniap: Uniap) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    stage = copy / "stages" / "stage_1.py"
    stage.write_text(stage.read_text() + "\n# a thought\n")
    said = uniap("verify", str(copy))
    assert "error: stages/stage_1.py was changed by hand" in said


def test_a_bundle_mixed_from_two(bundle: Path, workshop: Workshop, tmp_path: Path, uniap: Uniap) -> None:
    other = workshop.compile(MLP, 4, "pp=2,tp=2", tmp_path / "other")
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    shutil.copy(other / "ranks" / "rank_0002.py", copy / "ranks" / "rank_0002.py")
    said = uniap("verify", str(copy))
    assert "error: the bundle is mixed from two: ranks/rank_0002.py has fingerprint" in said
    shutil.copy(other / "manifest.json", copy / "manifest.json")
    said = uniap("verify", str(copy))
    assert "was changed by hand after the bundle was written, or comes from another bundle" in said
