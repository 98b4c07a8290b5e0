r"""log p(x) by a grid over the latents, for one or two unconstrained dimensions.

.. math:: p(x) = \int p(u, x) \, du

Each datum has a grid of its own.  It begins with cells between quantiles of draws of the prior and
of the likeliest of them, and two that reach to infinity, so that what the prior reaches is looked
at whether or not it seems to count: well separated modes are found.  Every cell is integrated by a
Gauss-Kronrod rule, whose two results differ by what is wrong with the cell, and cells that are not
good enough are halved until the datum's is.  A mode that lies between nodes shows in how log p
climbs towards it; of two that lie between the same nodes of the first grid (in one dimension about
1/200 of the prior's width apart, in two 1/80) one may not be seen.

Source: Piessens et al. (1983), QUADPACK, for rule and error; Genz & Malik (1980) for the halving of
cells in several dimensions.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from pyro_vae.chains.latents import Latents
from pyro_vae.chains.starts import candidates, prior_draws
from pyro_vae.errors import PyroVaeWarning, users_line
from pyro_vae.evaluation import RowFunction, event_size, row_chunks
from pyro_vae.evidence.grids import RULES, Cells, Frame, Grid, quantiles, totals
from pyro_vae.evidence.weights import Evidence, concatenated, first_rows
from pyro_vae.noise import LOOK, Stream, seed_of
from pyro_vae.program.rows import Rows, map_rows, num_rows

MOST_DIMENSIONS = 2
LIKELY = 50  # of the draws, the likeliest, whose quantiles are edges too
ROUGH, FINE = 0.05, {1: 1e-8, 2: 1e-5}  # relative errors of a first grid, and of the second
SETTLED = 0.01  # nats of error above which there is a warning


def quadrature(
    program: nn.Module,
    x: Rows,
    advance: Callable[..., None],
    *,
    seed: int,
    batch_size: int,
    max_elements: int,
) -> Evidence:
    """log p(x) of each datum, and as its standard error what the grid leaves open.

    Raises:
        ValueError: for more than two unconstrained dimensions.

    Warns:
        PyroVaeWarning: where a grid has not settled.
    """
    latents = Latents.of(program, x)
    if latents.dim > MOST_DIMENSIONS:
        raise ValueError(
            f"the latents of a datum ({', '.join(latents.names)}) have {latents.dim} unconstrained "
            f"dimensions, expected at most {MOST_DIMENSIONS} for a grid: use "
            'method="sandwich", or "importance" where the guide is good'
        )
    scored = RowFunction(program, lambda program, pair: latents.log_joint(program, *pair))
    draw = prior_draws(latents, program)
    at_once = max(1, max_elements // event_size(x))
    dtype = draw(map_rows(lambda t: t[:1], x), *LOOK)[0].dtype
    rounding = torch.finfo(dtype).eps
    parts = []
    batch = min(batch_size, num_rows(x))
    for number, (count, rows) in enumerate(row_chunks(x, batch)):
        grid = Grid(partial(_score, scored, rows, at_once, dtype), latents.dim, rounding)
        edges, frame = _edges(draw, rows, seed, number, latents.dim)
        rough = grid.integrate(edges, frame, ROUGH)
        edges = torch.cat([edges, quantiles(rough, len(edges))], 1).sort(1).values
        parts.append(
            first_rows(_evidence(grid.integrate(edges, frame, FINE[latents.dim]), batch), count)
        )
        advance(count)
    found = concatenated(parts)
    open_ = int((~(found.standard_error <= SETTLED)).sum())
    if open_:
        warnings.warn(
            f"the grid has not settled for {open_} of {len(found.value)} data, whose log p(x) is "
            f"open by up to {float(found.standard_error.max()):.2g} nats: "
            'use method="sandwich" for them',
            PyroVaeWarning,
            stacklevel=users_line(),
        )
    return found


def _score(
    function: RowFunction, rows: Rows, at_once: int, dtype: torch.dtype, datum: Tensor, u: Tensor
) -> Tensor:
    """log p(u, x) at u (n, J) of these data (n,), in pieces of one size."""
    at_once = min(at_once, 2 ** math.ceil(math.log2(max(len(u), 1))))  # few forms, each captured
    found = []
    for start in range(0, len(u), at_once):
        index = torch.arange(start, start + at_once, device=u.device).clamp_max(len(u) - 1)
        few = map_rows(partial(torch.index_select, dim=0, index=datum[index]), rows)
        value = function((few, u[index].to(dtype)), *LOOK)
        found.append(value[: len(u) - start].double())
    return torch.cat(found).nan_to_num(-math.inf, math.inf, -math.inf)


def _edges(draw: RowFunction, rows: Rows, seed: int, number: int, dim: int) -> tuple[Tensor, Frame]:
    """Edges of cells in each dimension, (B, E, J), in coordinates of the frame."""
    key = Stream.QUADRATURE.key(seed, number)
    start = candidates(draw, rows, seed_of(*key) >> 1, keep=LIKELY)
    prior = torch.stack([draw(rows, *key, i)[0] for i in range(200)])  # (S, B, J)
    prior, likely = prior.double(), start.best.double()
    places = torch.tensor(RULES[dim][1], dtype=torch.float64, device=prior.device)
    wide = prior.quantile(places, dim=0)  # (E, B, J)
    narrow = likely.quantile(places.new_tensor([0.0, 0.25, 0.5, 0.75, 1.0]), dim=0)
    both = torch.cat([wide, narrow]).sort(0).values
    low, high = both[0], both[-1]
    frame = Frame(low, torch.where(high > low, high, low + 1))
    inside = (both - frame.low) / (frame.high - frame.low)
    inside[-1] = 1.0
    ends = inside.new_tensor([-1.0, 2.0]).view(2, 1, 1).expand(2, *inside.shape[1:])
    return torch.cat([ends[:1], inside, ends[1:]]).movedim(0, 1), frame


def _evidence(cells: Cells, data: int) -> Evidence:
    log_z, error = totals(cells, data)
    nothing, none = torch.zeros_like(log_z), torch.full_like(log_z, math.nan)
    return Evidence(log_z, error, none, nothing, log_z - error, log_z + error, none)
