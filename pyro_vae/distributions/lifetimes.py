"""Laws of positive numbers that torch and Pyro lack: Rayleigh, Gompertz, Reciprocal, Erlang."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints

from pyro_vae import errors
from pyro_vae.distributions.inverse_cdf import InverseCDF


class Rayleigh(InverseCDF):
    r"""The length of a vector of two N(0, s^2): p(z) = z / s^2 exp(-z^2 / (2 s^2)).

    Args:
        scale: s.

    Example:
        >>> Rayleigh(torch.tensor(2.0)).icdf(torch.tensor(0.5))  # s sqrt(2 log 2)
        tensor(2.3548)
    """

    arg_constraints: ClassVar = {"scale": constraints.positive}
    support = constraints.positive
    scale: Tensor

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        ratio = value / self.scale
        return ratio.log() - self.scale.log() - ratio.square() / 2

    def cdf(self, value: Tensor) -> Tensor:
        return -torch.expm1(-(value / self.scale).square() / 2)

    def icdf(self, value: Tensor) -> Tensor:
        return self.scale * (-2 * torch.log1p(-value)).sqrt()

    @property
    def mean(self) -> Tensor:
        return self.scale * math.sqrt(math.pi / 2)

    @property
    def variance(self) -> Tensor:
        return self.scale.square() * (2 - math.pi / 2)

    def entropy(self) -> Tensor:
        return 1 + self.scale.log() - math.log(2) / 2 + EULER / 2


class Gompertz(InverseCDF):
    r"""Lifetimes whose hazard grows as an exponential: F(z) = 1 - exp(-c (exp(r z) - 1)).

    Args:
        concentration: c, the hazard at birth in units of r.
        rate: r.
    """

    arg_constraints: ClassVar = {
        "concentration": constraints.positive,
        "rate": constraints.positive,
    }
    support = constraints.nonnegative
    concentration: Tensor
    rate: Tensor

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        age, c = self.rate * value, self.concentration
        return c.log() + self.rate.log() + age - c * torch.expm1(age)

    def cdf(self, value: Tensor) -> Tensor:
        return -torch.expm1(-self.concentration * torch.expm1(self.rate * value))

    def icdf(self, value: Tensor) -> Tensor:
        return torch.log1p(-torch.log1p(-value) / self.concentration) / self.rate

    def entropy(self) -> Tensor:
        return 1 - self.concentration.log() - self.rate.log() - self.rate * self.mean


class Reciprocal(InverseCDF):
    r"""Log-uniform: p(z) = 1 / (z log(b / a)) on [a, b], 0 < a < b.

    Args:
        low, high: a and b.
    """

    arg_constraints: ClassVar = {"low": constraints.positive, "high": constraints.positive}
    low: Tensor
    high: Tensor

    def __init__(self, low: Any, high: Any, *, validate_args: bool | None = None) -> None:
        super().__init__(low, high, validate_args=validate_args)
        if self._validate_args and not (self.low < self.high).all():
            raise ValueError("Reciprocal: low is not below high, expected 0 < low < high")

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def support(self) -> Any:
        return constraints.interval(self.low, self.high)

    @property
    def _width(self) -> Tensor:
        return self.high.log() - self.low.log()

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        inside = (value >= self.low) & (value <= self.high)
        log = torch.where(inside, value, self.low).log()
        return torch.where(inside, -log - self._width.log(), -math.inf)

    def cdf(self, value: Tensor) -> Tensor:
        inside = torch.minimum(torch.maximum(value, self.low), self.high)
        return (inside.log() - self.low.log()) / self._width

    def icdf(self, value: Tensor) -> Tensor:
        return (self.low.log() + value * self._width).exp().clamp(self.low, self.high)

    @property
    def mean(self) -> Tensor:
        return (self.high - self.low) / self._width

    @property
    def variance(self) -> Tensor:
        return (self.high.square() - self.low.square()) / (2 * self._width) - self.mean.square()

    def entropy(self) -> Tensor:
        return (self.high.log() + self.low.log()) / 2 + self._width.log()


class Erlang(dist.Gamma):
    r"""Gamma with a whole shape k, drawn as a sum of exponentials: z = -sum_i log(1 - eps_i) / r.

    Its noise does not depend on its parameters, where a Gamma's does, so that the draws are a
    plain function of the rate.  All else is the Gamma's, closed KL terms too.

    Args:
        concentration: k, one whole number; the draws of a law cost k exponentials each.
        rate: r.

    Source: Kingma & Welling (2014), section 2.4, case 3.

    Example:
        >>> Erlang(3, torch.tensor(2.0)).mean
        tensor(1.5000)
    """

    # (A gradient with respect to k does not exist.)
    def __init__(self, concentration: int, rate: Any, *, validate_args: bool | None = None) -> None:
        self.terms = errors.whole("concentration", concentration)
        super().__init__(float(self.terms), rate, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        new = type(self).__new__(type(self)) if _instance is None else _instance
        new.terms = self.terms
        return super().expand(batch_shape, new)

    def rsample(
        self, sample_shape: Any = Size(), *, generator: torch.Generator | None = None
    ) -> Tensor:  # from 2.14 on, torch's Gamma hands a generator on
        given: dict[str, Any] = {} if generator is None else {"generator": generator}
        shape = (self.terms, *self._extended_shape(sample_shape))
        return self.rate.new_empty(shape).exponential_(**given).sum(0) / self.rate


EULER = 0.5772156649015329  # the Euler-Mascheroni constant
