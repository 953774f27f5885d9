"""Definitions of composite ops against the op that each stands for: values and gradients in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from uniap_compiler.capture import composites, losses
from uniap_compiler.capture import decompositions as d

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def r(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def check(ours: Callable[..., Any], theirs: Callable[..., Any], *tensors: Tensor) -> None:
    leaves = [t.clone().requires_grad_() for t in tensors]
    a, b = ours(*leaves), theirs(*leaves)
    assert a.shape == b.shape and a.dtype == b.dtype
    torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-12)
    tangent = torch.randn_like(b)
    mine = torch.autograd.grad(a, leaves, tangent, allow_unused=True)
    right = torch.autograd.grad(b, leaves, tangent, allow_unused=True)
    for x, y in zip(mine, right, strict=True):
        assert (x is None) == (y is None)
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("x", [(4,), (3, 4), (2, 3, 4), (2, 1, 3, 4)])
@pytest.mark.parametrize("w", [(5, 4), (4,)])
def test_linear(x: tuple[int, ...], w: tuple[int, ...]) -> None:
    check(d.linear, F.linear, r(*x), r(*w))
    if len(w) == 2:
        check(d.linear, F.linear, r(*x), r(*w), r(5))


MATMULS = [
    ((4,), (4,)), ((3, 4), (4,)), ((4,), (4, 5)), ((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((2, 3, 4), (4,)),
    ((4,), (2, 4, 5)), ((2, 3, 4), (2, 4, 5)), ((1, 3, 4), (2, 4, 5)), ((2, 6, 3, 4), (1, 6, 4, 5)),
    ((2, 1, 3, 4), (1, 6, 4, 5)), ((2, 6, 3, 4), (6, 4, 5)), ((1, 3, 4), (1, 4, 5)),
]  # fmt: skip


@pytest.mark.parametrize("a, b", MATMULS)
def test_matmul(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    check(d.matmul, torch.matmul, r(*a), r(*b))


def test_addmm() -> None:
    check(d.addmm, torch.addmm, r(5), r(3, 4), r(4, 5))
    check(lambda *t: d.addmm(*t, beta=0.5, alpha=2.0), lambda *t: torch.addmm(*t, beta=0.5, alpha=2.0),
          r(3, 5), r(3, 4), r(4, 5))  # fmt: skip
    check(d.addmm, torch.baddbmm, r(2, 3, 5), r(2, 3, 4), r(2, 4, 5))


EINSUMS = [
    ("ij,jk->ik", (2, 3), (3, 4)), ("ij,jk", (2, 3), (3, 4)), ("bhqd,bhkd->bhqk", (2, 3, 4, 5), (2, 3, 6, 5)),
    ("...ij,...jk->...ik", (2, 3, 4), (2, 4, 5)), ("...ij,jk->...ik", (2, 6, 3, 4), (4, 5)),
    ("ij,ij->", (2, 3), (2, 3)),
    ("ij,k->ik", (2, 3), (4,)), ("ij->ji", (2, 3)), ("ij->", (2, 3)), ("ii->i", (3, 3)),
    ("ij,jk,kl->il", (2, 3), (3, 4), (4, 2)),
    ("i,j->ij", (2,), (3,)), ("bij,bj->bi", (2, 3, 4), (2, 4)), ("ab,cb->ca", (2, 3), (4, 3)),
    ("...i,...i->...", (5, 1, 4), (3, 4)), ("bi,bi->bi", (5, 3), (1, 3)), ("ij,jk->ik", (2, 1), (3, 4)),
    ("bi,bi->i", (1, 3), (1, 3)),
]  # fmt: skip


@pytest.mark.parametrize("case", EINSUMS, ids=lambda c: c[0])
def test_einsum(case: Any) -> None:
    equation, *shapes = case
    check(lambda *t: d.einsum(equation, list(t)), lambda *t: torch.einsum(equation, *t), *(r(*s) for s in shapes))


@pytest.mark.parametrize("shape", [(7, 5), (3, 5, 4), (2, 5, 3, 2), (5,)])
@pytest.mark.parametrize("reduction", [0, 1, 2])
@pytest.mark.parametrize(
    "options",
    [
        "plain",
        "ignore",
        "smooth",
        "weight",
        "probabilities",
        "smooth probabilities",
        "weight smooth",
        "weight smooth ignore",
    ],
)
def test_cross_entropy(shape: tuple[int, ...], reduction: int, options: str) -> None:
    spread = (*shape[:1], *shape[2:]) if len(shape) > 1 else ()
    target = torch.randint(5, spread)
    if "ignore" in options:
        if not spread:
            pytest.skip("one ignored item is 0 / 0")
        target.view(-1)[0] = -100
    if "probabilities" in options:
        target = r(*shape).softmax(1 if len(shape) > 1 else 0)
    weight = r(5).exp() if "weight" in options else None
    smoothing = 0.2 if "smooth" in options else 0.0
    args = (target, weight, reduction, -100, smoothing)
    check(lambda x: losses.cross_entropy(x, *args), lambda x: aten.cross_entropy_loss(x, *args), r(*shape))


@pytest.mark.parametrize("reduction", [0, 1, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_nll_loss(reduction: int, weighted: bool) -> None:
    target = torch.tensor([0, 4, 2, -100, 1, 1])
    weight = r(5).exp() if weighted else None
    args = (target, weight, reduction)
    check(lambda x: losses.nll_loss(x, *args), lambda x: aten.nll_loss_nd(x, *args), r(6, 5))


@pytest.mark.parametrize("dim", [[0], [-1], [0, 2], None, []])
@pytest.mark.parametrize("keepdim", [False, True])
def test_means(dim: Any, keepdim: bool) -> None:
    check(lambda x: d.mean(x, dim, keepdim), lambda x: aten.mean.dim(x, dim, keepdim), r(2, 3, 4))


@pytest.mark.parametrize("dim", [[0], [-1], [0, 2], None])
@pytest.mark.parametrize("correction", [0, 1, None])
def test_variances(dim: Any, correction: Any) -> None:
    for keepdim in (False, True):
        for ours, theirs in ((d.var, aten.var.correction), (d.std, aten.std.correction)):
            options = {"dim": dim, "correction": correction, "keepdim": keepdim}
            check(partial(ours, **options), partial(theirs, **options), r(2, 3, 4))


def test_mean_of_everything_and_dtypes() -> None:
    check(d.mean_all, torch.mean, r(2, 3))
    x = torch.randn(4, 3)
    assert d.mean(x, [0], dtype=torch.float64).dtype == d.mean_all(x, dtype=torch.float64).dtype == torch.float64


@pytest.mark.parametrize("reduction", [0, 1, 2])
def test_regression_losses(reduction: int) -> None:
    check(lambda x, y: losses.mse_loss(x, y, reduction), lambda x, y: aten.mse_loss(x, y, reduction), r(3, 4), r(3, 4))
    check(lambda x, y: losses.l1_loss(x, y, reduction), lambda x, y: aten.l1_loss(x, y, reduction), r(3, 4), r(3, 4))
    y, weight, pos = (torch.rand(*shape).double() for shape in ((3, 4), (3, 4), (4,)))
    for w, p in ((None, None), (weight, None), (None, pos), (weight, pos)):
        options = {"target": y, "weight": w, "pos_weight": p, "reduction": reduction}
        ours = partial(losses.bce_with_logits, y=y, weight=w, pos_weight=p, reduction=reduction)
        check(ours, partial(aten.binary_cross_entropy_with_logits, **options), r(3, 4) * 3)


AT_KINKS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "l1": (lambda x: losses.l1_loss(x, x * 0, 0), lambda x: F.l1_loss(x, x * 0, reduction="none")),
    **{
        f"smooth l1, {beta}": (
            partial(lambda beta, x: losses.smooth_l1(x, x * 0, 0, beta), beta),
            partial(lambda beta, x: F.smooth_l1_loss(x, x * 0, reduction="none", beta=beta), beta),
        )
        for beta in (0.0, 0.5, 1.0)
    },
    "huber": (lambda x: losses.huber(x, x * 0, 0, 2.0), lambda x: F.huber_loss(x, x * 0, reduction="none", delta=2.0)),
    "log sigmoid": (losses.log_sigmoid, F.logsigmoid),
    "bce": (
        lambda x: losses.bce_with_logits(x, x * 0 + 1, None, None, 0),
        lambda x: F.binary_cross_entropy_with_logits(x, x * 0 + 1, reduction="none"),
    ),
    "margin": (
        lambda x: losses.multi_margin(x, torch.arange(3), 1, 1.0, None, 0),
        lambda x: F.multi_margin_loss(x, torch.arange(3), 1, 1.0, reduction="none"),
    ),
}


@pytest.mark.parametrize("name", AT_KINKS)
def test_gradients_at_kinks(name: str) -> None:
    """Where a loss has no derivative, ours is torch's: zeros and exact margins do occur in training."""
    x = torch.tensor([[0.0, 1.0, -1.0], [0.5, 2.0, -2.0], [60.0, -60.0, -0.5]], dtype=torch.float64)
    values, gradients = [], []
    for loss in AT_KINKS[name]:
        leaf = x.clone().requires_grad_()
        values.append(loss(leaf))
        gradients += torch.autograd.grad(values[-1].sum(), leaf)
    torch.testing.assert_close(values[0], values[1], rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 5), (2, 4, 3, 3)])
