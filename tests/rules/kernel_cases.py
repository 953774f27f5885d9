"""More ops on concrete shapes: kernels of torch that are met in models less often, forward and backward."""

from __future__ import annotations

import torch

from .case_tools import case, f, ints, pos
from .validate import Case

aten = torch.ops.aten


def kernels() -> list[Case]:
    """Pointwise kernels that torch does not tag, losses that keep their items."""
    weight, y = pos(4, 6), torch.rand(4, 6, dtype=torch.float64)
    x = torch.rand(4, 6, dtype=torch.float64) * 0.9 + 0.05
    return [
        case("aten._prelu_kernel", f(2, 4, 6), f(1, 4, 1)),
        case("aten._prelu_kernel_backward", f(2, 4, 6), f(2, 4, 6), f(1, 4, 1)),
        case("nn.replace_gradient", f(4, 6), f(4, 6), f(4, 6)),
        case("aten.hardshrink_backward", f(4, 6), f(4, 6), lambd=0.5),
        case("aten.softshrink_backward", f(4, 6), f(4, 6), lambd=0.5),
        case("aten.binary_cross_entropy", x, y, weight, reduction=0),
        case("aten.binary_cross_entropy", x, y, None, reduction=0),
        case("aten.binary_cross_entropy_backward", f(4, 6), x, y, weight, reduction=0),
        case("aten.binary_cross_entropy", x, y, None, reduction=1),
    ]


def selections() -> list[Case]:
    return [
        case("aten.logcumsumexp", f(4, 6), dim=1),
        case("aten.cummax", f(4, 6), dim=0),
        case("aten.cummin", f(4, 6), dim=1),
        case("aten.aminmax", f(4, 6), dim=1),
        case("aten.median.dim", f(4, 6), dim=1),
        case("aten.nanmedian.dim", f(4, 6), dim=0),
        case("aten.mode", f(4, 6)),
        case("aten.kthvalue", f(4, 6), k=2),
        case("aten.kthvalue", f(4, 6), k=2, dim=0, keepdim=True),
    ]


def scattering() -> list[Case]:
    zeros, twice = torch.zeros(6, 4, dtype=torch.float64), {"accumulate": True, "onto_zeros": True}
    return [
        case("aten.index_add", f(6, 4), ints(6, 12), f(12, 4), dim=0),
        case("aten.index_add", zeros, ints(6, 12), f(12, 4), dim=0, onto_zeros=True),
        case("aten.index_put", zeros, [ints(6, 12)], f(12, 4), **twice),
        case("aten.index_put", torch.zeros(4, 6, 2).double(), [None, ints(6, 2, 3)], f(4, 2, 3, 2), **twice),
        case("aten._unsafe_index_put", f(6, 4), [ints(6, 2)], f(2, 4), accumulate=True),
        case("aten.index_copy", f(6, 4), torch.tensor([4, 0]), f(2, 4), dim=0),
        case("aten.index_fill.int_Scalar", f(6, 4), torch.tensor([4, 0]), dim=0, value=-9.0),
        case("aten.index_fill.int_Scalar", f(6, 4), torch.tensor([4, 0]), dim=0, value=0),
        case("aten.index_fill.int_Tensor", f(6, 4), torch.tensor([4, 0]), f(), dim=0),
        case("aten.bucketize.Tensor", f(4, 6), torch.tensor([-0.5, 0.0, 0.5]).double()),
        case("aten.isin.Tensor_Tensor", ints(6, 4, 6), torch.tensor([1, 4, 2])),
        case("aten.unsafe_split.Tensor", f(2, 12), split_size=6, dim=1),
        case("aten.unsafe_split_with_sizes", f(2, 24), split_sizes=[12, 6, 6], dim=1),
        case("aten.diagonal_backward", f(2, 4), input_sizes=[2, 4, 6], offset=0, dim1=1, dim2=2),
        case("aten.diag_embed", f(2, 4, 6)),
        case("aten.diag_embed", f(2, 4, 6), dim1=0, dim2=2),
        case("aten.diagonal_scatter", f(2, 4, 6), f(2, 4), dim1=1, dim2=2),
        case("aten.unfold_backward", f(4, 5, 4), input_sizes=[4, 12], dim=1, size=4, step=2),
        case("aten.linspace", start=0, end=1, steps=6, dtype=None),
        case("aten.logspace", start=0, end=1, steps=6, dtype=None),
        case("aten.eye", n=6),
        case("aten.eye.m", n=6, m=4),
        case("aten.tril_indices", row=4, col=4),
        case("aten.triu_indices", row=4, col=4),
        case("aten.isin.Tensor_Scalar", ints(6, 4, 6), test_element=2),
    ]


