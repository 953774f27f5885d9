"""The small library that is copied into every bundle: collectives, kernels, the schedule loop, optimizer, data.

Imports torch and the standard library only, with relative imports only, so that it works as `uniap_compiler.runtime`
and as `runtime` inside a bundle.  docs/bundle.md describes the files that it reads.

    errors, pieces            what everything uses: readable errors; slicing and joining of tensors
    comm, processes, threads  collectives: the methods, over torch.distributed, over threads of one process
    kernels, attention        the nn.* ops
    loop, training            one step of one rank; loss, norm, optimizer around it
    optimizer, data, weights, checkpoint, metrics
    bundle, launch            reading and checking a bundle; the entry behind train.py
    simulate                  all ranks of a bundle in one process
"""
