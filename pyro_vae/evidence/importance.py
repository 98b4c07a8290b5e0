r"""log p(x) by importance sampling from the guide.

.. math:: \hat p(x) = \frac1K \sum_k w_k, \qquad w_k = \frac{p(x, z_k)}{q(z_k \mid x)}

The mean of weights is unbiased for p(x), so its logarithm is biased *downward*: a stochastic lower
bound, tighter with K.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from pyro.distributions import Delta
from torch import Tensor, nn

from pyro_vae.densities import densities
from pyro_vae.diagnostics import pareto_khat
from pyro_vae.engine import RowFunction, row_chunks
from pyro_vae.noise import seeded
from pyro_vae.program import Rows, map_rows, num_rows
from pyro_vae.traces import base_law, data_frame, sites_of, trace_program

MOST_RHAT = 1.1  # of chains that are taken to have met


class Evidence(NamedTuple):
    """log p(x) per datum with what is known of its error; every field is (N,), float64.

    Attributes:
        value: the estimate of log p(x), nats.
        standard_error: of ``value``, nats, by the delta method.
        ess: effective number of the K particles, (sum w)^2 / sum w^2.
        khat: Pareto shape of the weights; above 0.7 value and standard error are not to be
            trusted.
        lower: a number whose expectation is at most log p(x); -inf where the method gives none.
        upper: a number whose expectation is at least log p(x), *given chains that have
            converged*; inf where the method gives none.
        rhat: how far the chains of a datum are from telling the same; above 1.1 they have not
            met or are too short, and value, ``upper`` and khat may all be wrong.  nan where no
            chains were run.
    """

    value: Tensor
    standard_error: Tensor
    ess: Tensor
    khat: Tensor
    lower: Tensor
    upper: Tensor
    rhat: Tensor

    def mean(self) -> float:
        """The average over data, nats per datum."""
        return float(self.value.mean())

    def mean_standard_error(self) -> float:
        """Of the mean over these data, for more data like them."""
        return float(self.value.std() / math.sqrt(len(self.value)))

    def __repr__(self) -> str:
        bad = int((~(self.khat <= 0.7)).sum())  # nan is no good sign
        apart = int((self.rhat > MOST_RHAT).sum())
        chains = "" if self.rhat.isnan().all() else f", R-hat above {MOST_RHAT} for {apart}"
        return (
            f"Evidence(mean {self.mean():.3f} nats, standard error over data "
            f"{self.mean_standard_error():.3f}, median ESS {float(self.ess.median()):.1f}, "
            f"khat not below 0.7 for {bad} of {len(self.value)} data{chains})"
        )


def from_log_weights(log_w: Tensor, rhat: Tensor | None = None) -> Evidence:
    """Evidence from log weights (K, B) of a normalized proposal, which chains led to or none."""
    khat = pareto_khat(log_w)  # in the precision that the weights were computed in
    log_w = log_w.double()
    num_particles = len(log_w)
    total = log_w.logsumexp(0)
    value = total - math.log(num_particles)
    ess = (2 * total - (2 * log_w).logsumexp(0)).exp()
    # Var(mean w) / mean(w)^2 = (K / ESS - 1) / (K - 1); the delta method makes it that of the log.
    relative_variance = (num_particles / ess - 1).clamp_min(0) / max(num_particles - 1, 1)
    return Evidence(
        value=value,
        standard_error=relative_variance.sqrt()
        if num_particles > 1
        else torch.full_like(value, float("nan")),
        ess=ess,
        khat=khat,
        lower=value,
        upper=torch.full_like(value, float("inf")),
        rhat=torch.full_like(value, float("nan")) if rhat is None else rhat.to(value),
    )


def require_weights(program: nn.Module, rows: Rows) -> None:
    """Refuse guides whose draws have no weights of a datum that mean anything.

    Raises:
        ValueError: naming the site: a latent that all data share, or a point (Delta), whose
            weights are all equal.
    """
    with seeded(0):
        traces = trace_program(program, map_rows(lambda t: t[:2], rows), reparameterize=False)
    sites, model = map(sites_of, traces)
    for name in (n for n in sites if n in model):
        both = (sites[name], model[name])
        if all(data_frame(site) is None and not site["is_observed"] for site in both):
            raise ValueError(
                f'latent site "{name}" is outside pyro.plate("data", ...), so all data share it '
                "and there is no log p(x) per datum: fix it with pyro.poutine.condition, or use "
                "pv.elbo"
            )
    if any(site["infer"].get("is_auxiliary") for site in sites.values()):
        return  # the points are functions of draws that have a density of their own
    for name, site in sites.items():
        if isinstance(base_law(site["fn"]), Delta) and not site["is_observed"]:
            raise ValueError(
                f'the guide of "{name}" is a point (Delta), whose draws have no weights to '
                'estimate log p(x) from: use pv.log_evidence with proposal="hmc", and '
                "pyro_vae.chains.sample_posterior for draws"
            )


def importance(
    program: nn.Module,
    x: Rows,
    *,
    num_particles: int,
    seed: int,
    batch_size: int,
    max_elements: int,
) -> Evidence:
    """Importance sampling in row chunks of ``batch_size`` and particle chunks that fit.

    Memory is bounded by ``max_elements`` elements of (particles, rows, event) at a time, whatever
    K and N are.
    """
    event = event_size(x)
    batch_size = max(1, min(batch_size, num_rows(x), max_elements // event))
    chunk = max(1, min(num_particles, max_elements // (event * batch_size)))
    # Chunks of one size are one graph: the last draws a few particles that are not used.
    chunks = -(-num_particles // chunk)
    chunk = -(-num_particles // chunks)
    pieces = -(-num_rows(x) // batch_size)
    function = RowFunction(program, _log_w(chunk), calls=pieces * chunks)
    parts: list[Evidence] = []
    for number, (count, rows) in enumerate(row_chunks(x, batch_size)):
        table: Tensor | None = None
        for part in range(chunks):
            log_w = function(rows, seed, number, part)
            if table is None:  # in one piece: small ones between large chunks scatter the memory
                table = log_w.new_empty(chunks * chunk, count)
            table[part * chunk : (part + 1) * chunk] = log_w[:, :count]
        parts.append(from_log_weights(table[:num_particles]))  # type: ignore[index]
    return concatenated(parts)


def concatenated(parts: list[Evidence]) -> Evidence:
    """Evidence of all rows from that of their chunks."""
    return Evidence(*(torch.cat(column) for column in zip(*parts, strict=True)))


def event_size(x: Rows) -> int:
    """Numbers that a datum consists of, covariates among them."""
    return max(1, sum(t[0].numel() for t in (x.values() if isinstance(x, dict) else [x])))


def _log_w(size: int) -> Any:
    def log_w(program: nn.Module, rows: Rows) -> Tensor:
        return densities(program, rows, size, reparameterize=False).log_w

    return log_w
