"""What a factory does to tensors without data is written down, and can be done for real later, tensor by tensor.

    with recording() as recorder:
        model = Model(config)               # parameters on the meta device: shapes, no memory
    recorder.evaluate(recorder.ref(buffer)) # the values that this one tensor would have

Every op that touches a meta tensor becomes a Write: its arguments, with tensors as places in storages, and the storages
that it changes.  Views need no entry, for size, stride and offset say which part of a storage a tensor is.  Tensors
with data (`torch.tensor([...])`) take part with the data they have at that moment.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from uniap_compiler.ir import Diagnostic
from uniap_compiler.runtime import initialise

LARGEST = 1 << 26
"""Elements of all storages that one tensor's values may need; more is not computed by a compiler."""
SMALL = 1 << 16
"""Elements of a table (zeros, arange) that `on_meta` leaves real, so that code may look into it."""

aten = torch.ops.aten
RANDOM = {
    aten.rand.default: "uniform", aten.rand_like.default: "uniform", aten.uniform_.default: "uniform",
    aten.randn.default: "normal", aten.randn_like.default: "normal", aten.normal_.default: "normal",
    aten.normal.float_float: "normal",
}  # fmt: skip
_UNFILLED = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "empty_permuted"}
_DRAWN = {"rand", "randn", "rand_like", "randn_like", "normal"}
_TABLES = {"zeros", "ones", "full", "eye", "arange", "zeros_like", "ones_like", "full_like", "new_zeros", "new_full",
           "new_ones"}  # fmt: skip
TRUNCATED = "trunc_normal_"


@dataclass(frozen=True)
class Ref:
    """A tensor as a part of a storage."""

    storage: int
    dtype: torch.dtype
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    def numel(self) -> int:
        return torch.Size(self.size).numel()


