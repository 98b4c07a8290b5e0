r"""Hamiltonian Monte Carlo on the latents of a program: many data at once, ONE ACCEPT PER DATUM.

The posterior of a batch factorizes, p(z | x) = prod_b p(z_b | x_b), so the B data are B chains that
share nothing but the arithmetic.  Pyro's own HMC sees one chain in B x J dimensions: it accepts or
rejects all data together, and one difficult datum stops the others.

Chains live where there are no bounds.  With z = T(u) for a bijection T from R^J onto the support,

.. math:: \log p(u, x) = \log p(x, T(u)) + \log |\det T'(u)|,

and a move follows the Hamiltonian H(u, r) = -log p(u, x) + r.r / 2 from a fresh momentum
r ~ N(0, I) for L leapfrog steps of size s, and accepts the end with probability
min(1, exp(H_start - H_end)), which makes it exact for every L and s.

Monte Carlo EM keeps a chain per datum warm and calls :func:`move` once per E-step; evidence and
posterior analysis call :func:`sample_posterior`.

Sources: Duane et al. (1987); Neal (2011), arXiv:1206.1901; Kingma & Welling (2014), appendices D
and E, for 4 and 10 leapfrog steps and acceptance tuned to 90 %.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import pyro
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pyro_vae.errors import PyroVaeWarning
from pyro_vae.inputs import as_rows
from pyro_vae.latents import Latents
from pyro_vae.lifting import Refusal, lift, nudged, others
from pyro_vae.noise import Noise, keyed, seeded
from pyro_vae.program import Rows, call_with, num_rows

logger = logging.getLogger("pyro_vae")

DIVERGED = 1000.0  # nats of energy error from which a trajectory has left its level set

# --- one move -------------------------------------------------------------------------------------

LogDensity = Callable[[Tensor], Tensor]  # u (B, J) -> (B,), row by row
Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]  # u -> log density (B,), its gradient (B, J)
NoiseSource = Callable[[int, Noise], Tensor]


class Phase(NamedTuple):
    """A point of phase space, with what is known there.

    Attributes:
        u: positions, (B, J).
        momentum: (B, J).
        log_density: at u, (B,).
        gradient: of the log density at u, (B, J).
    """

    u: Tensor
    momentum: Tensor
    log_density: Tensor
    gradient: Tensor

    @property
    def energy(self) -> Tensor:
        """H = -log p + r.r / 2, (B,)."""
        return self.momentum.square().sum(-1) / 2 - self.log_density


class Move(NamedTuple):
    """What one HMC transition did.

    Attributes:
        u: where the chains are now, (B, J); always finite if they were.
        accept: the probability with which each was to move, (B,).
        accepted: whether it did, (B,) bool.
        energy_error: H_end - H_start, (B,) nats; not finite where the trajectory left.
        diverging: whether the energy error is beyond 1000 nats or not finite, (B,) bool.
        log_density: at u, (B,).
        gradient: of the log density at u, (B, J).
    """

    u: Tensor
    accept: Tensor
    accepted: Tensor
    energy_error: Tensor
    diverging: Tensor
    log_density: Tensor
    gradient: Tensor


def value_and_gradient(log_density: LogDensity) -> Evaluate:
    """A log density with independent rows, and its gradient row by row.

    Pyro's validation is off inside: a trajectory that diverges meets values that no distribution
    takes, and is rejected for it.
    """

    def evaluate(u: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad(), pyro.validation_enabled(False):
            leaf = u.detach().requires_grad_()
            value = log_density(leaf)
            if value.shape != u.shape[:1]:
                raise ValueError(
                    f"log_density returned shape {tuple(value.shape)} for u of shape "
                    f"{tuple(u.shape)}, expected ({len(u)},), one number a row: sum over J alone"
                )
            (gradient,) = (
                torch.autograd.grad(value.sum(), leaf, allow_unused=True)
                if value.requires_grad
                else (None,)
            )
        if gradient is None:
            raise ValueError(
                "log_density(u) does not depend on u through differentiable operations, so there "
                "is no gradient to follow: remove .detach(), .item() or torch.no_grad() from it"
            )
        return value.detach(), gradient

    return evaluate


def leapfrog(
    evaluate: Evaluate, start: Phase, *, step_size: Tensor | float, leapfrog_steps: int
) -> Phase:
    r"""Follow the Hamiltonian for ``leapfrog_steps`` steps: one call of ``evaluate`` each.

    .. math::
        r \leftarrow r + \tfrac{s}{2} \nabla \log p(u), \quad
        u \leftarrow u + s\, r, \quad
        r \leftarrow r + \tfrac{s}{2} \nabla \log p(u)

    Reversible (negate the momentum and come back), volume preserving, and off in energy by O(s^2).
    Two half steps in between are one, as in Neal (2011), figure 2.

    Args:
        evaluate: see :func:`value_and_gradient`.
        start: position and momentum, with log density and gradient at the position.
        step_size: s; a number, or a tensor that broadcasts against (B, J).
        leapfrog_steps: L.
    """
    u, momentum, log_density, gradient = start
    momentum = momentum + 0.5 * step_size * gradient
    for step in range(leapfrog_steps):
        u = u + step_size * momentum
        log_density, gradient = evaluate(u)
        half = 0.5 if step == leapfrog_steps - 1 else 1.0
        momentum = momentum + half * step_size * gradient
    return Phase(u, momentum, log_density, gradient)


def move(
    log_density: LogDensity,
    u: Tensor,
    *,
    step_size: Tensor | float,
    leapfrog_steps: int,
    jitter: float = 0.0,
    noise: NoiseSource | None = None,
) -> Move:
    """One HMC transition of every row with unit mass, each accepted or rejected by itself.

    Only tensor operations, so that :func:`pyro_vae.lifting.lift` captures it.  It costs
    ``leapfrog_steps + 1`` gradients.

    Args:
        log_density: u (B, J) -> (B,), up to a constant; rows must not see one another.
        u: where the chains are, (B, J).
        step_size: s; one for all rows (a number or a tensor ()), or one each (B,).
        leapfrog_steps: L.
        jitter: each row's step is s times its own uniform draw from [1 - jitter, 1 + jitter].
            Without it a chain can *resonate*: a normal with standard deviation 1 is back where it
            started after s L = 2 pi, which 10 steps at 90 % acceptance come close to.
        noise: where the draws come from, such as ``keyed(seed, number)``; None is torch's own
            generator.

    Returns:
        :class:`Move`.

    Raises:
        ValueError: for options out of range, or a log density that is not (B,).
    """
    _check_move(u, step_size, leapfrog_steps, jitter)
    evaluate = value_and_gradient(log_density)
    return _transition(evaluate, u, evaluate(u), step_size, leapfrog_steps, jitter, noise)


def _transition(
    evaluate: Evaluate,
    u: Tensor,
    known: tuple[Tensor, Tensor],
    step_size: Tensor | float,
    leapfrog_steps: int,
    jitter: float,
    noise: NoiseSource | None,
) -> Move:
    """A move from where log density and gradient are known: ``leapfrog_steps`` gradients."""
    momentum, uniform, stretch = _draws(u, noise)
    step = torch.as_tensor(step_size, dtype=u.dtype, device=u.device)
    if jitter:
        step = step * (1 + jitter * (2 * stretch - 1))  # (B,)
    start = Phase(u, momentum, *known)
    column = step.unsqueeze(-1) if step.dim() else step
    end = leapfrog(evaluate, start, step_size=column, leapfrog_steps=leapfrog_steps)
    error = end.energy - start.energy  # (B,)
    stays = ~(end.u.isfinite().all(-1) & end.energy.isfinite())
    accept, accepted = _metropolis(torch.where(stays, math.inf, error), uniform)

    def chosen(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(accepted.unsqueeze(-1) if new.dim() == 2 else accepted, new, old)

    return Move(
        u=chosen(end.u, u),
        accept=accept,
        accepted=accepted,
        energy_error=error,
        diverging=stays | ~(error.abs() <= DIVERGED),
        log_density=chosen(end.log_density, start.log_density),
        gradient=chosen(end.gradient, start.gradient),
    )


def _draws(u: Tensor, noise: NoiseSource | None) -> list[Tensor]:
    """Momentum (B, J), and two uniforms (B,): for the decision, and for the step's jitter."""
    like = (u.dtype, u.device)
    wanted = [Noise("normal", tuple(u.shape), *like)]
    wanted += [Noise("uniform", tuple(u.shape[:1]), *like)] * 2
    return [w.draw() if noise is None else noise(i, w) for i, w in enumerate(wanted)]


