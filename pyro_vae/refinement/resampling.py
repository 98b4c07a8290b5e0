r"""The guide's draws, picked again in proportion to their weights.

.. math:: P(z = z_k) = \tilde w_k, \qquad w_k = p(x, z_k) / q(z_k \mid x), \quad k = 1 \ldots K,

with the weights Pareto-smoothed.  It moves no draw: what the guide never drew stays out, and khat
says where that is the case.

Sources: Rubin (1988) for sampling by importance resampling; of the weights,
:mod:`pyro_vae.evidence.smoothing`; of the picking, Kitagawa (1996): one uniform number and a comb.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pyro_vae.densities.sites import Sites
from pyro_vae.evaluation import RowFunction, row_chunks
from pyro_vae.evidence.smoothing import pareto_smoothed
from pyro_vae.noise import Stream, seeded
from pyro_vae.program.rows import Rows
from pyro_vae.refinement.drawing import drawn, joined, rows_at_once, table_size
from pyro_vae.refinement.result import Refinement


def resampled(
    program: nn.Module,
    x: Rows,
    sites: Sites,
    *,
    num_draws: int,
    num_particles: int,
    seed: int,
    batch_size: int | None,
    max_elements: int,
    advance: Callable[..., None],
) -> Refinement:
    """Draw K from the guide, pick S of them, with repetition, datum by datum."""
    batch_size = rows_at_once(x, batch_size, max_elements)
    size = table_size(x, num_particles, batch_size, max_elements)
    function = RowFunction(program, drawn(size, sites))
    picked: list[dict[str, Tensor]] = []
    khats, sizes = [], []
    for number, (count, rows) in enumerate(row_chunks(x, batch_size)):
        runs = [
            function(rows, *Stream.REFINED.key(seed, number, part))
            for part in range(-(-num_particles // size))
        ]
        log_w = torch.cat([run[1] for run in runs])[:num_particles]
        smoothed, khat = pareto_smoothed(log_w)
        with seeded(*Stream.RESAMPLED.key(seed, number)):
            index = _comb(smoothed.exp(), num_draws)
        values = joined([run[0] for run in runs], num_particles)
        rows_of = torch.arange(index.shape[1], device=index.device)
        picked.append({name: v[index, rows_of][:, :count] for name, v in values.items()})
        khats.append(khat[:count])
        sizes.append((-(2 * smoothed).logsumexp(0)).exp()[:count])
        advance(count)
    values = {name: torch.cat([each[name] for each in picked], 1) for name in picked[0]}
    return Refinement("psis", values, khat=torch.cat(khats).double(), ess=torch.cat(sizes))


def _comb(weights: Tensor, num_draws: int) -> Tensor:
    """S numbers of draws by their weights (K, B), in no order: (S, B)."""
    like = weights[:1]
    teeth = torch.arange(num_draws, dtype=weights.dtype, device=weights.device).unsqueeze(-1)
    teeth = (teeth + torch.rand_like(like)) / num_draws
    below = weights.cumsum(0) / weights.sum(0)
    index = torch.searchsorted(below.T.contiguous(), teeth.T.contiguous())
    index = index.clamp_max(len(weights) - 1)
    order = torch.rand_like(index, dtype=weights.dtype).argsort(-1)
    return index.gather(-1, order).T
