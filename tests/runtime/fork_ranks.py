"""Starts ranks as forks of one process, so that torch is imported once: a helper of the tests.

    python -m tests.runtime.fork_ranks '{"roots": ["b", "b"], "argv": [...], "kill": {"rank": 2, "after": 1.0}}'

Without "roots" the ranks run `collectives.exercise`.  The last line is JSON: exit codes, seconds until each ended.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from uniap_compiler.runtime.bundle import make_package
from uniap_compiler.runtime.processes import ProcessGroups

from .collectives import GROUPS, STAGES, compare, exercise


def check_collectives() -> None:
    dist.init_process_group("gloo", timeout=timedelta(seconds=30))
    comm = ProcessGroups(GROUPS, STAGES, torch.device("cpu"), timedelta(seconds=30))
    comm.warm_up()
    compare(comm.rank, exercise(comm))
    dist.destroy_process_group()


def body(job: dict, rank: int) -> None:
    if "roots" not in job:
        check_collectives()
        return
    import importlib

    sys.dont_write_bytecode = True
    root = Path(job["roots"][rank])
    make_package(root, "bundle")
    importlib.import_module("bundle.runtime.launch").main(root, "bundle", job["argv"])


def main() -> None:
    torch.set_num_threads(1)
    job = json.loads(sys.argv[1])
    size = len(job["roots"]) if "roots" in job else 4
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        WORLD_SIZE=str(size),
        LOCAL_WORLD_SIZE=str(size),
        **job.get("env", {}),
    )
    children, start = {}, time.monotonic()
    for rank in range(size):
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank))
            code = 1
            try:
                body(job, rank)
                code = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                os._exit(code)
        children[pid] = rank
    codes, seconds = {}, {}
    kill = job.get("kill")
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        now = time.monotonic() - start
        if pid:
            rank = children.pop(pid)
            codes[rank], seconds[rank] = os.waitstatus_to_exitcode(status), round(now, 2)
            continue
        if kill and Path(kill["when"]).exists() and Path(kill["when"]).read_text().count("\n") >= kill["lines"]:
            victim = next(p for p, r in children.items() if r == kill["rank"])
            os.kill(victim, signal.SIGSTOP if kill.get("stop") else signal.SIGKILL)
            seconds["killed"], kill = round(time.monotonic() - start, 2), None
        if now > job.get("limit", 100) or list(children.values()) == [job.get("kill", {}).get("rank")]:
            for p in children:
                os.kill(p, signal.SIGKILL)
        time.sleep(0.02)
    print(json.dumps({"codes": [codes[r] for r in range(size)], "seconds": seconds}))


if __name__ == "__main__":
    main()
