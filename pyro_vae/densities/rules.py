"""What makes a number per datum wrong without any error, looked for in the sites themselves."""

from __future__ import annotations

from pyro.distributions import Delta, Pareto, Uniform

from pyro_vae.densities.sites import Site, base_law, data_frame, observes_nothing


def require_rows(guide: dict[str, Site], model: dict[str, Site]) -> None:
    """What makes a number per datum wrong without any error: ``pv.check`` says more."""
    for name, site in model.items():
        latent, inside = not site["is_observed"], data_frame(site) is not None
        if latent and name not in guide:
            raise ValueError(
                f'latent site "{name}" is in the model and not in the guide, so its density would '
                "be missing from log q: sample it in the guide as well"
            )
        if latent and (data_frame(guide[name]) is not None) != inside:
            where = "model" if inside else "guide"
            raise ValueError(
                f'latent site "{name}" is in pyro.plate("data", ...) in the {where} alone: indent '
                "it under the plate in both, or in neither if all data share it"
            )
        has_rows = bool(site["fn"].batch_shape) or not latent
        if not inside and has_rows and not observes_nothing(site):
            raise ValueError(
                f'site "{name}" is outside pyro.plate("data", ...), so it has no density per '
                'datum: write `with pyro.plate("data", len(x)):` around the sites of a datum'
            )
    for name in without_counterpart(guide, model):
        raise ValueError(
            f'latent site "{name}" is in the guide and not in the model, so its density would be '
            "missing from log p(x, z) and the bound would exceed log p(x): add it to the model; "
            'infer={"is_auxiliary": True} is for a guide whose other latents are all '
            "pyro.distributions.Delta at a function of it, with the log_density of that change"
        )


def without_counterpart(guide: dict[str, Site], model: dict[str, Site]) -> list[str]:
    """The guide's latents whose density would be in log q and in no term of log p.

    Their entropy would raise the bound above log p(x), by as much as one likes.  An auxiliary one
    is harmless where the model's latents are points in the guide: functions of it whose
    ``log_density`` is that of the change of variables, as an AutoGuide writes them.  Latents of a
    datum and global ones are told apart.
    """
    found = []
    for name, site in guide.items():
        if site["is_observed"] or name in model:
            continue
        local = data_frame(site) is not None
        drawn = [
            base_law(guide[n]["fn"])
            for n, s in model.items()
            if not s["is_observed"] and n in guide and (data_frame(s) is not None) == local
        ]
        points = bool(drawn) and all(isinstance(law, Delta) for law in drawn)
        if not (points and site["infer"].get("is_auxiliary")):
            found.append(name)
    return found


def require_score(guide: dict[str, Site]) -> None:
    """What has no density, or one whose support moves, has no score that could train it."""
    for name, site in guide.items():
        law = base_law(site["fn"])
        if not site["is_observed"] and isinstance(law, (Delta, Uniform)):
            raise ValueError(
                f'latent site "{name}" has the guide {type(law).__name__}, whose log density says '
                "nothing about where it should move, so without reparameterization its gradient "
                'would silently be zero: use AEVB("A"), or a guide with a density everywhere'
            )


def require_fixed_support(guide: dict[str, Site]) -> None:
    """Where the edges of a density move with parameters, its score is not zero on average."""
    for name, site in guide.items():
        law = base_law(site["fn"])
        if not site["is_observed"] and isinstance(law, (Uniform, Pareto)):
            raise ValueError(
                f'latent site "{name}" has the guide {type(law).__name__}, whose support moves '
                "with its parameters, so leaving the score of q out would leave out its entropy "
                "too: use AEVB() or IWAE()"
            )


def require_rsample(guide: dict[str, Site]) -> None:
    for name, site in guide.items():
        if not site["is_observed"] and not getattr(site["fn"], "has_rsample", False):
            raise ValueError(
                f'latent site "{name}" has the guide {type(site["fn"]).__name__}, which is not '
                "reparameterized, so its gradient would silently be zero: use a distribution "
                "with rsample, or an objective that does not reparameterize: ScoreFunction() for "
                "the same bound, ReweightedWakeSleep() or WakeSleep()"
            )
