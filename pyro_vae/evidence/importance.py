r"""log p(x) by importance sampling from the guide.

.. math:: \hat p(x) = \frac1K \sum_k w_k, \qquad w_k = \frac{p(x, z_k)}{q(z_k \mid x)}

The mean of weights is unbiased for p(x), so its logarithm is biased *downward*: a stochastic lower
bound, tighter with K.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.densities.look import Look
from pyro_vae.densities.particles import densities
from pyro_vae.densities.sites import latents_of
from pyro_vae.evaluation import RowFunction, event_size, row_chunks
from pyro_vae.evidence.chi_square import chi_square_bound
from pyro_vae.evidence.weights import Evidence, concatenated, from_log_weights
from pyro_vae.noise import Stream
from pyro_vae.program.rows import Rows, num_rows


def require_weights(look: Look, *, together: bool = False) -> None:
    """Refuse guides whose draws have no weights of a datum that mean anything.

    Args:
        look: at the program.
        together: whether weights of all data together will do.

    Raises:
        ValueError: naming the site: a latent that all data share, or a point (Delta), whose
            weights are all equal.
    """
    prior = latents_of(look.model)
    shared = [n for n, s in look.latents.items() if s.is_global and n in prior]
    shared = [name for name in shared if prior[name].is_global]  # else the plate is missing in one
    if shared and not together:
        raise ValueError(
            f'latent site "{shared[0]}" is outside pyro.plate("{look.rows_plate}", ...), so all '
            "data share it and there is no log p(x) per datum: fix it with pyro.poutine.condition, "
            "or use pv.elbo"
        )
    if any(site.is_auxiliary for site in look.guide.values()):
        return  # the points are functions of draws that have a density of their own
    points = [name for name, site in look.guide.items() if site.is_point]
    if points:
        raise ValueError(
            f'the guide of "{points[0]}" is a point (Delta), whose draws have no weights to '
            'estimate log p(x) from: use pv.log_evidence with proposal="hmc", and '
            "pyro_vae.chains.sample_posterior for draws"
        )


def importance(
    program: nn.Module,
    x: Rows,
    advance: Callable[..., None],
    *,
    num_particles: int,
    seed: int,
    batch_size: int,
    max_elements: int,
) -> tuple[Evidence, Tensor]:
    """Importance sampling in row chunks of ``batch_size`` and particle chunks that fit.

    Memory is bounded by ``max_elements`` elements of (particles, rows, event) at a time, whatever
    K and N are.

    Returns:
        The evidence, and what the chi-square upper bound comes to, (N,): inf where there is none.
    """
    event = event_size(x)
    batch_size = max(1, min(batch_size, num_rows(x), max_elements // event))
    chunk = max(1, min(num_particles, max_elements // (event * batch_size)))
    # Chunks of one size are one graph: the last draws a few particles that are not used.
    chunks = -(-num_particles // chunk)
    chunk = -(-num_particles // chunks)
    pieces = -(-num_rows(x) // batch_size)
    function = RowFunction(program, _log_w(chunk), calls=pieces * chunks)
    parts: list[Evidence] = []
    above: list[Tensor] = []
    for number, (count, rows) in enumerate(row_chunks(x, batch_size)):
        table: Tensor | None = None
        for part in range(chunks):
            log_w = function(rows, *Stream.EVIDENCE.key(seed, number, part))
            if table is None:  # in one piece: small ones between large chunks scatter the memory
                table = log_w.new_empty(chunks * chunk, count)
            table[part * chunk : (part + 1) * chunk] = log_w[:, :count]
        log_w = table[:num_particles]  # type: ignore[index]
        parts.append(from_log_weights(log_w))
        above.append(chi_square_bound(log_w).above(parts[-1].khat))
        advance(count)
    return concatenated(parts), torch.cat(above)


def _log_w(size: int) -> Any:
    def log_w(program: nn.Module, rows: Rows) -> Tensor:
        return densities(program, rows, size, reparameterize=False).log_w

    return log_w
