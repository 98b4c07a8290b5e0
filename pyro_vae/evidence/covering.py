r"""Modes that a fitted density leaves out: found where the posterior is high and it is low.

Chains stay in the modes that they started in, and a density fitted to their draws passes over a mode
that is narrow.  Both show at points where log p(u, x) is known without further work, the draws of
the chains and the likeliest draws of the prior:

.. math:: \frac{p(u, x)}{\hat Z \, t(u)} > 10

says that t has a tenth of the density there that the posterior has.  From such points one climbs to
the mode, by BFGS, and gives the mixture a component with the curvature there (Laplace's
approximation).  What no such point is near to stays unseen.

Source: of the ascent, Nocedal & Wright (2006), chapter 6; of components where the weights are
large, Cappé et al. (2008), arXiv:0710.4242.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_vae.chains.hmc import Evaluate
from pyro_vae.chains.target import applied
from pyro_vae.evidence.students import Students, moments

THIN = math.log(10)  # log p / (Z t) from which a point is not covered
COVERED = math.log(3)  # and below which a mode is
STEPS = 30  # of an ascent
GAIN = 8.0  # nats that one step may promise: no step leaves the hill that it is on
STENCIL = 0.5  # of a standard deviation to either side, for the curvature


def covered(
    base: Students, draws: Tensor, log_joint: Tensor, more: tuple[Tensor, Tensor], climb: Evaluate
) -> Students:
    """The mixture of ``base`` with components at the modes that it leaves out.

    Args:
        base: one component a datum, fitted to the draws.
        draws, log_joint: S draws of each of C chains, (S, C, B, J), with log p(u, x) (S, C, B).
        more: other points (T, B, J) and log p(u, x) there (T, B).
        climb: log p(u, x) and its gradient for C rows of each datum, (C B, J).
    """
    chains, dim = draws.shape[1], draws.shape[-1]
    known = log_joint.flatten(0, 1)
    points = torch.cat([draws.flatten(0, 1), more[0]])
    log_p = torch.cat([known, more[1]])
    log_q = base.log_density(points)
    # 1 / Z = E_{p(u|x)} t(u) / p(u, x): the mass of what the chains found.
    log_z = math.log(len(known)) - (log_q[: len(known)] - known).logsumexp(0)  # (B,)
    thin = (log_p - log_q - log_z > THIN) & log_p.isfinite()
    rows = thin.any(0)
    if not bool(rows.any()):
        return base
    # Chains apart are no measure of a mode's width; what each does by itself is.
    within = moments((draws - draws.mean(0)).flatten(0, 1))[1]
    starts = _starts(points, log_p, log_q, log_z, thin, within, chains)
    mode, height, factor = _modes(climb, starts.flatten(0, 1), within.repeat(chains, 1, 1))
    usable = rows & (height.isfinite() & factor.isfinite().all((-1, -2))).unflatten(0, (chains, -1))
    modes = mode.unflatten(0, (chains, -1)), height.unflatten(0, (chains, -1))
    factors = torch.where(
        usable[..., None, None], factor.unflatten(0, (chains, -1)), torch.eye(dim).to(within)
    )
    result = base
    for number in range(chains):
        point, top = modes[0][number : number + 1], modes[1][number]
        excess = top - result.log_density(point)[0] - log_z
        log_weight = torch.where(usable[number] & (excess > COVERED), 0.0, -math.inf).to(within)
        result = Students(
            torch.cat([result.mean, point]),
            torch.cat([result.factor, factors[number : number + 1]]),
            torch.cat([result.log_weight, log_weight[None]]),
        )
    # Half of the draws for what the chains found, half for the rest.
    added = result.log_weight[1:]
    share = torch.where(added.isneginf(), 0.0, 1.0).sum(0)
    first = torch.where(share > 0, math.log(0.5), 0.0).to(within)
    rest = (added + math.log(0.5)) - share.clamp_min(1).log()
    return result._replace(log_weight=torch.cat([first[None], rest]))


def _starts(
    points: Tensor, log_p: Tensor, log_q: Tensor, log_z: Tensor, thin: Tensor, width: Tensor,
    number: int,
) -> Tensor:  # fmt: skip
    """For each datum ``number`` of its thinly covered points, the highest first, (number, B, J).

    As if each brought a component of the chains' width: the next is one that these do not cover.
    """
    chosen: list[Tensor] = []
    left = thin
    for _ in range(number):
        left = torch.where(left.any(0), left, thin)
        index = log_p.masked_fill(~left, -math.inf).argmax(0)
        chosen.append(points[index, torch.arange(len(index))])
        kernel = Students(chosen[-1][None], width[None], torch.zeros_like(log_z)[None])
        log_q = torch.logaddexp(log_q, kernel.log_density(points) - math.log(number))
        left = left & (log_p - log_q - log_z > THIN)
    return torch.stack(chosen)


def _modes(climb: Evaluate, u: Tensor, factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From each row uphill: where it ends (R, J), log p there (R,), a factor of the curvature's
    inverse (R, J, J)."""
    height, slope = climb(u)
    inverse = factor @ factor.mT  # of minus the Hessian, as far as is known
    fresh = torch.ones_like(height, dtype=torch.bool)
    length = torch.ones_like(height)
    for _ in range(STEPS):
        direction = applied(inverse, slope)
        gain = (slope * direction).sum(-1)
        step = length * (GAIN / gain.clamp_min(1e-30)).clamp_max(1.0)
        moved = step.unsqueeze(-1) * direction
        there, slope_there = climb(u + moved)
        known = there.isfinite() & slope_there.isfinite().all(-1)
        bend = slope - slope_there
        product = (moved * bend).sum(-1)
        learn = known & (product > 1e-12 * moved.norm(dim=-1) * bend.norm(dim=-1))
        learn = learn & (product > 0)
        # The first curvature seen sets the scale of all directions (Nocedal & Wright, eq. 6.20).
        through = (bend * applied(inverse, bend)).sum(-1)
        scale = torch.where(learn & fresh, product / through, 1.0)
        inverse = torch.where(
            learn[:, None, None], _updated(inverse * scale[:, None, None], moved, bend), inverse
        )
        fresh = fresh & ~learn
        better = known & (there >= height + 1e-4 * step * gain)
        length = torch.where(better, 1.0, length / 4)
        u = torch.where(better.unsqueeze(-1), u + moved, u)
        slope = torch.where(better.unsqueeze(-1), slope_there, slope)
        height = torch.where(better, there, height)
        if bool((gain < 1e-4).all()):
            break
    return u, height, _curved(climb, u, inverse, factor)


