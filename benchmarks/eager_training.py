"""The other side of step_time.py: the user's module trained by eager autograd, on several ranks under DDP.

    torchrun --standalone --nproc-per-node 4 benchmarks/eager_training.py examples/mlp.py:task \\
        --data examples/mlp.py:batches --global-batch 64 --steps 20 --metrics out.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from uniap_compiler.capture import load_task
from uniap_compiler.capture.export import Step
from uniap_compiler.runtime import data


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("spec")
    parser.add_argument("--data", required=True)
    parser.add_argument("--global-batch", type=int, required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--metrics", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    world = int(os.environ.get("WORLD_SIZE", 1))
    rank = int(os.environ.get("RANK", 0))
    task = load_task(options.spec)
    model: torch.nn.Module = Step(task)
    parameters = list(model.parameters())
    if world > 1:
        dist.init_process_group("gloo", timeout=timedelta(seconds=120))
        model = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, foreach=True)
    stream = data.load(options.data, {"global_batch": options.global_batch})
    rows = options.global_batch // world
    lines = []
    for step in range(options.steps):
        batch, targets = next(stream)
        tensors = data.flatten(batch, targets).values()
        mine = [tensor[rank * rows : (rank + 1) * rows] for tensor in tensors]
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = model(*mine)
        loss.backward()
        torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])  # the bundle logs it, too
        optimizer.step()
        total = loss.detach() / world
        if world > 1:
            dist.all_reduce(total)
        lines.append({"step": step + 1, "loss": total.item(), "seconds": time.perf_counter() - start})
    if rank == 0:
        options.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
