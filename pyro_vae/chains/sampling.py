r"""Chains of Hamiltonian Monte Carlo: draws from the exact posterior p(z | x) of each datum.

A chain is a start, a warm-up that finds its step size, and moves that are kept.  Each datum has a
chain of its own, all of them run side by side, and what they run on, log p(u, x) and its gradient,
is captured as a graph once: a chain makes thousands of moves on the same rows.

The moves, their sources and what makes them exact: :mod:`pyro_vae.chains.hmc`.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from pyro_vae import errors
from pyro_vae.chains.hmc import (
    PAPERS_TARGET,
    Evaluate,
    check_move,
    how_to_move,
    transition,
)
from pyro_vae.chains.hmc import adapt as tune
from pyro_vae.chains.latents import Latents
from pyro_vae.chains.starts import candidates, prior_draws
from pyro_vae.chains.target import applied, captured, in_coordinates
from pyro_vae.densities.missing import usable_rows
from pyro_vae.errors import PyroVaeWarning
from pyro_vae.noise import Stream, keyed, seeded
from pyro_vae.program.calling import evaluating
from pyro_vae.program.rows import Rows, num_rows
from pyro_vae.turns import taking_turns

LEAST_WARMUP = 20  # moves that tune a step size


class Draws(NamedTuple):
    """Draws from p(z | x): S draws of B data, J unconstrained coordinates.

    Attributes:
        u: unconstrained, (S, B, J).
        values: site -> draws in the site's own shape and support, (S, B, ...).
        accept: mean acceptance probability after warm-up, (B,).
        step_size: as it was frozen after warm-up; () where data share it, else (B,).
        divergences: how many moves after warm-up diverged, (B,).
        evaluations: gradients of log p(x, z) that each datum cost, warm-up included.
        engine: "graph" where log p and its gradient were captured, "compiled" where so many moves
            repaid that, else "handlers".
        log_joint: log p(u, x) of each draw, (S, B).
    """

    u: Tensor
    values: dict[str, Tensor]
    accept: Tensor
    step_size: Tensor
    divergences: Tensor
    evaluations: int
    engine: str
    log_joint: Tensor


@taking_turns
def sample_posterior(
    program: nn.Module,
    x: Any,
    *,
    num_draws: int = 1000,
    warmup: int = 500,
    leapfrog_steps: int = 10,
    target_accept: float = 0.9,
    adapt: Literal["per_datum", "shared"] = "per_datum",
    step_size: Tensor | float | None = None,
    jitter: float = 0.5,
    thin: int = 1,
    start: Literal["prior", "resampled", "guide"] | Tensor = "prior",
    whiten: int = 0,
    seed: int = 0,
) -> Draws:
    """Draw from the exact posterior p(z | x) of each datum by HMC: all data at once, a chain each.

    For several chains of each datum repeat its rows, ``x.repeat(4, 1)``: a row is a chain.  The
    program is put into evaluation mode (no dropout) for as long as this takes.

    During warm-up the step size is tuned; then it is frozen, so that what is kept has the posterior
    as its stationary law.  The first fifth of warm-up aims at acceptance 1/2, which is found
    equally fast from above and from below; the rest at ``target_accept``, with a falling rate; the
    result is the average over its second half.

    Args:
        program: the program; the guide is used for ``start="guide"`` alone.
        x: data, (B, ...).
        num_draws: S.
        warmup: moves before the first draw.
        leapfrog_steps: L of each move.
        target_accept: the acceptance to tune to.
        adapt: "per_datum" tunes a step for each datum.  "shared", the paper's way, tunes one on the
            mean over data: where posteriors differ in width the narrow ones then hardly move.
        step_size: a step to keep, () or (B,), in place of tuning one.
        jitter: see :func:`pyro_vae.chains.move`.
        thin: keep each ``thin``-th move.
        start: "prior" draws the first state from p(z), so that chains start overdispersed;
            "resampled" picks one of many such draws with probability proportional to p(x | z), so
            that chains start in the modes that count, each as often as it weighs; "guide" from
            q(z | x); or a tensor (B, J), unconstrained, such as the last ``u`` of other draws.
        whiten: C >= 1 lets warm-up find the shape of each posterior too: from its second fifth to
            its half the draws of the C chains of a datum, rows b, b + B/C, ... as in
            ``x.repeat(C, 1)``, give their covariance within a chain, the inverse mass matrix from
            then on.  Without it chains cross a narrow, slanting posterior slowly: at a condition
            number of 600 they need some hundred moves to meet.
        seed: of all noise.  Torch's generators stay untouched.

    Returns:
        :class:`Draws`.

    Raises:
        ValueError: for options out of range, latents that HMC cannot move (see :class:`Latents`),
            or a start where log p(x, z) is not finite.

    Warns:
        PyroVaeWarning: where after warm-up a chain accepts less than half of its moves, or more
            than 1 % of them diverge (a few do, where jitter lengthens a step).

    Cost: (warmup + S thin) L + 1 gradients.  They run as a captured graph where the program can be
    captured (logged where it cannot), so that handlers cost nothing after the first ones, and as
    machine code where there are enough of them.

    Departures from the paper: chains start from the prior but their steps are tuned per datum, each
    move's step is jittered, and there is warm-up to converge (its authors' code made 5 moves).

    Example:
        >>> from pyro_vae.models import linear_gaussian
        >>> program = linear_gaussian.build(3, latent_dim=2)
        >>> draws = sample_posterior(program, torch.zeros(4, 3), num_draws=20, warmup=50)
        >>> draws.values["z"].shape
        torch.Size([20, 4, 2])
    """
    num_draws, thin = errors.whole("num_draws", num_draws), errors.whole("thin", thin)
    warmup, seed = errors.whole("warmup", warmup, 0), errors.seed_number(seed)
    whiten = errors.whole("whiten", whiten, 0)
    leapfrog_steps, jitter = how_to_move(leapfrog_steps, jitter)
    target_accept = errors.within("target_accept", target_accept, "(0, 1)", PAPERS_TARGET)
    _check_step(step_size, warmup, adapt)
    rows = usable_rows(x, program)
    with evaluating(program):
        latents = Latents.of(program, rows)
        with seeded(*Stream.START.key(seed)):
            u = _start(latents, program, rows, start, seed)
        check_move(u, 1.0 if step_size is None else step_size)
        _check_whiten(whiten, len(u), warmup)
        calls = (warmup + num_draws * thin) * leapfrog_steps
        evaluate, engine = captured(latents, program, rows, u, calls)
        return run_chains(
            latents, evaluate, engine, u, num_draws=num_draws, warmup=warmup,
            leapfrog_steps=leapfrog_steps, target_accept=target_accept, adapt=adapt,
            step_size=step_size, jitter=jitter, thin=thin, whiten=whiten, seed=seed,
        )  # fmt: skip


def run_chains(
    latents: Latents,
    evaluate: Evaluate,
    engine: str,
    u: Tensor,
    *,
    num_draws: int,
    warmup: int,
    leapfrog_steps: int,
    target_accept: float = 0.9,
    adapt: str = "per_datum",
    step_size: Tensor | float | None = None,
    jitter: float = 0.5,
    thin: int = 1,
    whiten: int = 0,
    seed: int = 0,
) -> Draws:
    """:func:`sample_posterior` from given starts (B, J), on a given log density."""
    here = evaluate(u)
    _check_start(*here)
    if step_size is None:  # s ~ J^(-1/4) at equal acceptance
        step = u.new_full((len(u),) if adapt == "per_datum" else (), latents.dim**-0.25)
    else:
        step = torch.as_tensor(step_size, dtype=u.dtype, device=u.device)
    first, log_step, settled = step, step.log(), torch.zeros_like(step)
    kept = u.new_empty(num_draws, *u.shape)
    log_joint = u.new_empty(num_draws, len(u))
    accept = u.new_zeros(len(u))
    divergences = u.new_zeros(len(u), dtype=torch.int64)
    half = warmup // 2
    began = 0  # the move from which the step has been tuned
    seen: list[Tensor] = []  # what the covariance is taken of
    moving, v, factor = evaluate, u, None  # u = factor v
    for number in range(warmup + num_draws * thin):
        if number == half and seen and factor is None:
            factor = _covariance_factor(torch.stack(seen), whiten)
            v = torch.linalg.solve_triangular(factor, u.unsqueeze(-1), upper=False).squeeze(-1)
            here = here[0], applied(factor.mT, here[1])
            moving = in_coordinates(evaluate, factor)
            began, step, log_step, half = half, first, first.log(), (half + warmup) // 2
        source = keyed(*Stream.CHAINS.key(seed, number))
        m = transition(moving, v, here, step, leapfrog_steps, jitter, source)
        v, here = m.u, (m.log_density, m.gradient)
        u = v if factor is None else applied(factor, v)
        if number >= warmup:
            accept += m.accept
            divergences += m.diverging
            draw, rest = divmod(number - warmup + 1, thin)
            if not rest:
                kept[draw - 1], log_joint[draw - 1] = u, m.log_density
            continue
        if whiten and factor is None and warmup // 5 <= number:
            seen.append(u)
        if step_size is None:
            schedule = _schedule(number - began, warmup - began, target_accept)
            log_step = tune(log_step, m.accept, **schedule)
            if number >= half:
                settled = settled + log_step / (warmup - half)
            step = (settled if number == warmup - 1 else log_step).exp()
    draws = Draws(
        u=kept,
        values=latents.constrain(kept),
        accept=accept / (num_draws * thin),
        step_size=step,
        divergences=divergences,
        evaluations=(warmup + num_draws * thin) * leapfrog_steps + 1,
        engine=engine,
        log_joint=log_joint,
    )
    _judge(draws, num_draws * thin, adapt if step_size is None else "fixed")
    return draws


def _covariance_factor(u: Tensor, chains: int) -> Tensor:
    """A factor of the covariance within chains, (B, J, J), of draws (S, B, J).

    Shrunk towards its diagonal by J parts to as many as there are draws: of few of them some
    direction always seems to be narrow.
    """
    num_draws, _, dim = u.shape
    centred = (u - u.mean(0)).unflatten(1, (chains, -1))  # (S, C, B / C, J)
    covariance = torch.einsum("scbi,scbj->bij", centred, centred) / (chains * (num_draws - 1))
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    # A chain that did not move has none: the prior's scale is as good as any then.
    diagonal = torch.where(diagonal > 0, diagonal, 1.0)
    share = dim / (dim + num_draws * chains)
    mixed = (1 - share) * covariance + torch.diag_embed((share + 1e-6) * diagonal)
    return torch.linalg.cholesky(mixed).repeat(chains, 1, 1)


def _schedule(number: int, warmup: int, target: float) -> dict[str, float]:
    """Rate and target of a warm-up move."""
    search = max(1, warmup // 5)
    if number < search:
        return {"rate": 1 - 0.5 * number / search, "target": min(0.5, target)}
    return {"rate": (number - search + 6) ** -0.6, "target": target}


def _start(latents: Latents, program: Any, x: Rows, start: Any, seed: int) -> Tensor:
    if isinstance(start, Tensor):
        if start.shape != (num_rows(x), latents.dim):
            raise ValueError(
                f"start has shape {tuple(start.shape)}, expected (B, J) = "
                f"{(num_rows(x), latents.dim)}: unconstrained, as latents.unconstrain returns it"
            )
        return start.detach()
    if start == "prior":
        return latents.from_prior(program, x)
    if start == "resampled":
        return candidates(prior_draws(latents, program), x, seed).start
    if start == "guide":
        return latents.from_guide(program, x)
    raise ValueError(
        f'start is {start!r}, expected "prior", "resampled", "guide" or a tensor (B, J)'
    )


def _check_start(log_density: Tensor, gradient: Tensor) -> None:
    bad = ~(log_density.isfinite() & gradient.isfinite().all(-1))
    if bool(bad.any()):
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"log p(x, z) is {float(log_density[row]):.4g} where the chain of row {row} starts, or "
            "its gradient is not finite, expected finite numbers: look for data outside the "
            'likelihood\'s support, or start elsewhere, start="guide" or a tensor'
        )


def _judge(draws: Draws, num_moves: int, tuned: str) -> None:
    """Say once where draws are not to be trusted."""
    stuck = int((draws.accept < 0.5).sum())
    chains = f"of {len(draws.accept)} chains"
    if stuck:
        worst = int(draws.accept.argmin())
        advice = {
            "shared": 'give each datum its own step, adapt="per_datum"',
            "fixed": "pass a smaller step_size, or None to tune it",
            "per_datum": "give it more warmup",
        }[tuned]
        warnings.warn(
            f"HMC accepts less than half of its moves for {stuck} {chains} (chain {worst}: "
            f"{float(draws.accept[worst]):.2f}), so their draws say little: {advice}",
            PyroVaeWarning,
            stacklevel=errors.users_line(),
        )
    diverged = int((draws.divergences > 0.01 * num_moves).sum())
    if diverged:
        worst = int(draws.divergences.argmax())
        warnings.warn(
            f"more than 1 % of HMC's moves diverged for {diverged} {chains} (chain {worst}: "
            f"{int(draws.divergences[worst])} moves), so the draws may miss where the posterior is "
            "narrow: raise target_accept, or pass a smaller step_size, where they are options "
            "(of chains.sample_posterior)",
            PyroVaeWarning,
            stacklevel=errors.users_line(),
        )


def _check_whiten(whiten: int, rows: int, warmup: int) -> None:
    if whiten and (rows % whiten or warmup < LEAST_WARMUP):
        raise ValueError(
            f"whiten is {whiten} for {rows} rows and a warmup of {warmup}, expected a divisor of "
            f"the rows, which are x.repeat(whiten, 1), and at least {LEAST_WARMUP} moves"
        )


def _check_step(step_size: Tensor | float | None, warmup: int, adapt: str) -> None:
    if adapt not in ("per_datum", "shared"):
        raise ValueError(f'adapt is {adapt!r}, expected "per_datum" or "shared"')
    if step_size is None and warmup < LEAST_WARMUP:
        raise ValueError(
            f"warmup is {warmup}, expected at least {LEAST_WARMUP} moves to tune the step size: "
            "raise it, or pass step_size"
        )
    if step_size is not None and not isinstance(step_size, Tensor):
        errors.positive("step_size", step_size, "try 0.1")
    elif isinstance(step_size, Tensor) and not bool(((step_size > 0) & step_size.isfinite()).all()):
        raise ValueError(
            f"step_size is {float(step_size.min())} in one row, expected positive numbers: a step "
            "of 0.1 suits posteriors of width 0.1 and more"
        )
