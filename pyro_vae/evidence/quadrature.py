r"""log p(x) by a grid over the latents, for one or two unconstrained dimensions.

.. math:: p(x) = \int p(u, x) \, du

Each datum has a grid of its own.  It begins with cells between quantiles of draws of the prior and
of the likeliest of them, and two that reach to infinity, so that what the prior reaches is looked
at whether or not it seems to count: well separated modes are found.  Every cell is integrated by a
Gauss-Kronrod rule, whose two results differ by what is wrong with the cell, and cells that are not
good enough are halved until the datum's is.  A mode that lies between all nodes of the first grid
(in one dimension about 1/200 of the prior's width, in two 1/80) and that no draw came near is not
seen.

Source: Piessens et al. (1983), QUADPACK, for rule and error; Genz & Malik (1980) for the halving of
cells in several dimensions.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyro_vae.chains.latents import Latents
from pyro_vae.chains.starts import candidates, prior_draws
from pyro_vae.errors import PyroVaeWarning
from pyro_vae.evaluation import RowFunction, event_size, row_chunks
from pyro_vae.evidence.weights import Evidence, concatenated, first_rows
from pyro_vae.noise import LOOK, Stream, seed_of
from pyro_vae.program.rows import Rows, map_rows, num_rows

MOST_DIMENSIONS = 2
LIKELY = 50  # of the draws, the likeliest, whose quantiles are edges too
ROUNDS = 40  # of halving
MOST_CELLS = {1: 2000, 2: 20_000}  # of a datum
ROUGH, FINE = 0.05, {1: 1e-8, 2: 1e-5}  # relative errors of a first grid, and of the second
AT_ONCE = 2**19  # nodes
MASSES = (1e-6, 0.01, 0.15, 0.5, 0.85, 0.99, 1 - 1e-6)  # of the posterior, between whose quantiles
SETTLED = 0.01  # nats of error above which there is a warning
# Nodes from 0 on, weights of Kronrod's rule and of Gauss's within it (0 where it has no node).
RULES = {
    1: (  # 7 and 15 nodes
        (
            (0.000000000000000000, 0.209482141084727828, 0.417959183673469388),
            (0.207784955007898468, 0.204432940075298892, 0.0),
            (0.405845151377397167, 0.190350578064785410, 0.381830050505118945),
            (0.586087235467691130, 0.169004726639267903, 0.0),
            (0.741531185599394440, 0.140653259715525919, 0.279705391489276668),
            (0.864864423359769073, 0.104790010322250184, 0.0),
            (0.949107912342758525, 0.063092092629978553, 0.129484966168869693),
            (0.991455371120812639, 0.022935322010529225, 0.0),
        ),
        (0.01, 0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 0.95, 0.99),
    ),
    2: (  # 3 and 7
        (
            (0.000000000000000000, 0.450916538658474142, 0.888888888888888889),
            (0.434243749346802558, 0.401397414775962222, 0.0),
            (0.774596669241483377, 0.268488089868333440, 0.555555555555555556),
            (0.960491268708020283, 0.104656226026467265, 0.0),
        ),
        (0.01, 0.15, 0.5, 0.85, 0.99),
    ),
}


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
        grid = _Grid(partial(_score, scored, rows, at_once, dtype), latents.dim, rounding)
        edges, frame = _edges(draw, rows, seed, number, latents.dim)
        rough = grid.integrate(edges, frame, ROUGH)
        edges = torch.cat([edges, _quantiles(rough, len(edges))], 1).sort(1).values
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
            stacklevel=4,
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


class Frame(NamedTuple):
    """How grid coordinates v lie in u: 0 to 1 from ``low`` to ``high``; a unit more to infinity."""

    low: Tensor  # (B, J)
    high: Tensor

    def u(self, datum: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """u and log du/dv at v (..., n, J) of data (n,)."""
        low, width = self.low[datum], (self.high - self.low)[datum]
        beyond = torch.where(v > 1, v - 1, torch.where(v < 0, -v, 0.0))
        far = width * beyond / (1 - beyond)
        inside = low + width * v.clamp(0, 1)
        u = torch.where(v > 1, inside + far, inside - far)
        # Of width t / (1 - t): width / (1 - t)^2.
        return u, (width.log() - 2 * torch.log1p(-beyond)).sum(-1)


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


class _Cells(NamedTuple):
    """Cells of all data in one list."""

    datum: Tensor  # (M,)
    low: Tensor  # (M, J)
    high: Tensor
    log_value: Tensor  # of the integral, (M,)
    log_error: Tensor

    def of(self, which: Tensor) -> _Cells:
        return _Cells(*(field[which] for field in self))


class _Grid:
    """Adaptive integration of B functions side by side.

    Args:
        score: the log of each, at u (n, J) of data (n,).
        dim: J.
        rounding: relative, of these logs.
    """

    def __init__(
        self, score: Callable[[Tensor, Tensor], Tensor], dim: int, rounding: float
    ) -> None:
        self._score, self.dim, self._rounding = score, dim, rounding
        rule = torch.tensor(RULES[dim][0], dtype=torch.float64)
        left = rule[1:] * torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
        nodes, kronrod, gauss = torch.cat([left.flip(0), rule]).T
        self.nodes = torch.cartesian_prod(*[nodes] * dim).view(-1, dim)  # (n, J)
        self.kronrod = torch.cartesian_prod(*[kronrod] * dim).view(-1, dim).prod(-1)
        self.gauss = torch.cartesian_prod(*[gauss] * dim).view(-1, dim).prod(-1)

    def integrate(self, edges: Tensor, frame: Frame, relative: float) -> _Cells:
        """From cells between edges (B, E, J), up to a relative error of each datum's integral."""
        data = len(edges)
        cells = self._evaluated(*self._between(edges), frame)
        for _ in range(ROUNDS):
            log_z, error = _totals(cells, data)
            number = torch.bincount(cells.datum, minlength=data)
            tolerance = self._tolerance(log_z).clamp_min(relative)
            share = (cells.log_error - log_z[cells.datum]).exp()
            going = (error > tolerance) & (number < MOST_CELLS[self.dim])
            split = going[cells.datum] & (share > (tolerance / (2 * number))[cells.datum])
            if not bool(split.any()):
                break
            parents = cells.of(split)
            children = self._evaluated(*self._halves(parents), frame)
            kept = cells.of(~split)
            cells = _Cells(*(torch.cat(pair) for pair in zip(kept, children, strict=True)))
        return cells

    def _tolerance(self, log_z: Tensor) -> Tensor:
        """Of the relative error; what rounding of log p(u, x) leaves open is not halved away."""
        return 8 * self._rounding * log_z.abs().nan_to_num(0.0, 0.0, 0.0)

    def _between(self, edges: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        data, number = edges.shape[0], edges.shape[1] - 1
        index = torch.cartesian_prod(*[torch.arange(number)] * self.dim).view(-1, self.dim)
        index = index.to(edges.device).expand(data, -1, -1)
        low, high = edges.gather(1, index), edges.gather(1, index + 1)
        datum = torch.arange(data, device=edges.device).repeat_interleave(index.shape[1])
        low, high = low.flatten(0, 1), high.flatten(0, 1)
        whole = (high > low).all(-1)
        return datum[whole], low[whole], high[whole]

    def _halves(self, cells: _Cells) -> tuple[Tensor, Tensor, Tensor]:
        middle = (cells.low + cells.high) / 2
        lows, highs = [], []
        for corner in torch.cartesian_prod(*[torch.tensor([False, True])] * self.dim).view(
            -1, self.dim
        ):
            corner = corner.to(middle.device)
            lows.append(torch.where(corner, middle, cells.low))
            highs.append(torch.where(corner, cells.high, middle))
        return cells.datum.repeat(len(lows)), torch.cat(lows), torch.cat(highs)

    def _evaluated(self, datum: Tensor, low: Tensor, high: Tensor, frame: Frame) -> _Cells:
        size = max(1, AT_ONCE // len(self.nodes))
        pieces = zip(datum.split(size), low.split(size), high.split(size), strict=True)
        found = [self._piece(*piece, frame) for piece in pieces]
        return _Cells(*(torch.cat(column) for column in zip(*found, strict=True)))

    def _piece(self, datum: Tensor, low: Tensor, high: Tensor, frame: Frame) -> _Cells:
        half = (high - low) / 2
        nodes = self.nodes.to(low).unsqueeze(1)  # (n, 1, J)
        u, log_slope = frame.u(datum, low + half * (1 + nodes))  # (n, M, J), (n, M)
        many = datum.expand(len(nodes), -1).flatten()
        log_f = self._score(many, u.flatten(0, 1)).view(log_slope.shape) + log_slope
        log_volume = half.log().sum(-1)
        top = log_f.amax(0).nan_to_num(0.0, 0.0, 0.0)
        f = (log_f - top).exp()
        kronrod, gauss = self.kronrod.to(f) @ f, self.gauss.to(f) @ f
        return _Cells(
            datum, low, high, kronrod.log() + top + log_volume,
            (kronrod - gauss).abs().log() + top + log_volume,
        )  # fmt: skip


def _evidence(cells: _Cells, data: int) -> Evidence:
    log_z, error = _totals(cells, data)
    nothing, none = torch.zeros_like(log_z), torch.full_like(log_z, math.nan)
    return Evidence(log_z, error, none, nothing, log_z - error, log_z + error, none)


def _quantiles(cells: _Cells, data: int) -> Tensor:
    """Where in each dimension the posterior is, by a rough grid: (B, Q, J).

    Cells with an edge there have nodes where it counts, so that their error is one.
    """
    log_z, _ = _totals(cells, data)
    weight = (cells.log_value - log_z[cells.datum]).exp()
    found = []
    for dim in range(cells.low.shape[1]):
        order = cells.low[:, dim].argsort(stable=True)
        order = order[cells.datum[order].argsort(stable=True)]
        datum, low, high = cells.datum[order], cells.low[order, dim], cells.high[order, dim]
        below = weight[order].cumsum(0)
        number = torch.bincount(datum, minlength=data)
        first = number.cumsum(0) - number
        last = first + number - 1
        below = below - (below[first] - weight[order][first])[datum]
        places = []
        for place in MASSES:
            # The first cell of each datum up to whose end there is so much.
            reached = (below >= place) | (
                torch.arange(len(datum), device=datum.device) == last[datum]
            )
            index = torch.where(reached, torch.arange(len(datum), device=datum.device), len(datum))
            at = index.new_full((data,), len(datum)).scatter_reduce(0, datum, index, "amin")
            places.append(low[at] if place < 0.5 else high[at])
        found.append(torch.stack(places, 1))
    return torch.stack(found, -1)


def _totals(cells: _Cells, data: int) -> tuple[Tensor, Tensor]:
    """log of each datum's integral, and its relative error, (B,)."""
    values = cells.log_value
    top = values.new_full((data,), -math.inf).scatter_reduce(0, cells.datum, values, "amax")
    top = top.nan_to_num(0.0, 0.0, 0.0)

    def total(logs: Tensor) -> Tensor:
        shares = (logs - top[cells.datum]).exp()
        return torch.zeros_like(top).index_add(0, cells.datum, shares)

    value = total(values)
    return value.log() + top, total(cells.log_error) / value
