"""Writes down, as IR ops, what torch dispatches below autograd while it is active.

    with FakeTensorMode(), Recorder(namer) as recorder:
        recorder.bind(x, value_x)
        y = torch.sigmoid(x) * 2          # %sigmoid = aten.sigmoid(%x);  %mul = aten.mul.Tensor(%sigmoid) {other = 2}

Below autograd means: one op per kernel, composite ops taken apart, forward and backward alike.  Alias does not become
an op, nor does detach unless `detach` asks for it: the result stands for the same value.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from uniap_compiler.ir import Loc, Namer, Op, Value

from .schema import op_name, split_arguments, type_of
from .user_ops import BUILT_IN

_DETACH = torch.ops.aten.detach.default
_SAME = {
    _DETACH,
    torch.ops.aten.alias.default,
    torch.ops.aten.lift_fresh.default,
    torch.ops.aten.detach_.default,
    torch.ops.aten.lift_fresh_copy.default,
}
_INITIALISED = {
    torch.ops.aten.empty_like.default: torch.ops.aten.zeros_like.default,
    torch.ops.aten.empty.memory_format: torch.ops.aten.zeros.default,
    torch.ops.aten.new_empty.default: torch.ops.aten.new_zeros.default,
}
"""Memory that torch fills afterwards: written down with contents, so that a programme never depends on garbage."""


class Recorder(TorchDispatchMode):
    """ops: what ran so far.  locate: asked for the source location of each new op, given its operands.

    rewrite: torch code that runs, recorded, in place of a kernel; it may answer NotImplemented, and the kernel stays.
    detach: whether detach is an op.
    """

    def __init__(
        self,
        namer: Namer,
        locate: Callable[[list[Value]], Loc | None] = lambda _: None,
        *,
        rewrite: Mapping[OpOverload, Callable[..., Any]] | None = None,
        detach: bool = False,
    ) -> None:
        super().__init__()
        self.namer, self.locate = namer, locate
        self.rewrite = rewrite or {}
        self._same = _SAME - {_DETACH} if detach else _SAME
        self.ops: list[Op] = []
        self._values: dict[int, Value] = {}
        self._kept: list[torch.Tensor] = []  # ids stay unique only while the tensors live

    def bind(self, tensor: torch.Tensor, value: Value) -> None:
        """From now on `tensor` is `value`."""
        self._values[id(tensor)] = value
        self._kept.append(tensor)

    def value_of(self, tensor: torch.Tensor) -> Value:
        value = self._values.get(id(tensor))
        if value is None:
            raise RuntimeError(f"a tensor of shape {tuple(tensor.shape)} came from outside the recorded function")
        return value

    def knows(self, tensor: torch.Tensor) -> bool:
        return id(tensor) in self._values

    def twin(self, tensor: torch.Tensor) -> torch.Tensor:
        """The same numbers as a value of their own: an alias that is written down."""
        self.__exit__(None, None, None)
        try:
            result: torch.Tensor = torch.ops.aten.alias.default(tensor)
        finally:
            self.__enter__()
        self._record(torch.ops.aten.alias.default, (tensor,), {}, [result])
        return result

    def __torch_dispatch__(self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.rewrite:
            with self:
                rewritten = self.rewrite[func](*args, **kwargs)
            if rewritten is not NotImplemented:
                return rewritten
        result = func(*args, **kwargs)
        if func.namespace in BUILT_IN - {"aten", "uniap"}:
            if isinstance(result, torch.Tensor) or isinstance(result, (tuple, list)):
                raise NotImplementedError(f"the op {func} is not supported")
            return result  # prim.device and the like
        if func in self._same:
            if self.knows(args[0]):
                self.bind(result, self.value_of(args[0]))
            return result
        results = list(result) if isinstance(result, (tuple, list)) else [result]
        if func._schema.is_mutable:
            self._record_mutation(func, args, kwargs, results)
            return result
        self._record(func, args, kwargs, results)
        return result

    def _record(self, func: OpOverload, args: Any, kwargs: Any, results: list[Any]) -> None:
        operands, attrs = split_arguments(func, args, kwargs, self.value_of)
        name = op_name(_INITIALISED.get(func, func))
        base = re.sub(r"^_+", "", name.split(".")[1])
        values = []
        for r in results:  # a kernel may skip results by an output mask; those are never read
            if isinstance(r, torch.Tensor):
                values.append(Value(self.namer(base), type_of(r)))
                self.bind(r, values[-1])
            else:
                values.append(Value(self.namer(f"{base}.none"), type_of(torch.empty(0))))
        op = Op(name, operands, values, attrs)
        op.loc = self.locate([v for v in op.flat_operands() if v is not None])
        self.ops.append(op)

    def _record_mutation(self, func: OpOverload, args: Any, kwargs: Any, results: list[Any]) -> None:
        """An in-place op on a fresh tensor is recorded as its functional twin; the tensor then is the new value."""
        base, _, overload = str(func).removeprefix("aten.").partition(".")
        twin = getattr(getattr(torch.ops.aten, base.rstrip("_"), None), overload, None)
        if not base.endswith("_") or twin is None or args[0]._is_view():
            raise NotImplementedError(f"the in-place op {func} in a derivative cannot be made functional")
        self._record(twin, args, kwargs, [args[0]])
