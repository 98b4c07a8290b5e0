"""Values that may be missing: a law of each number that leaves NaN out."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor
from torch.distributions import biject_to, constraints


class NanAllowed(constraints.Constraint):
    """A support, or NaN, which stands for a value that nobody knows."""

    def __init__(self, support: Any) -> None:
        self.support = support
        self.is_discrete = support.is_discrete
        self.event_dim = support.event_dim
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        return self.support.check(value) | value.isnan()


class WithGaps(dist.TorchDistribution):
    r"""A law of single numbers whose density leaves out those that are missing, NaN.

    .. math:: \log p(x) = 0 \text{ where } x \text{ is missing}

    which is the sum, or integral, over all that the number could have been.  Draws have no gaps.

    Args:
        base_dist: without event dimensions.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, base_dist: Any) -> None:
        self.base_dist = base_dist
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return NanAllowed(self.base_dist.support)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.base_dist.has_rsample

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        return self.base_dist.has_enumerate_support

    @property
    def mean(self) -> Tensor:
        return self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        return self.base_dist.variance

    def expand(self, batch_shape: Any, _instance: Any = None) -> WithGaps:
        return WithGaps(self.base_dist.expand(batch_shape))

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return self.base_dist.sample(sample_shape)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return self.base_dist.rsample(sample_shape)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        return self.base_dist.enumerate_support(expand)

    def log_prob(self, value: Tensor) -> Tensor:
        seen = ~value.isnan()
        # A possible value in its place, so that the gradient is 0 there and no NaN.
        whole = torch.where(seen, value, possible(self.base_dist.support, value))
        log_prob = self.base_dist.log_prob(whole)
        return torch.where(seen, log_prob, torch.zeros_like(log_prob))


def possible(support: Any, like: Tensor) -> Tensor:
    """A number inside a support of single numbers, as a scalar."""
    zero = torch.zeros((), dtype=like.dtype, device=like.device)
    if getattr(support, "is_discrete", False):
        low = getattr(support, "lower_bound", 0)
        return zero + torch.as_tensor(low, dtype=like.dtype, device=like.device)
    return biject_to(support)(zero)


def without_gaps(law: Any) -> Any:
    """The law of what may be missing; any other law as it is."""
    return law.base_dist if isinstance(law, WithGaps) else law


def with_gaps(law: Any) -> Any:
    """The same law, which leaves out what is missing: a product over single numbers.

    Raises:
        ValueError: the law of a row is no product over its numbers, so that none can be left out.
    """
    depth = 0
    while isinstance(law, torch.distributions.Independent):
        depth += law.reinterpreted_batch_ndims
        law = law.base_dist
    if law.event_shape or not isinstance(law, TorchDistributionMixin):
        raise ValueError(
            f"missing=True beside a {type(law).__name__} of events {tuple(law.event_shape)}, "
            "expected a likelihood that is a product over the numbers of x: impute what is "
            "missing, or choose one that is, such as likelihoods.Gaussian"
        )
    return WithGaps(law).to_event(depth)
