"""Complex ops on pairs equal torch's, in values and in gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from uniap_compiler.capture import TrainingTask, capture
from uniap_compiler.capture.complex_ops import Pair, call, is_complex
from uniap_compiler.capture.decompositions import table
from uniap_compiler.ir import Diagnostic

FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "products": lambda z, w: z * w + z * 2.0 - w * (1 - 2j) + (1 + z) + (1 - w),
    "quotients": lambda z, w: z / (w + 3) + z / 2.0 + 1 / (w + 3),
    "real operands": lambda z, w: z * w.real + z + w.imag - w.abs(),
    "imaginary numbers": lambda z, w: (w.real * 1j).exp() + z.imag / 2j + (1j - w.imag) - 1j * z + z.imag * (2 - 1j),
    "real parts": lambda z, w: torch.cat([z, w.real], 1)[:, 2:6] + torch.stack([w.imag, z], 1).sum(1)
    + torch.complex(z.real, w.imag[:, :1]) + z.imag.to(w),
    "all dims": lambda z, w: z.roll(5) + w.unsqueeze(1).squeeze() + z.unsqueeze(0).squeeze((0,)).square(),
    "functions": lambda z, w: z.exp() + torch.polar(w.abs(), w.angle()) + z.conj() + torch.complex(z.real, w.imag) - -w,
    "shapes": lambda z, w: torch.cat([z.mT.unsqueeze(-1).squeeze(-1), w.permute(0, 2, 1)], -1)[:, 1:],
    "parts": lambda z, w: torch.stack([*z.unbind(1), *w.chunk(4, 1)[0].unbind(-2)], -2).roll(1, -1).flip(-1),
    "views": lambda z, w: (z.reshape(2, -1, 12) + w[:, :1].expand(2, 2, 6).repeat(1, 1, 2)).sum(-1) + w.mean(0)[:2, :2],
    "contractions": lambda z, w: torch.einsum("bij,bkj->bik", z, w) @ torch.matmul(w, z.transpose(1, 2)) @ z,
    "adjoints": lambda z, w: w.mH @ z,
    "fft": lambda z, w: torch.fft.fft(z) + torch.fft.fft(w.real, n=6, dim=-1, norm="ortho"),
    "fft, cut": lambda z, w: torch.fft.fft(z, n=3, dim=1) + torch.fft.fft(w[:, :3, :2], n=6),
    "ifft": lambda z, w: torch.fft.ifft(z, dim=1) + torch.fft.ifft(w, n=8)[..., :6] + torch.fft.ifft(z, norm="ortho"),
    "rfft": lambda z, w: torch.fft.rfft(z.real) + torch.fft.rfft(w.imag, n=7, norm="ortho"),
    "irfft": lambda z, w: torch.fft.irfft(z) + torch.fft.irfft(w, n=10, norm="forward"),
    "irfft, odd": lambda z, w: torch.fft.irfft(z, n=5) + torch.fft.irfft(w, n=5, norm="ortho"),
    "two dims": lambda z, w: torch.fft.fft2(z) + torch.fft.ifft2(w) + torch.fft.fftn(z, dim=(1,)) + torch.fft.ifftn(w),
    "two real dims": lambda z, w: torch.fft.irfft2(torch.fft.rfft2(z.real) * 2, s=(4, 6)),
    "all real dims": lambda z, w: torch.fft.irfftn(torch.fft.rfftn(w.imag) * z[..., :4], dim=(0, 1, 2)),
}  # fmt: skip


def _graph(function: Callable[..., Tensor], *args: Tensor, kernels: bool) -> torch.fx.GraphModule:
    """kernels: composite ops taken apart, as where something is mutated."""

    class Model(torch.nn.Module):
        def forward(self, *x: Tensor) -> Tensor:
            return function(*map(torch.view_as_complex, x))

    program = torch.export.export(Model(), args, strict=False)
    return (program.run_decompositions(table()) if kernels else program).graph_module


def _run(graph: torch.fx.GraphModule, args: tuple[Tensor, ...]) -> Any:
    given = iter(args)
    env: dict[torch.fx.Node, Any] = {}
    for node in graph.graph.nodes:
        values, options = torch.fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
        if node.op == "placeholder":
            env[node] = next(given)
        elif node.op == "output":
            return values[0][0]
        elif node.target.__name__ == "getitem":
            env[node] = values[0][values[1]]
        elif is_complex(node.meta.get("val")) or any(isinstance(a, Pair) for a in tree_leaves(values)):
            env[node] = call(node.target, values, options)
        else:
            env[node] = node.target(*values, **options)
    raise AssertionError


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_equals_torch(name: str, kernels: bool) -> None:
    torch.manual_seed(0)
    args = tuple(torch.randn(2, 4, 6, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    wanted = FUNCTIONS[name](*map(torch.view_as_complex, args))
    found = _run(_graph(FUNCTIONS[name], *args, kernels=kernels), args)
    assert isinstance(found, Pair) == wanted.is_complex()
    if wanted.is_complex():
        wanted, found = torch.view_as_real(wanted.resolve_conj()), found.of
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)
    weights = torch.randn_like(wanted)
    both = [torch.autograd.grad((y * weights).sum(), args, allow_unused=True) for y in (found, wanted)]
    for ours, theirs in zip(*both, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


def _changed(z: Tensor, w: Tensor) -> Tensor:
    z = z.clone()
    z *= w
    z[:, 1:3] += 2j * w[:, :2]
    z[..., -1].mul_(z[..., 0].clone())
    z[0, 0, :2], z[1, 1] = w[0, 0, 0], w[1, 1].abs()
    return z.add_(w, alpha=0.5)


def test_changes_in_place() -> None:
    torch.manual_seed(0)
    args = tuple(torch.randn(2, 4, 6, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    wanted = torch.view_as_real(_changed(*map(torch.view_as_complex, args)))
    found = _run(_graph(_changed, *args, kernels=True), args).of
    torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)
    weights = torch.randn_like(wanted)
    both = [torch.autograd.grad((y * weights).sum(), args) for y in (found, wanted)]
    torch.testing.assert_close(*both, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("form", ["einsum", "view", "cumsum"])
def test_other_forms_are_refused(form: str) -> None:
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "einsum": lambda z: torch.einsum("bi,bi,bi->b", z, z, z).abs(),
        "view": lambda z: z.view(torch.float32),
        "cumsum": lambda z: z.cumsum(1).abs(),
    }

    class Model(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return forms[form](torch.view_as_complex(super().forward(x).view(-1, 4, 2))).mean()

    with pytest.raises(Diagnostic, match=f"{form} of complex numbers is not supported"):
        capture(TrainingTask(Model(8, 8), (torch.randn(4, 8),)))


class Rotary(torch.nn.Module):
    def __init__(self, complex_weight: bool = False) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)
        turns = torch.polar(torch.ones(3, 2), torch.outer(torch.arange(3.0), torch.tensor([1.0, 0.1])))
        self.register_buffer("turns", turns)
        self.weight = torch.nn.Parameter(turns.clone()) if complex_weight else None

    def forward(self, x: Tensor) -> Tensor:
        z = torch.view_as_complex(self.linear(x).view(-1, 3, 2, 2, 2))
        turned = z * (self.turns if self.weight is None else self.weight)[:, None]
        return torch.view_as_real(turned).pow(4).mean()


def test_a_complex_buffer_is_a_constant_of_pairs() -> None:
    module = capture(TrainingTask(Rotary(), (torch.randn(4, 3, 8),)), dtype="float64")
    main = module.funcs["main"]
    turns = [p for p in main.params if p.attrs["role"] == "constant"]
    assert turns
    assert not [p for p in main.params if p.attrs["role"] == "buffer"]
    assert {v.type.dtype for v in main.values()} == {"f64"}


def test_complex_parameters_are_refused() -> None:
    with pytest.raises(Diagnostic, match="complex parameters"):
        capture(TrainingTask(Rotary(complex_weight=True), (torch.randn(4, 3, 8),)))
