"""AdamW (decoupled decay) and SGD (momentum) on a rank's pieces of the parameters, and the gradient norm.

    groups = [{"parameters": ["norm.weight"], "weight_decay": 0.0}]
    optimizer = Optimizer({"kind": "adamw", "defaults": {...}, "groups": groups}, lr=3e-4)
    optimizer.step(parameters, gradients, scale)

The formulas are those of torch.optim, elementwise, so a piece is updated as it would be within the whole tensor.
A parameter without a gradient is left alone: no decay, no step count.

With `master_weights` a bfloat16 or float16 parameter is updated in float32: the state has a float32 copy of the piece,
its master, and float32 moments; the parameter is the master rounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from .errors import BundleError

Tensors = Mapping[str, torch.Tensor]

_DEFAULTS: dict[str, dict[str, Any]] = {
    "adamw": {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 1e-2},
    "sgd": {"lr": 1e-3, "momentum": 0.0, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0},
}


_LOW = (torch.bfloat16, torch.float16)


class Optimizer:
    """state: per parameter its moments and master (tensors) and, for AdamW, the number of its steps."""

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
            for name in group["parameters"]:
                self.settings[name] = {**self.defaults, **own}
        for name, settings in [("", self.defaults), *self.settings.items()]:
            unknown = set(settings) - set(_DEFAULTS[self.kind]) - {"lr_scale"}
            if any(settings[key] for key in unknown):
                where = f" for {name}" if name else ""
                raise BundleError(
                    f"the optimizer {self.kind} has no setting {sorted(unknown)[0]!r}{where}", everywhere=True
                )
        self.state: dict[str, dict[str, Any]] = {}

    def step(self, parameters: Tensors, gradients: Tensors, scale: float = 1.0) -> None:
        """Update the parameters in place; gradients are multiplied by `scale` (clipping) first."""
        update = self._adamw if self.kind == "adamw" else self._sgd
        for name, grad in gradients.items():
            settings = self.settings.get(name, self.defaults)
            if scale != 1.0:
                grad = grad * scale
            param = parameters[name]
            master = self._master(name, param)
            update(name, master, grad.to(master.dtype), settings, self.lr * settings.get("lr_scale", 1.0))
            if master is not param:
                param.copy_(master)

    def _master(self, name: str, param: torch.Tensor) -> torch.Tensor:
        """What is updated: the parameter itself, or its float32 copy."""
        if not self.master_weights or param.dtype not in _LOW:
            return param
        state = self.state.setdefault(name, {})
        if "master" not in state:
            state["master"] = param.float()
        master: torch.Tensor = state["master"]
        return master

    def masters(self) -> dict[str, torch.Tensor]:
        return {name: state["master"] for name, state in self.state.items() if "master" in state}

    def _adamw(
        self, name: str, param: torch.Tensor, grad: torch.Tensor, settings: Mapping[str, Any], lr: float
    ) -> None:
        state = self.state.setdefault(name, {})
        if "step" not in state:
            state |= {"step": 0, "exp_avg": torch.zeros_like(param), "exp_avg_sq": torch.zeros_like(param)}
        state["step"] += 1
        beta1, beta2 = settings["betas"]
        param.mul_(1 - lr * settings["weight_decay"])
        state["exp_avg"].lerp_(grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        correction1, correction2 = 1 - beta1 ** state["step"], 1 - beta2 ** state["step"]
        denominator = state["exp_avg_sq"].sqrt().div_(correction2**0.5).add_(settings["eps"])
        param.addcdiv_(state["exp_avg"], denominator, value=-lr / correction1)

    def _sgd(self, name: str, param: torch.Tensor, grad: torch.Tensor, settings: Mapping[str, Any], lr: float) -> None:
        if settings["weight_decay"]:
            grad = grad.add(param, alpha=settings["weight_decay"])
        momentum = settings["momentum"]
        if momentum:
            state = self.state.setdefault(name, {})
            if "momentum" not in state:
                state["momentum"] = grad.clone()
            else:
                state["momentum"].mul_(momentum).add_(grad, alpha=1 - settings["dampening"])
            grad = grad.add(state["momentum"], alpha=momentum) if settings["nesterov"] else state["momentum"]
        param.add_(grad, alpha=-lr)


def squared_norm(gradients: Tensors, owned: Iterable[str]) -> torch.Tensor:
    """The sum of squares of the pieces that this rank answers for; over the world they are the norm squared."""
    total = torch.zeros((), dtype=torch.float64)
    for name in owned:
        if name in gradients:
            total += torch.linalg.vector_norm(gradients[name], dtype=torch.float64).square().cpu()
    return total


def clip_scale(norm: float, clip: float | None) -> float:
    """As torch.nn.utils.clip_grad_norm_."""
    return 1.0 if clip is None else min(1.0, clip / (norm + 1e-6))