@dataclass
class Write:
    """One op that changed storages.  draw: its number among the random ones."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Ref | None]
    changes: set[int]
    makes: set[int]
    draw: int = -1

    @property
    def name(self) -> str:
        return self.func if isinstance(self.func, str) else str(self.func._schema.name.removeprefix("aten::"))

    def reads(self) -> list[Ref]:
        return [a for a in tree_flatten((self.args, self.kwargs))[0] if isinstance(a, Ref)]


class TooLarge(Exception):
    """The values need more memory than a compiler should take."""


class Unknown(Exception):
    """A tensor that was there before the recording."""


@dataclass
class _Storage:
    kept: Any  # the storage itself: its address names it as long as it lives
    bytes: int
    writes: list[int] = field(default_factory=list)


class Recorder:
    """What was written, in order, and what tensors would hold after it."""

    def __init__(self, redirect: bool = False) -> None:
        self.redirect = redirect
        self.writes: list[Write] = []
        self.storages: dict[int, _Storage] = {}
        self.seed = 0
        self._draws = 0

    def knows(self, tensor: Tensor) -> bool:
        """Was something written into it, here?"""
        return bool(self.storages[self.ref(tensor).storage].writes)

    # -- writing down -------------------------------------------------------------------------------------------------

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Called in place of every op."""
        tensors = [a for a in tree_flatten((args, kwargs))[0] if isinstance(a, Tensor)]
        if not any(t.device.type == "meta" for t in tensors):
            device = kwargs.get("device")
            if device is not None and torch.device(device).type == "meta":
                return self._deferred(func, args, kwargs)
            if self.redirect and self._without_data(func, args, kwargs, device):
                return self._deferred(func, args, {**kwargs, "device": torch.device("meta")})
            return func(*args, **kwargs)
        if func is aten._local_scalar_dense.default:
            return self.evaluate(self.ref(args[0])).item()
        if any(t.device.type != "meta" for t in _changed(func, args, kwargs)):
            real = tree_map_only(Tensor, lambda t: self.value(t), (args, kwargs))
            return func(*real[0], **real[1])
        if kwargs.get("device") is not None:  # of a tensor without data there is no copy elsewhere
            kwargs = {**kwargs, "device": torch.device("meta")}
        return self._deferred(func, args, kwargs)

    def value(self, tensor: Tensor) -> Tensor:
        return self.evaluate(self.ref(tensor)) if tensor.device.type == "meta" else tensor

    def draw_truncated(self, tensor: Tensor, mean: float, std: float, low: float, high: float) -> Tensor:
        """torch.nn.init.trunc_normal_ draws until it likes what it sees; without data the distribution is recorded."""
        ref = self.ref(tensor)
        self._add(Write(TRUNCATED, (ref, mean, std, low, high), {}, [ref], {ref.storage}, set(), self._next_draw()))
        return tensor

    def ref(self, tensor: Tensor) -> Ref:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.storages:
            self.storages[storage._cdata] = _Storage(storage, storage.nbytes())
        return Ref(
            storage._cdata, tensor.dtype, tuple(tensor.shape), tuple(tensor.stride()), int(tensor.storage_offset())
        )

    def _deferred(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs.get("generator") is not None:
            kwargs = {**kwargs, "generator": None}
        if kwargs.get("pin_memory"):
            kwargs = {**kwargs, "pin_memory": False}
        leaves, structure = tree_flatten((args, kwargs))
        on_meta = [a.to("meta") if isinstance(a, Tensor) and a.device.type != "meta" else a for a in leaves]
        kept = [self._kept(a) if isinstance(a, Tensor) else a for a in leaves]
        known = {a.storage for a in kept if isinstance(a, Ref)}
        meta_args, meta_kwargs = tree_unflatten(on_meta, structure)
        changed = {self.ref(t).storage for t in _changed(func, meta_args, meta_kwargs)}
        result = func(*meta_args, **meta_kwargs)
        outputs = [self.ref(o) if isinstance(o, Tensor) else None for o in tree_flatten(result)[0]]
        made = {o.storage for o in outputs if o is not None} - known
        if changed or made:  # else a view
            kept_args, kept_kwargs = tree_unflatten(kept, structure)
            random = torch.Tag.nondeterministic_seeded in func.tags
            draw = self._next_draw() if random else -1
            self._add(Write(func, kept_args, kept_kwargs, outputs, changed | made, made, draw))
        return result

    def _kept(self, tensor: Tensor) -> Any:
        """A reference, or data as it is now."""
        return self.ref(tensor) if tensor.device.type == "meta" else tensor.detach().clone()

    def _add(self, write: Write) -> None:
        for storage in write.changes:
            self.storages[storage].writes.append(len(self.writes))
        self.writes.append(write)

    def _next_draw(self) -> int:
        if not self._draws:
            given = torch.initial_seed()  # what torch.manual_seed was given, else 64 random bits
            self.seed = given if 0 <= given < 1 << 32 else 0
        self._draws += 1
        return self._draws - 1

    @staticmethod
    def _without_data(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], device: Any) -> bool:
        """Does this op make a tensor on the CPU that is better left without memory?"""
        if device is not None and torch.device(device).type != "cpu":
            return False
        name = func._schema.name.removeprefix("aten::")
        if name in _UNFILLED or name in _DRAWN:
            return "out" not in kwargs
        if name not in _TABLES or "out" in kwargs:
            return False
        made: Tensor = func(*args, **{**kwargs, "device": torch.device("meta")})
        return made.numel() > SMALL

    # -- doing it for real --------------------------------------------------------------------------------------------

    def evaluate(self, ref: Ref, before: int | None = None) -> Tensor:
        """The values of a tensor after all writes, or as they were before write number `before`: a CPU tensor.

        Raises TooLarge, Unknown.
        """
        order = sorted(self._needed(ref.storage, len(self.writes) if before is None else before))
        involved = {ref.storage}.union(*(self.writes[n].changes for n in order))
        if not self.storages[ref.storage].writes:
            raise Unknown
        if sum(self.storages[s].bytes for s in involved) > LARGEST * 4:
            raise TooLarge
        memory: dict[int, Any] = {}

        def place(ref: Ref) -> Tensor:
            if ref.storage not in memory:
                if not self.storages[ref.storage].writes:
                    raise Unknown
                memory[ref.storage] = torch.UntypedStorage(self.storages[ref.storage].bytes, device="cpu")
            empty = torch.empty(0, dtype=ref.dtype, device="cpu")
            return empty.set_(memory[ref.storage], ref.offset, ref.size, ref.stride)

        with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
            for n in order:
                self._redo(self.writes[n], place)
            return place(ref).clone(memory_format=torch.contiguous_format)

    def _needed(self, storage: int, before: int) -> set[int]:
        """Numbers of the writes that the contents of a storage depend on."""
        found: set[int] = set()
        latest: dict[int, int] = {}
        todo = [(storage, before)]
        while todo:
            s, end = todo.pop()
            start = latest.get(s, -1)
            if end <= start:
                continue
            latest[s] = end
            for n in self.storages[s].writes:
                if start <= n < end:
                    found.add(n)
                    todo += [(r.storage, n) for r in self.writes[n].reads()]
        return found

    def _redo(self, write: Write, place: Any) -> None:
        if write.func == TRUNCATED or write.func in RANDOM:
            target = place(write.outputs[0])
            target.copy_(initialise.draw(draw_step(write), places(write.outputs[0]), self.seed))
            return
        args, kwargs = tree_map_only(Ref, place, (write.args, write.kwargs), is_leaf=lambda a: isinstance(a, Ref))
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        if write.name in _UNFILLED:
            return
        if write.draw >= 0:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(initialise._key(self.seed, write.draw) & ((1 << 63) - 1))
                result = write.func(*args, **kwargs)
        else:
            result = write.func(*args, **kwargs)
        for output, value in zip(write.outputs, tree_flatten(result)[0], strict=True):
            if output is not None and output.storage in write.makes:
                place(output).copy_(value)


