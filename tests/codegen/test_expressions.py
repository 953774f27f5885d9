"""A nice spelling must dispatch to exactly the aten op that it stands for, with the same arguments."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from uniap_compiler.codegen.expressions import _SPELLED, Scope, expression
from uniap_compiler.ir import Atom, Op, TensorType, Value, struct
from uniap_compiler.runtime import kernels

F, B, I = "f64", "i1", "i64"
S = (2, 3, 4)
TORCH = {"f64": torch.float64, "f32": torch.float32, "i1": torch.bool, "i64": torch.int64}

# op, (shape, dtype) of the operands (None: absent; a list: a list operand), attributes, source
CASES: list[tuple[str, list[Any], dict[str, Any], str]] = [
    *((f"aten.{n}.Tensor", [(S, F), (S, F)], {}, f"x {s} y") for n, s in (
        ("add", "+"), ("sub", "-"), ("mul", "*"), ("div", "/"), ("eq", "=="), ("ne", "!="), ("lt", "<"), ("le", "<="),
        ("gt", ">"), ("ge", ">="),
    )),
    *((f"aten.{n}.Scalar", [(S, F)], {"other": 2.5}, f"x {s} 2.5") for n, s in (
        ("eq", "=="), ("ne", "!="), ("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">="),
    )),
    *((f"aten.{n}.Tensor", [(S, B), (S, B)], {}, f"x {s} y") for n, s in (
        ("bitwise_and", "&"), ("bitwise_or", "|"), ("bitwise_xor", "^"),
    )),
    *((f"aten.{n}", [(S, F)], {}, f"torch.{n}(x)") for n in (
        "abs", "ceil", "cos", "erf", "exp", "floor", "log", "log1p", "logical_not", "reciprocal", "relu",
        "rsqrt", "sigmoid", "sign", "sin", "sqrt", "tanh", "zeros_like", "ones_like",
    )),
    ("aten.bitwise_not", [(S, B)], {}, "torch.bitwise_not(x)"),
    ("aten.logical_and", [(S, B), (S, B)], {}, "torch.logical_and(x, y)"),
    ("aten.logical_or", [(S, B), (S, B)], {}, "torch.logical_or(x, y)"),
    ("aten.maximum", [(S, F), (S, F)], {}, "torch.maximum(x, y)"),
    ("aten.minimum", [(S, F), (S, F)], {}, "torch.minimum(x, y)"),
    ("aten.mul.Tensor", [(S, F)], {"other": 0.5}, "x * 0.5"),
    ("aten.add.Tensor", [(S, F)], {"other": 1}, "x + 1"),
    ("aten.add.Tensor", [(S, F), (S, F)], {"alpha": 2}, "aten.add.Tensor(x, y, alpha=2)"),
    ("aten.div.Tensor_mode", [(S, F), (S, F)], {"rounding_mode": "floor"}, 'aten.div.Tensor_mode(x, y, rounding_mode="floor")'),  # noqa: E501
    ("aten.rsub.Scalar", [(S, F)], {"other": 1.0}, "1.0 - x"),
    ("aten.pow.Tensor_Scalar", [(S, F)], {"exponent": 2}, "x ** 2"),
    ("aten.pow.Tensor_Tensor", [(S, F), (S, F)], {}, "x ** y"),
    ("aten.neg", [(S, F)], {}, "-x"),
    ("aten.where.self", [(S, B), (S, F), (S, F)], {}, "torch.where(x, y, z)"),
    ("aten.view", [(S, F)], {"size": [6, 4]}, "x.reshape(6, 4)"),
    ("aten.view", [((1,), F)], {"size": []}, "x.reshape([])"),
    ("aten._unsafe_view", [(S, F)], {"size": [2, 12]}, "x.reshape(2, 12)"),
    ("aten.expand", [((2, 1, 4), F)], {"size": [2, 3, 4]}, "x.expand(2, 3, 4)"),
    ("aten.permute", [(S, F)], {"dims": [2, 0, 1]}, "x.permute(2, 0, 1)"),
    ("aten.transpose.int", [(S, F)], {"dim0": 1, "dim1": 2}, "x.transpose(1, 2)"),
    ("aten.unsqueeze", [(S, F)], {"dim": -1}, "x.unsqueeze(-1)"),
    ("aten.squeeze.dim", [((2, 1), F)], {"dim": 1}, "x.squeeze(1)"),
    ("aten.t", [((2, 3), F)], {}, "x.t()"),
    ("aten.clone", [(S, F)], {"memory_format": Atom("contiguous_format")}, "x.clone(memory_format=torch.contiguous_format)"),  # noqa: E501
    ("aten.detach", [(S, F)], {}, "x.detach()"),
    ("aten.sum", [(S, F)], {}, "x.sum()"),
    ("aten.sum.dim_IntList", [(S, F)], {"dim": [0, 1], "keepdim": True}, "x.sum([0, 1], keepdim=True)"),
    ("aten.mean", [(S, F)], {}, "x.mean()"),
    ("aten.mean.dim", [(S, F)], {"dim": [-1]}, "x.mean([-1])"),
    ("aten.amax", [(S, F)], {"dim": [2], "keepdim": True}, "x.amax([2], keepdim=True)"),
    ("aten.masked_fill.Scalar", [(S, F), (S, B)], {"value": float("-inf")}, 'x.masked_fill(y, float("-inf"))'),
    ("aten._to_copy", [(S, F)], {"dtype": Atom("f32")}, "x.to(torch.float32)"),
    ("aten.slice.Tensor", [(S, F)], {"dim": 1, "start": 1, "end": 3}, "x[:, 1:3]"),
    ("aten.slice.Tensor", [(S, F)], {"dim": 2, "start": 1, "end": 9223372036854775807, "step": 2}, "x[:, :, 1::2]"),
    ("aten.slice.Tensor", [(S, F)], {"dim": -1, "start": 1}, "aten.slice.Tensor(x, dim=-1, start=1)"),
    ("aten.split.Tensor", [(S, F)], {"split_size": 2, "dim": -1}, "x.split(2, dim=-1)"),
    ("aten.split_with_sizes", [(S, F)], {"split_sizes": [1, 3], "dim": 2}, "x.split_with_sizes([1, 3], dim=2)"),
    ("aten.select.int", [(S, F)], {"dim": 1, "index": -1}, "x[:, -1]"),
    ("aten.cat", [[(S, F), (S, F)]], {"dim": 1}, "torch.cat([x, y], dim=1)"),
    ("aten.stack", [[(S, F), (S, F)]], {}, "torch.stack([x, y])"),
    ("aten.silu_backward", [(S, F), (S, F)], {}, "aten.silu_backward.default(x, y)"),
    ("aten.silu", [(S, F)], {}, "aten.silu.default(x)"),
    ("aten.leaky_relu", [(S, F)], {"negative_slope": 0.2}, "aten.leaky_relu.default(x, negative_slope=0.2)"),
    ("aten.native_layer_norm", [(S, F), None, None], {"normalized_shape": [4], "eps": 1e-5},
     "aten.native_layer_norm.default(x, [4], None, None, eps=1e-05)"),
    ("aten.full", [], {"size": [2], "fill_value": 1.0}, "aten.full.default(size=[2], fill_value=1.0, dtype=torch.float64, device=comm.device)"),  # noqa: E501
]  # fmt: skip

ALIKE = {"aten.view", "aten._unsafe_view", "aten.reshape"}
"""A reshape is a view where strides allow it, and copies where aten.view would refuse."""


class Recorder(TorchDispatchMode):
    """The aten calls that reach the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).removesuffix(".default")
        self.calls.append((name, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


class Comm:
    device = torch.device("cpu")


def make(shape: tuple[int, ...], dtype: str) -> torch.Tensor:
    x = torch.rand(shape, dtype=torch.float64) + 0.1
    return x > 0.5 if dtype == B else x.to(TORCH[dtype])


@pytest.mark.parametrize(
    ("name", "operands", "attrs", "source"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)]
)
def test_source_dispatches_to_the_op(name: str, operands: list[Any], attrs: dict[str, Any], source: str) -> None:
    names = iter("xyz")
    tensors: dict[str, torch.Tensor] = {}
    python: dict[Value, str] = {}

    def build(described: Any) -> Any:
        if described is None or isinstance(described, list):
            return described and [build(d) for d in described]
        letter = next(names)
        tensors[letter] = make(*described)
        value = Value(letter, TensorType(*described))
        python[value] = letter
        return value

    op = Op(name, [build(o) for o in operands], [Value("r", TensorType((), F))], attrs)
    found = str(expression(op, Scope(python.__getitem__, ("a", "b"))))
    assert found.replace(".default", "") == source.replace(".default", "")

    recorder = Recorder()
    with recorder:
        eval(found, {"torch": torch, "aten": torch.ops.aten, "comm": Comm(), "nn": kernels, "float": float, **tensors})
    reached = [c for c in recorder.calls if c[0] != "aten.lift_fresh"]
    first = reached[0]
    if name in ALIKE:
        assert first[0] in ALIKE
    else:
        assert first[0] == name
        # Arguments as torch saw them, in the schema's order, against operands and attributes.
        _, base, *overload = name.split(".")
        schema = getattr(getattr(torch.ops.aten, base), overload[0] if overload else "default")._schema
        seen = dict(zip((a.name for a in schema.arguments), first[1], strict=False)) | first[2]
        for key, value in attrs.items():
            wanted = value
            if isinstance(value, Atom):
                wanted = TORCH[value] if value in TORCH else getattr(torch, value)
            assert seen[key] == wanted or (key == "end" and wanted >= 2**62), (key, seen)


def test_every_nice_spelling_is_tested() -> None:
    tested = {case[0] for case in CASES}
    same_rule = {f"aten.{n}.Scalar" for n in ("add", "sub", "mul", "div", "bitwise_and", "bitwise_or", "bitwise_xor")}
    same_rule |= {
        "aten.squeeze",
        "aten.contiguous",
        "aten.to.dtype",
        "aten.reshape",
        "aten.isinf",
        "aten.isnan",
        "aten.square",
    }
    assert set(_SPELLED) <= tested | same_rule, set(_SPELLED) - tested - same_rule


def value(name: str, *shape: int, dtype: str = F) -> Value:
    return Value(name, TensorType(shape, dtype))


def text(op: Op) -> str:
    return str(expression(op, Scope(lambda v: v.name, ("a", "b", "c"))))


def test_kernels_collectives_and_offsets() -> None:
    x, y = value("x", 2, 4), value("y", 4, 4)
    out = [value("r", 2, 4)]
    assert (
        text(Op("nn.contract", [x, y], out, {"equation": "b k, n k -> b n"}))
        == 'nn.contract(x, y, equation="b k, n k -> b n")'
    )
    offset = struct("offset", axes=["c", "b"], size=4)
    assert text(Op("nn.embedding", [x, y], out, {"padding_idx": 1, "offset": offset})) == (
        'nn.embedding(x, y, padding_idx=1, offset=comm.coordinate("b_c") * 4)'
    )
    assert text(Op("nn.embedding", [x, y], out, {"padding_idx": 1})) == "nn.embedding(x, y, padding_idx=1)"
    assert text(Op("comm.all_reduce", [x], out, {"group": "a_c", "op": "sum"})) == 'comm.all_reduce(x, "a_c")'
    assert (
        text(Op("comm.all_reduce", [x], out, {"axes": ["c", "a"], "op": "max"}))
        == 'comm.all_reduce(x, "a_c", op="max")'
    )
    assert (
        text(Op("comm.all_gather", [x], out, {"group": "b", "dim": 1, "outer": 8}))
        == 'comm.all_gather(x, "b", dim=1, outer=8)'
    )
    assert text(Op("comm.recv", [], out, {"from_stage": 1, "shape": [2, 4], "dtype": "f64"})) == (
        "comm.recv(from_stage=1, shape=[2, 4], dtype=torch.float64)"
    )


def test_replaced_ops_go_through_the_kernels() -> None:
    g, x, m, w = value("g", 2, 4), value("x", 2, 4), value("m", 2, 1), value("w", 4)
    attrs = {"normalized_shape": [4], "output_mask": [True, True, False]}
    op = Op("aten.native_layer_norm_backward", [g, x, m, m, w, None], [value("r", 2, 4)], attrs)
    assert text(op) == "nn.native_layer_norm_backward(g, x, [4], m, m, w, None, output_mask=[True, True, False])"


@pytest.mark.parametrize(
    ("op", "words"),
    [
        (Op("aten.no_such_thing", [], []), "has no operator aten.no_such_thing"),
        (Op("aten.relu", [value("x"), value("y")], []), "1 operands more than torch's schema"),
        (Op("comm.all_reduce", [value("x")], [], {"group": "z"}), "no mesh axis is called 'z'"),
        (Op("sched.thing", [], []), "no way to write sched.thing"),
    ],
)
def test_what_cannot_be_written(op: Op, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        text(op)
