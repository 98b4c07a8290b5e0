"""The tables of log densities, and how one particle fills them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pyro_vae.densities.enumeration import model_sites
from pyro_vae.densities.kl import closed_kl
from pyro_vae.densities.rules import (
    require_fixed_support,
    require_rows,
    require_rsample,
    require_score,
)
from pyro_vae.densities.scales import one_scale, weights_of
from pyro_vae.densities.sites import Sites, latents_of, values_of
from pyro_vae.densities.traces import At, Detached, sites_of
from pyro_vae.noise import Noise, NoiseMode
from pyro_vae.program.calling import call_with
from pyro_vae.program.rows import Rows, num_rows, observed_rows


class Densities(NamedTuple):
    """Log densities in nats; K particles, B data.

    Attributes:
        log_prior: log p(z), summed over the latent sites of a datum, (K, B).
        log_likelihood: log p(x | z), (K, B).
        log_q: log q(z | x), (K, B).
        kl: for each latent site KL(q || p) per datum (B,) where torch knows it in closed form,
            else None; of a global latent ().  Where a prior depends on other latents it is the
            mean over particles.
        log_ratio: for each latent site log q - log p at the particles (K, B): the sampled KL.
        global_ratio: the same for each global latent (K,); -log p of a factor outside the plate.
        latents: for each latent site its values, (K, B, ...); global ones (K, ...).
        global_log_p, global_log_q: densities of latents outside the plate, (K,); zero without.
        scale: N / B where the plate is subsampled, else 1.
        observations: log p of each observed site of a datum, and factor, (K, B): their sum is
            log_likelihood.
        weights: the factors of sites that ``poutine.scale`` weighs, which no table holds.
        path: where asked for, (K, B) of value zero, whose gradient is that of log_w along the
            draws alone: sum of g . dz over a datum's latents z, with g = d log_w / dz at detached
            z and guide.  The tables then hang on the draws in no other way.
    """

    log_prior: Tensor
    log_likelihood: Tensor
    log_q: Tensor
    kl: dict[str, Tensor | None]
    log_ratio: dict[str, Tensor]
    global_ratio: dict[str, Tensor]
    latents: dict[str, Tensor]
    global_log_p: Tensor
    global_log_q: Tensor
    scale: float
    observations: dict[str, Tensor]
    weights: dict[str, float]
    path: Tensor | None = None

    @property
    def log_p(self) -> Tensor:
        """log p(x, z), (K, B)."""
        return self.log_prior + self.log_likelihood

    @property
    def log_w(self) -> Tensor:
        """The log importance weight log p(x, z) - log q(z | x), (K, B)."""
        return self.log_p - self.log_q

    @property
    def kl_terms(self) -> dict[str, Tensor]:
        """The KL term of each latent per datum (B,): closed where known, else sampled."""
        return self._kl_or_sampled(self.log_ratio)

    @property
    def sampled_kl_terms(self) -> dict[str, Tensor]:
        """log q - log p of each latent per datum (B,), averaged over the particles."""
        return {name: ratio.mean(0) for name, ratio in self.log_ratio.items()}

    @property
    def global_share(self) -> Tensor:
        """Each datum's 1 / N of log p - log q of the global latents, ()."""
        return (self.global_log_p - self.global_log_q).mean() / self.num_data

    @property
    def global_kl_share(self) -> Tensor | float:
        """Each datum's 1 / N of the KL terms of the global latents, (): closed where known."""
        return sum(self._kl_or_sampled(self.global_ratio).values()) / self.num_data

    @property
    def num_data(self) -> float:
        """N."""
        return self.scale * self.log_q.shape[1]

    def _kl_or_sampled(self, ratios: dict[str, Tensor]) -> dict[str, Tensor]:
        closed = {name: self.kl.get(name) for name in ratios}
        return {
            name: ratio.mean(0) if (kl := closed[name]) is None else kl
            for name, ratio in ratios.items()
        }


class Ways(NamedTuple):
    """How gradients flow through densities; see :func:`densities`."""

    reparameterize: bool = True
    detach_guide: bool = False
    pathwise: bool = False


def one_particle(program: Any, x: Rows, ways: Ways) -> Densities:
    """One particle: tables (B,), global densities ()."""
    drawn = sites_of(program, "guide", x, *([] if ways.reparameterize else [Detached()]))
    guide = _with_leaves(drawn) if ways.pathwise else drawn
    model = model_sites(program, x, values_of(guide))
    require_rows(guide, model, num_rows(x))
    if ways.reparameterize:
        require_rsample(guide)
    elif torch.is_grad_enabled():
        require_score(guide)
    scored = guide
    if ways.detach_guide or ways.pathwise:
        require_fixed_support(guide)
        scored = _guide_with_detached_parameters(program, x, guide)
    tables = tabulated(x, guide, model, scored)
    if ways.pathwise:
        tables = tables._replace(path=_path(drawn, tables.latents, tables.log_w))
    return tables


