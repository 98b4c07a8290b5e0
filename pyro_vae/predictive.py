"""What one does with a trained program: draw from it, encode data, decode latents, reconstruct."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pyro
import torch
from pyro.distributions import Categorical
from torch import Tensor

from pyro_vae import errors
from pyro_vae.densities.dreams import draws_of
from pyro_vae.densities.missing import usable_rows
from pyro_vae.densities.observations import entries_of, entries_of_rows, observations_of
from pyro_vae.densities.sites import Site, Sites, latents_of
from pyro_vae.densities.traces import At, AtTheMean, NoMean, dreamt_sites, sites_of
from pyro_vae.errors import PyroVaeWarning
from pyro_vae.noise import Stream, seeded
from pyro_vae.program.arguments import arguments_of
from pyro_vae.program.calling import evaluating
from pyro_vae.program.inputs import any_parameter, as_tensor
from pyro_vae.program.rows import Rows, map_rows, num_rows, observed_rows
from pyro_vae.program.vae import VAE

DRAWS = 100  # that stand in for a mean which guide or likelihood do not know


def sample(
    program: Any, num_samples: int, *, like: Any = None, mean: bool = False, seed: int = 0
) -> Tensor | dict[str, Tensor]:
    """Draw data from the generative model: z ~ p(z), then x ~ p(x | z).

    Latents that all data share, such as uncertain weights, are what training was about: one draw
    of them, from the guide, serves all n.

    Args:
        program: the program.
        num_samples: n.
        like: rows of data that say what x looks like, for programs that are no ``VAE``; or, as a
            dict, covariates alone, where the model draws x if it is not given one: draws of
            p(x | covariates).
        mean: return the likelihood's mean in place of a draw, as pictures of images do.
        seed: of the draws.

    Returns:
        (n, ...) in the form of x; a dict by site where the model observes in several.
    """
    num_samples, seed = errors.whole("num_samples", num_samples), errors.seed_number(seed)
    with torch.no_grad(), seeded(*Stream.PREDICTIVE.key(seed)), evaluating(program):
        x = _form_of_x(program, like, "pv.sample(program, n, like=x)", whole=False)
        index = torch.arange(num_samples) % len(observed_rows(x))
        x = {k: v[index] for k, v in x.items()} if isinstance(x, dict) else x[index]
        if isinstance(x, dict) and (missing := _not_given(program, x)):
            drawn = _given_covariates(program, x, missing, seed)
            if drawn is not None:
                made = {
                    name: _mean_of(site, None, DRAWS) if mean else site.value.clone()
                    for name, site in drawn.items()
                }
                return _alone(made)
        with seeded(*Stream.SHARED.key(seed)):
            learnt = _latents(program, x, shared=True)
        if not mean:
            return _alone(draws_of(program, x, learnt)[0])
        return _alone(_means_of_x(program, dreamt_sites(program, x, learnt), x, DRAWS))


def _not_given(program: Any, x: dict[str, Tensor]) -> list[str]:
    """What the model may take beside the entries of x, of which one may be what it observes."""
    takes = arguments_of(program)
    usual = program.observed if isinstance(getattr(program, "observed", None), str) else "x"
    names = takes.model.names if takes.by_name(x) else (usual,)
    return [name for name in names if name not in x]


def _given_covariates(
    program: Any, x: dict[str, Tensor], missing: list[str], seed: int
) -> Sites | None:
    """The sites that would observe, drawn given the covariates; None where one observes."""

    def drawn(at: dict[str, Tensor]) -> Sites:
        with seeded(*Stream.PREDICTIVE.key(seed)):
            return dreamt_sites(program, x, at)

    try:
        sites = drawn({})
        if observations_of(sites):
            return None
        if any(site.is_global for site in latents_of(sites).values()):
            with seeded(*Stream.SHARED.key(seed)):
                sites = drawn(_latents(program, x, shared=True))
        if (name := getattr(program, "observed", None) or "x") in sites:
            return {name: sites[name]}
        latents = sites_of(program, "guide", x)
    except Exception as error:  # whatever the functions of a user make of what they are not given
        have = ", ".join(f'"{name}"' for name in x)
        raise ValueError(
            f"{type(program).__name__} draws nothing from the entries {have} alone "
            f"({type(error).__name__}: {error}), expected that it does without "
            f'"{missing[0]}": pass rows that have it, or let the model observe nothing where there '
            f'is none, {missing[0]}=None or x.get("{missing[0]}")'
        ) from error
    left = {name: site for name, site in latents_of(sites).items() if name not in latents}
    if not left:
        raise ValueError(
            f"the model has the sites {', '.join(sites)}, which the guide has too, expected one "
            "that observes x where x is given: say which it is, pv.Program(..., observed=...)"
        )
    return left


def encode(
    program: Any,
    x: Any,
    *,
    num_draws: int | None = None,
    shared: bool = False,
    seed: int = 0,
) -> Tensor | dict[str, Tensor]:
    """The latents that the guide gives to data.

    Args:
        program: the program.
        x: data (N, ...).
        num_draws: None returns posterior means (the guide's ``mean`` where it has one, else a draw
            is not a mean and an error says so; where a latent is a function of an auxiliary draw,
            as in Pyro's automatic guides, the function of its mean); a number S
            returns draws (S, N, ...).
        shared: the latents that all data share, such as uncertain weights, in place of those of
            each datum.
        seed: of the draws.

    Returns:
        (N, ...) or (S, N, ...), without N where shared; a dict by site where there is more than
        one latent.
    """
    num_draws, seed = _whole(num_draws), errors.seed_number(seed)
    rows = usable_rows(x, program)
    with torch.no_grad(), seeded(*Stream.LATENTS.key(seed)), evaluating(program):
        if num_draws is None:
            latents = _means(program, rows, shared=shared)
        else:
            runs = [_latents(program, rows, shared=shared) for _ in range(num_draws)]
            latents = {name: torch.stack([run[name] for run in runs]) for name in runs[0]}
    if not latents:
        raise ValueError(
            f'the guide has no latent {"outside" if shared else "inside"} pyro.plate("data", ...)'
            f": pass shared={not shared} for the others"
        )
    return _alone(latents)


def decode(
    program: Any,
    z: Tensor | dict[str, Tensor],
    *,
    like: Any = None,
    num_draws: int = DRAWS,
    seed: int = 0,
) -> Tensor | dict[str, Tensor]:
    r"""The mean of p(x | z) at given latents: what the program makes of a point of latent space.

    Of categories it is their probabilities, in one dimension more.  Where the likelihood knows no
    mean, as a flow, it is the average over ``num_draws`` draws of x, and a warning says so.

    Args:
        program: the program.
        z: the latents of N data, (..., N, J) for the one latent of a program, or a dict by site;
            any dimensions in front, which all entries share, are draws.  Latents that all data
            share, such as uncertain weights, may be given too, (..., J); else they are at the
            guide's mean, or, where it has none, one draw of it.
        like: rows of data, one or N, that say what x looks like and hold the covariates: for
            programs that are no ``VAE``, or take more than x.
        num_draws: of x, where the likelihood has no mean.
        seed: of the draws.

    Returns:
        (..., N, ...) in the form of x; a dict by site where the model observes in several.

    Raises:
        ValueError: no such latent, one that is missing, or one of another shape; or a likelihood
            without a mean, such as Cauchy's.

    Example:
        >>> from pyro_vae.models import bernoulli_vae
        >>> vae = bernoulli_vae.build(64, latent_dim=2)
        >>> decode(vae, torch.zeros(5, 2)).shape
        torch.Size([5, 64])
    """
    num_draws, seed = errors.whole("num_draws", num_draws), errors.seed_number(seed)
    with torch.no_grad(), seeded(*Stream.PREDICTIVE.key(seed)), evaluating(program):
        rows = _form_of_x(program, like, "pv.decode(program, z, like=x)")
        one = dreamt_sites(program, map_rows(lambda t: t[:1], rows), {})
        form = {n: s for n, s in latents_of(one).items() if not s.was_observed}
        given, drawn, count = _placed(program, z, form, num_rows(rows))
        if num_rows(rows) == 1:
            rows = map_rows(lambda t: t.expand(count, *t.shape[1:]), rows)
        if num_rows(rows) != count:
            raise ValueError(f"like has {num_rows(rows)} rows, expected 1, or {count} as z has")
        if any(site.is_global and name not in given for name, site in form.items()):
            given = _learnt(program, rows) | given
        runs = []
        for number in range(math.prod(drawn)):
            at = {
                name: value.flatten(0, len(drawn) - 1)[number]
                if drawn and value.dim() > form[name].value.dim()
                else value
                for name, value in given.items()
            }
            runs.append(_means_of_x(program, dreamt_sites(program, rows, at), rows, num_draws))
    means = _stacked(runs)
    return _alone({name: mean.reshape(*drawn, *mean.shape[1:]) for name, mean in means.items()})


def reconstruct(
    program: Any, x: Any, *, num_draws: int | None = None, seed: int = 0
) -> Tensor | dict[str, Tensor]:
    r"""What the program makes of data: the mean of p(x | z) at the latents that the guide gives.

    Of categories it is their probabilities, in one dimension more.  Where the guide or the
    likelihood knows no mean, that is an average over draws, and a warning says so.

    Args:
        program: the program.
        x: data (N, ...).
        num_draws: None takes z at the posterior mean, or, where the guide has none, averages over
            100 draws of z; a number S takes S draws of z.  The average over them, ``.mean(0)``,
            estimates the predictive mean :math:`E_{q(z|x)} E[x' \mid z]`; their spread is what
            the uncertainty of z leaves open.
        seed: of the draws.

    Returns:
        (N, ...) or (S, N, ...), in the form of x; a dict by site where the model observes in
        several.

    Raises:
        ValueError: where the likelihood's mean does not exist, such as Cauchy's.

    Warns:
        PyroVaeWarning: where draws stand in for a mean that guide or likelihood do not know.
    """
    num_draws, seed = _whole(num_draws), errors.seed_number(seed)
    rows = usable_rows(x, program)

    def at(latents: dict[str, Tensor], draws: int) -> dict[str, Tensor]:
        return _means_of_x(program, sites_of(program, "model", rows, At(latents)), rows, draws)

    with torch.no_grad(), seeded(*Stream.LATENTS.key(seed)), evaluating(program):
        if num_draws is not None:
            runs = [at(_latents(program, rows), DRAWS) for _ in range(num_draws)]
            return _alone(_stacked(runs))
        try:
            latents = _means(program, rows)
        except NoMean as error:
            _say_draws(error.law, "z: pass num_draws for the draws themselves")
            many = _stacked([at(_latents(program, rows), 1) for _ in range(DRAWS)])
            return _alone({name: values.mean(0) for name, values in many.items()})
        return _alone(at(latents, DRAWS))


def _whole(num_draws: int | None) -> int | None:
    return None if num_draws is None else errors.whole("num_draws", num_draws)


def _latents(
    program: Any, x: Rows, *handlers: Any, shared: bool | None = None
) -> dict[str, Tensor]:
    """Latents by site: those that all data share, those of each datum, or, by None, all."""
    return {
        name: site.value.clone()  # a guide may hand out a parameter itself
        for name, site in latents_of(sites_of(program, "guide", x, *handlers)).items()
        if shared in (None, site.is_global) and not site.is_auxiliary
    }


def _form_of_x(program: Any, like: Any, call: str, *, whole: bool = True) -> Rows:
    """Rows that say what x looks like: those that are given, or of a VAE one that it makes up."""
    if like is not None:
        return usable_rows(like, program, whole=whole)
    if isinstance(program, VAE):
        return program.likelihood(program.prior().sample((1,))).sample()
    raise ValueError(
        f"{type(program).__name__} does not say what x looks like: pass rows of data, {call}"
    )


def _placed(
    program: Any, z: Any, form: Sites, rows: int
) -> tuple[dict[str, Tensor], tuple[int, ...], int]:
    """Latents by site on the program's terms, the dimensions of draws in front, and N."""
    own = [name for name, site in form.items() if not site.is_global] or list(form)
    if not isinstance(z, dict):
        if len(own) != 1:
            raise ValueError(
                f"z is {type(z).__name__} and the model has the latents {', '.join(own)}, expected "
                "a dict by site"
            )
        z = {own[0]: z}
    wrong = [f'"{n}" is none of them' for n in z if n not in form]
    wrong += [f'"{n}" is missing' for n in own if n not in z and not form[n].is_global]
    if wrong:
        raise ValueError(f"z: the model has the latents {', '.join(form)}, and {wrong[0]}")
    given: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    draws: dict[tuple[int, ...], str] = {(): ""}
    parameter = any_parameter(program)
    for name, value in z.items():
        value = as_tensor(value, f'z of "{name}"')
        real = parameter.dtype if value.is_floating_point() else value.dtype
        given[name] = value = value.to(parameter.device, real)
        site = form[name]
        shape: list[Any] = list(site.value.shape)
        front = value.shape[: max(0, value.dim() - len(shape))]
        if site.axis is not None:
            place = len(site.batch_shape) + site.axis
            shape[place] = value.shape[len(front) + place] if value.dim() >= len(shape) else "N"
            counts[name] = shape[place]
        if value.shape != (*front, *shape) or 0 in value.shape:
            raise ValueError(
                f'z of "{name}" has shape {tuple(value.shape)}, expected '
                f"({', '.join(['...', *map(str, shape)])})"
            )
        draws[tuple(front)] = name
    if len(draws) > 2 or len(set(counts.values())) > 1:
        shapes = {name: tuple(value.shape) for name, value in given.items()}
        raise ValueError(f"z has the shapes {shapes}, expected the same N and the same draws")
    return given, list(draws)[-1], next(iter(counts.values()), rows)


def _learnt(program: Any, rows: Rows) -> dict[str, Tensor]:
    """What all data share: the guide's mean, or one draw where it has none."""
    try:
        return _means(program, rows, shared=True)
    except NoMean:
        return _latents(program, rows, shared=True)


def _means_of_x(program: Any, model: Sites, x: Rows, draws: int) -> dict[str, Tensor]:
    """The means of what a model observes, by site, in the form of the entries of x.

    Probabilities of categories; an average over ``draws`` where there is no closed form.
    """
    found = observations_of(model)
    forms, entries = entries_of_rows(x), entries_of(program, found, x)
    means = {}
    for name, site in found.items():
        entry = entries[name]
        form = site.value.shape if entry is None else forms[entry].shape
        means[name] = _mean_of(site, form, draws)
    return means


def _mean_of(site: Site, form: tuple[int, ...] | None, draws: int) -> Tensor:
    """The mean of a likelihood, in a form of its own or in the one that is given."""
    form = tuple(site.value.shape) if form is None else form
    if isinstance(site.base, Categorical):
        probs = site.base.probs
        return probs.expand(*site.value.shape, probs.shape[-1]).reshape(*form, -1).clone()
    try:
        mean = site.law.mean
    except NotImplementedError:
        if draws > 1:
            _say_draws(f'the likelihood of "{site.name}", {site.family}', "x")
        mean = sum(site.law.sample() for _ in range(draws)) / draws
    if mean.isnan().any():
        raise ValueError(
            f'the likelihood of "{site.name}", {site.family}, has no mean: ask for '
            "draws of x, pv.sample(program, n, like=x)"
        )
    return mean.reshape(form).clone()  # it may be a parameter itself


def _stacked(runs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """(S, N, ...) by site."""
    return {name: torch.stack([run[name] for run in runs]) for name in runs[0]}


def _alone(by_site: dict[str, Tensor]) -> Any:
    """The one value that there is, else all by site."""
    return next(iter(by_site.values())) if len(by_site) == 1 else by_site


def _say_draws(law: str, of: str) -> None:
    warnings.warn(
        f"{law}, knows no mean, so this is the average over draws of {of}",
        PyroVaeWarning,
        stacklevel=4,
    )


def _means(program: Any, x: Rows, *, shared: bool | None = None) -> dict[str, Tensor]:
    with pyro.validation_enabled(False):
        return _latents(program, x, AtTheMean(), shared=shared)
