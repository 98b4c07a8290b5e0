"""Data back from latents: those that are given, or those that the guide gives."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_vae import errors
from pyro_vae.densities.enumeration import marked_draws
from pyro_vae.densities.missing import usable_rows
from pyro_vae.densities.observations import observations_of
from pyro_vae.densities.sites import Sites, latents_of
from pyro_vae.densities.traces import At, NoMean, dreamt_sites, sites_of
from pyro_vae.noise import Stream, seeded
from pyro_vae.predictive.drawing import (
    form_of_x,
    not_given,
    saying_what_is_missing,
    would_observe,
)
from pyro_vae.predictive.latents import drawn_latents, mean_latents, whole_or_none
from pyro_vae.predictive.means import DRAWS, alone, mean_of, means_of_x, say_draws, stacked
from pyro_vae.program.calling import evaluating, failing_in_words
from pyro_vae.program.inputs import any_parameter, as_tensor
from pyro_vae.program.rows import Rows, map_rows, num_rows
from pyro_vae.turns import taking_turns


@taking_turns
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
            programs that are no ``VAE``, or take more than x.  Covariates alone will do, as in
            :func:`~pyro_vae.predictive.drawing.sample`.
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
        rows = form_of_x(program, like, "pv.decode(program, z, like=x)", whole=False)
        first, unseen = map_rows(lambda t: t[:1], rows), set[str]()
        with saying_what_is_missing(program, first, not_given(program, first)):
            one = dreamt_sites(program, first, {})
            if not observations_of(one):
                unseen = set(would_observe(program, first, one))
        form = {n: s for n, s in latents_of(one).items() if not s.was_observed and n not in unseen}
        given, drawn, count = _placed(program, z, form, num_rows(rows))
        if num_rows(rows) == 1:
            rows = map_rows(lambda t: t.expand(count, *t.shape[1:]), rows)
        if num_rows(rows) != count:
            raise ValueError(f"like has {num_rows(rows)} rows, expected 1, or {count} as z has")
        if any(site.is_global and name not in given for name, site in form.items()):
            given = learnt(program, rows) | given
        runs = []
        for number in range(math.prod(drawn)):
            at = {
                name: value.flatten(0, len(drawn) - 1)[number]
                if drawn and value.dim() > form[name].value.dim()
                else value
                for name, value in given.items()
            }
            sites = dreamt_sites(program, rows, at)
            runs.append(
                {name: mean_of(sites[name], None, num_draws) for name in unseen}
                or means_of_x(program, sites, rows, num_draws)
            )
    means = stacked(runs)
    return alone({name: mean.reshape(*drawn, *mean.shape[1:]) for name, mean in means.items()})


@taking_turns
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
    num_draws, seed = whole_or_none(num_draws), errors.seed_number(seed)
    rows = usable_rows(x, program)

    def at(latents: dict[str, Tensor], draws: int) -> dict[str, Tensor]:
        given = {**latents, **marked_draws(program, rows, latents)}
        return means_of_x(program, sites_of(program, "model", rows, At(given)), rows, draws)

    with (
        torch.no_grad(),
        seeded(*Stream.LATENTS.key(seed)),
        evaluating(program),
        failing_in_words(program, rows),
    ):
        if num_draws is not None:
            runs = [at(drawn_latents(program, rows), DRAWS) for _ in range(num_draws)]
            return alone(stacked(runs))
        try:
            latents = mean_latents(program, rows)
        except NoMean as error:
            say_draws(error.law, "z: pass num_draws for the draws themselves")
            many = stacked([at(drawn_latents(program, rows), 1) for _ in range(DRAWS)])
            return alone({name: values.mean(0) for name, values in many.items()})
        model = latents_of(sites_of(program, "model", rows, At(latents)))
        if drawn := [name for name in model if name not in latents]:
            say_draws(f'x at given latents, without the model\'s "{drawn[0]}"', "that")
            many = stacked([at(latents, 1) for _ in range(DRAWS)])
            return alone({name: values.mean(0) for name, values in many.items()})
        return alone(at(latents, DRAWS))


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
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f'z of "{name}" has a value that is not finite, expected numbers')
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


def learnt(program: Any, rows: Rows) -> dict[str, Tensor]:
    """What all data share: the guide's mean, or one draw where it has none."""
    try:
        return mean_latents(program, rows, shared=True)
    except NoMean:
        return drawn_latents(program, rows, shared=True)