def _metropolis(error: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """min(1, exp(-error)), and whether to move; a start of density zero gives way: nan is 0."""
    accept = (-error.clamp_min(0)).exp().nan_to_num(0.0)
    return accept, uniform < accept


def _check_move(u: Tensor, step_size: Tensor | float, leapfrog_steps: int, jitter: float) -> None:
    if u.dim() != 2 or not u.is_floating_point():
        raise ValueError(
            f"u is {u.dtype} of shape {tuple(u.shape)}, expected real numbers (B, J): one row for "
            "each chain"
        )
    if int(leapfrog_steps) != leapfrog_steps or leapfrog_steps < 1:
        raise ValueError(
            f"leapfrog_steps is {leapfrog_steps}, expected a whole number from 1 on: the paper "
            "uses 10 for Monte Carlo EM and 4 for evidence"
        )
    if not 0 <= jitter < 1:
        raise ValueError(
            f"jitter is {jitter}, expected at least 0 and less than 1: 0.5 draws each step between "
            "0.5 and 1.5 times the step size"
        )
    if isinstance(step_size, Tensor):
        if step_size.shape not in ((), u.shape[:1]):
            raise ValueError(
                f"step_size has shape {tuple(step_size.shape)}, expected () or ({len(u)},): one "
                "for all rows, or one each"
            )
    elif not 0 < step_size < math.inf:
        raise ValueError(f"step_size is {step_size}, expected a positive number: try 0.1")


def adapt(log_step: Tensor, accept: Tensor, *, target: float = 0.9, rate: Tensor | float) -> Tensor:
    r"""Robbins-Monro on the step size: log s <- log s + rate (acceptance - target).

    Args:
        log_step: log s; () for a step that all rows share, which follows their mean acceptance, or
            (B,), each its own.
        accept: acceptance probabilities of the last move, (B,).
        target: the acceptance to tune to; 0.9 is the paper's.
        rate: how far to go; to settle it must fall from move to move, but not faster than 1 / t.

    Source: Robbins & Monro (1951); Andrieu & Thoms (2008), section 5.1.
    """
    _check_target(target)
    return log_step + rate * ((accept if log_step.dim() else accept.mean()) - target)


def _check_target(target: float) -> None:
    if not 0 < target < 1:
        raise ValueError(
            f"the target acceptance is {target}, expected a number between 0 and 1: 0.9 is the "
            "paper's"
        )


# --- chains ---------------------------------------------------------------------------------------


class Draws(NamedTuple):
    """Draws from p(z | x): S draws of B data, J unconstrained coordinates.

    Attributes:
        u: unconstrained, (S, B, J).
        values: site -> draws in the site's own shape and support, (S, B, ...).
        accept: mean acceptance probability after warm-up, (B,).
        step_size: as it was frozen after warm-up; () where data share it, else (B,).
        divergences: how many moves after warm-up diverged, (B,).
        evaluations: gradients of log p(x, z) that each datum cost, warm-up included.
        engine: "graph" where log p and its gradient were captured, else "handlers".
    """

    u: Tensor
    values: dict[str, Tensor]
    accept: Tensor
    step_size: Tensor
    divergences: Tensor
    evaluations: int
    engine: str


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
    start: Literal["prior", "guide"] | Tensor = "prior",
    seed: int = 0,
) -> Draws:
    """Draw from the exact posterior p(z | x) of each datum by HMC: all data at once, a chain each.

    For several chains of each datum repeat its rows: a row is a chain.

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
        jitter: see :func:`move`.
        thin: keep each ``thin``-th move.
        start: "prior" draws the first state from p(z), so that chains start overdispersed; "guide"
            from q(z | x); or a tensor (B, J), unconstrained, such as the last ``u`` of other draws.
        seed: of all noise.  Move ``i`` draws from ``(seed, i)``; torch's generators stay untouched.

    Returns:
        :class:`Draws`.

    Raises:
        ValueError: for options out of range, latents that HMC cannot move (see :class:`Latents`),
            or a start where log p(x, z) is not finite.

    Warns:
        PyroVaeWarning: where after warm-up a chain accepts less than half of its moves, or more
            than 1 % of them diverge (a few do, where jitter lengthens a step).

    Cost: (warmup + S thin) L + 1 gradients.  They run as a captured graph where the program can be
    captured (logged where it cannot), so that Pyro's handlers cost nothing after the first ones.

    Departures from the paper: chains start from the prior but their steps are tuned per datum, each
    move's step is jittered, and there is warm-up to converge (its authors' code made 5 moves).

    Example:
        >>> from pyro_vae.models import linear_gaussian
        >>> program = linear_gaussian.build(3, latent_dim=2)
        >>> draws = sample_posterior(program, torch.zeros(4, 3), num_draws=20, warmup=50)
        >>> draws.values["z"].shape
        torch.Size([20, 4, 2])
    """
    _check_options(num_draws, warmup, thin, target_accept, adapt, step_size)
    rows = as_rows(x, program)
    latents = Latents.of(program, rows)
    with seeded(seed, -1):  # moves count from 0
        u = _start(latents, program, rows, start)
    _check_move(u, 1.0 if step_size is None else step_size, leapfrog_steps, jitter)
    evaluate, engine = _captured(latents, program, rows, u)
    here = evaluate(u)
    _check_start(*here)
    if step_size is None:  # s ~ J^(-1/4) at equal acceptance
        step = u.new_full((len(u),) if adapt == "per_datum" else (), latents.dim**-0.25)
    else:
        step = torch.as_tensor(step_size, dtype=u.dtype, device=u.device)
    log_step, settled = step.log(), torch.zeros_like(step)
    kept = u.new_empty(num_draws, *u.shape)
    accept = u.new_zeros(len(u))
    divergences = u.new_zeros(len(u), dtype=torch.int64)
    half = warmup // 2
    for number in range(warmup + num_draws * thin):
        source = keyed(seed, number)
        m = _transition(evaluate, u, here, step, leapfrog_steps, jitter, source)
        u, here = m.u, (m.log_density, m.gradient)
        if number >= warmup:
            accept += m.accept
            divergences += m.diverging
            draw, rest = divmod(number - warmup + 1, thin)
            if not rest:
                kept[draw - 1] = u
        elif step_size is None:
            log_step = _adapt(log_step, m.accept, **_schedule(number, warmup, target_accept))
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
    )
    _judge(draws, num_draws * thin, adapt if step_size is None else "fixed")
    return draws


