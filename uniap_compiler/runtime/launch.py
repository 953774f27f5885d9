"""Behind train.py: checks the start, joins the other ranks, trains, saves, resumes.

    torchrun --nproc-per-node 4 build/train.py --data FILE.py:batches --steps 100

Whatever a person can put right ends in one sentence and exit code 1.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from . import checkpoint, data
from .bundle import Bundle
from .errors import BundleError, CommunicationError
from .metrics import Metrics, progress
from .optimizer import Optimizer
from .processes import ProcessGroups, SingleProcess
from .random import Randomness
from .training import Training


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="train.py", description="Train with this bundle (start it with torchrun).")
    parser.add_argument(
        "--data",
        help="FILE.py:NAME (an iterable of batches or a function that returns one) or bytes:FILE",
    )
    parser.add_argument("--steps", type=int, default=100, help="stop after this many steps in all (100)")
    parser.add_argument("--lr", type=float, help="learning rate (default: the task's)")
    parser.add_argument("--clip", type=float, help="clip the norm of the whole gradient to this")
    parser.add_argument("--seed", type=int, default=0, help="of the data, of torch and of random ops (0)")
    parser.add_argument(
        "--random", choices=("fast", "counter"), default="fast",
        help="random ops such as dropout draw from generators, or the very numbers of the unsharded model (fast)",
    )  # fmt: skip
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--save", type=Path, metavar="DIR", help="write checkpoints here, at the end and every --save-every steps"
    )
    parser.add_argument("--save-every", type=int, default=0, metavar="N")
    parser.add_argument(
        "--resume", type=Path, metavar="DIR", help="go on from a checkpoint, or from the latest in a folder"
    )
    parser.add_argument(
        "--metrics",
        type=Path,
        metavar="FILE",
        help="one JSON line per step (default: metrics.jsonl beside the checkpoints or here)",
    )
    parser.add_argument(
        "--weights", type=Path, metavar="PATH",
        help="start from a safetensors checkpoint: a file, or a folder or index as Hugging Face writes them",
    )  # fmt: skip
    parser.add_argument(
        "--partial-weights", action="store_true",
        help="take from --weights what fits; what it lacks starts as without it",
    )  # fmt: skip
    parser.add_argument(
        "--export", type=Path, metavar="FILE",
        help="do not train: write the whole model of --resume as one safetensors file (one process, no torchrun)",
    )  # fmt: skip
    parser.add_argument("--timeout", type=float, default=600.0, metavar="SECONDS", help="of every communication (600)")
    parser.add_argument(
        "--log-every", type=int, default=1, metavar="N", help="steps between progress lines (1; 0: none)"
    )
    parser.add_argument("--allow-changes", action="store_true", help="run although files of the bundle were changed")
    options = parser.parse_args(argv)
    if options.export is not None and options.resume is None:
        parser.error("--export needs the checkpoint: --resume DIR")
    if options.export is None and options.data is None:
        parser.error("the following arguments are required: --data")
    return options


def main(root: Path, package: str, argv: list[str] | None = None) -> None:
    """Ends the process: 0 when trained, 1 with a sentence, 2 for wrong arguments."""
    rank, local = int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0))
    try:
        _train(root, package, parse(sys.argv[1:] if argv is None else argv))
        code = 0
    except BundleError as error:
        # What every rank sees alike is said once; the others give that one the time to say it.
        if not error.everywhere or local == 0:
            _say(f"error: {error}" if error.everywhere else f"[rank {rank}] error: {error}")
        else:
            time.sleep(2.0)
        code = 1
    except CommunicationError as error:
        _say(f"[rank {rank}] error: {error}")
        code = 1
    except KeyboardInterrupt:
        code = 130
    except SystemExit:
        raise
    except Exception:
        _say(f"[rank {rank}] " + traceback.format_exc())
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    # Not through destructors: the threads of a broken process group may never end.
    os._exit(code)


def _say(text: str) -> None:
    os.write(2, (text.rstrip("\n") + "\n").encode())  # one write: lines of several ranks do not mix


def _train(root: Path, package: str, options: argparse.Namespace) -> None:
    bundle = Bundle(root, package)
    if options.export is not None:
        if int(os.environ.get("RANK", 0)) == 0:
            bundle.check(code_only=True)
            print(f"wrote {checkpoint.export(checkpoint.latest(options.resume), bundle, options.export)}", flush=True)
        return
    rank = _check_world(bundle)
    local = int(os.environ.get("LOCAL_RANK", 0))
    try:
        bundle.check(code_only=local != 0)
    except BundleError as error:
        if not options.allow_changes:
            raise
        if local == 0:
            _say(f"warning: {str(error).splitlines()[0]}")
    resume = checkpoint.latest(options.resume) if options.resume else None
    about = checkpoint.read_about(resume, bundle) if resume else {"step": 0, "position": 0}
    module = bundle.rank(rank)
    device = _device(options.device, local)
    torch.manual_seed(options.seed)
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))
    stream = data.load(options.data, bundle.manifest, options.seed, int(about["position"]))
    comm = _join(bundle, module, device, timedelta(seconds=options.timeout))
    training = Training(
        bundle,
        module,
        comm,
        Optimizer(bundle.manifest["optimizer"], options.lr),
        options.clip,
        options.weights,
        options.partial_weights,
    )
    training.randomness = Randomness(options.seed, options.random)
    done = checkpoint.resume(resume, bundle, training)[0] if resume else 0
    comm.warm_up()
    try:
        _steps(bundle, training, stream, done, options)
    except CommunicationError as error:
        raise CommunicationError(f"{error}\n  at: {training.loop.at} (stage {module.STAGE})") from error
    comm.barrier()


def _steps(bundle: Bundle, training: Training, stream: data.Stream, done: int, options: argparse.Namespace) -> None:
    rank = training.comm.rank
    path = options.metrics or ((options.save or Path(".")) / "metrics.jsonl")
    metrics = Metrics(bundle.manifest, path, append=done > 0) if rank == 0 else None
    wanted = {
        r.removeprefix("input:") for roles in training.loop.stage.ARGS.values() for r in roles if r.startswith("input:")
    }
    for step in range(done + 1, options.steps + 1):
        start = time.perf_counter()
        batch = data.next_batch(stream, bundle.manifest, wanted)
        try:
            result = training.step([{p: x.to(training.comm.device) for p, x in m.items()} for m in batch])
        except (IndexError, RuntimeError) as error:
            if "out of range" not in str(error) and "out of bounds" not in str(error):
                raise
            told = str(error).splitlines()[0]
            raise BundleError(
                f"step {step}, {training.loop.at}: {told}", "is there a token or a class that the model does not have?"
            ) from error
        if metrics is not None:
            line = metrics.record(step, result.loss, result.grad_norm, time.perf_counter() - start)
            if options.log_every and (step % options.log_every == 0 or step == options.steps):
                print(progress(line, options.steps), flush=True)
        del result
        last = step == options.steps
        if options.save and (last or (options.save_every and step % options.save_every == 0)):
            folder = checkpoint.save(options.save, bundle, training, step, stream.position)
            if rank == 0:
                print(f"saved {folder}", flush=True)


def _check_world(bundle: Bundle) -> int:
    wanted = bundle.world_size
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != wanted:
        raise BundleError(
            f"this bundle is for {wanted} ranks, {started} {'was' if started == 1 else 'were'} started",
            f"{torchrun(wanted, int(bundle.manifest.get('nodes', 1)))} {os.path.relpath(bundle.root / 'train.py')} ...",
            everywhere=True,
        )
    return int(os.environ.get("RANK", 0))


def torchrun(world: int, nodes: int) -> str:
    """How to start as many processes on as many machines."""
    each = f"--nproc-per-node {world // nodes}"
    return f"torchrun {each}" if nodes == 1 else f"torchrun --nnodes {nodes} {each} --node-rank I --master-addr HOST"


def _device(wanted: str, local: int) -> torch.device:
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    found = torch.cuda.device_count() if wanted != "cpu" and torch.cuda.is_available() else 0
    if wanted == "cpu" or (wanted == "auto" and found < here):
        return torch.device("cpu")
    if found < here:
        raise BundleError(f"--device cuda: {here} ranks on this machine, {found} devices", everywhere=True)
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def _join(bundle: Bundle, module: Any, device: torch.device, timeout: timedelta) -> Any:
    if bundle.world_size == 1:
        return SingleProcess(module.GROUPS, module.STAGES, device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, timeout=timeout, device_id=device if device.type == "cuda" else None)
        _compare(bundle, timeout)
        return ProcessGroups(module.GROUPS, module.STAGES, device, timeout)
    except (RuntimeError, dist.DistError) as error:
        raise CommunicationError(
            f"the ranks did not find each other within {timeout.total_seconds():g} s: {str(error).splitlines()[0]}"
        ) from error


def _compare(bundle: Bundle, timeout: timedelta) -> None:
    """All ranks must run the same files; rank 0 collects who does not, and everybody hears of it."""
    store = dist.distributed_c10d._get_default_store()
    store.set_timeout(timeout)
    rank, size = dist.get_rank(), dist.get_world_size()
    store.set(f"uniap/bundle/{rank}", bundle.identity)
    if rank == 0:
        others = [r for r in range(size) if store.get(f"uniap/bundle/{r}").decode() != bundle.identity]
        store.set("uniap/other-bundles", ",".join(map(str, others)) or "none")
    verdict = store.get("uniap/other-bundles").decode()
    if verdict != "none":
        raise BundleError(
            f"ranks {verdict} run another bundle than rank 0 "
            f"(here: {bundle.root}, fingerprint {bundle.fingerprint[:12]})",
            "copy one bundle to every machine",
            everywhere=True,
        )
