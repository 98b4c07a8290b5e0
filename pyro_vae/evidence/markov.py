r"""log p(x) from posterior draws: two estimates that bracket the truth, without a guide.

Both stand on several HMC chains of every datum, in unconstrained space, each started from one of
many draws of the prior, picked by its likelihood.

* :func:`fitted_proposal` fits a multivariate Student-t to a datum's draws, adds components at the
  modes that it leaves out (:mod:`pyro_vae.evidence.covering`), and importance-samples from that and
  from the prior.  New, independent draws of a normalized density: a stochastic *lower* bound as
  ever, however well or badly the chains did.
* :func:`reciprocal` is the paper's appendix D.  With a normalized density q fitted to one half of
  the draws,

  .. math:: \frac{1}{p(x)} = E_{p(z \mid x)} \frac{q(z)}{p(x, z)}

  is estimated on the other half.  The mean is unbiased for 1 / p(x), so its logarithm is biased
  *upward* as an estimate of log p(x), if the draws are draws of the posterior.

In one of two equal modes the second comes to log p(x) - log 2 with a small error of its own and a
good khat: what its draws miss shows in neither.  So it is held against the first.  A mode that
neither a chain nor a draw of the prior came near is seen by nothing here.

Source: Kingma & Welling (2014), appendix D; Gelfand & Dey (1994); of the prior's share in the
proposal, Hesterberg (1995); Owen & Zhou (2000).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from pyro_vae.chains.convergence import integrated_time, split_rhat
from pyro_vae.chains.hmc import Evaluate
from pyro_vae.chains.latents import Latents
from pyro_vae.chains.sampling import run_chains
from pyro_vae.chains.starts import candidates, prior_draws
from pyro_vae.chains.target import captured
from pyro_vae.evaluation import RowFunction, event_size, row_chunks
from pyro_vae.evidence.covering import covered
from pyro_vae.evidence.students import Students, moments
from pyro_vae.evidence.weights import (
    Evidence,
    concatenated,
    first_rows,
    from_log_weights,
    pareto_khat,
)
from pyro_vae.noise import LOOK, Stream, seed_of, seeded
from pyro_vae.program.rows import Rows, num_rows, repeated

CHAINS = 4  # of each datum
NARROW = 0.9  # standard deviation of the kernel density over that of its draws
LEAST_KEPT = 64  # draws of the prior that are looked at again once chains have run
HEAVY = 20.0  # times the mean weight: so little of a draw of the posterior is covered
PILOT = 200  # draws that tell roughly what log p(x) is
MOST_DEFENSIVE = 500  # draws of the prior beside those of the fitted density


def fitted_proposal(
    program: nn.Module,
    x: Rows,
    advance: Callable[..., None],
    *,
    num_particles: int,
    seed: int,
    batch_size: int,
    max_elements: int,
    **chains: Any,
) -> Evidence:
    """Importance sampling from Student-t's fitted to HMC draws, and from the prior beside them."""
    parts = []
    for number, (count, rows) in enumerate(row_chunks(x, batch_size)):
        found = _explored(program, rows, seed, number, max_elements, **chains)
        scorer = _Scorer(program, rows, max_elements, found.latents)
        parts.append(first_rows(_sampled(scorer, found, num_particles, seed, number), count))
        advance(count)
    return concatenated(parts)


def _sampled(
    scorer: _Scorer, found: _Explored, num_particles: int, seed: int, number: int
) -> Evidence:
    proposal, unfinished = _proposal(scorer, found, seed, number)
    evidence = from_log_weights(*_weights(scorer, found, proposal, num_particles, seed, number))
    rhat = _rhat_of_the_uncovered(scorer, found, proposal, num_particles, evidence.value)
    return evidence._replace(rhat=rhat.masked_fill(unfinished, math.inf).to(evidence.value))


def _rhat_of_the_uncovered(
    scorer: _Scorer, found: _Explored, proposal: Students, num_particles: int, log_p: Tensor
) -> Tensor:
    """R-hat of the chains where a part of what they found is left out of the proposal, else 1.

    Importance sampling asks of chains that the proposal covers what they found, not that they
    have met: those of a funnel, or of two modes with a component each, need not have.
    """
    u = found.u.flatten(0, 1)
    log_w = _log_weights(proposal, num_particles, u, *scorer(u))
    left_out = (log_w - log_p.to(log_w) > math.log(HEAVY)).to(log_w).mean(0) > 0.1
    rhat = split_rhat(found.u)
    return torch.where(left_out, rhat, torch.ones_like(rhat))


