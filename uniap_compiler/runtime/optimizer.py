"""AdamW (decoupled decay) and SGD (momentum) on a rank's pieces of the parameters, and the gradient norm.

    groups = [{"parameters": ["norm.weight"], "weight_decay": 0.0}]
    optimizer = Optimizer({"kind": "adamw", "defaults": {...}, "groups": groups}, lr=3e-4)
    optimizer.step(parameters, gradients, scale)

The updates are torch.optim's own, fused where it has such kernels, and elementwise, so a piece is updated as it would
be within the whole tensor.
A parameter without a gradient is left alone: no decay, no step count.

With `master_weights` a bfloat16 or float16 parameter is updated in float32: the state has a float32 copy of the piece,
its master, and float32 moments; the parameter is the master rounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from .errors import BundleError

Tensors = Mapping[str, torch.Tensor]
State = dict[str, torch.Tensor]

_DEFAULTS: dict[str, dict[str, Any]] = {
    "adamw": {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 1e-2},
    "sgd": {"lr": 1e-3, "momentum": 0.0, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0},
}


_LOW = (torch.bfloat16, torch.float16)

_TOGETHER = 64 * 2**20
"""Bytes of gradients after which an update begins: scaled or converted copies of more are not held at once."""


class Optimizer:
    """state: per parameter its moments, its master and, for AdamW, the number of its steps."""

    def __init__(self, description: Mapping[str, Any], lr: float | None = None) -> None:
        self.kind = str(description["kind"])
        if self.kind not in _DEFAULTS:
            raise BundleError(f"optimizer kind {self.kind!r}; adamw and sgd exist", everywhere=True)
        self.defaults = {**_DEFAULTS[self.kind], **description.get("defaults", {})}
        base = float(self.defaults["lr"])
        self.lr = base if lr is None else lr
        self.master_weights = bool(description.get("master_weights", True))
        self.settings: dict[str, dict[str, Any]] = {}
        for group in description.get("groups", ()):
            own = {k: v for k, v in group.items() if k != "parameters"}
            # A group's own lr keeps its ratio to the default when another lr is asked for at run time.
            own.setdefault("lr_scale", float(own["lr"]) / base if "lr" in own and base else 1.0)
            self.settings |= dict.fromkeys(group["parameters"], {**self.defaults, **own})
        for name, settings in [("", self.defaults), *self.settings.items()]:
            unknown = set(settings) - set(_DEFAULTS[self.kind]) - {"lr_scale"}
            if any(settings[key] for key in unknown):
                where = f" for {name}" if name else ""
                raise BundleError(
                    f"the optimizer {self.kind} has no setting {sorted(unknown)[0]!r}{where}", everywhere=True
                )
        self.state: dict[str, State] = {}

    def step(self, parameters: Tensors, gradients: Tensors, scale: float = 1.0) -> None:
        """Update the parameters in place; gradients are multiplied by `scale` (clipping) first."""
        update = self._adamw if self.kind == "adamw" else self._sgd
        for settings, names in self._parts(gradients):
            masters = [self._master(name, parameters[name]) for name in names]
            grads = [_like(gradients[name], m, scale) for name, m in zip(names, masters, strict=True)]
            states = [self.state.setdefault(name, {}) for name in names]
            update(states, masters, grads, settings, self.lr * settings.get("lr_scale", 1.0))
            for name, master in zip(names, masters, strict=True):
                if master is not parameters[name]:
                    parameters[name].copy_(master)

    def _parts(self, gradients: Tensors) -> Iterator[tuple[Mapping[str, Any], list[str]]]:
        """Names that are updated together: of one group, alike in what their state has, not too many bytes."""
        parts: dict[tuple[int, bool, torch.device], tuple[Mapping[str, Any], list[str]]] = {}
        size: Counter[tuple[int, bool, torch.device]] = Counter()
        for name, grad in gradients.items():
            settings = self.settings.get(name, self.defaults)
            key = (id(settings), "momentum" in self.state.get(name, {}), grad.device)
            parts.setdefault(key, (settings, []))[1].append(name)
            size[key] += grad.nbytes
            if size[key] >= _TOGETHER:
                yield parts.pop(key)
                del size[key]
        yield from parts.values()

    def _master(self, name: str, param: torch.Tensor) -> torch.Tensor:
        """What is updated: the parameter itself, or its float32 copy."""
        if not self.master_weights or param.dtype not in _LOW:
            return param
        state = self.state.setdefault(name, {})
        if "master" not in state:
            state["master"] = param.float()
        return state["master"]

    def masters(self) -> dict[str, torch.Tensor]:
        return {name: state["master"] for name, state in self.state.items() if "master" in state}

    def _adamw(
        self, states: list[State], params: list[torch.Tensor], grads: list[torch.Tensor],
        settings: Mapping[str, Any], lr: float,
    ) -> None:  # fmt: skip
        for state, param in zip(states, params, strict=True):
            if "step" not in state:
                step = torch.zeros((), dtype=torch.float32, device=param.device)
                state |= {"step": step, "exp_avg": torch.zeros_like(param), "exp_avg_sq": torch.zeros_like(param)}
        averages, squares, steps = ([state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step"))
        (beta1, beta2), fused = settings["betas"], _fused(params)
        adamw(
            params, grads, averages, squares, [], steps, fused=fused, foreach=False, amsgrad=False, maximize=False,
            has_complex=not fused, lr=lr, beta1=beta1, beta2=beta2, eps=settings["eps"],
            weight_decay=settings["weight_decay"],
        )  # fmt: skip

    def _sgd(
        self, states: list[State], params: list[torch.Tensor], grads: list[torch.Tensor],
        settings: Mapping[str, Any], lr: float,
    ) -> None:  # fmt: skip
        momenta = [state.get("momentum") for state in states]
        how = {key: settings[key] for key in ("momentum", "dampening", "nesterov", "weight_decay")}
        sgd(params, grads, momenta, fused=_fused(params), foreach=False, maximize=False, lr=lr, **how)
        for state, momentum in zip(states, momenta, strict=True):
            if momentum is not None:
                state["momentum"] = momentum


def _fused(params: list[torch.Tensor]) -> bool:
    """One kernel for all, where torch has one."""
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in params)


def _like(grad: torch.Tensor, master: torch.Tensor, scale: float) -> torch.Tensor:
    """The gradient in the dtype and the strides of what it updates, which fused kernels take for granted."""
    grad = grad.to(master.dtype)
    if scale != 1.0:
        grad = grad * scale
    return grad if grad.stride() == master.stride() else torch.empty_like(master).copy_(grad)


def squared_norm(gradients: Tensors, owned: Iterable[str], device: torch.device) -> torch.Tensor:
    """The sum of squares of the pieces that this rank answers for; over the world they are the norm squared.

    float64 on `device`: nothing waits for it here.
    """
    norms = [torch.linalg.vector_norm(gradients[n], dtype=torch.float64) for n in owned if n in gradients]
    return torch.stack(norms).square().sum() if norms else torch.zeros((), dtype=torch.float64, device=device)


def clip_scale(norm: float, clip: float | None) -> float:
    """As torch.nn.utils.clip_grad_norm_."""
    if clip is None:
        return 1.0
    scale = clip / (norm + 1e-6)
    return 1.0 if scale > 1.0 else scale  # NaN stays: no parameter moves on by a gradient of which a part is NaN
