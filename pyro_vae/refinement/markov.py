r"""Chains of Hamiltonian Monte Carlo that start where the guide *and* the prior say.

A chain that starts from the guide stays in the modes that the guide has, and one that starts from
the prior has far to go.  So each chain picks its start among draws of both, half and half, by
their weights over the mixture,

.. math:: w(z) = \frac{p(x, z)}{\tfrac12 q(z \mid x) + \tfrac12 p(z)},

which a mode that the guide misses has its fair share of: chains then lie in the modes about as
often as these weigh.  What one of the two never meets is found by the other.

Sources: Veach & Guibas (1995), equation (9), for the weights; of the chains,
:mod:`pyro_vae.chains`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vae.chains.convergence import integrated_time, split_rhat
from pyro_vae.chains.latents import Latents
from pyro_vae.chains.sampling import Draws, run_chains
from pyro_vae.chains.target import captured
from pyro_vae.densities.dreams import guide_log_density
from pyro_vae.densities.look import looking
from pyro_vae.densities.sites import Sites, values_of
from pyro_vae.densities.traces import sites_of
from pyro_vae.evaluation import RowFunction, row_chunks
from pyro_vae.noise import Stream, seed_of, seeded
from pyro_vae.program.rows import Rows, map_rows, repeated
from pyro_vae.refinement.drawing import rows_second
from pyro_vae.refinement.result import Refinement

POOL = 200  # draws of the guide, and as many of the prior, that a chain picks its start from
AT_ONCE = 500  # data
JITTER = 0.2  # with more, steps tuned in few dimensions are lengthened to where moves diverge


def chained(
    program: nn.Module,
    x: Rows,
    sites: Sites,
    *,
    num_draws: int,
    chains: int,
    warmup: int,
    leapfrog_steps: int,
    seed: int,
    batch_size: int | None,
    advance: Callable[..., None],
) -> Refinement:
    """S / C draws from each of C chains of each datum, by the model's latents in ``sites``."""
    latents = Latents.of(program, x)
    pool = RowFunction(program, _pool(latents, _has_densities(program, x, latents)))
    parts: list[tuple[dict[str, Tensor], Tensor, Tensor, Tensor]] = []
    for number, (count, rows) in enumerate(row_chunks(x, batch_size or AT_ONCE)):
        own = seed_of(*Stream.PIECES.key(seed, number)) >> 1
        many = repeated(rows, chains)
        start = _started(pool, many, own)
        calls = (warmup + num_draws // chains) * leapfrog_steps
        evaluate, engine = captured(latents, program, many, start, calls)
        draws = run_chains(
            latents, evaluate, engine, start, num_draws=num_draws // chains, warmup=warmup,
            leapfrog_steps=leapfrog_steps, jitter=JITTER, whiten=chains, seed=own,
        )  # fmt: skip
        parts.append(_told(draws, sites, chains, count))
        advance(count)
    values = {name: torch.cat([part[0][name] for part in parts], 1) for name in parts[0][0]}
    columns = list(zip(*parts, strict=True))[1:]
    ess, rhat, accept = (torch.cat(column).double() for column in columns)
    return Refinement("hmc", values, chains=chains, ess=ess, rhat=rhat, accept=accept)


def _told(
    draws: Draws, sites: Sites, chains: int, count: int
) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
    """Draws (S, N, ...), chain by chain, and what is known of them, (N,)."""
    u = draws.u.unflatten(1, (chains, -1))[:, :, :count]  # (S / C, C, N, J)
    values = {}
    for name, raw in draws.values.items():
        value = rows_second(sites[name], raw) if name in sites else raw
        value = value.unflatten(1, (chains, -1))[:, :, :count]
        values[name] = value.transpose(0, 1).flatten(0, 1)
    time = torch.stack([integrated_time(column) for column in u.unbind(-1)])  # (J, N)
    accept = draws.accept.unflatten(0, (chains, -1)).mean(0)[:count]
    return values, u.shape[0] * chains / time.amax(0), split_rhat(u), accept


def _started(pool: RowFunction, rows: Rows, seed: int) -> Tensor:
    """Of each row's pool one draw by its weight, (B, J)."""
    best = picked = None
    with seeded(*Stream.START.key(seed)):
        for number in range(POOL):
            u, log_w = pool(rows, *Stream.POOL.key(seed, number))  # of the prior, and of the guide
            # The largest of log weights plus Gumbel noise is a draw by weight, whatever the order.
            height = log_w.nan_to_num(-math.inf)
            height = height - torch.empty_like(height).exponential_().log()
            for column, each in zip(u, height, strict=True):
                if best is None or picked is None:
                    best, picked = each, column
                    continue
                higher = each > best
                best = torch.where(higher, each, best)
                picked = torch.where(higher.unsqueeze(-1), column, picked)
    if picked is None:
        raise RuntimeError("the pool is empty")
    return picked


def _pool(latents: Latents, with_guide: bool) -> Callable[[Any, Rows], tuple[Tensor, Tensor]]:
    """One draw of the prior, and one of the guide: u (2, B, J), and log weights (2, B)."""

    def pool(program: nn.Module, rows: Rows) -> tuple[Tensor, Tensor]:
        u, log_joint, log_prior = latents.drawn(program, rows)
        if not with_guide:
            return u.unsqueeze(0), (log_joint - log_prior).unsqueeze(0)
        other = latents.unconstrain(values_of(sites_of(program, "guide", rows)))
        terms = [(u, log_joint, log_prior), (other, *latents.log_terms(program, rows, other))]
        log_w = []
        for each, joint, prior in terms:
            values = latents.constrain(each)
            log_q = guide_log_density(program, rows, values) + latents.log_det(each)
            log_w.append(joint - torch.logaddexp(log_q, prior) + math.log(2))
        return torch.stack([u, other]), torch.stack(log_w)

    return pool


def _has_densities(program: nn.Module, x: Rows, latents: Latents) -> bool:
    """Whether the guide's density is known at draws that are not its own.

    Not that of a point, of a flow without an inverse, or of a guide with auxiliary draws: chains
    then start from the prior alone.
    """
    few = map_rows(lambda t: t[:2], x)
    with torch.no_grad(), looking(program):
        guide = sites_of(program, "guide", few)
        if any(site.is_auxiliary or site.is_point for site in guide.values()):
            return False
        if set(values_of(guide)) != set(latents.names):
            return False
        if any(site.without_inverse() for site in guide.values()):
            return False
        drawn = latents.drawn(program, few)[0]
        return bool(guide_log_density(program, few, latents.constrain(drawn)).isfinite().any())
