r"""log p(x) from posterior draws: two estimates that bracket the truth, without a guide.

Both stand on several HMC chains of every datum, in unconstrained space, each started from one of
many draws of the prior, picked by its likelihood.

* :func:`fitted_proposal` fits a multivariate Student-t to a datum's draws and importance-samples
  from that.  New, independent draws of a normalized density: a stochastic *lower* bound as ever,
  however well or badly the chains did.
* :func:`reciprocal` is the paper's appendix D.  With a normalized density q fitted to one half of
  the draws,

  .. math:: \frac{1}{p(x)} = E_{p(z \mid x)} \frac{q(z)}{p(x, z)}

  is estimated on the other half.  The mean is unbiased for 1 / p(x), so its logarithm is biased
  *upward* as an estimate of log p(x), if the draws are draws of the posterior.

That both agree proves nothing where the chains have not met.  In one of two equal modes both come
to log p(x) - log 2, with small errors and a good khat: what both miss shows in neither.  Chains in
different modes show it, by R-hat.

Source: Kingma & Welling (2014), appendix D; Gelfand & Dey (1994).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from pyro_vae.chains.convergence import integrated_time, split_rhat
from pyro_vae.chains.latents import Latents
from pyro_vae.chains.sampling import sample_posterior
from pyro_vae.evaluation import RowFunction, event_size, row_chunks
from pyro_vae.evidence.weights import Evidence, concatenated, from_log_weights, pareto_khat
from pyro_vae.noise import LOOK, Stream, seed_of, seeded
from pyro_vae.program.rows import Rows, num_rows, repeated

CHAINS = 4  # of each datum
NARROW = 0.9  # standard deviation of the kernel density over that of its draws
DEGREES = 5.0  # of freedom: tails heavier than a posterior's under a Gaussian prior


def fitted_proposal(
    program: nn.Module,
    x: Rows,
    *,
    num_particles: int,
    seed: int,
    batch_size: int,
    max_elements: int,
    **chains: Any,
) -> Evidence:
    """Importance sampling from a Student-t per datum, fitted to HMC draws."""
    parts = []
    for number, (count, rows) in enumerate(row_chunks(x, batch_size)):
        draws = _draws(program, rows, seed, number, **chains)
        scorer = _Scorer(program, rows, max_elements)
        mean, factor = _moments(draws.flatten(0, 1))
        # The law with this covariance: scale^2 = covariance (nu - 2) / nu.
        factor = factor * math.sqrt((DEGREES - 2) / DEGREES)
        with seeded(*Stream.PROPOSAL.key(seed, number)):
            normal = torch.randn(num_particles, *mean.shape, dtype=mean.dtype, device=mean.device)
            gamma = torch.distributions.Chi2(torch.tensor(DEGREES, dtype=mean.dtype))
            mix = gamma.sample((num_particles, len(mean))).to(mean.device)  # (K, B)
        standard = normal * (DEGREES / mix).sqrt().unsqueeze(-1)
        u = mean + torch.einsum("bij,kbj->kbi", factor, standard)
        log_w = scorer(u) - _student_log_density(standard, factor)
        parts.append(from_log_weights(log_w[:, :count], split_rhat(draws)[:count]))
    return concatenated(parts)


def reciprocal(
    program: nn.Module,
    x: Rows,
    *,
    seed: int,
    batch_size: int,
    max_elements: int,
    **chains: Any,
) -> Evidence:
    """The paper's appendix D, by log-sum-exp, with a Gaussian kernel density as q."""
    parts = []
    for number, (count, rows) in enumerate(row_chunks(x, batch_size)):
        draws = _draws(program, rows, seed, number, **chains)
        half = len(draws) // 2
        fit, new = draws[:half].flatten(0, 1), draws[half:].flatten(0, 1)
        log_p = _Scorer(program, rows, max_elements)(new)
        log_r = (_kernel_log_density(fit, new) - log_p).unflatten(0, (-1, draws.shape[1]))
        parts.append(from_reciprocal_weights(log_r[:, :, :count], split_rhat(draws)[:count]))
    return concatenated(parts)


def from_reciprocal_weights(log_r: Tensor, rhat: Tensor | None = None) -> Evidence:
    """Evidence from log q(z) - log p(x, z) at posterior draws: S along each of C chains, (S, C, B).

    (S, B) is one chain.  The standard error counts neighbours in a chain, and chains that have not
    met, by the integrated autocorrelation time of the weights.
    """
    log_r = log_r.double()
    log_r = log_r if log_r.dim() == 3 else log_r.unsqueeze(1)
    flat = log_r.flatten(0, 1)  # (S C, B)
    num_draws, total = len(flat), flat.logsumexp(0)
    weights = (log_r - total + math.log(num_draws)).exp()  # mean one
    # Var(mean w) = Var(w) tau / S C; the delta method makes it that of the log.
    error = (weights.var((0, 1)) * integrated_time(weights) / num_draws).sqrt()
    value = math.log(num_draws) - total
    return Evidence(
        value=value,
        standard_error=error,
        ess=(2 * total - (2 * flat).logsumexp(0)).exp(),
        khat=pareto_khat(flat),
        lower=torch.full_like(value, -float("inf")),
        upper=value,
        rhat=torch.full_like(value, float("nan")) if rhat is None else rhat.to(value),
    )


