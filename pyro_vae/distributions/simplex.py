"""Shares of a whole, broken off one after the other, to all digits near the corners."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.transforms import StickBreakingTransform


class StickBreaking(StickBreakingTransform):
    """torch's, but the way back sums what is left from the end: 1 - (the sum of what is gone) is
    zero in single precision where a ten millionth is left, and then log density is wrong by tens.
    """

    def _inverse(self, y: Tensor) -> Tensor:
        tiny = torch.finfo(y.dtype).tiny
        first = y[..., :-1]
        left = y.flip(-1).cumsum(-1).flip(-1)[..., 1:]  # sum of the shares behind each
        offset = y.shape[-1] - torch.ones_like(first).cumsum(-1)
        return first.clamp(min=tiny).log() - left.clamp(min=tiny).log() + offset.log()


class LogisticNormal(dist.TransformedDistribution):
    r"""The stick-breaking image of N(loc, diag scale^2), on the simplex of one dimension more.

    Args:
        loc, scale: (..., J - 1); zeros and small scales are equal shares.

    A closed KL between two of these is that of their normals.  There is no closed mean.
    """

    def __init__(self, loc: Tensor, scale: Tensor) -> None:
        super().__init__(dist.Normal(loc, scale).to_event(1), [StickBreaking(cache_size=1)])

    def expand(self, batch_shape, _instance=None):
        return super().expand(batch_shape, self._get_checked_instance(LogisticNormal, _instance))
