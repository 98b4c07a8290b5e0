r"""log p(x) by annealed importance sampling, and between two bounds.

Forward chains give a stochastic lower bound, backward chains an upper one
(:mod:`pyro_vae.chains.annealing`).  Backward chains need draws of the posterior to start from:

* latents that x was simulated from are one, by what simulating means, so that the upper bound then
  is one whatever else goes wrong (bidirectional Monte Carlo);
* of real data there are none, and the ends of long chains stand in for them.  The upper bound is
  one *given that these have converged*: of a mode that they all miss it knows nothing.

Source: Grosse, Ghahramani & Adams (2015), arXiv:1511.02543; Wu et al. (2017), arXiv:1611.04273, for
decoders.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyro_vae.chains.annealing import (
    Schedule,
    Walker,
    anneal,
    anneal_back,
    key_of_moves,
    pilot,
    settled,
)
from pyro_vae.chains.convergence import split_rhat
from pyro_vae.chains.latents import Latents
from pyro_vae.chains.paths import Origin, Path
from pyro_vae.evaluation import event_size, row_chunks
from pyro_vae.evidence.weights import (
    Evidence,
    concatenated,
    first_rows,
    from_log_weights,
    pareto_khat,
)
from pyro_vae.noise import Stream, seeded
from pyro_vae.program.rows import Rows, num_rows, repeated

CHAINS = 16  # of each datum
FRESH = 20  # moves from a known draw of the posterior, which part the chains that start there


class Annealing(NamedTuple):
    """What annealing is to do.

    Attributes:
        origin: what it starts from.
        chains: C of each datum.
        num_temperatures: T.
        leapfrog_steps: L of each move.
        seed: of the noise.
        batch_size, max_elements: how much is held at a time.
    """

    origin: Origin
    chains: int
    num_temperatures: int
    leapfrog_steps: int
    seed: int
    batch_size: int
    max_elements: int


class Sandwich(NamedTuple):
    """Forward chains below, and backward chains above, where they were run."""

    below: Evidence
    above: Evidence | None


Advance = Callable[..., None]


def annealed(
    program: nn.Module,
    x: Rows,
    how: Annealing,
    advance: Advance,
    *,
    back: bool = False,
    moves: int = 0,
    truth: Tensor | None = None,
) -> Sandwich:
    """Anneal chains of each datum, batch by batch.

    Args:
        program, x: the program and its rows.
        how: see :class:`Annealing`.
        advance: is told how many data are done.
        back: anneal backward too.
        moves: of the chains that backward ones start from.
        truth: draws of the posterior, (N, J), unconstrained, which are started from instead.
    """
    latents = Latents.of(program, x)
    size = max(event_size(x), latents.dim) * how.chains
    batch = max(1, min(how.batch_size, num_rows(x), how.max_elements // size))
    # The pilot and the chains go through all temperatures, and so do those that come back.
    moves_of_all = (2 + back) * how.num_temperatures + moves
    calls = -(-num_rows(x) // batch) * moves_of_all * how.leapfrog_steps
    path = Path(latents, program, how.origin, x, calls)
    below, above = [], []
    for number, (count, rows) in enumerate(row_chunks(x, batch)):
        many = repeated(rows, how.chains)
        work = _Work(path, many, how, number, _ticker(advance, count))
        log_w = _from_below(work, back)
        below.append(first_rows(_evidence(log_w, work.walker.u.dtype), count))
        if back:
            start = None
            if truth is not None:
                index = torch.arange(batch, device=truth.device) + number * batch
                start = truth[index.clamp_max(len(truth) - 1)].repeat(how.chains, 1)
            above.append(first_rows(_from_above(work, log_w, start, moves), count))
    return Sandwich(concatenated(below), concatenated(above) if back else None)


class _Work:
    """One batch of rows: C chains of each datum."""

    def __init__(
        self, path: Path, many: Rows, how: Annealing, number: int, tick: Callable[[float], None]
    ) -> None:
        self.how, self.number, self.tick = how, number, tick
        key = how.seed, number
        start = path.draw(many, *Stream.ANNEALED_START.key(*key, 0))
        self.ends = path.at_rows(many, start)
        u = path.draw(many, *Stream.ANNEALED_PILOT.key(*key))
        self.walker = self.walk(start, Stream.ANNEALED)
        self.schedule: Schedule = pilot(
            self.walk(u, Stream.ANNEALED_PILOT), how.chains, how.num_temperatures,
            lambda share: tick(0.3 * share),
        )  # fmt: skip

    def walk(self, u: Tensor, stream: Stream) -> Walker:
        key = key_of_moves(stream, self.how.seed, self.number)
        return Walker(self.ends, u, self.how.leapfrog_steps, key)


def _from_below(work: _Work, more: bool) -> Tensor:
    """Forward: log weights (C, B)."""
    part, chains = 0.25 if more else 0.7, work.how.chains
    return anneal(work.walker, work.schedule, chains, lambda s: work.tick(0.3 + part * s))


def _evidence(log_w: Tensor, dtype: torch.dtype) -> Evidence:
    # In the precision that densities have, rounding is told from a tail.
    return from_log_weights(log_w)._replace(khat=pareto_khat(log_w.to(dtype)))


def _from_above(work: _Work, log_w: Tensor, start: Tensor | None, moves: int) -> Evidence:
    """Backward: ``value`` is the upper bound of log p(x)."""
    chains, rhat = work.how.chains, None
    if start is None:
        u = _resampled(work, log_w)
        walker = work.walk(u, Stream.ANNEALED_SETTLING)
        draws = settled(walker, work.schedule, chains, moves, lambda s: work.tick(0.55 + 0.2 * s))
        rhat = split_rhat(draws)
    else:
        walker = work.walk(start, Stream.ANNEALED_SETTLING)
        settled(walker, work.schedule, chains, FRESH, lambda s: work.tick(0.55 + 0.2 * s))
    walker = work.walk(walker.u, Stream.ANNEALED_BACK)
    back = anneal_back(walker, work.schedule, chains, lambda s: work.tick(0.75 + 0.25 * s))
    found = _evidence(-back, walker.u.dtype)
    return found._replace(
        value=-found.value,
        lower=torch.full_like(found.value, -torch.inf),
        upper=-found.value,
        rhat=found.rhat if rhat is None else rhat.to(found.value),
    )


def _resampled(work: _Work, log_w: Tensor) -> Tensor:
    """Where forward chains ended, each datum's drawn again by their weights."""
    weights = log_w.nan_to_num(-torch.inf).softmax(0)  # (C, B)
    weights = torch.where(weights.isfinite(), weights, 1.0)
    with seeded(*Stream.ANNEALED_START.key(work.how.seed, work.number, 1)):
        index = torch.multinomial(weights.T, len(weights), replacement=True).T
    u = work.walker.u.unflatten(0, (len(weights), -1))
    return u.gather(0, index.unsqueeze(-1).expand_as(u)).flatten(0, 1)


def _ticker(advance: Advance, count: int) -> Callable[[float], None]:
    """Turns shares of a batch into whole data."""
    told = 0

    def tick(share: float) -> None:
        nonlocal told
        done = int(share * count + 1e-9)
        if done > told:
            advance(done - told)
            told = done

    return tick
