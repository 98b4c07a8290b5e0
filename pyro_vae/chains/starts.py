"""Where chains start: many draws of the prior, of which those with a likelihood are kept."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyro_vae.chains.latents import Latents
from pyro_vae.evaluation import RowFunction
from pyro_vae.noise import Stream, seeded
from pyro_vae.program.rows import Rows, num_rows

CANDIDATES = 500  # draws of the prior, of which a "resampled" chain starts from one
PIECE = 100  # candidates of a chain between two sortings


class Candidates(NamedTuple):
    """Draws of the prior for C chains of each of B data.

    Attributes:
        start: one for each chain, picked with probability proportional to p(x | z), (C B, J).
        best: those of the largest likelihood among all of a datum's, (T, B, J).
        log_joint: of these, log p(u, x), (T, B); -inf where it is no number.
    """

    start: Tensor
    best: Tensor
    log_joint: Tensor


def prior_draws(latents: Latents, program: nn.Module) -> RowFunction:
    """For any rows a draw of the prior, and what :meth:`Latents.drawn` says of it."""
    return RowFunction(program, latents.drawn)


def candidates(
    draw: RowFunction, x: Rows, seed: int, *, chains: int = 1, keep: int = 0
) -> Candidates:
    """Draw :data:`CANDIDATES` for each row of ``x``, which holds every datum ``chains`` times.

    Args:
        draw: of :func:`prior_draws`.
        x: the rows.
        seed: of the noise.
        chains: C; those of a datum have their ``best`` in common.
        keep: T at most.
    """
    with seeded(*Stream.START.key(seed)):
        return _candidates(draw, x, seed, chains, keep)


def _candidates(draw: RowFunction, x: Rows, seed: int, chains: int, keep: int) -> Candidates:
    data = num_rows(x) // chains
    heights, places = [], []
    kept: list[Tensor] = []  # u, log joint, log weight
    for first in range(0, CANDIDATES, PIECE):
        numbers = range(first, first + PIECE)
        drawn = [draw(x, *Stream.CANDIDATES.key(seed, number)) for number in numbers]
        u, log_joint, log_prior = (torch.stack(column) for column in zip(*drawn, strict=True))
        weight = (log_joint - log_prior).nan_to_num(-math.inf)
        # The largest of log weights plus Gumbel noise is a draw by weight, whatever the order.
        height, index = (weight - torch.empty_like(weight).exponential_().log()).max(0)
        heights.append(height)
        places.append(_picked(u, index[None])[0])
        # Chains of a datum have its candidates in common: (piece, C B) is (piece C, B).
        columns = [u.view(-1, data, u.shape[-1]), log_joint.view(-1, data), weight.view(-1, data)]
        if kept:
            columns = [torch.cat(pair) for pair in zip(kept, columns, strict=True)]
        if len(columns[2]) > keep:
            index = columns[2].topk(keep, dim=0).indices
            columns = [_picked(column, index) for column in columns]
        kept = columns
    highest = torch.stack(heights).argmax(0, keepdim=True)
    start = _picked(torch.stack(places), highest)[0]
    return Candidates(start, kept[0], kept[1].nan_to_num(-math.inf))


def _picked(values: Tensor, index: Tensor) -> Tensor:
    """Entries of (n, B) or (n, B, J) by number, (m, B)."""
    if values.dim() == 3:
        index = index[..., None].expand(-1, -1, values.shape[-1])
    return values.gather(0, index)