def _proposal(scorer: _Scorer, found: _Explored, seed: int, number: int) -> tuple[Students, Tensor]:
    """The mixture to draw from, and for which data the search for modes came to no end, (B,)."""
    base = Students.fitted(found.u.flatten(0, 1))
    with seeded(*Stream.PILOT.key(seed, number)):
        u = base.draw(PILOT)[0]
    log_z = (scorer(u)[0] - base.log_density(u)).logsumexp(0) - math.log(PILOT)
    return covered(base, log_z, found.u, found.log_joint, found.likely, found.evaluate)


def _weights(
    scorer: _Scorer,
    found: _Explored,
    proposal: Students,
    num_particles: int,
    seed: int,
    number: int,
) -> tuple[Tensor, Tensor]:
    """Log weights of K draws of the proposal t and n of the prior, (K + n, B), by stratum.

    All of them over the mixture of both, (K t + n prior) / (K + n) (the balance heuristic of Veach
    & Guibas, 1995, equation (9)): unbiased, and no weight exceeds (K + n) / n p(x | z).  Where the
    prior meets what the proposal leaves out, its draws have weights that stand out.
    """
    with seeded(*Stream.PROPOSAL.key(seed, number)):
        u, stratum, proposal = proposal.draw(num_particles)
    log_w = [_log_weights(proposal, num_particles, u, *scorer(u))]
    prior = _defensive(num_particles)
    chains, data = found.u.shape[1:3]
    for start in range(0, prior, chains):
        drawn = found.draw(found.many, *Stream.DEFENSIVE.key(seed, number, start))
        drawn = [column.unflatten(0, (chains, data))[: prior - start] for column in drawn]
        log_w.append(_log_weights(proposal, num_particles, *drawn))
    strata = stratum.new_full((prior, data), len(proposal.mean))
    stratum, table = torch.cat([stratum, strata]), torch.cat(log_w)
    # Far out in the prior, or in a funnel's neck, a density may be no number.  Such a draw has no
    # weight, as HMC moves to no such place; among what the chains found it is the program's fault.
    return table.masked_fill(table.isnan() & (stratum > 0), -math.inf), stratum


