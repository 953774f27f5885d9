"""torch.autocast regions of an exported graph, written down as the casts that they make.

    with torch.autocast("cuda", dtype=torch.bfloat16):        %a = aten._to_copy(%x) {dtype = bf16}
        y = linear(x, w)                                ->    %b = aten._to_copy(%w) {dtype = bf16}
                                                              %y = aten.linear(%a, %b)

Which ops compute in which precision is torch's own list for the device type of the region: the op is called once on
fake tensors of that device inside a region, and what is cast is observed.  So a region for GPUs is captured, with the
lists for GPUs, on a machine without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from uniap_compiler.ir import Diagnostic, Loc

aten = torch.ops.aten
_ELIGIBLE = (torch.float32, torch.bfloat16, torch.float16)
"""What autocast ever casts; float64 is not."""
_UNTOUCHED = (
    aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten.to.other,
    aten.batch_norm.default, aten.instance_norm.default,
)  # fmt: skip
"""Composite ops that no list has any part of: conversions, and norms whose kernels take two precisions."""
_KEYS = {"cpu": "AutocastCPU", "cuda": "AutocastCUDA"}


@contextmanager
def regions_for_any_device() -> Iterator[None]:
    """Inside, a region for GPUs is not switched off on a machine that has none."""
    common: Any = torch.cuda.amp.common
    before = common.amp_definitely_not_available, torch.cuda.is_bf16_supported
    common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda *_, **__: True
    try:
        yield
    finally:
        common.amp_definitely_not_available, torch.cuda.is_bf16_supported = before


@contextmanager
def regions_on_this_machine() -> Iterator[None]:
    """Inside, without a GPU, a region for GPUs is one for the CPU: in the region's dtype, by the CPU's lists."""
    if torch.cuda.is_available():
        yield
        return
    region: Any = torch.autocast
    before = region.__init__

    def init(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        if device_type == "cuda" and not args and kwargs.get("dtype") is None:
            kwargs["dtype"] = torch.get_autocast_dtype("cuda")
        before(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    region.__init__ = init
    try:
        yield
    finally:
        region.__init__ = before


def write_casts(program: ExportedProgram, locate: Callable[[Node], Loc | None]) -> None:
    """Take the regions of the graph apart, in place.  Raises Diagnostic."""
    modules = [m for m in program.graph_module.modules() if isinstance(m, GraphModule)]
    if any(_is_region(node) for m in modules for node in m.graph.nodes):
        graph = program.graph_module
        values = {node: node.meta["val"] for node in graph.graph.find_nodes(op="placeholder")}
        mode = next((v.fake_mode for v in values.values() if hasattr(v, "fake_mode")), FakeTensorMode())
        with mode, torch.no_grad():
            _Writer(locate).walk(graph, values, None)


def _is_region(node: Node) -> bool:
    return node.op == "call_function" and str(node.target) == "wrap_with_autocast"


@dataclass(frozen=True)
class Region:
    device: str
    dtype: torch.dtype

    def casts(
        self, target: OpOverload, args: Any, kwargs: Any
    ) -> tuple[dict[int, torch.dtype], list[torch.dtype | None]]:
        """id of a tensor argument -> the dtype that it is cast to; and the dtypes of the results."""
        own, _ = self._observe(target, args, kwargs, enabled=False)  # a composite op may cast for itself
        found, dtypes = self._observe(target, args, kwargs, enabled=True)
        return {key: dtype for key, dtype in found.items() if own.get(key) != dtype}, dtypes

    def _observe(
        self, target: OpOverload, args: Any, kwargs: Any, enabled: bool
    ) -> tuple[dict[int, torch.dtype], list[torch.dtype | None]]:
        probes: dict[int, tuple[int, Tensor]] = {}
        mixed = len({v.dtype for v in tree_leaves((args, kwargs)) if _eligible(v)}) > 1  # refused without autocast
        with FakeTensorMode(), torch.no_grad():

            def probe(value: Any) -> Any:
                if not isinstance(value, Tensor):
                    return torch.device(self.device) if isinstance(value, torch.device) else value
                dtype = self.dtype if not enabled and value.dtype in _ELIGIBLE and mixed else value.dtype
                made = torch.empty(value.shape, dtype=dtype, device=self.device)
                probes[made.untyped_storage()._cdata] = (id(value), made)
                return made

            probed = tree_map(probe, (args, kwargs))
            with torch.autocast(self.device, self.dtype, enabled, cache_enabled=False), _Watch(probes) as watch:
                results = target(*probed[0], **probed[1])
        return watch.casts, _dtypes(results)


class _Watch(TorchDispatchMode):
    """casts: id of an argument -> the dtype that it, or a view of it, is converted to first of all."""

    def __init__(self, probes: dict[int, tuple[int, Tensor]]) -> None:
        super().__init__()
        self.probes = probes
        self.casts: dict[int, torch.dtype] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._to_copy.default and kwargs.get("dtype") in _ELIGIBLE:
            known = self.probes.get(args[0].untyped_storage()._cdata)
            if known is not None and args[0].dtype in _ELIGIBLE:
                self.casts.setdefault(known[0], kwargs["dtype"])
        return func(*args, **kwargs)


def _dtypes(results: Any) -> list[torch.dtype | None]:
    several = results if isinstance(results, (list, tuple)) else [results]
    return [r.dtype if isinstance(r, Tensor) and r.is_floating_point() else None for r in several]


def _may_cast(target: Any, device: str) -> bool:
    """Whether the op is on a list of autocast, or made of others that may be."""
    if not isinstance(target, OpOverload) or target.namespace != "aten" or device not in _KEYS:
        return False
    if target in _UNTOUCHED:
        return False
    listed: bool = torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), _KEYS[device])
    return listed or target.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)


class _Writer:
    def __init__(self, locate: Callable[[Node], Loc | None]) -> None:
        self.locate = locate

    def walk(self, owner: GraphModule, values: dict[Node, Any], region: Region | None) -> Any:
        """Rewrite a graph whose inputs have these values; the values of its outputs."""
        regions: dict[Node, Region | None] = {}
        outputs: Any = None
        node = next(iter(owner.graph.nodes))
        while node.op != "root":
            following = node.next
            here = regions.get(node, region)
            if node.op == "output":
                outputs = torch.fx.node.map_arg(node.args[0], values.__getitem__)
            elif _is_region(node):
                following = self._inline(owner, node, here, regions)
            elif node.target is aten._assert_tensor_metadata.default:  # of the casts that the export made
                owner.graph.erase_node(node)
            elif node.op == "get_attr":
                values[node] = getattr(owner, str(node.target))
            elif node.op == "call_function":
                values[node] = self._call(owner, node, values, here)
                if not isinstance(values[node], (int, float, bool)):
                    node.meta["val"] = values[node]
            node = following
        owner.graph.lint()
        owner.recompile()
        return outputs

    def _inline(
        self, owner: GraphModule, node: Node, region: Region | None, regions: dict[Node, Region | None]
    ) -> Node:
        """The region's graph in place of its call; the first of its nodes."""
        device, dtype, enabled, _, body, *rest = node.args
        inner: Region | None = region
        if not enabled and (region is None or region.device == device):
            inner = None
        elif enabled:
            if device not in _KEYS:
                raise Diagnostic(f"torch.autocast({device!r}) is not supported", loc=self.locate(node))
            inner = Region(str(device), dtype)  # type: ignore[arg-type]
        assert isinstance(body, Node)
        graph: GraphModule = getattr(owner, str(body.target))
        before = node.prev
        mapping: dict[Node, Any] = dict(zip(graph.graph.find_nodes(op="placeholder"), rest, strict=True))
        with owner.graph.inserting_before(node):
            outputs = owner.graph.graph_copy(graph.graph, mapping)
        for old, new in mapping.items():
            if old.op == "placeholder":
                continue
            regions[new] = inner
            if old.op == "get_attr":
                new.target = _attach(owner, getattr(graph, str(old.target)))
        for user in list(node.users):
            assert user.target.__name__ == "getitem"  # type: ignore[union-attr]
            user.target, user.args = aten.alias.default, (outputs[user.args[1]],)  # type: ignore[index]
        first: Node = before.next
        owner.graph.erase_node(node)
        return first

    def _call(self, owner: GraphModule, node: Node, values: dict[Node, Any], region: Region | None) -> Any:
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        if not isinstance(node.target, OpOverload):
            if str(node.target) == "wrap_with_set_grad_enabled":
                _, body, *rest = args
                return self.walk(body, dict(zip(body.graph.find_nodes(op="placeholder"), rest, strict=True)), region)
            assert callable(node.target)
            return node.target(*args, **kwargs)
        eligible = {id(values[n]): n for n in node.all_input_nodes if _eligible(values[n])}
        if region is None or not eligible or not _may_cast(node.target, region.device):
            return node.target(*args, **kwargs)
        casts, wanted = region.casts(node.target, args, kwargs)
        found = self._cast(owner, node, values, {eligible[key]: dtype for key, dtype in casts.items()})
        if _dtypes(found) != wanted:  # asked to compute in float32 without a cast
            found = self._cast(owner, node, values, dict.fromkeys(node.all_input_nodes, torch.float32))
        if _dtypes(found) != wanted:
            raise Diagnostic(
                f"what autocast makes of {node.target} is not known", loc=self.locate(node),
                help="call it in a nested region with enabled=False, on tensors of one dtype",
            )
        return found

    def _cast(
        self, owner: GraphModule, node: Node, values: dict[Node, Any], casts: dict[Node, torch.dtype]
    ) -> Any:
        """The node's value on cast arguments, which it reads from now on."""
        for source, dtype in casts.items():
            if not _eligible(values[source]) or values[source].dtype == dtype:
                continue
            with owner.graph.inserting_before(node):
                cast = owner.graph.call_function(aten._to_copy.default, (source,), {"dtype": dtype})
            cast.meta = {key: value for key, value in node.meta.items() if key != "val"}
            values[cast] = cast.meta["val"] = values[source].to(dtype)
            node.replace_input_with(source, cast)
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _eligible(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype in _ELIGIBLE


def _attach(owner: GraphModule, value: Any) -> str:
    """A name of its own for what a region's graph had as an attribute."""
    number = 0
    while hasattr(owner, f"region_{number}"):
        number += 1
    setattr(owner, f"region_{number}", value)
    return f"region_{number}"
