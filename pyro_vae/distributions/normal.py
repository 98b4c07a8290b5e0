"""The multivariate normal law that knows the density of its own draw."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor


class FullNormal(dist.MultivariateNormal):
    r"""N(m, L L^T), scored at its own last draw z = m + L e by e, and not by L^{-1} (z - m).

    .. math:: \log q(m + L e) = \log N(e; 0, I) - \sum_j \log L_{jj}

    A learnt L is badly conditioned soon: with unit diagonal and entries of size 1/2 below it, at
    J = 20 its condition number is some 10^4, and after a few steps of a network 10^11.  In single
    precision the solve then returns numbers that have nothing to do with e.  At other z the solve
    is done in double precision.
    """

    _last: tuple[Tensor, Tensor, bool] | None = None

    def expand(self, batch_shape: Any, _instance: Any = None) -> FullNormal:
        shape = torch.Size(batch_shape)
        if shape == self.batch_shape:
            return self
        size = self.event_shape
        factor = self._unbroadcasted_scale_tril.expand(*shape, *size, *size)
        return FullNormal(self.loc.expand(*shape, *size), scale_tril=factor, validate_args=False)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        e = torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device)
        z = self.loc + (self._unbroadcasted_scale_tril @ e.unsqueeze(-1)).squeeze(-1)
        standard = dist.Normal(torch.zeros_like(self.loc), 1.0, validate_args=False).to_event(1)
        self._last = z, standard.log_prob(e) - self._half_log_det(), torch.is_grad_enabled()
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        if self._last is not None:
            z, log_prob, has_gradient = self._last
            if value is z and (has_gradient or not torch.is_grad_enabled()):
                return log_prob
        wide = dist.MultivariateNormal(
            self.loc.double(),
            scale_tril=self._unbroadcasted_scale_tril.double(),
            validate_args=False,
        )
        return wide.log_prob(value.double()).to(value.dtype)

    def _half_log_det(self) -> Tensor:
        return self._unbroadcasted_scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
