"""Laws of pixels in levels: probabilities of each level, and no densities."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.nn.functional import logsigmoid

from pyro_vae import errors
from pyro_vae.distributions.inverse_cdf import uniform_inside


def log_between(lower: Tensor, upper: Tensor) -> Tensor:
    """log(sigmoid(upper) - sigmoid(lower)), exact in both tails, where a difference cancels."""
    return logsigmoid(upper) + logsigmoid(-lower) + torch.log(-torch.expm1(lower - upper))


class OnGrid(constraints.Constraint):
    """One of ``levels`` values 0, step, 2 step, ..., up to rounding."""

    is_discrete = True

    def __init__(self, levels: int, step: float) -> None:
        self.levels, self.step = levels, step
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        k = value / self.step
        level = k.round()
        return ((k - level).abs() < 0.01) & (level >= 0) & (level <= self.levels - 1)

    def __repr__(self) -> str:
        return f"one of {self.levels} levels, 0 to {self.levels - 1}, times {self.step:g}"


class DiscretizedLogistic(dist.TorchDistribution):
    r"""A logistic law rounded to the nearest of the levels 0, h, ..., (L - 1) h of a pixel.

    .. math::
        P(x = k h) = \sigma\big((kh + h/2 - m)/s\big) - \sigma\big((kh - h/2 - m)/s\big),

    where the first and the last level get the tails.  The probabilities sum to one, so that
    -log p / (D log 2) is in bits per dimension, and does not depend on how pixels are scaled.

    Args:
        loc, scale: m and s, in the units of x.
        levels: L, such as 256 for pixels of eight bits.
        step: h; None takes 1 / (L - 1), for pixels divided by 255.  Pixels divided by 256 have
            ``step=1 / 256``, and those that are not divided ``step=1``.

    Source: Salimans, Karpathy, Chen & Kingma (2017), PixelCNN++, equation (2).

    Example:
        >>> law = DiscretizedLogistic(torch.tensor(0.4), torch.tensor(0.1), levels=17)
        >>> round(law.log_prob(law.enumerate_support()).exp().sum().item(), 5)
        1.0
    """

    arg_constraints: ClassVar = {"loc": constraints.real, "scale": constraints.positive}
    has_enumerate_support = True

    def __init__(
        self,
        loc: Any,
        scale: Any,
        levels: int = 256,
        step: float | None = None,
        *,
        validate_args: bool | None = None,
    ) -> None:
        self.loc, self.scale = broadcast_all(loc, scale)
        self.levels = errors.whole("levels", levels, 2)
        self.step = 1 / (self.levels - 1) if step is None else errors.positive("step", step)
        super().__init__(self.loc.shape, validate_args=validate_args)

    @property
    def support(self) -> Any:
        return OnGrid(self.levels, self.step)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        new = type(self).__new__(type(self)) if _instance is None else _instance
        new.loc, new.scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        new.levels, new.step = self.levels, self.step
        dist.TorchDistribution.__init__(new, Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        upper = (value + (self.step / 2 - self.loc)) / self.scale
        lower = upper - self.step / self.scale
        inner = logsigmoid(upper) + logsigmoid(-lower)
        inner = inner + torch.log(-torch.expm1(-self.step / self.scale))
        middle = self.step * (self.levels - 1.5)
        last = torch.where(value > middle, logsigmoid(-lower), inner)
        return torch.where(value < self.step / 2, logsigmoid(upper), last)

    def cdf(self, value: Tensor) -> Tensor:
        level = (value / self.step + 0.01).floor()
        inner = torch.sigmoid(((level + 0.5) * self.step - self.loc) / self.scale)
        below = torch.where(level < 0, 0.0, inner)
        return torch.where(level >= self.levels - 1, 1.0, below)

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        with torch.no_grad():
            u = uniform_inside(self._extended_shape(sample_shape), self.loc)
            x = self.loc + self.scale * u.logit()
            return (x / self.step).round().clamp(0, self.levels - 1) * self.step

    def enumerate_support(self, expand: bool = True) -> Tensor:
        values = torch.arange(self.levels, dtype=self.loc.dtype, device=self.loc.device) * self.step
        values = values.view(-1, *(1,) * len(self.batch_shape))
        return values.expand(-1, *self.batch_shape) if expand else values

    def _moments(self) -> tuple[Tensor, Tensor]:
        """E k and E k^2 of the level k: sums of P(x > k h), by level to spare the memory."""
        first, second = torch.zeros_like(self.loc), torch.zeros_like(self.loc)
        for k in range(self.levels - 1):
            above = torch.sigmoid((self.loc - (k + 0.5) * self.step) / self.scale)
            first, second = first + above, second + (2 * k + 1) * above
        return first, second

    @property
    def mean(self) -> Tensor:
        return self._moments()[0] * self.step

    @property
    def variance(self) -> Tensor:
        first, second = self._moments()
        return (second - first.square()) * self.step**2


def bits_per_dimension(log_p: Tensor, num_dims: int) -> Tensor:
    """-log p / (D log 2), of nats that are log probabilities: of levels, and not of a density.

    Example:
        >>> bits_per_dimension(torch.tensor([-math.log(256.0)]), 1)
        tensor([8.])
    """
    return -log_p / (errors.whole("num_dims", num_dims) * math.log(2))
