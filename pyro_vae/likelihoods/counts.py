"""Likelihoods of counts: of events, cells or molecules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import distributions, errors
from pyro_vae.program.families import NetworkLikelihood


class _Counts(NetworkLikelihood):
    r"""What they share: the mean of a count, by the network and by how much was looked at.

    Args:
        library: the name of an entry of x, {"x": counts, "size": totals}, with how much was looked
            at in each row: hours, area, or all molecules of a cell.  Counts are proportional to it.
            None: 1 in each row.
        share: the network says which share of the library each column has, by a softmax; False,
            a rate by an exponential.
    """

    def __init__(
        self,
        *sizes: Any,
        library: str | None = None,
        share: bool = False,
        given_dim: int = 0,
        **networks: Any,
    ) -> None:
        if library is not None:  # it is one of the covariates, and no input of the network
            given_dim = max(0, errors.whole("given_dim", given_dim, 0) - 1)
        elif share:
            raise ValueError(
                "share=True without a library, expected library=, the entry with totals"
            )
        super().__init__(*sizes, given_dim=given_dim, **networks)
        self.library, self.share = library, share

    def forward(self, z: Tensor, given: Mapping[str, Tensor] | None = None) -> Any:
        size: Tensor | float = 1.0
        given = dict(given or {})
        if self.library is not None:
            size = self._library(given)
        first, *others = self.maps(self.network(self._joined(z, 1, given)))
        if self.share:
            over = tuple(range(-len(self.event), 0))
            rate = (first - first.logsumexp(over, keepdim=True)).exp()
        else:
            rate = first.exp()
        return self.finished(self.law(size * rate, *others))

    def _library(self, given: dict[str, Tensor]) -> Tensor:
        if self.library not in given:
            raise ValueError(
                f'{type(self).__name__} has library="{self.library}", and x has no such entry: '
                f'pass {{"x": counts, "{self.library}": totals}}'
            )
        size = given.pop(self.library)
        if size.dim() > 2 or size[:1].numel() > 1:
            raise ValueError(
                f'the library "{self.library}" has shape {tuple(size.shape)}, expected one number '
                "a row, (N,) or (N, 1)"
            )
        if dist.is_validation_enabled() and not (size > 0).all():  # in no graph, as torch's checks
            value = size.reshape(-1)[(~(size.reshape(-1) > 0)).nonzero()[0, 0]].item()
            raise ValueError(
                f'the library "{self.library}" has the value {value:g}, expected positive numbers: '
                "leave out rows at which nobody looked"
            )
        return size.reshape(-1, *(1,) * len(self.event))

    def start(self, x: Tensor) -> None:
        """Let the last layer start at the mean counts, or, of shares, at the mean shares."""
        if self.library is None or self.share:
            start_at(self.network, (x.to(torch.get_default_dtype()).mean(0) + 1e-3).log())


def start_at(network: nn.Module, values: Tensor) -> None:
    """The bias of a last linear layer starts at these numbers, the first of its outputs."""
    last = list(network.modules())[-1]
    flat = values.flatten()
    if isinstance(last, nn.Linear) and last.bias is not None and len(last.bias) >= len(flat):
        with torch.no_grad():
            last.bias[: len(flat)] = flat.to(last.bias)


class Poisson(_Counts):
    r"""p(x | z) = prod_d Poisson(exp f_d(z)): counts whose variance is their mean.

    Args:
        library: the name of an entry of x, {"x": counts, "size": totals}, with how much was looked
            at in each row; counts are proportional to it.  ``given_dim`` counts it among the
            covariates.
        share: f says which share of the library each column has, by a softmax; False, a rate by an
            exponential.
    """

    heads = 1

    def law(self, rate: Tensor) -> dist.TorchDistribution:
        return dist.Poisson(rate)


class NegativeBinomial(_Counts):
    r"""p(x | z) = prod_d NB(m_d, c_d): counts of mean m and variance m + m^2 / c.

    Args:
        dispersion: where the concentration c comes from: "column", learnt for each column;
            "network", a function of z.
        library, share: as of :class:`Poisson`.
        floor: the least concentration.

    Source: Lopez et al. (2018), Deep generative modeling for single-cell transcriptomics.
    """

    def __init__(
        self,
        *sizes: Any,
        dispersion: Literal["column", "network"] = "column",
        floor: float = 1e-4,
        **networks: Any,
    ) -> None:
        if dispersion not in ("column", "network"):
            raise ValueError(f'dispersion is {dispersion!r}, expected "column" or "network"')
        self.heads = self._own_heads + (dispersion == "network")
        super().__init__(*sizes, **networks)
        self.floor = errors.positive("floor", floor)
        if dispersion == "column":
            self.log_concentration = nn.Parameter(torch.zeros(self.event))

    _own_heads = 1

    def counts(self, mean: Tensor, log_concentration: Tensor | None) -> dist.TorchDistribution:
        """The negative binomial law."""
        if log_concentration is None:
            log_concentration = self.log_concentration
        return distributions.NegativeBinomial2(mean, log_concentration.exp() + self.floor)

    def law(self, mean: Tensor, log_concentration: Tensor | None = None) -> dist.TorchDistribution:
        return self.counts(mean, log_concentration)


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    r"""p(x | z): zero with probability g_d(z), else a count as of :class:`NegativeBinomial`.

    Args:
        dispersion, floor, library, share: as there.

    Source: Lopez et al. (2018), Deep generative modeling for single-cell transcriptomics.
    """

    _own_heads = 2

    def law(  # type: ignore[override]
        self, mean: Tensor, gate_logits: Tensor, log_concentration: Tensor | None = None
    ) -> dist.TorchDistribution:
        counts = self.counts(mean, log_concentration)
        return distributions.ZeroInflated(counts, gate_logits)
