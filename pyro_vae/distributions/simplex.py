"""Shares of a whole, broken off one after the other, to all digits near the corners."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions.transforms import StickBreakingTransform
from torch.nn.functional import pad


class StickBreaking(StickBreakingTransform):
    """torch's map, with what is left of the whole to all digits.

    torch takes 1 - (a share) and 1 - (the sum of those before), which are zero in single precision
    where a ten millionth is left: log densities there are wrong by hundreds of nats.
    """

    def _call(self, x: Tensor) -> Tensor:
        tiny = torch.finfo(x.dtype).tiny
        logits = x - _offset(x)
        left = (-logits).sigmoid().cumprod(-1)
        return (pad(logits.sigmoid(), (0, 1), value=1) * pad(left, (1, 0), value=1)).clamp(min=tiny)

    def _inverse(self, y: Tensor) -> Tensor:
        tiny = torch.finfo(y.dtype).tiny
        first = y[..., :-1]
        left = y.flip(-1).cumsum(-1).flip(-1)[..., 1:]  # the sum of the shares behind each
        return first.clamp(min=tiny).log() - left.clamp(min=tiny).log() + _offset(first)


def _offset(x: Tensor) -> Tensor:
    """Of logits, so that zeros are equal shares: log of how many shares come after each."""
    return (x.shape[-1] + 1 - torch.ones_like(x).cumsum(-1)).log()


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
