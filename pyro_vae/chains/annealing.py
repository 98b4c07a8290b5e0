r"""Annealed importance sampling: weights from a density that is far from the posterior.

Along :math:`0 = \beta_0 < \dots < \beta_T = 1` a chain of a datum starts at a draw of
:math:`q = f_0` and alternates a factor of its weight with a move that leaves the next density as it
is (:mod:`~pyro_vae.chains.paths`, one HMC transition, accepted or rejected *for each datum*):

.. math:: \log w = \sum_{t=1}^T (\beta_t - \beta_{t-1}) \log \frac{p(u_{t-1}, x)}{q(u_{t-1})},
          \qquad E\,w = p(x).

So the logarithm of a mean of weights is a stochastic lower bound.  The same moves from a draw of
the posterior down to q give weights with mean 1 / p(x), and so a stochastic *upper* bound, if the
draw is one of the posterior.

The schedule is found beforehand, by other chains with noise of their own (:func:`pilot`), and
frozen: where it is good the weights vary less, and their mean is p(x) whatever it is.

Sources: Neal (2001), Statistics and Computing 11, 125-139; Grosse, Ghahramani & Adams (2015),
arXiv:1511.02543, for both bounds; Zhou, Johansen & Aston (2016), arXiv:1303.3123, for the
conditional effective sample size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pyro_vae.chains.hmc import Evaluate, adapt, transition
from pyro_vae.chains.paths import Ends, OfRows
from pyro_vae.noise import Stream, keyed

CONDITIONAL_ESS = 0.8  # of the chains, from one temperature of the pilot to the next
MOST_KNOTS = 200
SETTLING = 20  # moves at beta = 0, which find the step size there
MOVES = 2  # of the pilot at each temperature
ACCEPT = 0.8  # what the step is tuned to
JITTER = 0.5
HALVINGS = 40  # of the interval that a temperature is searched in

Tick = Callable[[float], None]  # is told what share of the work is done


class Schedule(NamedTuple):
    """Temperatures of each datum, and the step of the moves at each.

    Attributes:
        beta: from 0 to 1, (T + 1, B).
        step: (T + 1, B).
        distance: how many intervals of the pilot there were: the length of the path, (B,).
    """

    beta: Tensor
    step: Tensor
    distance: Tensor


class Walker:
    """Chains of C x B rows on a path, with what is known where they are.

    Args:
        ends: both log densities as functions of u.
        u: where they are, (C B, J).
        leapfrog_steps: L of each move.
        key: of the noise of move number i, ``keyed(*key(i))``.
    """

    def __init__(
        self, ends: OfRows, u: Tensor, leapfrog_steps: int, key: Callable[[int], tuple[int, ...]]
    ) -> None:
        self._ends, self.u, self.leapfrog_steps, self._key = ends, u, leapfrog_steps, key
        self.here = ends(u)
        self._moves = 0

    def log_ratio(self) -> Tensor:
        """log p - log q, (C B,); -inf where there is no density."""
        return self.here.log_ratio.double().nan_to_num(-math.inf, -math.inf, -math.inf)

    def move(self, beta: Tensor, step: Tensor) -> Tensor:
        """One transition that leaves f_beta as it is, beta and step (C B,): acceptance (C B,)."""
        last: list[Ends] = []

        def evaluate(u: Tensor) -> tuple[Tensor, Tensor]:
            last[:] = [self._ends(u)]
            return last[0].at(beta)

        moving: Evaluate = evaluate
        noise = keyed(*self._key(self._moves))
        self._moves += 1
        m = transition(moving, self.u, self.here.at(beta), step, self.leapfrog_steps, JITTER, noise)
        self.u = m.u
        pairs = zip(last[0], self.here, strict=True)
        self.here = Ends(*(_chosen(m.accepted, new, old) for new, old in pairs))
        return m.accept


def _chosen(accepted: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(accepted.unsqueeze(-1) if new.dim() == 2 else accepted, new, old)


def pilot(walker: Walker, chains: int, num_temperatures: int, tick: Tick) -> Schedule:
    r"""Find temperatures of equal conditional effective sample size, and the step at each.

    From one knot the next is where the C chains of a datum, weighted, are worth
    :data:`CONDITIONAL_ESS` of their number,

    .. math:: \frac{(\sum_c e^{\Delta d_c})^2}{C \sum_c e^{2 \Delta d_c}}, \qquad
              d = \log p(u, x) - \log q(u);

    T temperatures are then laid evenly over these intervals.

    Args:
        walker: at draws of q; moves.
        chains: C.
        num_temperatures: T.
        tick: is told of the share that is done.
    """
    rows = len(walker.u) // chains
    beta = walker.u.new_zeros(rows, dtype=torch.float64)
    log_step = walker.u.new_full((rows,), math.log(walker.u.shape[-1] ** -0.25))

    def tuned(log_step: Tensor, rate: float) -> Tensor:
        at = beta.to(walker.u).repeat(chains)
        accept = walker.move(at, log_step.exp().repeat(chains))
        mean = accept.unflatten(0, (chains, rows)).mean(0)
        return adapt(log_step, mean, target=ACCEPT, rate=rate)

    for number in range(SETTLING):
        log_step = tuned(log_step, 2.0 if number < SETTLING // 2 else 0.7)
    betas, steps = [beta], [log_step]
    distance = torch.zeros_like(beta)
    while bool((beta < 1).any()) and len(betas) < MOST_KNOTS:
        ratio = walker.log_ratio().unflatten(0, (chains, rows))
        going = beta < 1
        beta = _next(beta, ratio)
        for _ in range(MOVES):
            log_step = tuned(log_step, 0.7)
        betas.append(beta)
        steps.append(log_step)
        distance = distance + going
        tick(1 - 0.9 ** len(betas))
    # Where the search has been given up, one interval more leads to the end.
    ends = torch.where(beta < 1, distance + 1, distance)
    betas.append(torch.ones_like(beta))
    steps.append(log_step)
    tick(1.0)
    place = torch.linspace(0, 1, num_temperatures + 1, dtype=torch.float64, device=beta.device)
    place = place[:, None] * ends  # (T + 1, B), in intervals
    table, log_steps = torch.stack(betas), torch.stack(steps)
    low = place.floor().long().clamp_max(len(table) - 2)
    share = place - low
    at = torch.lerp(table.gather(0, low), table.gather(0, low + 1), share)
    at[0], at[-1] = 0.0, 1.0
    at = at.to(walker.u).double()  # as moves see them, or weights would be of other densities
    log_step = torch.lerp(
        log_steps.gather(0, low), log_steps.gather(0, low + 1), share.to(log_steps)
    )
    return Schedule(at, log_step.exp(), ends)


def _next(beta: Tensor, ratio: Tensor) -> Tensor:
    """The next temperature of each datum, by halving the logarithm of the interval to 1."""
    least = math.log(1e-12)
    low, high = torch.full_like(beta, least), (1 - beta).clamp_min(1e-12).log()
    ratio = ratio - ratio.amax(0).nan_to_num(0.0, 0.0, 0.0)

    def enough(log_width: Tensor) -> Tensor:
        scaled = (log_width.exp() * ratio).nan_to_num(-math.inf, -math.inf, -math.inf)
        log_ess = 2 * scaled.logsumexp(0) - (2 * scaled).logsumexp(0) - math.log(len(ratio))
        return log_ess >= math.log(CONDITIONAL_ESS)

    whole = enough(high)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        good = enough(middle)
        low, high = torch.where(good, middle, low), torch.where(good, high, middle)
    return torch.where(whole | (beta >= 1), 1.0, (beta + low.exp()).clamp_max(1.0))


def anneal(walker: Walker, schedule: Schedule, chains: int, tick: Tick) -> Tensor:
    """From draws of q to the posterior: log weights with E w = p(x), (C, B), float64."""
    beta, log_w = schedule.beta.repeat(1, chains), walker.u.new_zeros((), dtype=torch.float64)
    step = schedule.step.repeat(1, chains)
    total = len(beta) - 1
    for number in range(1, total + 1):
        # (0 times minus infinity, where an interval is empty, counts nothing.)
        width = beta[number] - beta[number - 1]
        log_w = log_w + torch.where(width > 0, width * walker.log_ratio(), 0.0)
        if number < total:
            walker.move(beta[number].to(walker.u), step[number])
        tick(number / total)
    return log_w.unflatten(0, (chains, -1))


def anneal_back(walker: Walker, schedule: Schedule, chains: int, tick: Tick) -> Tensor:
    """From draws of the posterior to q: log weights with E 1/w = 1/p(x), (C, B), float64."""
    beta, log_w = schedule.beta.repeat(1, chains), walker.u.new_zeros((), dtype=torch.float64)
    step = schedule.step.repeat(1, chains)
    total = len(beta) - 1
    for number in range(total, 0, -1):
        width = beta[number] - beta[number - 1]
        log_w = log_w + torch.where(width > 0, width * walker.log_ratio(), 0.0)
        if number > 1:
            walker.move(beta[number - 1].to(walker.u), step[number - 1])
        tick(1 - (number - 1) / total)
    return log_w.unflatten(0, (chains, -1))


def settled(walker: Walker, schedule: Schedule, chains: int, moves: int, tick: Tick) -> Tensor:
    """Moves at beta = 1: the draws of the second half, (S, C, B, J)."""
    one, step = walker.u.new_ones(len(walker.u)), schedule.step[-1].repeat(chains)
    kept = []
    for number in range(moves):
        walker.move(one, step)
        if number >= moves // 2:
            kept.append(walker.u.unflatten(0, (chains, -1)))
        tick((number + 1) / moves)
    return torch.stack(kept)


def key_of_moves(stream: Stream, seed: int, chunk: int) -> Callable[[int], tuple[int, ...]]:
    """Keys of the moves of a chunk of rows."""
    return lambda number: stream.key(seed, chunk, number)
