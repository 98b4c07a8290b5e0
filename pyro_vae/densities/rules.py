"""What makes a number per datum wrong without any error, looked for in the sites themselves."""

from __future__ import annotations

from pyro.distributions import Delta, Pareto, Uniform

from pyro_vae.densities.sites import Site, Sites, has_finite_support, latents_of


def require_rows(guide: Sites, model: Sites, rows: int) -> None:
    """What makes a number per datum wrong without any error: ``pv.check`` says more."""
    both = [*guide.values(), *model.values()]
    plate = next((site.plate.name for site in both if site.plate is not None), "data")
    for site in both:
        if not (site.is_deterministic or site.is_factor):
            require_each_row(site, rows)
    missing = {n: s for n, s in guide.items() if n not in latents_of(model)}
    require_latents_alone(missing)
    for name, site in model.items():
        latent, inside = not site.observed, not site.is_global
        if latent and name not in guide:
            if site.is_marked:
                require_summable(site)
                continue
            raise ValueError(
                f'latent site "{name}" is in the model and not in the guide, so its density would '
                f"be missing from log q: sample it in the guide as well{or_sum_it_out(site)}"
            )
        if latent and guide[name].observed:
            raise ValueError(
                f'latent site "{name}" of the model is given a value in the guide, so it would be '
                "drawn from the prior: sample it there, without obs=... or pyro.deterministic"
            )
        if latent and guide[name].is_global == inside:
            where = "model" if inside else "guide"
            raise ValueError(
                f'latent site "{name}" is in pyro.plate("{plate}", ...) in the {where} alone: '
                "indent it under the plate in both, or in neither if all data share it"
            )
        declared = {plate.dim for plate in site.plates}
        batch = range(-len(site.batch_shape), 0)
        has_rows = not latent or any(dim not in declared for dim in batch)
        if not inside and has_rows and not site.observes_nothing:
            raise ValueError(
                f'site "{name}" is outside pyro.plate("{plate}", ...), so it has no density per '
                f'datum: write `with pyro.plate("{plate}", len(x)):` around the sites of a datum'
            )
    for name in without_counterpart(guide, model):
        raise ValueError(
            f'latent site "{name}" is in the guide and not in the model, so its density would be '
            "missing from log p(x, z) and the bound would exceed log p(x): add it to the model; "
            'infer={"is_auxiliary": True} is for a guide whose other latents are all '
            "pyro.distributions.Delta at a function of it, with the log_density of that change"
        )


def require_each_row(site: Site, rows: int) -> None:
    """Refuse a site in the rows' plate that does not have each row of ``x`` once."""
    plate = site.plate
    if plate is None or plate.dim is None:
        return  # global; a loop has its own refusal
    where = f'site "{site.name}" is in pyro.plate("{plate.name}", ...)'
    if plate.size != rows:
        raise ValueError(
            f"{where}, which has {plate.size} members, expected the {rows} rows of x, because x "
            "is already the minibatch: write "
            f'pyro.plate("{plate.name}", len(x)), or pyro.plate("{plate.name}", N, '
            "subsample_size=len(x)) for a model that counts all N data"
        )
    batch = site.batch_shape
    if len(batch) < -plate.dim or batch[plate.dim] != rows:
        raise ValueError(
            f"{where} without a size, which repeats nothing, and has batch shape {tuple(batch)}, "
            f'expected one draw for each of {rows} rows: write pyro.plate("{plate.name}", len(x))'
        )


def or_sum_it_out(site: Site) -> str:
    """What else one can do with a latent of the model alone."""
    if not has_finite_support(site.law) or site.is_global:
        return ""
    return ', or mark it, infer={"enumerate": "parallel"}, to have it summed out'


def unsummable(site: Site) -> tuple[str, str, str] | None:
    """Why a marked latent cannot be summed out: what it is, what is expected, what to do."""
    if not has_finite_support(site.law):
        return f"a {site.family}", "one of finitely many values", "sample it in the guide"
    if site.is_global:
        return (
            "outside the rows' plate, shared by all data",
            "a latent of each datum, because a minibatch holds a part of the sum's terms",
            "indent it under the plate, or sample it in the guide",
        )
    if site.law_is_masked:
        return (
            "under a mask of its law's own",
            "poutine.mask, under which its probabilities still sum to one",
            "write `with poutine.mask(mask=...):` in place of .mask(...)",
        )
    return None


def require_summable(site: Site, whose: str = "of the model alone") -> None:
    """Refuse a latent that is marked to be summed out and cannot be, row by row."""
    if (why := unsummable(site)) is not None:
        got, expected, advice = why
        raise ValueError(
            f'latent site "{site.name}" {whose} is marked to be summed out and is '
            f"{got}, expected {expected}: {advice}"
        )


def require_latents_alone(guide: Sites) -> None:
    """Refuse terms of the guide that are no densities of latents.

    In log q they would make bound, weights and evidence those of no program; and a loss that
    holds them, as Pyro's does, makes an observation in the guide *less* probable.
    """
    for name, site in guide.items():
        if site.observed and not site.is_deterministic:
            got, advice = (
                ("a pyro.factor", "write a change of variables as the log_density of a Delta")
                if site.is_factor
                else ("an observation", "drop obs=..., which leaves q(z | x) as it is")
            )
            raise ValueError(
                f'site "{name}" of the guide is {got}, expected latents alone, because its term '
                "would be taken for a part of log q and the bound be that of no program: "
                f"{advice}, and put what else is to be learnt into the loss of an objective of "
                "your own"
            )


def without_counterpart(guide: Sites, model: Sites) -> list[str]:
    """The guide's latents whose density would be in log q and in no term of log p.

    Their entropy would raise the bound above log p(x), by as much as one likes.  An auxiliary one
    is harmless where the model's latents are points in the guide: functions of it whose
    ``log_density`` is that of the change of variables, as an AutoGuide writes them.  Latents of a
    datum and global ones are told apart.
    """
    found = []
    for name, site in latents_of(guide).items():
        if name in model:
            continue
        drawn = [
            guide[n].base
            for n, s in latents_of(model).items()
            if n in guide and s.is_global == site.is_global
        ]
        points = bool(drawn) and all(isinstance(law, Delta) for law in drawn)
        if not (points and site.is_auxiliary):
            found.append(name)
    return found


def require_score(guide: Sites) -> None:
    """What has no density, or one whose support moves, has no score that could train it."""
    for name, site in latents_of(guide).items():
        if isinstance(site.base, (Delta, Uniform)):
            raise ValueError(
                f'latent site "{name}" has the guide {site.family}, whose log density says '
                "nothing about where it should move, so without reparameterization its gradient "
                'would silently be zero: use AEVB("A"), or a guide with a density everywhere'
            )


def require_fixed_support(guide: Sites) -> None:
    """Where the edges of a density move with parameters, its score is not zero on average."""
    for name, site in latents_of(guide).items():
        if isinstance(site.base, (Uniform, Pareto)):
            raise ValueError(
                f'latent site "{name}" has the guide {site.family}, whose support moves '
                "with its parameters, so leaving the score of q out would leave out its entropy "
                "too: use AEVB() or IWAE()"
            )


def require_rsample(guide: Sites) -> None:
    for name, site in latents_of(guide).items():
        if not site.has_rsample:
            raise ValueError(
                f'latent site "{name}" has the guide {site.family}, which is not '
                "reparameterized, so its gradient would silently be zero: use a distribution "
                "with rsample, or an objective that does not reparameterize: ScoreFunction() for "
                "the same bound, ReweightedWakeSleep() or WakeSleep()"
            )
