"""Where chains start: many draws of the prior, of which those with a likelihood are kept."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_vae.chains.latents import Latents
from pyro_vae.evaluation import RowFunction
from pyro_vae.noise import Stream
from pyro_vae.program.rows import Rows, num_rows

CANDIDATES = 500  # draws of the prior, of which a "resampled" chain starts from one
PIECE = 100  # candidates of a chain between two sortings


class Candidates(NamedTuple):
    """Draws of the prior for C chains of each of B data.

    Attributes:
        start: one for each chain, picked with probability proportional to p(x | z), (C B, J).
        best: those of the largest likelihood among all of a datum's, (T, B, J), T at most ``keep``.
        log_joint: of these, log p(u, x), (T, B); -inf where it is no number.
    """

    start: Tensor
    best: Tensor
    log_joint: Tensor


def candidates(
    latents: Latents, program: nn.Module, x: Rows, seed: int, *, chains: int = 1, keep: int = 0
) -> Candidates:
    """Draw :data:`CANDIDATES` for each row of ``x``, which holds every datum ``chains`` times.

    The largest of log weights plus Gumbel noise is a draw by weight, whatever the order.
    """

    def candidate(program: nn.Module, x: Rows) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        u, log_joint, log_prior = latents.drawn(program, x)
        weight = (log_joint - log_prior).nan_to_num(-math.inf)
        noise = -torch.empty(len(u), dtype=u.dtype, device=u.device).exponential_().log()
        return u, log_joint, weight, weight + noise

    draw = RowFunction(program, candidate)
    data = num_rows(x) // chains
    best: list[Any] = []
    kept: tuple[Tensor, ...] = ()  # u, log joint, log weight
    for first in range(0, CANDIDATES, PIECE):
        numbers = range(first, first + PIECE)
        drawn = [draw(x, *Stream.CANDIDATES.key(seed, number)) for number in numbers]
        u, log_joint, weight, height = (torch.stack(column) for column in zip(*drawn, strict=True))
        height, index = height.max(0)
        best.append((height, _picked(u, index[None])[0]))
        # Chains of a datum have its candidates in common: (piece, C B) is (piece C, B).
        columns = [u.view(-1, data, u.shape[-1]), log_joint.view(-1, data), weight.view(-1, data)]
        if kept:
            columns = [torch.cat(pair) for pair in zip(kept, columns, strict=True)]
        if len(columns[2]) > keep:
            index = columns[2].topk(keep, dim=0).indices
            columns = [_picked(column, index) for column in columns]
        kept = tuple(columns)
    heights, places = (torch.stack(column) for column in zip(*best, strict=True))
    start = _picked(places, heights.argmax(0, keepdim=True))[0]
    return Candidates(start, kept[0], kept[1].nan_to_num(-math.inf))


def _picked(values: Tensor, index: Tensor) -> Tensor:
    """Entries of (n, B) or (n, B, J) by number, (m, B)."""
    return values.gather(0, index if values.dim() == 2 else index[..., None].expand(-1, -1, values.shape[-1]))