def windows() -> list[Case]:
    """Pools, pads and columns in one, two and three dims."""
    line, image, solid = f(2, 6, 8), f(2, 6, 8, 8), f(2, 6, 4, 4, 4)
    pool = {"kernel_size": [2, 2, 2], "stride": [2, 2, 2]}
    rest = {"padding": [0, 0, 0], "ceil_mode": False}
    most, where = aten.max_pool3d_with_indices(solid, [2, 2, 2], [2, 2, 2])
    least, places = aten.adaptive_max_pool3d(solid, [2, 2, 2])
    columns = {"kernel_size": [2, 3], "dilation": [1, 1], "padding": [0, 1], "stride": [2, 1]}
    column = aten.im2col(image, [2, 3], [1, 1], [0, 1], [2, 1])
    cases = [
        case("aten.avg_pool3d", solid, **pool),
        case(
            "aten.avg_pool3d_backward", f(2, 6, 2, 2, 2), solid, **pool, **rest,
            count_include_pad=True, divisor_override=None,
        ),
        case("aten._adaptive_avg_pool3d", solid, output_size=[2, 2, 2]),
        case("aten._adaptive_avg_pool3d_backward", f(2, 6, 2, 2, 2), solid),
        case("aten.max_pool3d_with_indices", solid, **pool),
        case("aten.max_pool3d_with_indices_backward", f(*most.shape), solid, where, **pool, **rest, dilation=[1, 1, 1]),
        case("aten.adaptive_max_pool3d", solid, output_size=[2, 2, 2]),
        case("aten.adaptive_max_pool3d_backward", f(*least.shape), solid, places),
        case("aten.im2col", image, **columns),
        case("aten.im2col", image[0], **columns),
        case("aten.col2im", f(*column.shape), output_size=[8, 8], **columns),
        case("aten.col2im", f(*column.shape[1:]), output_size=[8, 8], **columns),
    ]  # fmt: skip
    for n, x in enumerate((line, image, solid), 1):
        amounts = [1, 1] * n
        wide = [*x.shape[:2], *(d + 2 for d in x.shape[2:])]
        for kind in ("reflection", "replication"):
            cases.append(case(f"aten.{kind}_pad{n}d", x, padding=amounts))
            cases.append(case(f"aten.{kind}_pad{n}d_backward", f(*wide), x, padding=amounts))
    return cases


def resampling() -> list[Case]:
    inputs = {1: f(2, 6, 4), 2: f(2, 6, 4, 4), 3: f(2, 6, 2, 2, 2)}
    cases = []
    kinds = [("upsample_nearest", n) for n in (1, 2, 3)] + [("_upsample_nearest_exact", n) for n in (1, 2, 3)]
    corners = (("upsample_linear", 1), ("upsample_bilinear", 2), ("upsample_bicubic", 2), ("upsample_trilinear", 3))
    smooth = [("_upsample_bilinear2d_aa", 2), ("_upsample_bicubic2d_aa", 2)]
    for kind, n in (*kinds, *corners, *smooth):
        name = f"aten.{kind}" if kind.endswith("aa") else f"aten.{kind}{n}d"
        x = inputs[n]
        size = [2 * d for d in x.shape[2:]]
        extra = {} if "nearest" in kind else {"align_corners": False}
        cases.append(case(name, x, output_size=size, **extra))
        back = {"output_size": size, "input_size": list(x.shape), **extra}
        cases.append(case(f"{name}_backward", f(*x.shape[:2], *size), **back))
    how = {"interpolation_mode": 0, "padding_mode": 0, "align_corners": False}
    for n in (2, 3):
        grid = torch.rand(2, *[4, 6, 2][:n], n, dtype=torch.float64) * 1.8 - 0.9
        x = inputs[n]
        cases.append(case(f"aten.grid_sampler_{n}d", x, grid, **how))
        gradient = f(2, 6, *[4, 6, 2][:n])
        for mask in ([True, True], [False, True]):
            cases.append(case(f"aten.grid_sampler_{n}d_backward", gradient, x, grid, output_mask=mask, **how))
    return [*cases, *distances()]


def distances() -> list[Case]:
    a, b = f(2, 4, 6), f(2, 6, 6)
    apart = aten._cdist_forward(a, b, 2.0, 2)
    return [
        case("aten._cdist_forward", a, b, p=1.0, compute_mode=2),
        case("aten._cdist_forward", a, b, p=2.0, compute_mode=2),
        case("aten._cdist_backward", f(2, 4, 6), a, b, apart, p=2.0),
    ]
