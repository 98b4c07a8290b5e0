r"""Modes that a fitted density leaves out: found where the posterior is high and it is low.

Chains stay in the modes that they started in, and a density fitted to their draws passes over a
narrow one.  Both show at points where log p(u, x) is known without further work, the draws of the
chains and the likeliest draws of the prior:

.. math:: \frac{p(u, x)}{\hat Z \, t(u)} > 5

says that t has a fifth of the density there that the posterior has.  From such points one climbs to
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

THIN = 5.0  # p / (Z t) above which a point is thinly covered
COVERED = 1.5  # and up to which a mode is covered
STEPS = 30  # of an ascent
LIKELY = 128  # draws of the prior, the likeliest, that ascents start from
IN_VAIN = 2  # rounds of an ascent for each chain that end a search which has found modes
MOST_ROUNDS = 10
GAIN = 8.0  # nats that one step may promise, near a summit: none leaves the hill that it is on
ARRIVED = 0.1  # nats below a summit
STENCIL = 0.5  # of a standard deviation to either side, for the curvature


def covered(
    base: Students, log_z: Tensor, draws: Tensor, log_joint: Tensor,
    more: tuple[Tensor, Tensor], climb: Evaluate,
) -> tuple[Students, Tensor]:  # fmt: skip
    """The mixture of ``base`` with components at the modes that it leaves out.

    First from points that are thinly covered, where there are any; then, whatever covers them, from
    likely draws of the prior that are far from each other and from all modes so far, because in
    several dimensions a draw may lie on the slope of every hill and near no summit.  That goes on
    for as long as it finds modes.

    Args:
        base: one component a datum, fitted to the draws.
        log_z: a rough log p(x), (B,): that which draws of ``base`` see, so that what they miss
            stands out.
        draws, log_joint: S draws of each of C chains, (S, C, B, J), with log p(u, x) (S, C, B).
        more: other points (T, B, J) and log p(u, x) there (T, B).
        climb: log p(u, x) and its gradient for C rows of each datum, (C B, J).

    Returns:
        The mixture; and for which data the search was given up while it still found modes, so that
        there may be more, (B,).
    """
    chains, dim = draws.shape[1], draws.shape[-1]
    points = torch.cat([draws.flatten(0, 1), more[0]])
    log_p = torch.cat([log_joint.flatten(0, 1), more[1]])
    thin = log_p - base.log_density(points) - log_z > math.log(THIN)
    thin = thin & log_p.isfinite()
    rows = thin.any(0)
    # Chains apart are no measure of a mode's width; what each does by itself is.
    within = moments((draws - draws.mean(0)).flatten(0, 1))[1]

    top = log_p.nan_to_num(-math.inf).amax(0)

    def ascended(starts: Tensor) -> tuple[Students, Tensor, Tensor]:
        """Components where ascents end, log p(u | x) there and whether it is a summit, (C, B)."""
        mode, height, factor, summit = _modes(
            climb, starts.flatten(0, 1), within.repeat(chains, 1, 1), top.repeat(chains)
        )
        good = (height.isfinite() & factor.isfinite().all((-1, -2))).unflatten(0, (chains, -1))
        found = Students(
            mode.unflatten(0, (chains, -1)),
            torch.where(
                good[..., None, None],
                factor.unflatten(0, (chains, -1)),
                torch.eye(dim).to(within),
            ),
            torch.where(good, 0.0, -math.inf).to(within),
        )
        shape = (chains, -1)
        return found, height.unflatten(0, shape) - log_z, summit.unflatten(0, shape)

    mixture = base
    if bool(rows.any()):
        found, height, _ = ascended(_starts(points, log_p, thin, within, chains))
        found = found._replace(log_weight=found.log_weight.masked_fill(~rows, -math.inf))
        mixture = _joined(base, _distinct(found, height))
    likely = more[0][:LIKELY]
    known = torch.cat([draws.mean(0), mixture.mean[1:]])
    in_vain = torch.zeros_like(rows, dtype=torch.int64)  # rounds since the last new mode
    for _ in range(MOST_ROUNDS):
        starts = _far(likely, known, chains)
        found, height, summit = ascended(starts)
        new = height - mixture.log_density(found.mean) > math.log(THIN)
        new = new & summit & ~_among(found.mean, mixture)
        found = found._replace(log_weight=found.log_weight.masked_fill(~new, -math.inf))
        known = torch.cat([known, starts, found.mean])
        gained = (found.log_weight > -math.inf).any(0)
        in_vain = torch.where(gained, 0, in_vain + 1)
        if bool(gained.any()):
            modes = Students(*(field[1:] for field in mixture))
            pairs = zip(modes, _distinct(found, height), strict=True)
            both = Students(*(torch.cat(pair) for pair in pairs))
            mixture = _joined(base, both)
        elif len(mixture.mean) == 1 or bool((in_vain >= IN_VAIN).all()):
            break
    several = (mixture.log_weight[1:] > -math.inf).any(0)
    return mixture, several & (in_vain < IN_VAIN)


def _among(places: Tensor, mixture: Students) -> Tensor:
    """Whether places (n, B, J) are within a standard deviation of a mode that has a component."""
    among = torch.zeros_like(places[..., 0], dtype=torch.bool)
    for mean, factor, log_weight in list(zip(*mixture, strict=True))[1:]:
        away = torch.linalg.solve_triangular(factor, (places - mean).unsqueeze(-1), upper=False)
        among = among | ((away.square().sum((-1, -2)) < 1) & (log_weight > -math.inf))
    return among


def _far(points: Tensor, known: Tensor, number: int) -> Tensor:
    """For each datum ``number`` of the points (T, B, J), each farthest from the known and those
    before it, in units of the points' spread."""
    scale = points.std(0, correction=0).clamp_min(1e-12)
    data = torch.arange(points.shape[1], device=points.device)
    nearest = points.new_full(points.shape[:2], math.inf)
    for place in known:
        nearest = torch.minimum(nearest, ((points - place) / scale).square().sum(-1))
    chosen = []
    for _ in range(number):
        chosen.append(points[nearest.argmax(0), data])
        nearest = torch.minimum(nearest, ((points - chosen[-1]) / scale).square().sum(-1))
    return torch.stack(chosen)