_adapt = adapt  # `adapt` is an option's name inside sample_posterior


def _schedule(number: int, warmup: int, target: float) -> dict[str, float]:
    """Rate and target of a warm-up move."""
    search = max(1, warmup // 5)
    if number < search:
        return {"rate": 1 - 0.5 * number / search, "target": min(0.5, target)}
    return {"rate": (number - search + 6) ** -0.6, "target": target}


def _start(latents: Latents, program: Any, x: Rows, start: Any) -> Tensor:
    if isinstance(start, Tensor):
        if start.shape != (num_rows(x), latents.dim):
            raise ValueError(
                f"start has shape {tuple(start.shape)}, expected (B, J) = "
                f"{(num_rows(x), latents.dim)}: unconstrained, as latents.unconstrain returns it"
            )
        return start.detach()
    if start == "prior":
        return latents.from_prior(program, x)
    if start == "guide":
        return latents.from_guide(program, x)
    raise ValueError(f'start is {start!r}, expected "prior", "guide" or a tensor (B, J)')


def _captured(latents: Latents, program: nn.Module, x: Rows, u: Tensor) -> tuple[Evaluate, str]:
    """log p and its gradient at fixed parameters, as a graph where it can be one."""
    parameters = {name: p.detach() for name, p in program.named_parameters()}

    def unit(parameters: dict[str, Tensor], x: Rows, u: Tensor) -> tuple[Tensor, Tensor]:
        def evaluate(program: nn.Module) -> tuple[Tensor, Tensor]:
            return value_and_gradient(partial(latents.log_joint, program, x))(u)

        return call_with(program, parameters, evaluate)

    probes = [(nudged(parameters), *other) for other in others((x, 0.5 * u))]
    # One gradient, not the whole move: as quick to run, and L times quicker to capture.
    lifted = lift(unit, parameters, x, u, probes=probes)
    if isinstance(lifted, Refusal):
        logger.info("HMC runs the program's handlers: not captured: %s", lifted)
        return partial(unit, parameters, x), "handlers"
    graph, fixed = lifted, pytree.tree_leaves((parameters, x))

    def run(u: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            value, gradient = graph.flat(*fixed, u)
        return value, gradient

    return run, "graph"


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
    data = f"of {len(draws.accept)} data"
    if stuck:
        worst = int(draws.accept.argmin())
        advice = {
            "shared": 'give each datum its own step, adapt="per_datum"',
            "fixed": "pass a smaller step_size, or None to tune it",
            "per_datum": "give it more warmup",
        }[tuned]
        warnings.warn(
            f"HMC accepts less than half of its moves for {stuck} {data} (row {worst}: "
            f"{float(draws.accept[worst]):.2f}), so their draws say little: {advice}",
            PyroVaeWarning,
            stacklevel=3,
        )
    diverged = int((draws.divergences > 0.01 * num_moves).sum())
    if diverged:
        worst = int(draws.divergences.argmax())
        warnings.warn(
            f"more than 1 % of HMC's moves diverged for {diverged} {data} (row {worst}: "
            f"{int(draws.divergences[worst])} moves), so the draws may miss where the posterior is "
            "narrow: raise target_accept, or pass a smaller step_size",
            PyroVaeWarning,
            stacklevel=3,
        )


def _check_options(num_draws, warmup, thin, target_accept, adapt, step_size) -> None:
    for name, value in (("num_draws", num_draws), ("warmup", warmup), ("thin", thin)):
        least = 0 if name == "warmup" else 1
        if int(value) != value or value < least:
            raise ValueError(f"{name} is {value}, expected a whole number from {least} on")
    _check_target(target_accept)
    if adapt not in ("per_datum", "shared"):
        raise ValueError(f'adapt is {adapt!r}, expected "per_datum" or "shared"')
    if step_size is None and warmup < 20:
        raise ValueError(
            f"warmup is {warmup}, expected at least 20 moves to tune the step size: raise it, or "
            "pass step_size"
        )
    if isinstance(step_size, Tensor) and not bool(((step_size > 0) & step_size.isfinite()).all()):
        raise ValueError(
            f"step_size is {float(step_size.min())} in one row, expected positive numbers: a step "
            "of 0.1 suits posteriors of width 0.1 and more"
        )