def _updated(inverse: Tensor, moved: Tensor, bend: Tensor) -> Tensor:
    """The BFGS update of an inverse Hessian (R, J, J): Nocedal & Wright (2006), eq. (6.17)."""
    rate = 1 / (moved * bend).sum(-1)[:, None, None]
    eye = torch.eye(moved.shape[-1], dtype=moved.dtype, device=moved.device)
    left = eye - rate * moved.unsqueeze(-1) * bend.unsqueeze(-2)
    new = left @ inverse @ left.mT + rate * moved.unsqueeze(-1) * moved.unsqueeze(-2)
    return (new + new.mT) / 2


def _curved(climb: Evaluate, u: Tensor, inverse: Tensor, otherwise: Tensor) -> Tensor:
    """A factor of the inverse of minus the Hessian, by differences of gradients, (R, J, J)."""
    factor, failed = torch.linalg.cholesky_ex(inverse)
    factor = torch.where((failed > 0)[:, None, None], otherwise, factor)
    columns = []
    for direction in factor.unbind(-1):
        ahead, behind = climb(u + STENCIL * direction)[1], climb(u - STENCIL * direction)[1]
        columns.append(applied(factor.mT, (behind - ahead) / (2 * STENCIL)))
    whitened = torch.stack(columns, -1)  # the identity, where BFGS has learnt all
    whitened = (whitened + whitened.mT) / 2
    good = whitened.isfinite().all((-1, -2))[:, None, None]
    eye = torch.eye(u.shape[-1], dtype=u.dtype, device=u.device)
    values, vectors = torch.linalg.eigh(torch.where(good, whitened, eye))
    spread = values.clamp(0.04, 1e4).rsqrt()  # nowhere wider than five times what BFGS believed
    root = factor @ (vectors * spread.unsqueeze(-2))
    return torch.linalg.cholesky_ex(root @ root.mT)[0]
