"""Mixtures whose components are made on demand: few for a draw, all of them for a density."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

LARGEST = 2**24  # entries of a table (draws, components, J) that is made at once


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
        event = len(self.event_shape)
        z = value.unsqueeze(-event - 1)  # (..., 1, J)
        step = max(1, LARGEST // max(1, value.numel()))
        tables = [
            self.components(slice(start, start + step)).log_prob(z)
            for start in range(0, len(self.logits), step)
        ]
        log_p = (self.logits.log_softmax(-1) + torch.cat(tables, -1)).logsumexp(-1)
        return log_p.expand(torch.broadcast_shapes(log_p.shape, self.batch_shape))

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        batch = shape[: len(shape) - len(self.event_shape)]
        index = dist.Categorical(logits=self.logits).sample((batch.numel(),))
        return self.components(index).sample().reshape(shape)
