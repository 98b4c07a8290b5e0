r"""The guide's own family refitted to each datum: the best q(z) in it, without the network.

.. math:: o_b^* = \arg\max_o E_{q_o(z)} [\log p(x_b, z) - \log q_o(z)]

for all data side by side, each with offsets o_b of its own (:mod:`pyro_vae.refinement.laws`), by
Adam, whose rate falls in the second half, and an average over the last quarter of its steps.  The
gradient is that along the draws alone, whose noise vanishes where q is the posterior; and each step
has new noise, because an optimum at fixed noise fits that noise, by 1 / 2K nats for each parameter.

Sources: Cremer, Li & Duvenaud (2018), arXiv:1801.03558, for the refit; Roeder, Wu & Duvenaud
(2017), arXiv:1703.09194, for the gradient; Polyak & Juditsky (1992) for the average.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_vae.densities.look import FEW
from pyro_vae.densities.particles import densities
from pyro_vae.evaluation import RowFunction, event_size, row_chunks
from pyro_vae.evidence.weights import Evidence, concatenated, first_rows, from_log_weights
from pyro_vae.noise import Stream
from pyro_vae.program.inputs import any_parameter
from pyro_vae.program.rows import Rows, map_rows, num_rows
from pyro_vae.refinement.drawing import table_size
from pyro_vae.refinement.laws import Coordinate, Offsets, coordinates_of

OFFSETS = "offsets of the guide"  # the entry of a batch that holds them
STEPS = 300
PARTICLES = 8
RATE = 0.1
SCORED = 1000
MOMENTS = (0.9, 0.99)  # Adam's
SLOWEST = 0.01  # of the rate at the last step, as a share of the first
SMALL = 0.1  # nats for one unit: below it a slope is followed in proportion, and not by its sign
ROUNDING = 1e-3  # nats
CLEARLY = 3.0  # standard errors by which a refit is worse than the guide, to be taken back


class Refittable(nn.Module):
    """A program whose guide has offsets for each datum, which are an entry of the data.

    Args:
        program: the program, left as it is.
        x: rows of its data, from which it is learnt what can be moved.

    Raises:
        ValueError: of :func:`~pyro_vae.refinement.laws.coordinates_of`.
    """

    def __init__(self, program: nn.Module, x: Rows) -> None:
        super().__init__()
        self.program = program
        self.coordinates: tuple[Coordinate, ...] = coordinates_of(program, x)
        self._alone = not isinstance(x, dict)
        for name in ("observed", "plate"):  # what a program says of itself
            if isinstance(getattr(program, name, None), str):
                setattr(self, name, getattr(program, name))
        self.train(program.training)

    @property
    def num_offsets(self) -> int:
        """P, the free numbers of a datum."""
        return sum(each.size for each in self.coordinates)

    def rows(self, x: Rows, offsets: Tensor | None = None) -> dict[str, Tensor]:
        """The rows of the program with their offsets (B, P), by default zero: the guide as it is.

        The order is the program's, so that what it observes stays in front.
        """
        if offsets is None:
            like = any_parameter(self.program)
            offsets = like.new_zeros(num_rows(x), self.num_offsets)
        return {**(x if isinstance(x, dict) else {"x": x}), OFFSETS: offsets.detach()}

    @property
    def _functions(self) -> Any:
        """The program's model and guide, which are no tensors."""
        return self.program

    def model(self, x: dict[str, Tensor]) -> None:
        self._functions.model(self._without(x))

    def guide(self, x: dict[str, Tensor]) -> None:
        with Offsets(self.coordinates, x[OFFSETS]):
            self._functions.guide(self._without(x))

    def _without(self, x: dict[str, Tensor]) -> Rows:
        return x["x"] if self._alone else {k: v for k, v in x.items() if k != OFFSETS}


class Refit(NamedTuple):
    """What refitting came to; of each datum, float64, nats.

    Attributes:
        program: takes ``rows`` as its data.
        rows: the data, with the offsets that were found.
        elbo_before: of the guide as it is, (N,).
        elbo: of the refitted guide, at the same noise, (N,).
        elbo_error: its standard error.
        gain_error: the standard error of their difference.
        rising: by how much the ELBO rose in the last quarter of the run.
        taken_back: where the refit came out worse than the guide, which then stands in its place.
        evidence: log p(x) by importance sampling from the refitted guide.
        gap_error: the standard error of log p(x) - ``elbo``, which have their draws in common.
    """

    program: Refittable
    rows: dict[str, Tensor]
    elbo_before: Tensor
    elbo: Tensor
    elbo_error: Tensor
    gain_error: Tensor
    rising: Tensor
    taken_back: Tensor
    evidence: Evidence
    gap_error: Tensor