def tabulated(x: Rows, guide: Sites, model: Sites, scored: Sites | None = None) -> Densities:
    """The tables of one particle from the sites that keep the rules; ``scored`` gives log q."""
    like = observed_rows(x)
    rows = torch.zeros(num_rows(x), device=like.device, dtype=_dtype(model, like))
    prior, likelihood, log_q = rows, rows, rows
    global_p = global_q = rows.new_zeros(())
    log_ratio: dict[str, Tensor] = {}
    global_ratio: dict[str, Tensor] = {}
    observations: dict[str, Tensor] = {}
    for name, site in model.items():
        if site.is_global and site.is_deterministic:
            continue
        value = site.per_datum()
        if site.is_global:
            global_p = global_p + value
            global_ratio[name] = -value
        elif site.observed:
            likelihood = likelihood + value
            if not site.is_deterministic:
                observations[name] = value
        else:
            prior = prior + value
            log_ratio[name] = -value
    for name, site in (guide if scored is None else scored).items():
        if site.is_global and site.is_deterministic:
            continue
        value = site.per_datum()
        if site.is_global:
            global_q = global_q + value
            global_ratio[name] = global_ratio.get(name, 0.0) + value
        else:
            log_q = log_q + value
            log_ratio[name] = log_ratio.get(name, 0.0) + value
    return Densities(
        prior, likelihood, log_q, closed_kl(guide, model), log_ratio, global_ratio,
        values_of(guide), global_p, global_q, one_scale(guide, model), observations,
        weights_of(guide, model),
    )  # fmt: skip


def _with_leaves(guide: Sites) -> Sites:
    """The same draws, each a leaf of its own."""
    leaves = dict(guide)
    for name, site in latents_of(guide).items():
        leaf = site.value.detach()
        leaf = leaf.requires_grad_() if leaf.is_floating_point() else leaf
        leaves[name] = replace(site, value=leaf)
    return leaves


def _path(drawn: Sites, leaves: dict[str, Tensor], log_w: Tensor) -> Tensor:
    """What has the gradient of ``log_w`` (B,) along the draws of each datum, and the value 0."""
    local = [name for name in leaves if not drawn[name].is_global]
    # With a graph of their own, because a capture takes an operation without one for a mistake.
    slopes = torch.autograd.grad(
        log_w.sum(), [leaves[name] for name in local], create_graph=True, allow_unused=True
    )
    path = torch.zeros_like(log_w)
    for name, slope in zip(local, slopes, strict=True):
        if slope is not None:
            site = drawn[name]
            moved = slope.detach() * (site.value - site.value.detach())
            path = path + site.by_row(moved.reshape(*site.batch_shape, -1).sum(-1))
    return path


def _dtype(model: Sites, like: Tensor) -> torch.dtype:
    for site in model.values():
        if isinstance(site.value, Tensor) and site.value.is_floating_point():
            return site.value.dtype
    return like.dtype if like.is_floating_point() else torch.get_default_dtype()


def _guide_with_detached_parameters(program: Any, x: Rows, guide: Sites) -> Sites:
    """The guide's densities at the same latents, as a function of the latents alone."""
    if not isinstance(program, nn.Module):
        raise TypeError(
            "detaching the guide needs its parameters in a module: wrap the two functions, "
            "pv.Program(model, guide)"
        )
    parameters = {name: p.detach() for name, p in program.named_parameters()}
    # Views, because a flow that knows its own last draw again would answer from its memory, in
    # which the path through the flow's own parameters is missing.
    views = {name: value.view_as(value) for name, value in values_of(guide).items()}

    def again(program: Any) -> Sites:
        return sites_of(program, "guide", x, At(views))

    def refuse(index: int, noise: Noise) -> Tensor:
        raise ValueError(
            "the guide draws noise outside pyro.sample, such as dropout, so the density of its "
            "draws cannot be computed a second time, with its parameters held: use AEVB(), or "
            "leave that noise out of the guide"
        )

    with NoiseMode(refuse) as mode:
        scored = call_with(program, parameters, again)
    if mode.kept:
        refuse(0, Noise("", (), torch.float32, torch.device("cpu")))
    return scored
