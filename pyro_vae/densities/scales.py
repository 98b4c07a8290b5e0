"""What the terms of a bound are multiplied by: N / B for all of a datum, and what a user weighs.

``poutine.scale`` around a site weighs its term, as Pyro's ``Trace_ELBO`` counts it: a factor beta
on a latent, in model and guide, makes a beta-VAE.  Tables of densities never hold such a factor;
the objective that takes it multiplies by it.
"""

from __future__ import annotations

from pyro_vae.densities.sites import Sites


def scale_of(sites: Sites) -> tuple[float | None, str | None]:
    """N / B, where a site of a datum tells it; and a site that has a factor besides, by name."""
    inside = [site.plate.scale for site in sites.values() if site.plate is not None]
    weighed = (name for name, s in sites.items() if not s.is_deterministic and s.factor != 1.0)
    return (inside[0] if inside else None), next(weighed, None)


def one_scale(guide: Sites, model: Sites) -> float:
    """N / B, which all sites of a datum have.

    Raises:
        ValueError: where plates of the rows count different numbers of data, or another plate is
            subsampled.
    """
    first = None
    for name, site in [*model.items(), *guide.items()]:
        for plate in site.plates:
            if plate is not site.plate and plate.scale != 1.0:
                raise ValueError(
                    f'site "{name}" is in pyro.plate("{plate.name}", ...), which holds '
                    f"{plate.size} of {plate.total}, expected all of them: subsample the plate of "
                    "the rows alone"
                )
        if site.plate is None:
            continue
        first = first or (name, site.plate.scale)
        if site.plate.scale != first[1]:
            raise ValueError(
                f'the log density of site "{name}" is scaled by {site.plate.scale:g}, expected '
                f'{first[1]:g} like "{first[0]}": give the rows\' plate one size in model and '
                "guide"
            )
    return first[1] if first else 1.0


def weights_of(guide: Sites, model: Sites) -> dict[str, float]:
    """The factors of sites that ``poutine.scale`` weighs: of the latents, and of observations.

    Raises:
        ValueError: where a latent has one factor in the guide and another in the model, because
            then what is weighed is no KL term.
    """
    weights = {}
    for name, site in model.items():
        if site.is_deterministic:
            continue
        factor = site.factor
        if name in guide and not site.observed and guide[name].factor != factor:
            raise ValueError(
                f'the log density of latent site "{name}" is scaled by {factor:g} in the model, '
                f"expected {guide[name].factor:g} like in the guide: put the same poutine.scale "
                "around both, which weighs the KL term, or pass AEVB(kl_weight=...)"
            )
        if factor != 1.0:
            weights[name] = factor
    for name, site in guide.items():
        if name not in model and site.factor != 1.0 and not site.is_deterministic:
            weights[name] = site.factor
    return weights
