"""Mixtures: of components made on demand, and of normals with reparameterized draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

LARGEST = 2**24  # entries of a table (draws, components, J) that is made at once


def normal_table(z: Tensor, locs: Tensor, scales: Tensor) -> Tensor:
    r"""log N(z; m_k, diag s_k^2) of all k by two matrix products, without a table (..., K, J).

    .. math:: -\tfrac12 z^2 \cdot s_k^{-2} + z \cdot (m_k s_k^{-2}) + c_k

    Its terms cancel where m is many s from zero, so it is taken in double precision, in which the
    result is that of the single-precision differences and better.

    Args:
        z: (..., J).
        locs, scales: m and s, (K, J).
    """
    wide, m, s = z.double(), locs.double(), scales.double()
    precision = s.reciprocal().square()
    constant = -0.5 * (m.square() * precision).sum(-1) - s.log().sum(-1)
    constant = constant - 0.5 * math.log(2 * math.pi) * m.shape[-1]
    table = wide @ (m * precision).mT - 0.5 * (wide.square() @ precision.mT) + constant
    return table.to(z.dtype)


class Mixture(dist.TorchDistribution):
    r"""p(z) = sum_k w_k p_k(z), with the joint density of each component over all of z.

    .. math:: \log p(z) = \log \sum_k \exp(\log w_k + \sum_j \log p_k(z_j))

    Args:
        logits: log w_k but for a constant, (K,).
        components: what gives the components at an index of K, which is a slice or whole numbers:
            a law with the index's shape as batch shape, and event shape (J,).
        batch_shape: all rows of it have this one law.

    (``MixtureSameFamily`` expands all components to all rows of a plate, and to draw one value
    draws one of each of K.)
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    has_rsample = False

    def __init__(
        self,
        logits: Tensor,
        components: Callable[[Any], Any],
        batch_shape: Any = (),
        *,
        first: Any = None,
    ) -> None:
        self.logits, self.components = logits, components
        self._first = components(slice(0, 1)) if first is None else first
        super().__init__(torch.Size(batch_shape), self._first.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self._first.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> Mixture:
        return Mixture(self.logits, self.components, batch_shape, first=self._first)

    def log_prob(self, value: Tensor) -> Tensor:
        log_p = (self.logits.log_softmax(-1) + self._table(value)).logsumexp(-1)
        return log_p.expand(torch.broadcast_shapes(log_p.shape, self.batch_shape))

    def _table(self, value: Tensor) -> Tensor:
        """log p_k(z), (..., K)."""
        normal = isinstance(self._first, dist.Independent)
        normal = normal and type(self._first.base_dist) is dist.Normal
        if normal and len(self.event_shape) == 1 and value.device.type != "mps":
            law = self.components(slice(None)).base_dist
            return normal_table(value, law.loc, law.scale)
        z = value.unsqueeze(-len(self.event_shape) - 1)  # (..., 1, J)
        step = max(1, LARGEST // max(1, value.numel()))
        tables = [
            self.components(slice(start, start + step)).log_prob(z)
            for start in range(0, len(self.logits), step)
        ]
        return torch.cat(tables, -1)

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        batch = shape[: len(shape) - len(self.event_shape)]
        index = dist.Categorical(logits=self.logits).sample((batch.numel(),))
        return self.components(index).sample().reshape(shape)


class MixtureOfNormals(dist.TorchDistribution):
    r"""sum_k w_k N(z; m_k, diag s_k^2), whose draws carry the gradient of all parameters.

    Args:
        logits: log w_k but for a constant, (..., K).
        locs, scales: m and s, (..., K, J).

    A draw is moved so that the conditional distribution functions of its entries stay where they
    are, u_j = F_j(z_j | z_<j): then dz_j = -dF_j / p_j(z_j | z_<j).

    Source: Graves (2016), arXiv:1607.05690, equations (7)-(10).  (Pyro's MixtureOfDiagNormals has
    no gradient where two means are equal, or J is 1.)
    """

    arg_constraints = {  # noqa: RUF012
        "logits": constraints.real_vector,
        "locs": constraints.independent(constraints.real, 2),
        "scales": constraints.independent(constraints.positive, 2),
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, logits: Tensor, locs: Tensor, scales: Tensor, **options: Any) -> None:
        self.logits, self.locs, self.scales = logits, locs, scales
        super().__init__(logits.shape[:-1], locs.shape[-1:], **options)

    def expand(self, batch_shape: Any, _instance: Any = None) -> MixtureOfNormals:
        batch = torch.Size(batch_shape)
        wide = [self.logits.expand(*batch, -1)]
        wide += [t.expand(*batch, -1, -1) for t in (self.locs, self.scales)]
        return MixtureOfNormals(*wide, validate_args=False)

    @property
    def mean(self) -> Tensor:
        return (self.logits.softmax(-1).unsqueeze(-1) * self.locs).sum(-2)

    @property
    def variance(self) -> Tensor:
        square = self.scales.square() + self.locs.square()
        return (self.logits.softmax(-1).unsqueeze(-1) * square).sum(-2) - self.mean.square()

    def log_prob(self, value: Tensor) -> Tensor:
        each = dist.Normal(self.locs, self.scales, validate_args=False)
        of_component = each.log_prob(value.unsqueeze(-2)).sum(-1)  # (..., K)
        return (self.logits.log_softmax(-1) + of_component).logsumexp(-1)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        index = dist.Categorical(logits=self.logits).sample(torch.Size(sample_shape))
        index = index[..., None, None].expand(*shape[:-1], 1, shape[-1])
        locs, scales = (
            t.expand(*shape[:-1], *t.shape[-2:]).gather(-2, index).squeeze(-2).detach()
            for t in (self.locs, self.scales)
        )
        drawn = locs + scales * torch.randn(shape, dtype=locs.dtype, device=locs.device)
        return self._moving(drawn) if torch.is_grad_enabled() else drawn

    def _moving(self, drawn: Tensor) -> Tensor:
        """The same numbers, which move with the parameters."""
        unit = dist.Normal(torch.zeros_like(drawn[..., :1]), 1.0, validate_args=False)
        tiny = torch.finfo(drawn.dtype).tiny
        log_w, columns = self.logits.log_softmax(-1), []  # of the components, given z_<j
        for j in range(drawn.shape[-1]):
            loc, scale = self.locs[..., j], self.scales[..., j]  # (..., K)
            weights = log_w.softmax(-1)
            distance = (drawn[..., j : j + 1] - loc) / scale
            below = (weights * unit.cdf(distance)).sum(-1)
            density = (weights * unit.log_prob(distance).exp() / scale).sum(-1)
            z = drawn[..., j] - (below - below.detach()) / density.detach().clamp(min=tiny)
            columns.append(z)
            distance = (z.unsqueeze(-1) - loc) / scale
            log_w = log_w + unit.log_prob(distance) - scale.log()
        return torch.stack(columns, -1)