def _distinct(found: Students, height: Tensor) -> Students:
    """Of components at modes, those that the ones before do not cover already.

    ``height`` is log p(u | x) there, (M, B).
    """
    log_weight = found.log_weight.clone()
    for number in range(1, len(log_weight)):
        before = Students(*(field[:number] for field in found._replace(log_weight=log_weight)))
        excess = height[number] - before.log_density(found.mean[number : number + 1])[0]
        log_weight[number] = log_weight[number].masked_fill(excess <= math.log(COVERED), -math.inf)
    order = log_weight.argsort(dim=0, descending=True, stable=True)  # those that count come first
    most = max(1, int((log_weight > -math.inf).sum(0).max()))
    data = torch.arange(log_weight.shape[1], device=order.device)
    return Students(*(f[order[:most], data] for f in found._replace(log_weight=log_weight)))


def _joined(base: Students, added: Students) -> Students:
    """Half of the draws for what the chains found, and half for the modes, where there are any."""
    counts = ~added.log_weight.isneginf()
    number = counts.sum(0).to(base.mean)
    share = torch.where(number > 0, 0.5, 1.0).log()
    each = math.log(0.5) - number.clamp_min(1).log()
    weights = base.log_weight + share, torch.where(counts, each, -math.inf)
    pairs = (base.mean, added.mean), (base.factor, added.factor), weights
    return Students(*(torch.cat(pair) for pair in pairs))


def _starts(points: Tensor, log_p: Tensor, thin: Tensor, width: Tensor, number: int) -> Tensor:
    """For each datum ``number`` points to climb from, (number, B, J).

    The first is the highest that is thinly covered; the next ones the highest far from those
    before, by the width that the chains have (J, J), whatever covers them: a density that stretches
    over several modes has too few draws in each.
    """
    dim = points.shape[-1]
    # Squared distance of two draws of one normal law: 2 chi-square of J, by three deviations.
    far = 2 * (dim + 3 * math.sqrt(2 * dim))
    data = torch.arange(points.shape[1], device=points.device)
    left, fresh, chosen = thin, thin, []
    apart = log_p.isfinite()
    for _ in range(number):
        index = log_p.masked_fill(~left, -math.inf).argmax(0)
        chosen.append(points[index, data])
        away = torch.linalg.solve_triangular(
            width, (points - chosen[-1]).movedim(0, -1), upper=False
        )
        apart = apart & (far < away.square().sum(-2).T)
        fresh = fresh.index_put((index, data), torch.tensor(False, device=fresh.device))
        left = torch.where(apart.any(0), apart, fresh)
    return torch.stack(chosen)


def _modes(
    climb: Evaluate, u: Tensor, factor: Tensor, top: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From each row uphill: where it ends (R, J), log p there (R,), a factor of the curvature's
    inverse (R, J, J), and whether that is a summit (R,); ``top`` is the highest log p that is known
    of the datum, (R,)."""
    height, slope = climb(u)
    inverse = factor @ factor.mT  # of minus the Hessian, as far as is known
    fresh = torch.ones_like(height, dtype=torch.bool)
    length = torch.ones_like(height)
    for _ in range(STEPS):
        direction = applied(inverse, slope)
        gain = (slope * direction).sum(-1)
        most = ((top - height) / 2).clamp_min(GAIN)  # far below, half of what is lacking
        step = length * (most / gain.clamp_min(1e-30)).clamp_max(1.0)
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
    left = (slope * applied(inverse, slope)).sum(-1) / 2  # nats to the summit, as far as is known
    return u, height, _curved(climb, u, inverse, factor), left < ARRIVED


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
