"""All devices of the tensor axes in lockstep: a value is the list of what the devices hold.

Ops run on local shards, `comm.*` on the lists.  What comes back is put together by the layouts, and copies that
should be equal are compared.
"""

from __future__ import annotations

from itertools import product
from math import prod

import torch

from uniap_compiler.bridge.interpret import run, run_op
from uniap_compiler.ir import Affine, Func, Layout, Op, Struct, TensorType, Value, at
from uniap_compiler.passes.analysis.exchange import routed_axes
from uniap_compiler.passes.lower.local_ops import localize_op
from uniap_compiler.passes.lower.localize import evaluate
from uniap_compiler.runtime import kernels
from uniap_compiler.runtime.threads import SimulatedComm, World, run_ranks


class Devices:
    def __init__(self, sizes: tuple[int, ...], batch: int) -> None:
        self.sizes, self.batch = sizes, batch
        self.mesh = {f"t{i}": n for i, n in enumerate(sizes)}
        self.coordinates = list(product(*map(range, sizes)))

    def parts(self, axes: tuple[str, ...]) -> int:
        return prod(self.mesh[a] for a in axes)

    def place(self, axes: tuple[str, ...], device: tuple[int, ...]) -> int:
        index = 0
        for axis in axes:
            index = index * self.mesh[axis] + device[int(axis[1:])]
        return index

    def groups(self, axes: list[str]) -> list[list[int]]:
        """Devices that differ only along the axes, in mesh order."""
        found: dict[tuple[int, ...], list[int]] = {}
        for i, device in enumerate(self.coordinates):
            found.setdefault(tuple(c for a, c in enumerate(device) if f"t{a}" not in axes), []).append(i)
        return list(found.values())

    def _runs(self, full: torch.Tensor, layout: Layout, device: tuple[int, ...]):
        """For each dim the indices that the device holds."""
        for size, dim in zip(full.shape, layout.dims, strict=True):
            index = torch.arange(size)
            factors = [size if p.size is None else at(p.size, self.batch) for p in dim]
            index = index.reshape(factors)
            for i, part in enumerate(dim):
                step = factors[i] // self.parts(part.axes)
                index = index.narrow(i, self.place(part.axes, device) * step, step)
            yield index.reshape(-1)

    def shard(self, full: torch.Tensor, layout: Layout) -> list[torch.Tensor]:
        assert not layout.pending
        result = []
        for device in self.coordinates:
            local = full
            for d, index in enumerate(self._runs(full, layout, device)):
                local = local.index_select(d, index)
            result.append(local.contiguous())
        return result

    def whole(self, locals_: list[torch.Tensor], shape: tuple, layout: Layout) -> torch.Tensor:
        """The true value; devices that hold copies must agree."""
        full = torch.zeros([at(n, self.batch) for n in shape], dtype=locals_[0].dtype)
        known = torch.zeros(full.shape, dtype=torch.bool)
        pending = layout.pending_axes()
        kinds = {kind for kind, _ in layout.pending}
        seen: dict[tuple, torch.Tensor] = {}
        for device, local in zip(self.coordinates, locals_, strict=True):
            home = tuple(0 if f"t{a}" in pending else c for a, c in enumerate(device))
            if home not in seen:
                seen[home] = local.clone()
            elif home != device:
                seen[home] = seen[home] + local if kinds == {"sum"} else torch.maximum(seen[home], local)
        for device, local in seen.items():
            index = torch.meshgrid(*self._runs(full, layout, device), indexing="ij") if full.dim() else ...
            old = full[index][known[index]]
            assert torch.allclose(old, local[known[index]], rtol=1e-9, atol=1e-12), "copies differ"
            full[index], known[index] = local, True
        return full

    # Collectives.

    def comm(self, op: Op, values: list[torch.Tensor]) -> list[torch.Tensor]:
        result: list = [None] * len(values)
        a = {k: at(v, self.batch) if isinstance(v, Affine) else v for k, v in op.attrs.items()}
        for group in self.groups(a["axes"]):
            local = [values[i] for i in group]
            for i, out in zip(group, self._collective(op.name, a, local), strict=True):
                result[i] = out.clone()
        return result

    def _collective(self, name: str, a: dict, local: list[torch.Tensor]) -> list[torch.Tensor]:
        n = len(local)
        match name:
            case "comm.all_reduce":
                stack = torch.stack(local)
                return [stack.sum(0) if a["op"] == "sum" else stack.amax(0)] * n
            case "comm.first":
                return [x if i == 0 else torch.zeros_like(x) for i, x in enumerate(local)]
            case "comm.slice":
                return [_split(x, n, a["dim"], a.get("outer", 1))[i] for i, x in enumerate(local)]
            case "comm.reduce_scatter":
                return _split(torch.stack(local).sum(0), n, a["dim"], a.get("outer", 1))
            case "comm.all_gather":
                return [_join(local, a["dim"], a.get("outer", 1))] * n
            case "comm.all_to_all":
                pieces = [_split(x, n, a["split_dim"], a.get("split_outer", 1)) for x in local]
                return [_join([p[i] for p in pieces], a["concat_dim"], a.get("concat_outer", 1)) for i in range(n)]
        raise AssertionError(name)

    # Funcs.

    def run(self, func: Func, inputs: dict[Value, list[torch.Tensor]]) -> dict[Value, list[torch.Tensor]]:
        env = dict(inputs)
        for op in func.ops:
            if op.name.startswith("comm."):
                env[op.results[0]] = self.comm(op, env[op.operands[0]])
            else:
                if routed_axes(op):
                    rows = self._together(op, env)
                else:
                    rows = [self._compute(op, env, i) for i in range(len(self.coordinates))]
                for j, value in enumerate(op.results):
                    env[value] = [row[j] for row in rows]
            for value in op.results:
                shape = value.type.layout.local_shape(value.type.shape, self.mesh, self.batch)
                for local in env[value]:
                    if not isinstance(local, torch.Tensor):  # nothing, or what an exchange keeps for backward
                        continue
                    assert tuple(local.shape) == shape, f"{op.name} %{value.name}: {tuple(local.shape)} is not {shape}"
        return env

    def _together(self, op: Op, env: dict) -> list[list]:
        """An op that exchanges tokens, as bundles run it, on all devices at once."""
        groups = {"_".join(routed_axes(op)): self.groups(list(routed_axes(op)))}
        local = [self._local(op, env, i) for i in range(len(self.coordinates))]

        def work(rank: int, world: World) -> list:
            name, operands, attrs = local[rank]
            comm = SimulatedComm(world, rank, groups, [list(range(len(local)))])
            results = getattr(kernels, name.removeprefix("nn."))(*operands, **attrs, comm=comm)
            return list(results) if isinstance(results, tuple) else [results]

        return run_ranks(len(local), work)

    def _compute(self, op: Op, env: dict, device: int) -> list[torch.Tensor]:
        name, operands, attrs = self._local(op, env, device)
        results = run_op(Op(name, op.operands, op.results, attrs), operands, batch=self.batch)
        return [x.contiguous() if x is not None else None for x in results]

    def _local(self, op: Op, env: dict, device: int) -> tuple[str, list, dict]:
        def look(v: Value | None):
            return env[v][device] if v is not None else None

        operands = [[look(v) for v in o] if isinstance(o, list) else look(o) for o in op.operands]
        split = {axis: str(factor) for axis, factor in op.attrs["split"].fields}
        local = Op(
            op.name,
            op.operands,
            op.results,
            {k: v if k == "rule" else evaluate(v, self.batch) for k, v in op.attrs.items()},
        )
        name, attrs = localize_op(
            local,
            [self.local_type(v) if v is not None else None for v in op.flat_operands()],
            [self.local_type(v) for v in op.results],
            split,
            self.mesh,
        )
        attrs = {k: v for k, v in attrs.items() if k not in ("rule", "split")}
        offset = attrs.get("offset")
        if isinstance(offset, Struct):
            attrs["offset"] = self.place(tuple(offset["axes"]), self.coordinates[device]) * offset["size"]
        return name, operands, attrs

    def local_type(self, value: Value) -> TensorType:
        return TensorType(value.type.layout.local_shape(value.type.shape, self.mesh, self.batch), value.type.dtype)


