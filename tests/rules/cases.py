"""Ops on concrete shapes, by family.  Sizes are chosen so that most factors divide by 2 and by 3, and differ."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from uniap_compiler.ir import Atom

from .case_tools import bools, case, f, ints, pos
from .kernel_cases import kernels, resampling, scattering, selections, windows
from .validate import Case


def pointwise() -> list[Case]:
    unary = (
        "neg exp tanh sigmoid relu gelu silu sin cos erf abs sign floor isnan log1p softplus hardtanh leaky_relu elu "
        "mish hardswish hardsigmoid relu6 square clone detach alias zeros_like ones_like"
    ).split()
    binary = "add.Tensor sub.Tensor mul.Tensor maximum minimum eq.Tensor lt.Tensor ge.Tensor atan2".split()
    return [
        *(case(f"aten.{n}", f(4, 6)) for n in unary),
        *(case(f"aten.{n}", pos(4, 6)) for n in ("log", "sqrt", "rsqrt", "reciprocal")),
        *(case(f"aten.{n}", f(4, 6), f(4, 6)) for n in binary),
        *(case(f"aten.{n}", f(2, 4, 6), f(6)) for n in binary[:3]),
        *(case(f"aten.{n}", f(4, 1, 6), f(3, 6)) for n in ("add.Tensor", "mul.Tensor", "div.Tensor")),
        *(case("aten.mul.Tensor", f(4, 6), f()) for _ in (1,)),
        case("aten.add.Tensor", f(6), f(4, 6), alpha=2),
        case("aten.sub.Tensor", f(1, 6), f(4, 1)),
        case("aten.add.Tensor", f(4, 6), other=3.0),
        case("aten.mul.Tensor", f(4, 6), other=3.0),
        case("aten.div.Tensor", f(4, 6), other=3.0),
        case("aten.div.Tensor", f(4, 6), pos(4, 1)),
        case("aten.div.Tensor_mode", f(4, 6), pos(6), rounding_mode="floor"),
        case("aten.add.Scalar", f(4, 6), other=2),
        case("aten.mul.Scalar", f(4, 6), other=2),
        case("aten.div.Scalar", f(4, 6), other=2),
        case("aten.rsub.Scalar", f(4, 6), other=2),
        case("aten.pow.Tensor_Scalar", f(4, 6), exponent=2),
        case("aten.pow.Tensor_Scalar", f(4, 6), exponent=1),
        case("aten.pow.Tensor_Tensor", pos(4, 6), f(6)),
        case("aten.clamp", f(4, 6), min=-0.5, max=0.5),
        case("aten.where.self", bools(4, 6), f(4, 6), f(6)),
        case("aten.where.self", bools(4, 1), f(6), f()),
        case("aten.where.ScalarOther", bools(4, 6), f(4, 6), other=0),
        case("aten.where.ScalarOther", bools(4, 6), f(4, 6), other=1.5),
        case("aten.where.ScalarSelf", bools(4, 6), f(4, 6), self=0),
        case("aten.masked_fill.Scalar", f(4, 6), bools(4, 6), value=0),
        case("aten.masked_fill.Scalar", f(2, 4, 6), bools(4, 1), value=float("-inf")),
        case("aten.masked_fill.Tensor", f(4, 6), bools(4, 6), f()),
        case("aten._to_copy", f(4, 6), dtype=Atom("f32")),
        case("aten._to_copy", f(4, 6), dtype=Atom("i64")),
        case("aten._to_copy", ints(9, 4, 6), dtype=Atom("f64")),
        case("aten.full_like", f(4, 6), fill_value=2.0),
        case("aten.fill.Scalar", f(4, 6), value=2.0),
        case("aten.log_sigmoid_backward", f(4, 6), f(4, 6), f(4, 6)),
        case("aten.lift_fresh_copy", f(4, 6)),
        case("aten.logical_and", bools(4, 6), bools(6)),
        case("aten.logical_not", bools(4, 6)),
        case("aten.bitwise_and.Tensor", bools(4, 6), bools(4, 6)),
        case("aten.ne.Scalar", ints(3, 4, 6), other=1),
        case("aten.addcmul", f(4, 6), f(4, 6), f(6), value=2),
        case("aten.lerp.Scalar", f(4, 6), f(4, 6), weight=0.3),
        case("aten.gelu_backward", f(4, 6), f(4, 6)),
        case("aten.gelu_backward", f(4, 6), f(4, 6), approximate="tanh"),
        case("aten.silu_backward", f(4, 6), f(4, 6)),
        case("aten.sigmoid_backward", f(4, 6), f(4, 6)),
        case("aten.tanh_backward", f(4, 6), f(4, 6)),
        case("aten.threshold_backward", f(4, 6), f(4, 6), threshold=0),
        case("aten.leaky_relu_backward", f(4, 6), f(4, 6), negative_slope=0.1, self_is_result=False),
        case("aten.hardtanh_backward", f(4, 6), f(4, 6), min_val=-1.0, max_val=1.0),
        case("aten.softplus_backward", f(4, 6), f(4, 6), beta=1.0, threshold=20.0),
        case("aten.elu_backward", f(4, 6), f(4, 6), alpha=1.0, scale=1.0, input_scale=1.0, is_result=False),
        case("aten.mish_backward", f(4, 6), f(4, 6)),
        case("aten.hardswish_backward", f(4, 6), f(4, 6)),
        case("aten.hardsigmoid_backward", f(4, 6), f(4, 6)),
        case("aten.native_dropout_backward", f(4, 6), bools(4, 6), scale=2.0),
    ]


def contraction() -> list[Case]:
    return [
        case("nn.contract", f(2, 6, 4), f(12, 4), equation="b s k, n k -> b s n"),
        case("nn.contract", f(2, 6, 4), f(2, 6, 12), equation="b s n, b s k -> n k"),
        case("nn.contract", f(2, 3, 4, 6), f(2, 3, 6, 4), equation="b h s d, b h d t -> b h s t"),
        case("nn.contract", f(2, 1, 6), f(4, 6), equation="b s k, n k -> b s n"),
        case("nn.contract", f(6), f(6), equation="k, k -> "),
        case("nn.contract", f(4), f(6), equation="m, n -> m n"),
        case("nn.contract", f(4, 6, 2), f(3, 6), equation="b p c, q p -> b q c"),
        case("aten.mm", f(4, 6), f(6, 12)),
        case("aten.bmm", f(2, 4, 6), f(2, 6, 3)),
        case("aten.mv", f(4, 6), f(6)),
        case("aten.dot", f(6), f(6)),
        case("aten.addmm", f(12), f(4, 6), f(6, 12)),
        case("aten.linear", f(2, 4, 6), f(12, 6), f(12)),
        case("aten.linear", f(2, 4, 6), f(12, 6), None),
    ]


def reduction() -> list[Case]:
    return [
        case("aten.sum", f(4, 6)),
        case("aten.sum.dim_IntList", f(2, 4, 6), dim=[1]),
        case("aten.sum.dim_IntList", f(2, 4, 6), dim=[-1, 0], keepdim=True),
        case("aten.sum.dim_IntList", f(2, 4, 6), dim=[]),
        case("aten.sum", bools(4, 6)),
        case("aten.amax", f(2, 4, 6), dim=[-1]),
        case("aten.amax", f(2, 4, 6), dim=[0, 2], keepdim=True),
        case("aten.max", f(4, 6)),
        case("aten.max.dim", f(4, 6), dim=1),
        case("aten.max.other", f(4, 6), f(6)),
        case("aten.amin", f(4, 6), dim=[1]),
        case("aten.mean", f(4, 6)),
        case("aten.mean.dim", f(2, 4, 6), dim=[-1], keepdim=True),
        case("aten.var.correction", f(4, 6), dim=[1], correction=0),
        case("aten.var_mean.correction", f(4, 6), dim=[1], correction=1, keepdim=True),
        case("aten.min", f(4, 6)),
        case("aten.min.dim", f(4, 6), dim=0),
        case("aten.argmin", f(4, 6), dim=1),
        case("aten.std.correction", f(4, 6), dim=[1], correction=1),
        case("aten.all", bools(4, 6)),
        case("aten.cumprod", f(4, 6), dim=1),
        case("aten.any.dim", bools(4, 6), dim=1),
        case("aten.argmax", f(4, 6), dim=1),
        case("aten.prod.dim_int", f(4, 6), dim=1),
        case("aten.logsumexp", f(4, 6), dim=[1]),
        case("aten.linalg_vector_norm", f(4, 6), dim=[1]),
        case("aten.count_nonzero", ints(3, 4, 6)),
        case("aten.cumsum", f(4, 6), dim=1),
        case("aten.sort", f(4, 6), dim=0),
        case("aten.topk", f(4, 6), k=2, dim=-1),
    ]


def views() -> list[Case]:
    return [
        case("aten.view", f(4, 6, 12), size=[24, 12]),
        case("aten.view", f(24, 12), size=[4, 6, 12]),
        case("aten.view", f(4, 6, 12), size=[4, 6, 6, 2]),
        case("aten._unsafe_view", f(4, 6, 3, 4), size=[4, 6, 12]),
        case("aten.reshape", f(4, 6), shape=[-1]),
        case("aten.view", f(4, 2, 6), size=[2, 4, 6]),
        case("aten.view", f(2, 4, 6), size=[2, 6, 4]),
        case("aten.view", f(2, 4, 9), size=[2, 6, 6]),
        case("aten.view", f(4, 1, 6), size=[1, 4, 6, 1]),
        case("aten.view", f(2, 12, 12, 3), size=[2, 3, 4, 3, 4, 3]),
        case("aten.view", f(6), size=[6, 1]),
        case("aten.permute", f(2, 4, 6), dims=[2, 0, 1]),
        case("aten.permute", f(2, 4, 6), dims=[0, -1, 1]),
        case("aten.transpose.int", f(2, 4, 6), dim0=1, dim1=-1),
        case("aten.t", f(4, 6)),
        case("aten.unsqueeze", f(4, 6), dim=1),
        case("aten.squeeze.dim", f(4, 1, 6), dim=1),
        case("aten.squeeze.dims", f(1, 4, 1, 6), dim=[0, 2]),
        case("aten.expand", f(4, 1, 6), size=[2, 4, 3, 6]),
        case("aten.expand", f(6), size=[4, -1]),
        case("aten.repeat", f(4, 6), repeats=[2, 3, 1]),
        case("aten.repeat_interleave.self_int", f(2, 4, 6), repeats=3, dim=1),
        case("aten.pixel_shuffle", f(2, 12, 4, 6), upscale_factor=2),
    ]


def indexing() -> list[Case]:
    top = 2**63 - 1
    return [
        case("aten.slice.Tensor", f(4, 12), dim=1, start=0, end=6),
        case("aten.slice.Tensor", f(4, 12), dim=1, start=6, end=top),
        case("aten.slice.Tensor", f(4, 12), dim=-1, start=-4),
        case("aten.slice.Tensor", f(4, 18), dim=1, start=6, end=12),
        case("aten.slice.Tensor", f(4, 6), dim=0, start=1, end=4),
        case("aten.slice.Tensor", f(4, 12), dim=1, start=0, end=12, step=2),
        case("aten.slice.Tensor", f(4, 12), dim=1, start=0, end=top),
        case("aten.slice_backward", f(4, 6), input_sizes=[4, 18], dim=1, start=6, end=12, step=1),
        case("aten.slice_backward", f(4, 5), input_sizes=[4, 18], dim=1, start=1, end=6, step=1),
        case("aten.slice_backward", f(4, 6), input_sizes=[4, 12], dim=1, start=0, end=12, step=2),
        case("aten.slice_scatter", f(4, 12), f(4, 6), dim=1, start=6, end=top),
        case("aten.split_with_sizes", f(2, 36), split_sizes=[12, 12, 12], dim=-1),
        case("aten.split_with_sizes", f(2, 24), split_sizes=[12, 6, 6], dim=1),
        case("aten.split.Tensor", f(2, 12), split_size=6, dim=1),
        case("aten.split.Tensor", f(2, 10), split_size=6, dim=1),
        case("aten.cat", [f(4, 6), f(4, 6)], dim=1),
        case("aten.cat", [f(4, 6), f(4, 12), f(4, 6)], dim=-1),
        case("aten.cat", [f(4, 1), f(4, 6)], dim=1),
        case("aten.cat", [f(4, 6), f(2, 6)]),
        case("aten.stack", [f(4, 6), f(4, 6)], dim=1),
        case("aten.constant_pad_nd", f(4, 6), pad=[1, 1], value=0.0),
        case("aten.constant_pad_nd", f(2, 4, 6), pad=[0, 0, 2, 0], value=1.0),
        case("aten.select.int", f(4, 6), dim=1, index=2),
        case("aten.select.int", f(4, 6, 2), dim=0, index=-1),
        case("aten.unbind.int", f(4, 2, 6), dim=1),
        case("aten.select_backward", f(4, 2), input_sizes=[4, 6, 2], dim=1, index=3),
        case("aten.select_scatter", f(4, 6), f(4), dim=1, index=3),
        case("aten.index_select", f(4, 6), ints(6, 4), dim=1),
        case("aten.gather", f(4, 6), ints(6, 4, 3), dim=1),
        case("aten.gather", f(6, 6), ints(6, 4, 3), dim=1),
        case("aten.scatter.src", f(4, 6), torch.arange(3).expand(4, 3), f(4, 3), dim=1),
        case("aten.scatter.value", f(4, 6), ints(6, 4, 3), dim=1, value=0),
        case("aten.scatter_add", f(4, 6), ints(6, 4, 3), f(4, 3), dim=1),
        case("aten.index.Tensor", f(6, 4), [ints(6, 2, 4)]),
        case("aten.index.Tensor", f(4, 6, 12), [None, ints(6, 2)]),
        case("aten.index.Tensor", f(4, 6, 12), [ints(4, 2, 1), ints(6, 6)]),
        case("aten.index.Tensor", f(4, 6, 12), [ints(4, 2), None, ints(12, 2)]),
        case("aten.index_put", f(6, 4), [ints(6, 2)], f(2, 4), accumulate=True),
        case("aten.index_put", f(4, 6), [None, ints(6, 2)], f(4, 2), accumulate=True),
        case("aten._unsafe_index.Tensor", f(2, 4, 6), [None, ints(4, 2, 1), ints(6, 6)]),
        case("aten.triu", f(4, 6), diagonal=1),
        case("aten.tril", f(2, 4, 6)),
        case("aten.flip", f(4, 6), dims=[1]),
        case("aten.roll", f(4, 6), shifts=[1], dims=[1]),
        case("aten.diagonal", f(2, 4, 6), dim1=1, dim2=2),
        case("aten.unfold", f(4, 12), dimension=1, size=4, step=2),
        case("aten.one_hot", ints(6, 4), num_classes=6),
    ]


def creation() -> list[Case]:
    return [
        case("aten.full", size=[4, 6], fill_value=1.0, dtype=Atom("f64")),
        case("aten.full", size=[], fill_value=1.0, dtype=Atom("f64")),
        case("aten.zeros", size=[4, 6], dtype=Atom("f64")),
        case("aten.new_zeros", f(4, 6), size=[6, 2]),
        case("aten.ones", size=[4, 6], dtype=Atom("f64")),
        case("aten.new_ones", f(4, 6), size=[6, 2]),
        case("aten.new_full", f(4, 6), size=[6, 2], fill_value=2),
        case("aten.arange", end=6),
        case("aten.arange.start", start=2, end=8, dtype=Atom("f64")),
        case("aten.scalar_tensor", s=2.0, dtype=Atom("f64")),
    ]


def norm() -> list[Case]:
    def stats(x: Tensor, dims: list[int]) -> tuple[Tensor, Tensor]:
        var, mean = torch.var_mean(x, dims, correction=0, keepdim=True)
        return mean, (var + 1e-5).rsqrt()

    x, wide = f(2, 6, 12), f(2, 6, 4, 3)
    return [
        case("aten._softmax", f(2, 4, 6), dim=-1, half_to_float=False),
        case("aten._safe_softmax", f(2, 4, 6), dim=1),
        case("aten._log_softmax", f(4, 6), dim=0, half_to_float=False),
        case("aten._softmax_backward_data", f(4, 6), f(4, 6).softmax(1), dim=1, input_dtype=Atom("f64")),
        case("aten._log_softmax_backward_data", f(4, 6), f(4, 6).log_softmax(1), dim=1, input_dtype=Atom("f64")),
        case("aten.native_layer_norm", x, f(12), f(12), normalized_shape=[12], eps=1e-5),
        case("aten.native_layer_norm", wide, f(4, 3), None, normalized_shape=[4, 3], eps=1e-5),
        case("aten.native_layer_norm", x, None, None, normalized_shape=[12], eps=1e-5),
        case(
            "aten.native_layer_norm_backward", f(2, 6, 12), x, *stats(x, [-1]), f(12), f(12),
            normalized_shape=[12], output_mask=[True, True, True],
        ),
        case(
            "aten.native_layer_norm_backward", f(2, 6, 4, 3), wide, *stats(wide, [-1, -2]), f(4, 3), None,
            normalized_shape=[4, 3], output_mask=[True, True, False],
        ),
        case(
            "aten._native_batch_norm_legit_no_training", f(2, 6, 4, 3), f(6), f(6), f(6), pos(6),
            momentum=0.1, eps=1e-5,
        ),
        case(
            "aten.native_batch_norm", f(2, 6, 4), f(6), f(6), f(6), pos(6), training=False, momentum=0.1, eps=1e-5,
        ),
        case(
            "aten.native_batch_norm", f(2, 6, 4), f(6), f(6), None, None, training=True, momentum=0.1, eps=1e-5,
        ),
    ]  # fmt: skip


KEY = torch.tensor(6148914691236517204)


def random() -> list[Case]:
    """Numbers that are functions of a key."""
    return [
        case("nn.random_key", KEY, site=3),
        case("nn.bernoulli", KEY, size=[6, 4, 12], p=0.4),
        case("nn.bernoulli", KEY, size=[6, 1, 12], p=0.9),
        case("nn.uniform", KEY, size=[12], dtype=Atom("f64")),
        case("nn.uniform", KEY, size=[], dtype=Atom("f32")),
        case("nn.normal", KEY, size=[4, 6], dtype=Atom("f64")),
    ]


def attention() -> list[Case]:
    cases = []
    for q, k, mask, causal in (
        ((2, 6, 4, 2), (2, 3, 6, 2), None, False),
        ((2, 6, 4, 2), (2, 6, 4, 2), None, True),
        ((4, 6, 2), (2, 6, 2), None, False),
        ((2, 4, 6, 2), (2, 1, 6, 2), None, True),
        ((2, 6, 4, 2), (2, 3, 6, 2), (6, 4, 6), False),
        ((2, 6, 4, 2), (2, 3, 6, 2), (2, 1, 4, 6), False),
        ((2, 6, 4, 2), (2, 2, 6, 2), (4, 6), False),
        ((2, 6, 4, 2), (2, 2, 6, 2), (2, 1, 1, 6), False),
    ):
        operands = [f(*q), f(*k), f(*k[:-1], 3), f(*mask) if mask else None]
        attrs = {"causal": causal, "scale": 0.5}
        cases.append(case("nn.attention", *operands, **attrs))
        out, lse = torch.ops.uniap.attention(*operands, causal, 0.5)
        cases.append(case("nn.attention_backward", f(*out.shape), *operands, out, lse, **attrs))
        if mask:
            cases.append(case("nn.attention_backward", f(*out.shape), *operands, out, lse, **attrs, mask_grad=True))
        dropped = {**attrs, "dropout_p": 0.3}
        cases.append(case("nn.attention", *operands, KEY, **dropped))
        out, lse = torch.ops.uniap.attention.dropout(*operands, KEY, causal, 0.5, 0.3)
        grads = {**dropped, "mask_grad": True} if mask else dropped
        cases.append(case("nn.attention_backward", f(*out.shape), *operands, out, lse, KEY, **grads))
    seen = bools(2, 1, 4, 6) | torch.eye(4, 6, dtype=torch.bool)
    cases.append(case("nn.attention", f(2, 6, 4, 2), f(2, 3, 6, 2), f(2, 3, 6, 2), seen, causal=False, scale=0.5))
    return cases


def convolution() -> list[Case]:
    cases = []
    plain = {"dilation": [1, 1], "transposed": False, "output_padding": [0, 0]}
    for x, w, bias, stride, padding, groups in (
        ((2, 6, 5, 5), (4, 6, 3, 3), False, 1, 1, 1),
        ((2, 6, 5, 5), (4, 6, 3, 3), True, 2, 1, 1),
        ((2, 6, 4, 6), (12, 6, 1, 1), False, 1, 0, 1),
        ((2, 3, 8, 12), (6, 3, 2, 2), True, 2, 0, 1),
        ((2, 12, 5, 5), (12, 1, 3, 3), False, 1, 1, 12),
        ((2, 12, 5, 5), (24, 2, 3, 3), True, 1, 1, 6),
    ):
        inputs = [f(*x), f(*w), f(w[0]) if bias else None]
        attrs = {"stride": [stride] * 2, "padding": [padding] * 2, "groups": groups, **plain}
        cases.append(case("aten.convolution", *inputs, **attrs))
        y = torch.conv2d(*inputs, stride=stride, padding=padding, groups=groups)
        sizes = [w[0]] if bias else None
        for mask in ([True, True, bias], [False, True, bias]):
            cases.append(
                case("aten.convolution_backward", f(*y.shape), *inputs[:2], bias_sizes=sizes, output_mask=mask, **attrs)
            )
    transposed = {"stride": [2, 2], "padding": [0, 0], "dilation": [1, 1], "transposed": True, "output_padding": [0, 0]}
    cases.append(case("aten.convolution", f(2, 6, 4, 4), f(6, 4, 2, 2), None, groups=1, **transposed))
    cases.append(case("aten.convolution", f(2, 6, 4, 4), f(6, 4, 2, 2), f(8), groups=2, **transposed))
    return cases


def pooling() -> list[Case]:
    x, spread = f(2, 6, 8, 8), {"kernel_size": [2, 2], "stride": [2, 2]}
    out, where = torch.ops.aten.max_pool2d_with_indices(x, [3, 3], [2, 2], [1, 1])
    wide = {"kernel_size": [3, 3], "stride": [2, 2], "padding": [1, 1]}
    rest = {"ceil_mode": False, "count_include_pad": True, "divisor_override": None}
    return [
        case("aten.max_pool2d_with_indices", x, **wide),
        case("aten.max_pool2d_with_indices", f(6, 8, 8), **spread),
        case(
            "aten.max_pool2d_with_indices_backward", f(*out.shape), x, where,
            **wide, dilation=[1, 1], ceil_mode=False,
        ),
        case("aten.avg_pool2d", x, **spread),
        case("aten.avg_pool2d", x, **wide),
        case("aten.avg_pool2d_backward", f(2, 6, 4, 4), x, **spread, padding=[0, 0], **rest),
        case("aten.avg_pool2d_backward", f(2, 6, 4, 4), x, **wide, **rest),
        case("aten._adaptive_avg_pool2d", x, output_size=[4, 2]),
        case("aten._adaptive_avg_pool2d_backward", f(2, 6, 4, 2), x),
        case("aten.adaptive_max_pool2d", x, output_size=[4, 4]),
        case(
            "aten.adaptive_max_pool2d_backward", f(2, 6, 4, 4), x,
            torch.ops.aten.adaptive_max_pool2d(x, [4, 4])[1],
        ),
        case("aten.reflection_pad2d", x, padding=[1, 1, 2, 2]),
        case("aten.upsample_bilinear2d", x, output_size=[16, 16], align_corners=False),
        case(
            "aten.upsample_bilinear2d_backward", f(2, 6, 16, 16),
            output_size=[16, 16], input_size=[2, 6, 8, 8], align_corners=False,
        ),
        case("aten.upsample_nearest2d", x, output_size=[16, 16]),
        case("aten.upsample_nearest2d_backward", f(2, 6, 16, 16), output_size=[16, 16], input_size=[2, 6, 8, 8]),
    ]  # fmt: skip


def losses() -> list[Case]:
    logits, target = f(4, 3, 12), ints(12, 4, 3)
    target[0, 0] = target[3, 1] = -100
    highest = logits.amax(-1)
    lse = logits.logsumexp(-1)
    return [
        case("nn.embedding", f(12, 6), ints(12, 4, 3)),
        case("nn.embedding", f(12, 6), ints(12, 4), padding_idx=2),
        case("nn.embedding_backward", f(4, 3, 6), ints(12, 4, 3), num_weights=12),
        case("nn.embedding_backward", f(24, 2), ints(12, 24), num_weights=12, padding_idx=7),
        case("aten.embedding", f(12, 6), ints(12, 4, 3)),
        case(
            "aten.embedding_dense_backward", f(4, 3, 6), ints(12, 4, 3),
            num_weights=12, padding_idx=-1, scale_grad_by_freq=False,
        ),
        case("nn.cross_entropy", logits, target, ignore_index=-100),
        case("nn.pick", logits, target, ignore_index=-100),
        case("nn.pick", f(6, 12), ints(12, 6), ignore_index=3),
        case("nn.pick_backward", f(4, 3), target, num_classes=12, ignore_index=-100),
        case("nn.sum_exp", logits, highest),
        case("nn.cross_entropy_backward", f(4, 3), logits, target, lse, ignore_index=-100),
    ]  # fmt: skip


def experts() -> list[Case]:
    cases = []
    for lead, biased, activation in (
        ((6,), False, "silu(gate) * up"),
        ((2, 6), True, "silu(gate) * up"),
        ((6,), True, "(up + 1.0) * clamp(gate, None, 0.5) * sigmoid(gate * 1.702)"),
        ((6,), False, "gelu_tanh(u)"),
    ):
        u = 12 if "gate" in activation else 6
        attrs: dict[str, Any] = {"activation": activation}
        if "clamp" in activation:
            attrs["interleaved"] = True
        bias = f(6, u) if biased else None
        given = [f(*lead, 6), ints(6, *lead, 2), pos(*lead, 2), f(6, u, 6), f(6, 12, 6), bias]
        cases.append(case("nn.experts", *given, **attrs))
        back = attrs | ({"bias_grad": True} if biased else {})
        cases.append(case("nn.experts_backward", f(*lead, 12), *given, **back))
    return cases


FAMILIES = {
    f.__name__: f
    for f in (
        pointwise, contraction, reduction, views, indexing, creation, norm, attention, convolution, pooling, losses,
        kernels, selections, scattering, windows, resampling,
        random, experts,
    )
}  # fmt: skip


def family(name: str) -> list[Case]:
    torch.manual_seed(0)
    return FAMILIES[name]()
