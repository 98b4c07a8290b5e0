"""KL terms in closed form, where torch knows one and the masks leave it right."""

from __future__ import annotations

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import kl_divergence

import pyro_vae.distributions  # noqa: F401  (registers further closed forms)
from pyro_vae.densities.sites import Site, Sites, law_masks


def _of_one_mask(a: Site, b: Site) -> bool:
    """Whether two sites have the same masks, as objects."""
    masks = [[site.mask, *law_masks(site.law)] for site in (a, b)]
    return len(masks[0]) == len(masks[1]) and all(x is y for x, y in zip(*masks, strict=True))


def _equally_masked(a: Site, b: Site) -> Tensor:
    """For each event, whether two sites leave out the same numbers of it."""
    equal = (a.whole_mask() == b.whole_mask()).to(a.value.device)
    equal = equal.expand(a.batch_shape + a.event_shape)
    return equal.flatten(len(a.batch_shape)).all(-1) if a.event_shape else equal


def closed_kl(guide: Sites, model: Sites) -> dict[str, Tensor | None]:
    """KL(q || p) of each latent where a closed form is registered: (B,), of a global one ().

    Where the masks of guide and model differ there is none: those events count log q - log p of
    the draw, each under its own mask.
    """
    shared = [
        name
        for name, site in model.items()  # without what pyro.deterministic names in both
        if name in guide and not (site.observed or guide[name].observed)
    ]
    # (torch's KL from a Delta forgets its log_density, so that is left to sampling.)
    # If the guide draws its sites in another order, the prior of one may depend on a site that
    # the guide draws after it; then E_q of the closed form is not the KL term of the bound.
    mean_field = shared == [name for name in guide if name in shared]
    result: dict[str, Tensor | None] = {}
    for name in shared:
        q, p = guide[name], model[name]
        result[name] = None
        if mean_field and not q.is_point:
            try:
                kl = kl_divergence(q.law, p.law)
            except NotImplementedError:
                continue
            if not isinstance(kl, Tensor) or kl.shape != q.batch_shape:
                continue
            closed = scale_and_mask(kl, 1.0, q.mask)
            if not _of_one_mask(q, p):  # by entry, because a graph cannot branch on values
                closed = torch.where(_equally_masked(q, p), closed, q.density() - p.density())
            result[name] = q.by_row(closed)
    return result
