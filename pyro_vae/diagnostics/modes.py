"""Posteriors of several modes, where the guide has one: what a failed calibration may come from.

Chains that start from the guide and from draws of the prior show which data have such a posterior.
That is an explanation and no test: it is looked for only where calibration has failed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.calibration.ranks import coordinates
from pyro_vae.diagnostics.findings import Finding, named
from pyro_vae.predictive.latents import encode
from pyro_vae.program.rows import Rows
from pyro_vae.refinement import refine

APART = 3.5  # distance of two halves in their own standard deviations; a normal law has 2.7
VALLEY = 0.5  # of the lower of two summits, that the density between them stays below
LEAST = 0.05  # of the draws in the smaller mode
WINDOW = 0.15  # of the distance between two summits, around each place where draws are counted


@dataclass(frozen=True)
class Modes:
    """Which data have a posterior of two modes or more, of M that were looked at.

    Attributes:
        index: which data, (M,), of those that the model made.
        names: of the coordinates.
        several: (M, C): whether the posterior has two modes along a coordinate.
        held: the share of the guide's draws beyond the valley, less that of the posterior, at its
            largest, (M,); 0 where there is one mode.
    """

    index: Tensor
    names: list[str]
    several: Tensor
    held: Tensor

    def findings(self) -> list[Finding]:
        """Named where there are any."""
        rows = self.several.any(1)
        if not rows.any():
            return []
        along = [n for n, some in zip(self.names, self.several.any(0), strict=True) if some]
        text = (
            f"The posterior has several modes (along {named(along)}) at {int(rows.sum())} of "
            f"{len(rows)} simulated data that chains looked at; "
            f"the guide's share of draws on one side is not the chains' by up to "
            f"{float(self.held.max()):.0%}: a mixture or a flow as posterior= may hold them."
        )
        return [Finding("modes", "bad", text)]


def modes(program: Any, x: Rows, index: Tensor, *, seed: int = 0, progress: Any = None) -> Modes:
    """Run chains on the data ``x``, (M, ...), and compare what they find with the guide.

    Raises:
        ValueError: for latents that chains cannot move, such as discrete ones.
    """
    better = refine(program, x, method="hmc", num_draws=400, seed=seed, progress=progress).values
    own = encode(program, x, num_draws=400, seed=seed)
    own = own if isinstance(own, dict) else {next(iter(better)): own}
    draws = dict(coordinates(better, lead=2))
    mine = dict(coordinates({name: own[name] for name in better}, lead=2))
    several, held = [], []
    for name, values in draws.items():
        two, cut = two_modes(values.double())
        share = (values.double() > cut).double().mean(0)
        guess = (mine[name].double() > cut).double().mean(0)
        several.append(two)
        held.append(torch.where(two, (share - guess).abs(), 0.0))
    return Modes(index, list(draws), torch.stack(several, 1), torch.stack(held, 1).amax(1))


def two_modes(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Whether draws (S, B) fall into two heaps with a valley between, and where that is, (B,).

    The cut is the one of least variance within the two parts (Fisher, 1958).
    """
    ordered = draws.sort(0).values
    number = len(ordered)
    counts = torch.arange(1, number, dtype=draws.dtype)[:, None]
    sums, squares = ordered.cumsum(0), ordered.square().cumsum(0)
    low, high = sums[:-1] / counts, (sums[-1] - sums[:-1]) / (number - counts)
    within_low = (squares[:-1] / counts - low.square()).clamp_min(0)
    within_high = ((squares[-1] - squares[:-1]) / (number - counts) - high.square()).clamp_min(0)
    within = counts * within_low + (number - counts) * within_high
    best = within.argmin(0, keepdim=True)

    def at(t: Tensor) -> Tensor:
        return t.gather(0, best)[0]

    distance = at(high) - at(low)
    spread = ((at(within_low) + at(within_high)) / 2).sqrt()
    share = (best[0] + 1).to(draws.dtype) / number
    cut = (ordered.gather(0, best)[0] + ordered.gather(0, best + 1)[0]) / 2
    reach = WINDOW * distance

    def density(place: Tensor) -> Tensor:
        return ((draws - place).abs() < reach).to(draws.dtype).mean(0)

    middle = (at(low) + at(high)) / 2
    between = torch.minimum(density(cut), density(middle))
    summits = torch.minimum(density(at(low)), density(at(high)))
    two = (distance > APART * spread) & (between < VALLEY * summits)
    return two & (torch.minimum(share, 1 - share) > LEAST), cut