def _split(x: torch.Tensor, n: int, dim: int, outer: int) -> list[torch.Tensor]:
    shape = [*x.shape[:dim], outer, x.shape[dim] // outer, *x.shape[dim + 1 :]]
    local = [*x.shape[:dim], x.shape[dim] // n, *x.shape[dim + 1 :]]
    return [piece.reshape(local) for piece in x.reshape(shape).chunk(n, dim + 1)]


def _join(pieces: list[torch.Tensor], dim: int, outer: int) -> torch.Tensor:
    x = pieces[0]
    shape = [*x.shape[:dim], outer, x.shape[dim] // outer, *x.shape[dim + 1 :]]
    joined = torch.cat([p.reshape(shape) for p in pieces], dim + 1)
    return joined.reshape([*x.shape[:dim], x.shape[dim] * len(pieces), *x.shape[dim + 1 :]])


# Comparing pairs.


def example(func: Func, batch: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for p in func.params:
        shape = [at(n, batch) for n in p.type.shape]
        if p.type.dtype == "i1":
            result[p.name] = torch.rand(shape, generator=generator) < 0.7
        elif p.type.dtype.startswith("i"):
            result[p.name] = torch.randint(0, 7, shape, generator=generator)
        else:
            result[p.name] = torch.randn(shape, generator=generator, dtype=torch.float64) * 0.5
    return result


def reference(
    forward: Func, backward: Func, arguments: dict[str, torch.Tensor], tangents: dict[str, torch.Tensor], batch: int
):
    """The results of the unsharded pair by name: ("value", position) and "grad:NAME"."""
    outputs = run(forward, [arguments[p.name] for p in forward.params], batch=batch)
    by_name = dict(arguments)
    by_name |= {v.name: x for v, x in zip(forward.returns, outputs, strict=True)}
    feed = []
    for p in backward.params:
        feed.append(
            tangents[p.attrs["of"]] if p.attrs["role"] == "tangent" else by_name[str(p.attrs.get("of", p.name))]
        )
    gradients = run(backward, feed, batch=batch)
    kept = [x for x, kind in zip(outputs, forward.attrs["results"], strict=True) if kind != "saved"]
    return kept, gradients


def sharded(forward: Func, backward: Func, arguments: dict, tangents: dict, sizes: tuple[int, ...], batch: int):
    devices = Devices(sizes, batch)
    inputs = {p: devices.shard(arguments[p.name], p.type.layout) for p in forward.params}
    env = devices.run(forward, inputs)
    held: dict[str, list[torch.Tensor]] = {}
    for v in (*forward.params, *(r for r in forward.returns if r is not None)):
        held[v.name] = env[v]
    layouts = {v.name: v.type for v in (*forward.params, *(r for r in forward.returns if r is not None))}
    feed = {}
    for p in backward.params:
        if p.attrs["role"] == "tangent":
            feed[p] = devices.shard(tangents[p.attrs["of"]], p.type.layout)
        else:
            name = str(p.attrs.get("of", p.name))
            assert layouts[name] == p.type, f"%{name} leaves forward as {layouts[name]} and enters backward as {p.type}"
            feed[p] = held[name]
    grads = devices.run(backward, feed)

    def assemble(env, v):
        return devices.whole(env[v], v.type.shape, v.type.layout) if v is not None else None

    kept = [
        assemble(env, v) for v, kind in zip(forward.returns, forward.attrs["results"], strict=True) if kind != "saved"
    ]
    return kept, [assemble(grads, v) for v in backward.returns]


def check(
    pair: tuple[Func, Func], plan: tuple[Func, Func], sizes: tuple[int, ...], batch: int = 2, tolerance: float = 1e-10
):
    """Every output and gradient of the sharded pair equals the unsharded one; returns the largest error."""
    arguments = example(pair[0], batch)
    generator = torch.Generator().manual_seed(9)
    tangents = {}
    for p in pair[1].params:
        if p.attrs["role"] == "tangent":
            shape = [at(n, batch) for n in p.type.shape]
            tangents[p.attrs["of"]] = torch.randn(shape, generator=generator, dtype=torch.float64)
    outputs = [v for v, kind in zip(pair[0].returns, pair[0].attrs["results"], strict=True) if kind != "saved"]
    new_names = {v.name: w.name for v, w in zip(outputs, plan[0].returns) if v is not None and w is not None}
    tangents |= {new_names[name]: x for name, x in tangents.items()}
    worst = 0.0
    expected = reference(*pair, arguments, tangents, batch)
    found = sharded(*plan, arguments, tangents, sizes, batch)
    for want, got in zip((*expected[0], *expected[1]), (*found[0], *found[1]), strict=True):
        assert (want is None) == (got is None)
        if want is not None:
            want, got = want.double(), got.double()
            difference = torch.where(want == got, 0.0, want - got).abs().max()  # masks hold equal infinities
            error = float(difference / want.abs().max().clamp(1e-30, 1e30))
            assert error < tolerance, f"error {error}"
            worst = max(worst, error)
    return worst