@pytest.mark.parametrize("affine", [False, True])
def test_norms(shape: tuple[int, ...], affine: bool) -> None:
    tensors = [r(*shape), *((r(4), r(4)) if affine else ())]
    mean, var = r(4), r(4).exp()

    def batch(training: bool) -> None:
        def ours(x: Tensor, w: Any = None, b: Any = None) -> Tensor:
            return d.batch_norm_functional(x, w, b, mean, var, training, 0.1, 1e-5)[0]

        check(ours, lambda x, w=None, b=None: F.batch_norm(x, mean.clone(), var.clone(), w, b, training), *tensors)

    batch(True)
    batch(False)
    check(lambda x, w=None, b=None: d.batch_norm_no_stats(x, w, b, True, 0.1, 1e-5)[0],
          lambda x, w=None, b=None: F.batch_norm(x, None, None, w, b, True), *tensors)  # fmt: skip
    m, v = mean.clone(), var.clone()
    F.batch_norm(tensors[0], m, v, training=True, momentum=0.3)
    new = d.batch_norm_functional(tensors[0], None, None, mean, var, True, 0.3, 1e-5)
    torch.testing.assert_close(new[3:], (m, v), rtol=1e-12, atol=1e-12)
    check(
        lambda x, w=None, b=None: d.group_norm(x, 2, w, b), lambda x, w=None, b=None: F.group_norm(x, 2, w, b), *tensors
    )
    if len(shape) > 2:
        check(lambda x, w=None, b=None: d.instance_norm(x, w, b, None, None, True, 0.1, 1e-5, False),
              lambda x, w=None, b=None: F.instance_norm(x, None, None, w, b), *tensors)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_means_of_many_numbers_add_up_in_float32(dtype: torch.dtype) -> None:
    """Their sums are beyond float16, and beyond the digits of bfloat16."""
    x, y = (torch.rand(4, 3000) * 200).to(dtype), (torch.rand(3000, 8) * 20).to(dtype)
    classes = torch.randint(8, (3000,))
    exactly = partial(torch.testing.assert_close, rtol=0.0, atol=0.0)
    exactly(d.mean(x, [1]), x.mean(1))
    exactly(d.mean_all(x), x.mean())
    exactly(d.std(x, [1]), x.std(1))
    exactly(composites.vector_norm(x, 2, [1]), torch.linalg.vector_norm(x, 2, 1))
    exactly(losses.l1_loss(x, -x), F.l1_loss(x, -x))
    near = partial(torch.testing.assert_close, rtol=3 * torch.finfo(dtype).eps, atol=0.0)
    near(d.var(x, [1]), x.float().var(1).to(dtype))
    near(composites.vector_norm(x, 1, [0]), torch.linalg.vector_norm(x.float(), 1, 0).to(dtype))
    near(losses.cross_entropy(y, classes), F.cross_entropy(y.float(), classes).to(dtype))
    near(losses.cross_entropy(y, y.softmax(1)), F.cross_entropy(y.float(), y.softmax(1).float()).to(dtype))
    near(losses.nll_loss(-y, classes), F.nll_loss(-y.float(), classes).to(dtype))


