"""Coordinates without bounds for the support of a law."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints


def support_of(law: Any) -> Any:
    """The support, all real vectors where none is said."""
    try:
        support = law.support
    except (NotImplementedError, AttributeError):
        support = None
    while hasattr(support, "base_constraint") and not isinstance(support, constraints.independent):
        support = support.base_constraint  # of a mixture
    if not isinstance(support, constraints.Constraint) or constraints.is_dependent(support):
        support = constraints.real
    if support.event_dim < len(law.event_shape):
        support = constraints.independent(support, len(law.event_shape) - support.event_dim)
    return support


def without_events(support: Any) -> Any:
    """A constraint without the dimensions that it is declared for."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support


class LogRatios(Transform):
    """From u (J - 1) to the simplex: z_i / z_J = exp(u_i), precise also where z_i is tiny.

    (Sticks, torch's bijection, lose what is left of one.)
    """

    domain, codomain, bijective = constraints.real_vector, constraints.simplex, True

    def _call(self, x: Tensor) -> Tensor:
        return torch.cat([x, torch.zeros_like(x[..., :1])], -1).softmax(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        logs = y.log()
        return logs[..., :-1] - logs[..., -1:]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, torch.zeros_like(x[..., :1])], -1).log_softmax(-1).sum(-1)

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size([*shape[:-1], shape[-1] + 1])

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size([*shape[:-1], shape[-1] - 1])


def to_support(support: Any) -> Transform:
    """A map from coordinates without bounds.

    Raises:
        NotImplementedError: where there is none.
    """
    return LogRatios() if support is constraints.simplex else biject_to(support)
