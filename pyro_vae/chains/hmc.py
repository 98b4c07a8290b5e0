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
posterior analysis run whole chains, :func:`pyro_vae.chains.sample_posterior`.

Sources: Duane et al. (1987); Neal (2011), arXiv:1206.1901; Kingma & Welling (2014), appendices D
and E, for 4 and 10 leapfrog steps and acceptance tuned to 90 %.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pyro
import torch
from torch import Tensor

from pyro_vae import errors
from pyro_vae.noise import Noise

PAPERS_TARGET = "an acceptance, 0.9 is the paper's"
DIVERGED = 1000.0  # nats of energy error from which a trajectory has left its level set

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

    Only tensor operations, so that :func:`pyro_vae.graphs.lift` captures it.  It costs
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
    leapfrog_steps, jitter = how_to_move(leapfrog_steps, jitter)
    check_move(u, step_size)
    evaluate = value_and_gradient(log_density)
    return transition(evaluate, u, evaluate(u), step_size, leapfrog_steps, jitter, noise)


def transition(
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


def how_to_move(leapfrog_steps: int, jitter: float) -> tuple[int, float]:
    """Both as numbers; raises TypeError or ValueError where they are none of a move."""
    why = "the paper uses 10 for Monte Carlo EM and 4 for evidence"
    half = "0.5 draws each step between 0.5 and 1.5 times the step size"
    return (
        errors.whole("leapfrog_steps", leapfrog_steps, why=why),
        errors.within("jitter", jitter, "[0, 1)", half),
    )


def check_move(u: Tensor, step_size: Tensor | float) -> None:
    if u.dim() != 2 or not u.is_floating_point():
        raise ValueError(
            f"u is {u.dtype} of shape {tuple(u.shape)}, expected real numbers (B, J): one row for "
            "each chain"
        )
    if isinstance(step_size, Tensor):
        if step_size.shape not in ((), u.shape[:1]):
            raise ValueError(
                f"step_size has shape {tuple(step_size.shape)}, expected () or ({len(u)},): one "
                "for all rows, or one each"
            )
    else:
        errors.positive("step_size", step_size, "try 0.1")


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
    target = errors.within("target", target, "(0, 1)", PAPERS_TARGET)
    return log_step + rate * ((accept if log_step.dim() else accept.mean()) - target)