def refit(
    program: nn.Module,
    x: Rows,
    *,
    steps: int = STEPS,
    num_particles: int = PARTICLES,
    rate: float = RATE,
    num_scored: int = SCORED,
    start: Tensor | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    max_elements: int = 2**21,
    advance: Callable[..., None] = lambda n=1: None,
) -> Refit:
    """Ascend the ELBO of each datum in the guide's own family, from the guide as it is.

    Args:
        program: in evaluation mode.
        x: rows on the program's terms.
        steps: of the ascent.
        num_particles: draws per datum and step.
        rate: Adam's first rate, in the units of :mod:`pyro_vae.refinement.laws`; it falls to a
            hundredth.
        num_scored: draws per datum that the ELBO before and after, and log p(x), are averages of.
        start: offsets to start from, (N, P); else zero.
        seed: of the noise.
        batch_size: rows at a time; by default as many as fit.
        max_elements: particles x rows x numbers of a datum at a time.
        advance: is told how many data are done.

    Raises:
        ValueError: of :class:`Refittable`.
    """
    free = Refittable(program, map_rows(lambda t: t[:FEW], x))
    rows = free.rows(x, start)
    event = event_size(x)
    fitting = max(1, max_elements // (event * num_particles))
    batch_size = fitting if batch_size is None else batch_size
    batch_size = min(batch_size, num_rows(x), max(1, max_elements // event))
    slopes = RowFunction(free, _slopes(num_particles), calls=steps)
    scorer = _Scorer(free, num_scored, table_size(x, num_scored, batch_size, max_elements))
    parts: list[_Chunk] = []
    evidences: list[Evidence] = []
    for number, (count, chunk) in enumerate(row_chunks(rows, batch_size)):
        if not isinstance(chunk, dict):
            raise TypeError("rows with offsets are a dict")
        late, end = _ascended(slopes, chunk, steps, rate, seed, number)
        scored = scorer(chunk, [chunk[OFFSETS], late, end], seed, number)
        columns, evidence = _judged(scored, chunk, end)
        parts.append(_Chunk(*(column[:count] for column in columns)))
        evidences.append(first_rows(evidence, count))
        advance(count)
    whole = _Chunk(*map(torch.cat, zip(*parts, strict=True)))
    return Refit(
        free, free.rows(x, whole.offsets), *whole[1:-1], concatenated(evidences), whole.gap_error
    )


class _Chunk(NamedTuple):
    offsets: Tensor
    before: Tensor
    elbo: Tensor
    elbo_error: Tensor
    gain_error: Tensor
    rising: Tensor
    taken_back: Tensor
    gap_error: Tensor


def _slopes(num_particles: int) -> Callable[[Any, Any], Tensor]:
    def slopes(program: nn.Module, rows: dict[str, Tensor]) -> Tensor:
        """The gradient of each datum's ELBO along its draws, (B, P)."""
        with torch.enable_grad():
            offsets = rows[OFFSETS].detach().requires_grad_()
            tables = densities(program, {**rows, OFFSETS: offsets}, num_particles, pathwise=True)
            total = tables.path.mean(0).sum()  # type: ignore[union-attr]
            return torch.autograd.grad(total, offsets)[0]

    return slopes


def _ascended(
    slopes: RowFunction, rows: dict[str, Tensor], steps: int, rate: float, seed: int, number: int
) -> tuple[Tensor, Tensor]:
    """Offsets where the last quarter of the run begins, and the average over it."""
    offsets = rows[OFFSETS].clone()
    first, second = torch.zeros_like(offsets), torch.zeros_like(offsets)
    late, average, behind = offsets, torch.zeros_like(offsets), steps - max(1, steps // 4)
    for step in range(steps):
        slope = slopes({**rows, OFFSETS: offsets}, *Stream.REFIT.key(seed, number, step))
        slope = slope.nan_to_num(0.0, 0.0, 0.0)  # a draw outside of all support says nothing
        first.lerp_(slope, 1 - MOMENTS[0])
        second.lerp_(slope.square(), 1 - MOMENTS[1])
        mean = first / (1 - MOMENTS[0] ** (step + 1))
        size = (second / (1 - MOMENTS[1] ** (step + 1))).sqrt()
        now = rate * SLOWEST ** max(0.0, 2 * step / steps - 1)
        offsets = offsets + now * mean / (size + SMALL)
        if step == behind:
            late = offsets
        if step >= behind:
            average += offsets / (steps - behind)
    return late, average


class _Scorer:
    """Log weights of the guide at several offsets and the same noise, (K, B) each."""

    def __init__(self, program: Refittable, num_draws: int, size: int) -> None:
        self._num_draws, self._size = num_draws, size
        self._log_w = RowFunction(program, self._of_particles)

    def _of_particles(self, program: nn.Module, rows: Rows) -> Tensor:
        return densities(program, rows, self._size, reparameterize=False).log_w

    def __call__(
        self, rows: dict[str, Tensor], offsets: list[Tensor], seed: int, number: int
    ) -> list[Tensor]:
        tables = []
        for each in offsets:
            parts = range(-(-self._num_draws // self._size))
            keys = (Stream.REFIT_SCORE.key(seed, number, part) for part in parts)
            pieces = [self._log_w({**rows, OFFSETS: each}, *key) for key in keys]
            tables.append(torch.cat(pieces)[: self._num_draws])
        return tables


def _judged(tables: list[Tensor], rows: dict[str, Tensor], end: Tensor) -> tuple[_Chunk, Evidence]:
    """Before and after, at the same noise; a refit that is clearly worse is taken back."""
    before, late, after = (table.double() for table in tables)
    count = math.sqrt(len(before))
    gain = after - before
    error = gain.std(0) / count
    worse = ~(gain.mean(0) >= -CLEARLY * error - ROUNDING)  # nan is no improvement
    chosen = torch.where(worse, tables[0], tables[2])
    offsets = torch.where(worse.unsqueeze(-1), rows[OFFSETS], end)
    evidence = from_log_weights(chosen)
    log_w = chosen.double()
    influence = (log_w - evidence.value).exp() - log_w  # of a draw on log mean w - mean log w
    columns = _Chunk(
        offsets,
        before.mean(0),
        log_w.mean(0),
        log_w.std(0) / count,
        error.masked_fill(worse, 0.0),
        (after - late).mean(0).masked_fill(worse, 0.0),
        worse,
        influence.std(0) / count,
    )
    return columns, evidence
