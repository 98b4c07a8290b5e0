"""Means of what a model observes, in the form of the data."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from pyro.distributions import Categorical
from torch import Tensor

from pyro_vae.densities.observations import entries_of, entries_of_rows, observations_of
from pyro_vae.densities.sites import Site, Sites
from pyro_vae.distributions.gaps import without_gaps
from pyro_vae.errors import PyroVaeWarning, users_line
from pyro_vae.program.rows import Rows

DRAWS = 100  # that stand in for a mean which guide or likelihood do not know


def means_of_x(program: Any, model: Sites, x: Rows, draws: int) -> dict[str, Tensor]:
    """The means of what a model observes, by site, in the form of the entries of x.

    Probabilities of categories; an average over ``draws`` where there is no closed form.
    """
    found = observations_of(model)
    if not found:
        raise ValueError(
            f"the model observes nothing (sites: {', '.join(model)}), so there is no mean of x: "
            "write the density of x as a pyro.sample statement with obs=x"
        )
    forms, entries = entries_of_rows(x), entries_of(program, found, x)
    means = {}
    for name, site in found.items():
        entry = entries[name]
        form = site.value.shape if entry is None else forms[entry].shape
        mean = mean_of(site, form, draws)
        means[name] = site.rows_first(mean) if entry is None and mean.shape == form else mean
    return means


def mean_of(site: Site, form: tuple[int, ...] | None, draws: int) -> Tensor:
    """The mean of a likelihood, in a form of its own or in the one that is given."""
    form = tuple(site.value.shape) if form is None else form
    law = without_gaps(site.base)
    if isinstance(law, Categorical):
        probs = law.probs
        return probs.expand(*site.value.shape, probs.shape[-1]).reshape(*form, -1).clone()
    try:
        mean = site.law.mean
    except NotImplementedError:
        if draws > 1:
            say_draws(f'the likelihood of "{site.name}", {site.family}', "x")
        mean = sum(site.law.sample() for _ in range(draws)) / draws
    if mean.isnan().any():
        raise ValueError(
            f'the likelihood of "{site.name}", {site.family}, has no mean: ask for '
            "draws of x, pv.sample(program, n, like=x)"
        )
    return mean.reshape(form).clone()  # it may be a parameter itself


def say_draws(law: str, of: str) -> None:
    warnings.warn(
        f"{law}, knows no mean, so this is the average over draws of {of}",
        PyroVaeWarning,
        stacklevel=users_line(),
    )


def stacked(runs: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """(S, N, ...) by site."""
    return {name: torch.stack([run[name] for run in runs]) for name in runs[0]}


def alone(by_site: dict[str, Tensor]) -> Any:
    """The one value that there is, else all by site."""
    return next(iter(by_site.values())) if len(by_site) == 1 else by_site
