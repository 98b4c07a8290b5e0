"""Laws of grey values between 0 and 1, where torch's lose digits or take what they cannot score."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to

from pyro_vae.distributions.inverse_cdf import InverseCDF


class ContinuousBernoulli(InverseCDF):
    r"""p(x) = l e^{l x} / (e^l - 1) on [0, 1]: a Bernoulli's cross-entropy, made a density.

    Torch's law of that name clips its probability where a float next to 0 or 1 ends, so that from
    |l| = 16 on, in single precision, its density does not integrate to one (0.4 at l = 40).

    Args:
        logits: l.

    Source: Loaiza-Ganem & Cunningham (2019), arXiv:1907.06845.

    Example:
        >>> ContinuousBernoulli(torch.tensor(40.0)).mean
        tensor(0.9750)
    """

    arg_constraints: ClassVar = {"logits": constraints.real}
    support = constraints.unit_interval
    logits: Tensor

    def _small(self, bound: float) -> tuple[Tensor, Tensor]:
        """Where a series in l is better, and |l|, with another number there."""
        small = self.logits.abs() < bound
        return small, torch.where(small, 1.0, self.logits.abs())

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        small, size = self._small(0.03)
        # The normalizer is e^(l / 2) times an even function: 2 sinh(|l| / 2) / |l|.
        exact = size / 2 + torch.log(-torch.expm1(-size)) - size.log()
        even = torch.where(small, self.logits.square() / 24, exact)
        return self.logits * (value - 0.5) - even

    def cdf(self, value: Tensor) -> Tensor:
        small, size = self._small(1e-6)
        y = torch.where(self.logits > 0, 1 - value, value)
        below = torch.expm1(-size * y) / torch.expm1(-size)
        below = torch.where(self.logits > 0, 1 - below, below)
        return torch.where(small, value - self.logits * value * (1 - value) / 2, below)

    def icdf(self, value: Tensor) -> Tensor:
        small, size = self._small(1e-6)
        u = torch.where(self.logits > 0, 1 - value, value)
        y = (-torch.log1p(u * torch.expm1(-size)) / size).clamp(0.0, 1.0)
        y = torch.where(self.logits > 0, 1 - y, y)
        return torch.where(small, value + self.logits * value * (1 - value) / 2, y)

    @property
    def mean(self) -> Tensor:
        small, size = self._small(0.03)
        distance = 1 / size - 1 / torch.expm1(size.clamp(max=80.0))
        distance = torch.where(self.logits > 0, 1 - distance, distance)
        return torch.where(small, 0.5 + self.logits / 12, distance)

    @property
    def variance(self) -> Tensor:
        small, size = self._small(1.0)
        exact = 1 / size.square() - 1 / (2 * (size.clamp(max=80.0).cosh() - 1))
        square = self.logits.square()
        series = 1 / 12 - square * (1 / 240 - square * (1 / 6048 - square / 172_800))
        return torch.where(small, series, exact)


class OpenInterval(constraints.interval):
    """Numbers between two bounds, neither of them included."""

    def check(self, value: Tensor) -> Tensor:
        return (value > self.lower_bound) & (value < self.upper_bound)

    def __repr__(self) -> str:
        return f"a number between {self.lower_bound:g} and {self.upper_bound:g}, neither of them"


@biject_to.register(OpenInterval)
@transform_to.register(OpenInterval)
def _onto(constraint: Any) -> Any:
    return biject_to(constraints.interval(constraint.lower_bound, constraint.upper_bound))


class OpenBeta(dist.Beta):
    """Beta on the open interval: at 0 and 1 its density is zero or infinite, and refused."""

    support = OpenInterval(0.0, 1.0)
