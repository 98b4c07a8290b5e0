"""Laws that are drawn by their inverse CDF, the first of the paper's three reparameterizations."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions.utils import broadcast_all, clamp_probs


def uniform_inside(shape: Size, like: Tensor) -> Tensor:
    """Uniform draws of the open interval (0, 1); torch's own may be 0, where quantiles diverge."""
    return clamp_probs(torch.rand(shape, dtype=like.dtype, device=like.device))


class InverseCDF(dist.TorchDistribution):
    r"""z = g(eps) = F^{-1}(eps), eps ~ U(0, 1): a subclass writes what is its own.

    That is ``arg_constraints`` (whose names are the parameters, in order), ``support``,
    ``log_prob``, ``cdf`` and ``icdf``; ``mean``, ``variance`` and ``entropy`` where they have a
    closed form.  Else the first two are integrals of the quantile function, by tanh-sinh
    quadrature, and there is no third.

    Source: Kingma & Welling (2014), section 2.4, case 1.

    Example:
        >>> from torch.distributions import constraints
        >>> class Power(InverseCDF):
        ...     "p(z) = a z^(a - 1) on the unit interval."
        ...     arg_constraints = {"a": constraints.positive}
        ...     support = constraints.unit_interval
        ...
        ...     def log_prob(self, value):
        ...         return self.a.log() + (self.a - 1) * value.log()
        ...
        ...     def icdf(self, value):
        ...         return value ** (1 / self.a)
        >>> round(Power(torch.tensor(2.0)).mean.item(), 4)
        0.6667
    """

    has_rsample = True

    def __init__(self, *parameters: Any, validate_args: bool | None = None, **by_name: Any) -> None:
        names = list(self.arg_constraints)
        given = dict(zip(names, parameters, strict=False)) | by_name
        if len(parameters) + len(by_name) != len(names) or set(given) != set(names):
            raise TypeError(
                f"{type(self).__name__} got {len(parameters)} parameters and {sorted(by_name)}, "
                f"expected {', '.join(names)}"
            )
        values = broadcast_all(*(given[name] for name in names))
        self.__dict__.update(zip(names, values, strict=True))
        super().__init__(values[0].shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        new = type(self).__new__(type(self)) if _instance is None else _instance
        batch_shape = Size(batch_shape)
        for name in self.arg_constraints:
            new.__dict__[name] = getattr(self, name).expand(batch_shape)
        dist.TorchDistribution.__init__(new, batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        like = getattr(self, next(iter(self.arg_constraints)))
        return self.icdf(uniform_inside(self._extended_shape(sample_shape), like))

    @property
    def mean(self) -> Tensor:
        return self._moment(1)

    @property
    def variance(self) -> Tensor:
        return self._moment(2, self.mean)

    def _moment(self, power: int, around: Tensor | float = 0.0) -> Tensor:
        """E (z - around)^power: the integral of (F^-1(u) - around)^power over the unit interval."""
        like = getattr(self, next(iter(self.arg_constraints)))
        t = torch.linspace(-3.0, 3.0, 121, dtype=torch.float64, device=like.device)
        upper = torch.special.expit(-math.pi * t.sinh())
        weight = (t[1] - t[0]) * math.pi * t.cosh() * upper * (1 - upper)
        column = (-1,) + (1,) * len(self.batch_shape)
        u = clamp_probs((1 - upper).to(like.dtype)).view(column)
        values = (self.icdf(u) - around) ** power
        return (values * weight.to(like.dtype).view(column)).sum(0)