def require_enough_draws(num_draws: int, chains: int, dim: int) -> None:
    """Refuse draws too few to fit a covariance to.

    From 5 J independent draws the fitted proposal was right within its error up to J = 50; from J
    of them it lost 9 nats at J = 20 and 19 at J = 50.

    Raises:
        ValueError: with the least number.
    """
    least = max(5 * chains, 20, 5 * dim)
    if num_draws < least:
        raise ValueError(
            f"num_draws is {num_draws}, expected at least {least} for {dim} unconstrained latent "
            f"dimensions and {chains} chains of each datum: a density fitted to fewer draws misses "
            "the posterior, and log p(x) comes out nats too low"
        )


def _draws(
    program: nn.Module,
    rows: Rows,
    seed: int,
    number: int,
    *,
    num_draws: int,
    chains: int,
    **options,
) -> Tensor:
    """At least ``num_draws`` draws of each row, dealt to chains of its own, (S, C, B, J)."""
    many = repeated(rows, chains)
    seed = seed_of(*Stream.PIECES.key(seed, number)) >> 1
    options |= {"num_draws": -(-num_draws // chains), "seed": seed}
    # Chains that start from plain draws of the prior end in modes that hardly count: on MNIST with
    # three latents and 1000 training images that cost 1 to 5 nats a datum.
    found = sample_posterior(program, many, start="resampled", **options)
    return found.u.unflatten(1, (chains, num_rows(rows)))


def _moments(u: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, J) and a factor of the covariance (B, J, J) of draws (S, B, J)."""
    mean = u.mean(0)
    centred = u - mean
    covariance = torch.einsum("sbi,sbj->bij", centred, centred) / (len(u) - 1)
    # A chain that hardly moved has a covariance near zero; a floor keeps its Student-t proper.
    ridge = 1e-6 * covariance.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(1e-12)
    eye = torch.eye(u.shape[-1], dtype=u.dtype, device=u.device)
    return mean, torch.linalg.cholesky(covariance + ridge[:, None, None] * eye)


def _student_log_density(standard: Tensor, factor: Tensor) -> Tensor:
    """log t at mean + factor standard, (K, B).

    Pyro's ``MultivariateStudentT`` says the same, and takes two to ten times as long: from u it
    solves for ``standard``, which is known here, K x B triangular systems for B factors.
    """
    dim = standard.shape[-1]
    half = (DEGREES + dim) / 2
    constant = math.lgamma(half) - math.lgamma(DEGREES / 2) - dim / 2 * math.log(DEGREES * math.pi)
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # (B,)
    return constant - log_det - half * torch.log1p(standard.square().sum(-1) / DEGREES)


def _kernel_log_density(fit: Tensor, new: Tensor) -> Tensor:
    """A Gaussian kernel density fitted to draws (S, B, J), at points (T, B, J): (T, B).

    Scott's bandwidth h, in coordinates where the draws have unit covariance.  A plain kernel
    density is wider than what it is fitted to, by 1 + h^2, and 1 / p(x) then hangs on the few
    draws in its tails.  Moving the kernels towards the mean by a, a^2 + h^2 = NARROW^2, makes it
    narrower instead, which costs nothing: any normalized q will do (West, 1993, has NARROW = 1).
    """
    mean, factor = _moments(fit)
    num_fit, _, dim = fit.shape
    bandwidth = num_fit ** (-1 / (dim + 4))
    pull = math.sqrt(max(NARROW**2 - bandwidth**2, 0.0))
    whitened = torch.linalg.solve_triangular(factor, (fit - mean).movedim(0, -1), upper=False)
    points = torch.linalg.solve_triangular(factor, (new - mean).movedim(0, -1), upper=False)
    squares = torch.cdist(points.mT, pull * whitened.mT).square() / bandwidth**2  # (B, T, S)
    normal = MultivariateNormal(torch.zeros(dim, dtype=fit.dtype), torch.eye(dim, dtype=fit.dtype))
    constant = float(normal.log_prob(torch.zeros(dim, dtype=fit.dtype))) - dim * math.log(bandwidth)
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    density = (-squares / 2).logsumexp(-1) - math.log(num_fit)  # (B, T)
    return (constant - log_det[:, None] + density).T


class _Scorer:
    """log p(x, T(u)) + log |det T'(u)| for many u of the same rows, in pieces of bounded size."""

    def __init__(self, program: nn.Module, rows: Rows, max_elements: int) -> None:
        self._rows = rows
        self._at_once = max(1, max_elements // (event_size(rows) * num_rows(rows)))
        latents = Latents.of(program, rows)

        def log_joint(program: nn.Module, pair: Any) -> Tensor:
            rows, u = pair
            return latents.log_joint(program, rows, u)

        self._function = RowFunction(program, log_joint)

    def __call__(self, u: Tensor) -> Tensor:
        """(K, B, J) to (K, B)."""
        tables = []
        for piece in u.split(self._at_once):
            many = repeated(self._rows, len(piece))
            tables.append(self._function((many, piece.flatten(0, 1)), *LOOK).view(piece.shape[:2]))
        return torch.cat(tables)