def draw_step(write: Write) -> list[Any]:
    """The random op as a step of a recipe."""
    options = {"draw": write.draw}
    if write.func == TRUNCATED:
        return ["trunc_normal", *(float(a) for a in write.args[1:]), options]
    kind = RANDOM[write.func]
    if write.name in ("rand", "rand_like", "randn", "randn_like"):
        return [kind, 0.0, 1.0, options]
    names = ("from", "to") if kind == "uniform" else ("mean", "std")
    given = list(write.args[1:] if write.name.endswith("_") else write.args[:2])
    given += [write.kwargs.get(name, default) for name, default in list(zip(names, (0.0, 1.0)))[len(given) :]]
    return [kind, *map(float, given[:2]), options]


def places(ref: Ref | None) -> Tensor:
    """The place in its storage of every element."""
    assert ref is not None
    result = torch.full((), ref.offset, dtype=torch.int64, device="cpu")
    for size, stride in zip(ref.size, ref.stride, strict=True):
        result = result[..., None] + torch.arange(size, device="cpu") * stride
    return result


def _changed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that the op writes into."""
    found = []
    for n, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[n] if n < len(args) else kwargs.get(argument.name)
            found += [t for t in tree_flatten(value)[0] if isinstance(t, Tensor)]
    return found


class _Dispatch(TorchDispatchMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.recorder.run(func, args, dict(kwargs or {}))


class _Pretend(TorchFunctionMode):
    """torch.nn.init.orthogonal_ and others do nothing where `is_meta` is true: here it is not.

    Numbers that the code itself writes down (`torch.tensor([1.0, 2.0])`) stay data, whatever the default device.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == _IS_META:
            return False
        if func in (torch.tensor, torch.as_tensor) and not isinstance(args[0] if args else None, Tensor):
            if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "meta":
                kwargs["device"] = torch.device("cpu")
        return func(*args, **kwargs)


_IS_META = torch.Tensor.is_meta.__get__  # type: ignore[attr-defined]


_active: list[Recorder] = []


@contextmanager
def recording(redirect: bool = False) -> Iterator[Recorder]:
    """Records what is done inside; inside of another recording, into that one's recorder.

    redirect: what code makes on the CPU without data (torch.empty, torch.randn) goes to the meta device, too.
    """
    if _active:
        recorder, before = _active[-1], _active[-1].redirect
        recorder.redirect = before or redirect
        try:
            yield recorder
        finally:
            recorder.redirect = before
        return
    init: Any = torch.nn.init
    original = init._no_grad_trunc_normal_
    recorder = Recorder(redirect)

    def truncated(
        tensor: Tensor, mean: float, std: float, a: float, b: float, generator: Any = None
    ) -> Tensor:
        if tensor.device.type == "meta":
            return recorder.draw_truncated(tensor, mean, std, a, b)
        result: Tensor = original(tensor, mean, std, a, b, generator)
        return result

    init._no_grad_trunc_normal_ = truncated
    _active.append(recorder)
    try:
        with _Pretend(), _Dispatch(recorder):
            yield recorder
    except (TooLarge, Unknown):
        raise Diagnostic(
            "the model's initialiser looks into a tensor that has no data on the meta device",
            help="take its weights from a checkpoint (weights=PATH), or build the model with real tensors",
        ) from None
    finally:
        _active.remove(recorder)
        init._no_grad_trunc_normal_ = original
