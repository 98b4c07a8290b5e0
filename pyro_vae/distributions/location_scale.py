"""Laws of real numbers, or of an interval, that torch and Pyro lack or that theirs draw badly."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints

from pyro_vae.distributions.inverse_cdf import InverseCDF, uniform_inside


class Logistic(dist.Logistic):
    r"""Pyro's, with draws that are finite, and an entropy: z = m + s log(eps / (1 - eps)).

    Pyro's own takes a uniform number that may be zero, once in 17 million draws, and the draw is
    then minus infinity.

    Args:
        loc, scale: m and s.
    """

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        return self.icdf(uniform_inside(self._extended_shape(sample_shape), self.loc))

    def entropy(self) -> Tensor:
        return self.scale.log() + 2.0


class Triangular(InverseCDF):
    r"""A density that rises linearly from a to the peak c and falls to b, a < c < b.

    Args:
        low, peak, high: a, c and b.

    Example:
        >>> Triangular(0.0, 1.0, 2.0).icdf(torch.tensor(0.5))  # as of a sum of two uniforms
        tensor(1.)
    """

    arg_constraints: ClassVar = dict.fromkeys(("low", "peak", "high"), constraints.real)
    low: Tensor
    peak: Tensor
    high: Tensor

    def __init__(self, low: Any, peak: Any, high: Any, *, validate_args: bool | None = None):
        super().__init__(low, peak, high, validate_args=validate_args)
        ordered = (self.low < self.peak) & (self.peak < self.high)
        if self._validate_args and not ordered.all():
            raise ValueError("Triangular: the parameters are not in order, low < peak < high")

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> Any:
        return constraints.interval(self.low, self.high)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        rising = (value - self.low) / (self.peak - self.low)
        falling = (self.high - value) / (self.high - self.peak)
        height = torch.where(value < self.peak, rising, falling).clamp(min=0.0)
        return height.log() + math.log(2) - (self.high - self.low).log()

    def cdf(self, value: Tensor) -> Tensor:
        width = self.high - self.low
        below = (value - self.low).clamp(min=0.0).square() / (width * (self.peak - self.low))
        above = (self.high - value).clamp(min=0.0).square() / (width * (self.high - self.peak))
        return torch.where(value < self.peak, below, 1 - above)

    def icdf(self, value: Tensor) -> Tensor:
        width, left, right = self.high - self.low, self.peak - self.low, self.high - self.peak
        rising = self.low + (value * width * left).sqrt()
        falling = self.high - ((1 - value) * width * right).sqrt()
        return torch.where(value * width < left, rising, falling)

    @property
    def mean(self) -> Tensor:
        return (self.low + self.peak + self.high) / 3

    @property
    def variance(self) -> Tensor:
        width, left = self.high - self.low, self.peak - self.low
        return (width.square() - left * (width - left)) / 18

    def entropy(self) -> Tensor:
        return 0.5 + ((self.high - self.low) / 2).log()