def _defensive(num_particles: int) -> int:
    """How many draws of the prior go with K of the proposal: one with two, up to a number."""
    return min(max(num_particles // 2, 1), MOST_DEFENSIVE)


def _log_weights(
    proposal: Students, num_particles: int, u: Tensor, log_joint: Tensor, log_prior: Tensor
) -> Tensor:
    prior = _defensive(num_particles)
    total = num_particles + prior
    log_t = proposal.log_density(u) + math.log(num_particles / total)
    log_q = torch.logaddexp(log_t, log_prior.nan_to_num(-math.inf) + math.log(prior / total))
    return log_joint - log_q


def reciprocal(
    program: nn.Module,
    x: Rows,
    advance: Callable[..., None],
    *,
    num_particles: int,
    seed: int,
    batch_size: int,
    max_elements: int,
    **chains: Any,
) -> Evidence:
    """The paper's appendix D, by log-sum-exp, with a Gaussian kernel density as q.

    The importance-sampled estimate from the same chains comes along as ``lower``.
    """
    parts = []
    for number, (count, rows) in enumerate(row_chunks(x, batch_size)):
        found = _explored(program, rows, seed, number, max_elements, **chains)
        draws, half = found.u, len(found.u) // 2
        fit, new = draws[:half].flatten(0, 1), draws[half:].flatten(0, 1)
        log_p = found.log_joint[half:].flatten(0, 1)
        log_r = (kernel_log_density(fit, new) - log_p).unflatten(0, (-1, draws.shape[1]))
        scorer = _Scorer(program, rows, max_elements, found.latents)
        below = _sampled(scorer, found, num_particles, seed, number)
        above = from_reciprocal_weights(log_r, split_rhat(draws))
        parts.append(first_rows(_bracket(below, above), count))
        advance(count)
    return concatenated(parts)


def _bracket(below: Evidence, above: Evidence) -> Evidence:
    """``above`` with the lower bound ``below``: an error where they contradict each other.

    An estimate that errs upwards and is nevertheless lower, by more than noise (two standard
    errors of the difference), is of chains that missed a part: what it lacks is error.
    """
    noise = 2 * torch.hypot(below.standard_error, above.standard_error)
    lacking = (below.value - above.value - noise).clamp_min(0)
    return above._replace(
        lower=below.value,
        standard_error=torch.hypot(above.standard_error, lacking),
        rhat=torch.maximum(above.rhat, below.rhat),  # the search for modes may have been given up
    )


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


class _Explored(NamedTuple):
    """What chains found of the posteriors of B data, C chains each."""

    latents: Latents
    many: Rows  # each C times
    draw: RowFunction  # of the prior
    u: Tensor  # draws, (S, C, B, J)
    log_joint: Tensor  # log p(u, x) there, (S, C, B)
    likely: tuple[Tensor, Tensor]  # the likeliest draws of the prior (T, B, J), the same (T, B)
    evaluate: Evaluate  # log p(u, x) and its gradient, of C B rows


def _explored(
    program: nn.Module,
    rows: Rows,
    seed: int,
    number: int,
    max_elements: int,
    *,
    num_draws: int,
    chains: int,
    warmup: int,
    leapfrog_steps: int,
    **options,
) -> _Explored:
    """At least ``num_draws`` draws of each row, dealt to chains of its own."""
    many = repeated(rows, chains)
    seed = seed_of(*Stream.PIECES.key(seed, number)) >> 1
    latents = Latents.of(program, rows)
    # Chains that start from plain draws of the prior end in modes that hardly count: on MNIST with
    # three latents and 1000 training images that cost 1 to 5 nats a datum.
    keep = max(LEAST_KEPT, max_elements // (num_rows(rows) * latents.dim))
    draw = prior_draws(latents, program)
    first = candidates(draw, many, seed, chains=chains, keep=keep)
    moves = -(-num_draws // chains)
    calls = (warmup + moves) * leapfrog_steps
    evaluate, engine = captured(latents, program, many, first.start, calls)
    draws = run_chains(
        latents, evaluate, engine, first.start, num_draws=moves, warmup=warmup,
        leapfrog_steps=leapfrog_steps, whiten=chains, seed=seed, **options,
    )  # fmt: skip
    shape = (chains, num_rows(rows))
    u, log_joint = draws.u.unflatten(1, shape), draws.log_joint.unflatten(1, shape)
    return _Explored(latents, many, draw, u, log_joint, (first.best, first.log_joint), evaluate)


def kernel_log_density(fit: Tensor, new: Tensor) -> Tensor:
    """A Gaussian kernel density fitted to draws (S, B, J), at points (T, B, J): (T, B).

    Scott's bandwidth h, in coordinates where the draws have unit covariance.  A plain kernel
    density is wider than what it is fitted to, by 1 + h^2, and 1 / p(x) then hangs on the few
    draws in its tails.  Moving the kernels towards the mean by a, a^2 + h^2 = NARROW^2, makes it
    narrower instead, which costs nothing: any normalized q will do (West, 1993, has NARROW = 1).
    """
    mean, factor = moments(fit)
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
    """Log densities at many u of the same rows, in pieces of bounded size.

    Two of them: log p(x, T(u)) + log |det T'(u)|, and of u under the prior.
    """

    def __init__(self, program: nn.Module, rows: Rows, max_elements: int, latents: Latents) -> None:
        self._rows = rows
        self._at_once = max(1, max_elements // (event_size(rows) * num_rows(rows)))

        def terms(program: nn.Module, pair: Any) -> tuple[Tensor, Tensor]:
            rows, u = pair
            return latents.log_terms(program, rows, u)

        self._terms = RowFunction(program, terms)

    def __call__(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(K, B, J) to twice (K, B)."""
        pieces = []
        for piece in u.split(self._at_once):
            many = repeated(self._rows, len(piece))
            found = self._terms((many, piece.flatten(0, 1)), *LOOK)
            pieces.append([column.view(piece.shape[:2]) for column in found])
        return tuple(torch.cat(column) for column in zip(*pieces, strict=True))  # type: ignore[return-value]
