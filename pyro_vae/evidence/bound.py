"""The evidence lower bound per datum, by one routine for all methods."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.densities import densities
from pyro_vae.engine import RowFunction, row_chunks
from pyro_vae.inputs import as_rows
from pyro_vae.program import Rows


def elbo(
    program: nn.Module, x: Any, *, num_particles: int = 1, seed: int = 0, batch_size: int = 1000
) -> Tensor:
    r"""An unbiased estimate of the ELBO of each datum, in nats.

    .. math:: E_{q(z|x)} \log p(x \mid z) - KL(q(z \mid x) \,\|\, p(z))

    The KL of a latent is taken in closed form where torch knows it (estimator B), else sampled
    (A).  Global latents count 1 / N of their terms in each datum.

    Args:
        program: the program.
        x: data (N, ...): a tensor, an array, a dict or a ``Data``.
        num_particles: K draws per datum.
        seed: of the noise; the same seed gives the same noise for two programs.
        batch_size: rows at a time.

    Returns:
        (N,) nats per datum, without gradient.
    """

    def bound(program: nn.Module, rows: Rows) -> Tensor:
        d = densities(program, rows, num_particles, reparameterize=False)
        return d.log_likelihood.mean(0) - sum(d.kl_terms.values()) - d.global_kl_share

    x = as_rows(x, program)
    function = RowFunction(program, bound)
    return torch.cat(
        [
            function(rows, seed, number)[:count]
            for number, (count, rows) in enumerate(row_chunks(x, batch_size))
        ]
    )
