"""Laws of several columns of categories, each with a number of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

from pyro_vae.distributions.pixels import log_between


class CodesBelow(constraints.Constraint):
    """Whole numbers from 0 to below the number of categories of each column."""

    is_discrete = True

    def __init__(self, sizes: Tensor) -> None:
        self.sizes = sizes
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        return (value == value.round()) & (value >= 0) & (value < self.sizes.to(value.device))

    def __repr__(self) -> str:
        numbers = self.sizes.flatten().tolist()
        shown = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
        return f"codes from 0 on, below the {shown} categories of their columns"


class CategoricalColumns(dist.Categorical):
    r"""One code a column, 0 to K_d - 1, where the columns have different numbers of categories.

    Args:
        logits: (..., D, max K); what is beyond a column's own categories is not read.
        sizes: the K_d, (D,).

    Example:
        >>> law = CategoricalColumns(torch.zeros(2, 3), torch.tensor([2, 3]))
        >>> law.log_prob(torch.tensor([1.0, 1.0])).exp()
        tensor([0.5000, 0.3333])
    """

    def __init__(self, logits: Tensor, sizes: Tensor, validate_args: bool | None = None) -> None:
        self.sizes = sizes
        beyond = torch.arange(logits.shape[-1], device=logits.device) >= sizes.unsqueeze(-1)
        logits = logits.masked_fill(beyond, -math.inf)
        super().__init__(logits=logits, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        new = type(self).__new__(type(self)) if _instance is None else _instance
        new.sizes = self.sizes
        return super().expand(batch_shape, new)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        return CodesBelow(self.sizes)


class OneHotGroups(constraints.Constraint):
    """Zeros and a single one in each group of entries."""

    is_discrete, event_dim = True, 1

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = tuple(sizes)
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        binary = ((value == 0) | (value == 1)).all(-1)
        sums = [group.sum(-1) == 1 for group in value.split(self.sizes, -1)]
        return binary & torch.stack(sums, -1).all(-1)

    def __repr__(self) -> str:
        shown = ", ".join(map(str, self.sizes[:8])) + (", ..." if len(self.sizes) > 8 else "")
        return f"a single 1 in each group of {shown} entries"


class OneHotColumns(dist.TorchDistribution):
    r"""Several one-hot vectors one after another, of K_1, K_2, ... entries.

    Args:
        logits: (..., sum of K_d).
        sizes: the K_d.

    Example:
        >>> OneHotColumns(torch.zeros(5), (2, 3)).mean
        tensor([0.5000, 0.5000, 0.3333, 0.3333, 0.3333])
    """

    arg_constraints: ClassVar = {"logits": constraints.real_vector}

    def __init__(
        self, logits: Tensor, sizes: Sequence[int], *, validate_args: bool | None = None
    ) -> None:
        if logits.shape[-1] != sum(sizes):
            raise ValueError(
                f"there are {logits.shape[-1]} logits, expected {sum(sizes)} of {sizes}"
            )
        self.sizes = tuple(sizes)
        self.logits = torch.cat([g.log_softmax(-1) for g in logits.split(self.sizes, -1)], -1)
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    @property
    def support(self) -> Any:
        return OneHotGroups(self.sizes)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        new = type(self).__new__(type(self)) if _instance is None else _instance
        new.logits, new.sizes = self.logits.expand(*batch_shape, -1), self.sizes
        shapes = Size(batch_shape), self.event_shape
        dist.TorchDistribution.__init__(new, *shapes, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        return self.logits.exp()

    @property
    def variance(self) -> Tensor:
        return self.mean * (1 - self.mean)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return (value * self.logits).sum(-1)

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        groups = self.logits.split(self.sizes, -1)
        draws = [dist.OneHotCategorical(logits=g, validate_args=False) for g in groups]
        return torch.cat([law.sample(Size(sample_shape)) for law in draws], -1)


def ordinal_logits(predictor: Tensor, cutpoints: Tensor, sizes: Tensor | None = None) -> Tensor:
    r"""log P(x = k) of grades k = 0, ..., K - 1 in their order: a logistic law between cut points.

    P(x <= k) = sigmoid(c_k - f).  Pyro's ``OrderedLogistic`` takes the difference of two of these,
    which cancels in the tails: from a distance of 17 on, in single precision, a grade has the
    probability 1e-7 or none.

    Args:
        predictor: f, (...).
        cutpoints: c, (..., K - 1), increasing.
        sizes: K of each, where they differ: cut points beyond a column's own are not read.

    Returns:
        (..., K), which sum to one.

    Source: McCullagh (1980), Regression models for ordinal data.

    Example:
        >>> ordinal_logits(torch.tensor(0.0), torch.tensor([-1.0, 1.0])).exp()
        tensor([0.2689, 0.4621, 0.2689])
    """
    above = cutpoints - predictor.unsqueeze(-1)
    inner = log_between(above[..., :-1], above[..., 1:])
    logits = torch.cat([logsigmoid(above[..., :1]), inner, logsigmoid(-above[..., -1:])], -1)
    if sizes is None:
        return logits
    grade = torch.arange(logits.shape[-1], device=logits.device)
    last = (sizes - 1).unsqueeze(-1)
    beyond = logsigmoid(-torch.cat([above[..., :1], above], -1))
    return torch.where(grade == last, beyond, logits).masked_fill(grade > last, -math.inf)
