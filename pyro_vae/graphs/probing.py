"""Whether a graph says what the function says: both are run at other values and compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_vae.graphs.lifted import Lifted, Refusal
from pyro_vae.noise import LOOK, NoiseMode, keyed, seeded


def others(args: Any) -> list[Any]:
    """Two nests like ``args`` with other values, plausible where those are.

    Real numbers move by two per cent and rows change places, once with their entries turned
    round, once so that the first row stands for half of them: whatever Python may have made of
    the values, their sum, their largest, their order, is another.
    """

    def first(tensor: Tensor) -> Tensor:
        turned = tensor.flip(-1) if tensor.dim() > 1 else tensor
        return turned.roll(1, 0) if tensor.dim() else tensor

    def second(tensor: Tensor) -> Tensor:
        if not tensor.dim() or len(tensor) < 2:
            return tensor
        index = torch.arange(len(tensor), device=tensor.device)
        return tensor[torch.where(index < (len(tensor) + 1) // 2, 0, index - 1)]

    return [pytree.tree_map(first, args), pytree.tree_map(second, args)]


def nudged(tensors: Any) -> Any:
    """The same nest with every real number moved by up to two per cent, each its own way."""

    def nudge(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        ramp = torch.linspace(-1, 1, max(2, tensor.numel()))[: tensor.numel()]
        return tensor.detach() * (1 + 0.02 * ramp.view(tensor.shape).to(tensor))

    return pytree.tree_map(nudge, tensors)


def differs(function, lifted: Lifted, args, differentiable: bool, *, twice: bool) -> Refusal | None:
    """Compare graph and function on ``args`` at the same noise; a difference is a refusal."""
    key = (*LOOK, 1)  # other noise than the capture's

    def outcome(run: Callable[..., Any]) -> list[Tensor]:
        leaves, spec = pytree.tree_flatten(args)
        inputs = [
            leaf.detach().requires_grad_(differentiable and leaf.is_floating_point())
            for leaf in leaves
        ]
        with torch.set_grad_enabled(differentiable or torch.is_grad_enabled()):
            results = pytree.tree_leaves(run(*pytree.tree_unflatten(inputs, spec)))
        results = [r for r in results if isinstance(r, Tensor)]
        if differentiable:
            # A weighting by cosines keeps contributions from cancelling.
            total = [
                (r * torch.arange(r.numel(), device=r.device).cos().view(r.shape)).sum()
                for r in results
                if r.requires_grad
            ]
            wanted = [leaf for leaf in inputs if leaf.requires_grad]
            if total:
                grads = torch.autograd.grad(sum(total), wanted, allow_unused=True)
                results += [
                    torch.zeros_like(leaf) if g is None else g
                    for g, leaf in zip(grads, wanted, strict=True)
                ]
        return [r.detach() for r in results]

    def once() -> list[Tensor]:
        with NoiseMode(keyed(*key)), seeded(*key):
            return outcome(function)

    expected = once()
    if twice and any(not _same(a, b) for a, b in zip(expected, once(), strict=True)):
        return Refusal("the program gives other values from run to run at the same noise")
    with seeded(*key):  # for the draws that stay in the graph
        got = outcome(lambda *a: lifted(*a, noise=lifted.draw(key)))
    if len(expected) != len(got):
        return Refusal("gradients are lost in the captured graph")
    for want, have in zip(expected, got, strict=True):
        if want.shape != have.shape or not close(want, have):
            return Refusal(
                "the captured graph gives other values than the program: a Python value or a "
                "branch that depends on data, or an operation without a graph, was frozen into it"
            )
    return None


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal but for what a parallel sum may do."""
    if not a.is_floating_point():
        return bool(torch.equal(a, b))
    size = float(a.detach().abs().nan_to_num(0.0, 0.0, 0.0).amax()) if a.numel() else 0.0
    slack = 8 * torch.finfo(a.dtype).eps
    return bool(torch.allclose(a, b, rtol=slack, atol=slack * size, equal_nan=True))


def close(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding: what two ways to compute the same may differ in."""
    if not a.is_floating_point():
        return bool(torch.equal(a, b))
    tolerance = 1e-3 if a.dtype == torch.float32 else 1e-8 if a.dtype == torch.float64 else 3e-2
    size = a.abs().nan_to_num(0.0, 0.0, 0.0).amax().item() if a.numel() else 0.0
    return bool(torch.allclose(a, b, rtol=tolerance, atol=tolerance * size, equal_nan=True))
