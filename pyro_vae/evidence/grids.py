"""Functions of a few variables integrated side by side, each on cells of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

ROUNDS = 40  # of halving
MOST_CELLS = {1: 2000, 2: 20_000}  # of a datum
AT_ONCE = 2**19  # nodes
STEEP = 1.0  # nats from the highest node to a peak, above which no rule sees the peak
MOST = 1000.0  # nats of a climb that are believed
MASSES = (1e-6, 0.01, 0.15, 0.5, 0.85, 0.99, 1 - 1e-6)  # of the posterior, between whose quantiles
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


class Cells(NamedTuple):
    """Cells of all data in one list."""

    datum: Tensor  # (M,)
    low: Tensor  # (M, J)
    high: Tensor
    log_value: Tensor  # of the integral, (M,)
    log_error: Tensor

    def of(self, which: Tensor) -> Cells:
        return Cells(*(field[which] for field in self))


class Grid:
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

    def integrate(self, edges: Tensor, frame: Frame, relative: float) -> Cells:
        """From cells between edges (B, E, J), up to a relative error of each datum's integral."""
        data = len(edges)
        cells = self._evaluated(*self._between(edges), frame)
        for _ in range(ROUNDS):
            log_z, error = totals(cells, data)
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
            cells = Cells(*(torch.cat(pair) for pair in zip(kept, children, strict=True)))
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

    def _halves(self, cells: Cells) -> tuple[Tensor, Tensor, Tensor]:
        middle = (cells.low + cells.high) / 2
        lows, highs = [], []
        for corner in torch.cartesian_prod(*[torch.tensor([False, True])] * self.dim).view(
            -1, self.dim
        ):
            corner = corner.to(middle.device)
            lows.append(torch.where(corner, middle, cells.low))
            highs.append(torch.where(corner, cells.high, middle))
        return cells.datum.repeat(len(lows)), torch.cat(lows), torch.cat(highs)

    def _evaluated(self, datum: Tensor, low: Tensor, high: Tensor, frame: Frame) -> Cells:
        size = max(1, AT_ONCE // len(self.nodes))
        pieces = zip(datum.split(size), low.split(size), high.split(size), strict=True)
        found = [self._piece(*piece, frame) for piece in pieces]
        return Cells(*(torch.cat(column) for column in zip(*found, strict=True)))

    def _piece(self, datum: Tensor, low: Tensor, high: Tensor, frame: Frame) -> Cells:
        half = (high - low) / 2
        nodes = self.nodes.to(low).unsqueeze(1)  # (n, 1, J)
        u, log_slope = frame.u(datum, low + half * (1 + nodes))  # (n, M, J), (n, M)
        many = datum.expand(len(nodes), -1).flatten()
        log_f = self._score(many, u.flatten(0, 1)).view(log_slope.shape) + log_slope
        log_volume = half.log().sum(-1)
        top = log_f.amax(0).nan_to_num(0.0, 0.0, 0.0)
        f = (log_f - top).exp()
        kronrod, gauss = self.kronrod.to(f) @ f, self.gauss.to(f) @ f
        error = (kronrod - gauss).abs().log() + top
        # A peak between nodes shows in neither result, but in how steeply log f climbs to it.
        gain = self._climb(log_f)
        peak = torch.where(gain > STEEP, top + gain - math.log(len(nodes)), -math.inf)
        log_error = torch.maximum(error, peak) + log_volume
        return Cells(datum, low, high, kronrod.log() + top + log_volume, log_error)

    def _climb(self, log_f: Tensor) -> Tensor:
        """How far above its highest node log f would peak in a cell, (M,).

        Along each dimension by the parabola through that node and its neighbours, beside an edge by
        the line.
        """
        places = self.nodes[:, -1].unique().to(log_f)
        number, gain = len(places), torch.zeros_like(log_f[0])
        grid = log_f.unflatten(0, (number,) * self.dim)
        best = log_f.argmax(0)
        for dim in range(self.dim):
            stride = number ** (self.dim - 1 - dim)
            at = best // stride % number
            line = grid.movedim(dim, 0)  # (number, others ..., M)
            if self.dim == 2:
                other = (best // (number if dim == 1 else 1)) % number
                line = line.gather(1, other.expand(number, 1, -1)).squeeze(1)
            inner = at.clamp(1, number - 2)
            y0, y1, y2 = (line.gather(0, (inner + k)[None])[0] for k in (-1, 0, 1))
            x0, x1, x2 = (places[inner + k] for k in (-1, 0, 1))
            left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
            bend = ((right - left) / (x2 - x0)).clamp_max(-1e-30)
            slope = left + bend * (x1 - x0)  # of the parabola, at x1
            inside = slope.square() / (-4 * bend)
            beside = torch.where(at == 0, -left * (1 + places[0]), right * (1 - places[-1]))
            edge = (at == 0) | (at == number - 1)
            gain = gain + torch.where(edge, beside, inside).nan_to_num(0.0, MOST, 0.0).clamp_min(0)
        return gain.clamp_max(MOST)


def quantiles(cells: Cells, data: int) -> Tensor:
    """Where in each dimension the posterior is, by a rough grid: (B, Q, J).

    Cells with an edge there have nodes where it counts, so that their error is one.
    """
    log_z, _ = totals(cells, data)
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


def totals(cells: Cells, data: int) -> tuple[Tensor, Tensor]:
    """log of each datum's integral, and its relative error, (B,)."""
    values = cells.log_value
    top = values.new_full((data,), -math.inf).scatter_reduce(0, cells.datum, values, "amax")
    top = top.nan_to_num(0.0, 0.0, 0.0)

    def total(logs: Tensor) -> Tensor:
        shares = (logs - top[cells.datum]).exp()
        return torch.zeros_like(top).index_add(0, cells.datum, shares)

    value = total(values)
    return value.log() + top, total(cells.log_error) / value