def test_the_deviation_of_equal_numbers_has_no_gradient() -> None:
    x = r(3, 4)
    x[1] = x[1, 0]
    check(lambda x: d.std(x, [1]), lambda x: x.std(1), x)


@pytest.mark.parametrize("eps", [None, 1e-3])
def test_rms_norm(eps: float | None) -> None:
    check(lambda x: d.rms_norm(x, [4], None, eps), lambda x: F.rms_norm(x, [4], None, eps), r(3, 4))
    check(lambda x, w: d.rms_norm(x, [3, 4], w, eps), lambda x, w: F.rms_norm(x, [3, 4], w, eps), r(2, 3, 4), r(3, 4))
    half = torch.randn(50, 4).bfloat16() * 0.02  # small enough for eps to matter
    for weight in (None, torch.randn(4).bfloat16()):
        wanted = F.rms_norm(half, [4], weight, eps)
        torch.testing.assert_close(d.rms_norm(half, [4], weight, eps), wanted, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("shapes", [
    ((2, 4, 5, 8), (2, 4, 6, 8)), ((4, 5, 8), (4, 6, 8)), ((5, 8), (6, 8)), ((2, 4, 5, 8), (1, 4, 6, 8)),
])  # fmt: skip
def test_attention_without_heads_or_with_broadcast_batches(shapes: Any) -> None:
    q, k = shapes
    check(d.attention, F.scaled_dot_product_attention, r(*q), r(*k), r(*k))


@pytest.mark.parametrize("size", [1, 3])
def test_adaptive_pools(size: int) -> None:
    check(lambda x: d.adaptive_avg_pool1d(x, [size]), lambda x: F.adaptive_avg_pool1d(x, size), r(2, 3, 7))
    check(lambda x: d.adaptive_avg_pool2d(x, [size, size]), lambda x: F.adaptive_avg_pool2d(x, size), r(2, 3, 7, 5))
    x = r(2, 3, 1, 5)
    torch.testing.assert_close(d.adaptive_avg_pool2d(x, [1, 2]), F.adaptive_avg_pool2d(x, (1, 2)))


def test_copy_into_a_slice() -> None:
    check(lambda y: d.copy(r(3, 4), y) * 2, lambda y: y.expand(3, 4) * 2, r(4))
    assert d.copy(torch.zeros(2, 3, dtype=torch.float64), torch.ones(3)).dtype == torch.float64


def test_every_definition_is_of_an_existing_op() -> None:
    assert all(isinstance(op, torch._ops.OpOverload) for op in d.OWN)
    assert set(d.OWN) <= set(d.table())
