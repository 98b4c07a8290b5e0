"""An objective's gradient and refresh as pure functions of tensors, before any capture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.densities.traces import DataScale
from pyro_vae.objectives.base import Objective, State
from pyro_vae.program.calling import Parameters, call_with
from pyro_vae.program.rows import Rows

Sums = dict[str, Tensor]


@dataclass(frozen=True)
class WeightPrior:
    """N(0, 1 / precision) on weight matrices: what it adds to the gradient of the data's loss."""

    precision: float = 0.0
    num_data: int = 1

    def add(
        self, grads: Parameters, params: Parameters, weight: Tensor, scale: float
    ) -> tuple[Parameters, Tensor]:
        """The gradients with the prior's, and the norm of all of them together."""
        if self.precision:
            # Without a subsampled plate a batch stands for its rows; with one, for all N.
            rows = weight.sum() / self.num_data if scale == 1.0 else 1.0
            share = self.precision * rows
            grads = {n: g + share * params[n] if g.dim() >= 2 else g for n, g in grads.items()}
        return grads, norm_of(grads)


def norm_of(grads: Parameters) -> Tensor:
    """The norm of all gradients together."""
    # By rows first: a compiler sums long vectors with care that takes longer than the sum.
    by_rows = [torch.linalg.vector_norm(g, dim=-1) if g.dim() else g for g in grads.values()]
    norms = [torch.linalg.vector_norm(g) for g in by_rows]
    return torch.linalg.vector_norm(torch.stack(norms))


NO_PRIOR = WeightPrior()


def gradient_function(
    program: nn.Module, objective: Objective, prior: WeightPrior = NO_PRIOR
) -> Callable[..., Any]:
    """``grads`` as Python that still runs the program's handlers and draws noise as it goes."""

    def grads(
        params: Parameters, x: Rows, weight: Tensor, rows: dict, shared: dict
    ) -> tuple[Parameters, Sums]:
        with torch.enable_grad():
            leaves = {name: p.detach().requires_grad_() for name, p in params.items()}
            with DataScale() as scale:
                loss, stats = call_with(program, leaves, objective.terms, x, State(rows, shared))
            objective.require_unweighed(scale.weighed)
            total = (weight * loss).sum()
            if scale.value != 1.0:  # N / B counts the padding; N / (rows that are there) does not
                total = total * (scale.value * len(weight) / weight.sum())
            gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        found = {
            name: torch.zeros_like(leaf) if g is None else g
            for (name, leaf), g in zip(leaves.items(), gradients, strict=True)
        }
        with torch.no_grad():
            found, norm = prior.add(found, params, weight, scale.value)
            return found, {**sums_of(loss, weight, stats), "grad_norm": norm * weight.sum()}

    return grads


def refresh_function(program: nn.Module, objective: Objective) -> Callable[..., Any]:
    """``refresh`` as Python that still runs the program's handlers."""

    def refresh(
        params: Parameters, x: Rows, weight: Tensor, rows: dict, shared: dict
    ) -> tuple[dict[str, Tensor], Sums]:
        fixed = {name: p.detach() for name, p in params.items()}
        new, stats = call_with(program, fixed, objective.refresh, x, State(rows, shared))
        return {name: value.detach() for name, value in new.items()}, sums_of(None, weight, stats)

    return refresh


def sums_of(loss: Tensor | None, weight: Tensor, stats: dict[str, Tensor]) -> Sums:
    """Statistics summed over the rows that count."""
    sums = {name: (weight * value.detach()).sum() for name, value in stats.items()}
    if loss is not None:
        sums["loss"] = (weight * loss.detach()).sum()
    sums["weight"] = weight.sum()
    return sums
