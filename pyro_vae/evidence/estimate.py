"""log p(x): estimates that say how far to trust them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pyro_vae import defaults, errors
from pyro_vae.chains.latents import Latents
from pyro_vae.chains.sampling import LEAST_WARMUP
from pyro_vae.checking.guards import require_numbers, require_possible_data
from pyro_vae.densities.look import Look
from pyro_vae.densities.missing import usable_rows
from pyro_vae.evidence.annealed import CHAINS as ANNEALED_CHAINS
from pyro_vae.evidence.annealed import Annealing, annealed
from pyro_vae.evidence.exact import exact
from pyro_vae.evidence.importance import importance
from pyro_vae.evidence.judging import (
    consequence,
    warn_about_bounds,
    warn_about_chains,
    warn_about_dimensions,
    warn_about_rising,
)
from pyro_vae.evidence.markov import CHAINS, fitted_proposal, reciprocal
from pyro_vae.evidence.measured import measured
from pyro_vae.evidence.quadrature import quadrature
from pyro_vae.evidence.requirements import require_possible
from pyro_vae.evidence.sandwich import sandwich
from pyro_vae.evidence.spread import spread
from pyro_vae.evidence.weights import Evidence, warn_about_tails
from pyro_vae.predictive.simulating import simulate
from pyro_vae.program.calling import evaluating, require_program
from pyro_vae.program.rows import Rows, first_rows, num_rows
from pyro_vae.progress import counting
from pyro_vae.turns import taking_turns

Method = Literal["importance", "annealed", "reciprocal", "exact", "quadrature", "sandwich"]
PROPOSALS: dict[str, tuple[str, ...]] = {
    "importance": ("guide", "hmc"),
    "annealed": ("guide", "prior"),
    "sandwich": ("guide", "prior"),
    "reciprocal": ("guide", "hmc", "prior"),  # of which it uses none, nor do the next two
    "exact": ("guide", "hmc", "prior"),
    "quadrature": ("guide", "hmc", "prior"),
}

MOST = 10**7  # of anything that is counted for each datum: more would take for ever


@taking_turns
def log_evidence(
    program: nn.Module,
    x: Any,
    *,
    method: Method = defaults.METHOD,
    proposal: Literal["guide", "hmc", "prior"] = "guide",
    num_particles: int = defaults.NUM_PARTICLES,
    num_draws: int = defaults.NUM_DRAWS,
    chains: int | None = None,
    num_temperatures: int = defaults.NUM_TEMPERATURES,
    warmup: int = 100,
    leapfrog_steps: int = 10,
    true_latents: Mapping[str, Tensor] | None = None,
    like: Any = None,
    seed: int = defaults.SEED,
    batch_size: int | None = None,
    max_elements: int = 2**21,
    progress: Any = None,
    cluster: Any = None,
) -> Evidence:
    r"""Estimate log p(x) of each datum.

    ============ ========== ========================================== ===================
    method       proposal   what is averaged                           as an estimate
    ============ ========== ========================================== ===================
    importance   guide      p(x, z) / q(z given x) at guide draws      biased downward
    importance   hmc        p(x, z) / t(z), Student-t's per datum       biased downward
                            fitted to HMC draws, and the prior
    annealed     guide or   weights of chains that are led from it to  biased downward
                 prior      the posterior
    reciprocal   (hmc)      q(z) / p(x, z) at HMC draws, a kernel       biased *upward*
                            density q fitted to other HMC draws
    sandwich     guide or   annealed, and back from the posterior:     between two bounds
                 prior      ``lower`` and ``upper``
    quadrature   (none)     p(x, z) over all z, by a grid that is      none but the grid's
                            refined until it agrees; up to two
                            unconstrained latent dimensions
    exact        (none)     the program's own ``log_evidence(x)``, or  none
                            a sum over few values of discrete latents
    ============ ========== ========================================== ===================

    Importance sampling needs a guide that covers the posterior, and says by khat whether it does.
    Where it does not, "sandwich" tells within which bounds log p(x) lies.  Its upper bound starts
    from draws of the posterior.  Of simulated data these are known: pass the latents that x was
    made from as ``true_latents``, or a whole number in place of x, and it is an upper bound
    whatever the chains do (bidirectional Monte Carlo).  Of real data the ends of ``warmup`` moves
    of HMC stand in for them, and it is an upper bound *given that these chains have converged*:
    where they all miss a mode, so may both bounds.  Where the guide's khat is below 1/2 the
    chi-square bound is taken if it is tighter.

    The paper's appendix D is "reciprocal"; importance sampling from "hmc" comes along as its
    ``lower``, and where it lies above, the difference is counted as error: chains that are all
    stuck in one of two modes make appendix D too low by log 2.  Importance sampling from "hmc"
    does not need chains that have met.  It looks for modes from 500 draws of the prior for each
    chain and from all draws of the chains, gives each mode that it finds a component, and draws
    from the prior too (K / 2 times, 500 at most), so that a mode which the components miss shows
    in the standard error and khat.  A mode that no draw came near, such as one of a thousandth of
    the prior's width in many dimensions, stays unseen, whatever is printed.

    Of a discrete latent, khat sees the values that the guide drew.  One that it almost never draws
    and that holds most of the posterior leaves no trace: weights are even, and log p(x) may be too
    low by any amount.  "exact" sums over all values where they are few.

    Args:
        program: the program.
        x: data (N, ...): a tensor, an array, a dict or a ``Data`` (whose binarization is that of
            its evaluation rows); or a whole number, to simulate so many from the model.
        method: see the table.
        proposal: see the table.  A model trained without a guide needs "hmc" or "prior"; in a
            comparison of algorithms these put all of them on equal terms.
        num_particles: K draws per datum of the proposal; khat needs about 1000 to see tails.
        num_draws: HMC draws per datum, of all its chains, that the proposal is fitted to, at
            least 5 for each unconstrained latent dimension; for "reciprocal" half of them fit and
            half are averaged, and 1000 or more are advisable.
        chains: of each datum: 4 of HMC, among which draws are dealt evenly; 16 that are annealed.
            (khat of the weights of fewer than 21 is nan.)
        num_temperatures: T of each annealed chain.  The gap between the bounds falls with T; where
            they lie is found by other chains before, for each datum.
        warmup, leapfrog_steps: of each chain; see ``pyro_vae.chains.sample_posterior``.
        true_latents: for "sandwich", the latents that x was simulated from, by site, each with its
            rows in front.
        like: where x is a number: rows that say what x looks like and hold the covariates; not
            needed for a ``VAE``.
        seed: of the noise.
        batch_size: rows at a time (default: 100 for the guide, 500 for HMC).  The noise of a datum
            depends on its place among them, so another size or order gives other draws.
        max_elements: the largest number of elements (particles x rows x pixels) held at a time;
            memory stays bounded whatever K is.
        progress: as of ``pv.fit``: None shows a line on a terminal, and one a minute elsewhere.
        cluster: rows go in pieces to a Dask cluster, as of ``pv.compare``.  Each piece draws its
            own noise, so draws are others than those of one process, however many workers do them.

    The program is put into evaluation mode (no dropout) for as long as this takes.

    Returns:
        :class:`Evidence`, each field (N,), in nats.

    Raises:
        ValueError: data outside the likelihood's support; global latents, which have no share in a
            datum's evidence; a guide that is a point; too few draws for the latent dimensions;
            latents that HMC cannot move (see :class:`~pyro_vae.chains.Latents`), among them
            discrete ones, with what to use.

    Warns:
        PyroVaeWarning: where there is no khat, or it is that of fewer than 100 draws; where it
            exceeds 0.7, so that the average hangs on a few draws; where the estimate would still
            rise with more draws, by its predicted bias Var(w / Ew) / 2K; where R-hat exceeds 1.1,
            for "importance" only if the proposal leaves out a part of what the chains found; where
            two bounds are more than a nat apart, or cross; and for "reciprocal" above five latent
            dimensions, where appendix D is not to be used.

    Sources: Rezende, Mohamed & Wierstra (2014), appendix E; Kingma & Welling (2014), appendix D;
    khat: Vehtari et al. (2024); R-hat: Gelman & Rubin (1992); annealing: Neal (2001); both bounds:
    Grosse, Ghahramani & Adams (2015).
    """
    if method not in PROPOSALS:
        expected = ", ".join(f'"{name}"' for name in PROPOSALS)
        raise ValueError(f"method is {method!r}, expected one of {expected}")
    if proposal not in PROPOSALS[method]:
        expected = " or ".join(f'"{name}"' for name in PROPOSALS[method])
        raise ValueError(f"proposal is {proposal!r}, expected {expected} for method={method!r}")
    if true_latents is not None and method != "sandwich":
        raise ValueError(
            f'true_latents are given for method={method!r}, expected them for "sandwich" alone, '
            "whose upper bound starts from them"
        )
    annealing = method in ("annealed", "sandwich")
    from_guide = method == "importance" and proposal == "guide"
    if chains is None:
        chains = ANNEALED_CHAINS if annealing else CHAINS
    if batch_size is None:
        batch_size = 100 if from_guide else 500
    options = _Options(
        method,
        proposal,
        num_particles=errors.whole("num_particles", num_particles, 1, MOST),
        num_draws=errors.whole("num_draws", num_draws, 1, MOST),
        chains=errors.whole("chains", chains, 1, MOST),
        num_temperatures=errors.whole("num_temperatures", num_temperatures, 1, MOST),
        warmup=errors.whole("warmup", warmup, LEAST_WARMUP, MOST, why="they tune the step"),
        leapfrog_steps=errors.whole("leapfrog_steps", leapfrog_steps, 1, MOST),
        seed=errors.seed_number(seed),
        batch_size=errors.whole("batch_size", batch_size),
        max_elements=errors.whole("max_elements", max_elements),
    )
    if true_latents is not None and not isinstance(true_latents, Mapping):
        raise TypeError(
            f"true_latents is {type(true_latents).__name__}, expected a dict by site, such as "
            '{"z": z}'
        )
    require_program(program)
    with torch.no_grad(), evaluating(program):
        rows, drawn = _rows(program, x, like, options.seed)
        truth = true_latents if drawn is None else drawn
        look = Look.at(program, rows)
        require_possible_data(look, rows)
        with counting(progress, num_rows(rows), label="log p(x)") as advance:
            if cluster is not None:  # refused here, and not by a worker
                require_possible(program, rows, look, options, truth)
            if cluster is None:
                evidence = _estimate(program, rows, look, options, truth, advance)
            else:
                evidence = spread(_estimate, program, rows, options, truth, advance, cluster)
        known = truth is not None
        says = measured(look, x, rows, _in_words(method, proposal, known), options.draws)
    require_numbers(evidence.value, "log p(x)")
    _judge(evidence, options, known)
    return evidence._replace(measured=says)


class _Options(NamedTuple):
    """The numbers of :func:`log_evidence`, checked."""

    method: str
    proposal: str
    num_particles: int
    num_draws: int
    chains: int
    num_temperatures: int
    warmup: int
    leapfrog_steps: int
    seed: int
    batch_size: int
    max_elements: int

    def some(self, *names: str) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names}

    @property
    def draws(self) -> int:
        """How many are averaged of a datum."""
        numbers = {"importance": self.num_particles, "reciprocal": self.num_draws // 2}
        numbers |= {"annealed": self.chains, "sandwich": self.chains}
        return numbers.get(self.method, 1)

    @property
    def pieces(self) -> dict[str, Any]:
        return self.some("seed", "batch_size", "max_elements")


def _rows(
    program: nn.Module, x: Any, like: Any, seed: int
) -> tuple[Rows, dict[str, Tensor] | None]:
    """The data; where x is a number, simulated ones and their latents."""
    if isinstance(x, int) and not isinstance(x, bool):
        number = errors.whole("x", x, why="so many data are simulated")
        pairs = simulate(program, number, like=like, seed=seed)
        return pairs.x, pairs.latents
    if like is not None:
        raise ValueError(
            "like is given beside data, expected it where x is a number of data to simulate: "
            "leave it out"
        )
    return usable_rows(x, program), None


def _estimate(
    program: nn.Module,
    rows: Rows,
    look: Look,
    options: _Options,
    true_latents: Mapping[str, Tensor] | None,
    advance: Any,
) -> Evidence:
    method, particles = options.method, options.num_particles
    truth = require_possible(program, rows, look, options, true_latents)
    if method == "exact":
        bounds = options.some("batch_size", "max_elements")
        return exact(program, rows, look, advance, **bounds)
    if method == "importance" and options.proposal == "guide":
        found = importance(program, rows, advance, num_particles=particles, **options.pieces)
        return found[0]
    if method == "quadrature":
        return quadrature(program, rows, advance, **options.pieces)
    if method in ("annealed", "sandwich"):
        how = Annealing(
            options.proposal,  # type: ignore[arg-type]
            **options.some("chains", "num_temperatures", "leapfrog_steps"), **options.pieces,
        )  # fmt: skip
        if method == "annealed":
            return annealed(program, rows, how, advance).below
        return sandwich(
            program, rows, how, advance, moves=options.warmup, truth=truth,
            num_particles=particles, from_guide=options.proposal == "guide",
        )  # fmt: skip
    chains = options.some("num_draws", "chains", "warmup", "leapfrog_steps")
    if method == "importance":
        run = fitted_proposal
    else:
        run = reciprocal
        warn_about_dimensions(Latents.of(program, first_rows(rows, 2)).dim)
    return run(program, rows, advance, num_particles=particles, **chains, **options.pieces)


def _in_words(method: str, proposal: str, known: bool) -> str:
    of = {"importance": f"importance, {proposal}", "reciprocal": "reciprocal, HMC draws"}
    of |= {"annealed": f"annealed from the {proposal}"}
    ends = "draws of the posterior that are known" if known else "the ends of HMC chains"
    of |= {"sandwich": f"sandwich, annealed from the {proposal} and back from {ends}"}
    return of.get(method, method)


def _judge(evidence: Evidence, options: _Options, known: bool) -> None:
    """Say what is not to be trusted."""
    method, proposal = options.method, options.proposal
    if method in ("importance", "reciprocal"):
        warn_about_tails(evidence.khat, consequence(method, proposal), options.draws)
        if method == "importance":
            more = "raise num_particles"
            if proposal == "guide":
                more += ', or use method="annealed" or "sandwich", where latents are continuous'
            warn_about_rising(evidence, more)
        if method == "reciprocal" or proposal == "hmc":
            warn_about_chains(evidence.rhat, method)
    if method == "annealed":
        warn_about_rising(evidence, "raise num_temperatures or chains")
    if method == "sandwich":
        warn_about_bounds(evidence, known)
        if not known:
            warn_about_chains(evidence.rhat, method)
