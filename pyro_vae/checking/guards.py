"""What ``fit`` and evidence ask of a program and its data before they begin."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae.checking.learning import strangers
from pyro_vae.checking.reach import out_of_reach
from pyro_vae.checking.sites import Met, Mistakes, dimensions, label, masks, shapes
from pyro_vae.checking.values import possible_parameters, possible_values
from pyro_vae.densities.look import FEW, Look, looking
from pyro_vae.densities.observations import entries_of_rows
from pyro_vae.densities.plates import Role
from pyro_vae.densities.sites import Site
from pyro_vae.densities.traces import sites_of_both
from pyro_vae.errors import PyroVaeWarning, users_line
from pyro_vae.program.rows import Rows, map_rows, num_rows, parts, rows_from
from pyro_vae.program.stored import Stored


def require_possible_data(look: Look, x: Rows | Stored) -> None:
    """Refuse data to which the likelihood gives no density, every row of them.

    With validation off, which captured graphs and ``python -O`` have, a Bernoulli scores a pixel
    of 255 without complaint, and the more the better.  So do impossible parameters, such as a
    negative scale, and masks of a latent that differ in model and guide; these are looked for in
    the rows of the look.

    Args:
        look: at the program, on some rows of its data.
        x: all rows, of these or other data.

    Raises:
        ValueError: what was found, what the site takes, and the next step.

    Warns:
        PyroVaeWarning: where the mean of the likelihood cannot come near the data.
    """
    mistakes, said = Mistakes(), None
    masks(look.guide, look.model, mistakes)
    for role, name, each in look:
        possible_parameters(each, label(role, name), mistakes)
        if role == "model" and not each.observed:  # a guide's draw may leave the prior's support
            possible_values(each, label(role, name), mistakes)
    unsure: set[str] = set()
    for start, rows in parts(x):
        again, far = _possible_rows(look, rows, mistakes, start)
        unsure |= again
        said = said or far
        if mistakes:
            break
    met = Met(look.guide, look.model, look.x, look.observed, program=look.program)
    for rule in (dimensions, shapes):  # torch would broadcast, and score something else
        if not mistakes:
            rule(met, mistakes)
    if unsure:  # a bound may be that of these rows, as the longest document of a batch
        _possible_in_all_rows(look, x, sorted(unsure), mistakes)
    if mistakes:
        raise ValueError(mistakes[0])
    if said:
        warnings.warn(said, PyroVaeWarning, stacklevel=users_line())


def _possible_rows(
    look: Look, x: Rows, mistakes: Mistakes, start: int
) -> tuple[set[str], str | None]:
    """Sites that some rows alone cannot tell about, and what to say of values out of reach."""
    entries, all_rows, said = look.entries, entries_of_rows(x), None
    unsure = {name for name, entry in entries.items() if entry is None}
    for name, site in look.observations.items():
        entry, found = entries[name], Mistakes()
        if not isinstance(site.value, Tensor):
            continue
        if entry is not None and not (site.is_masked or _has_bounds_by_row(site)):
            # (Masks and such bounds say nothing about other rows.)
            rows = all_rows[entry]
            site = replace(site, value=rows.reshape(len(rows), *site.value.shape[1:]))
        possible_values(site, _named(look, name), found, start)
        unsure |= {name} if found else set()
        if name == look.observed:
            said = out_of_reach(site, look.mean_range)
    return unsure, said


def _named(look: Look, name: str) -> str:
    return "data" if name == look.observed else f'data "{name}"'


def _possible_in_all_rows(
    look: Look, x: Rows | Stored, names: list[str], mistakes: Mistakes
) -> None:
    """The same for some sites, by running the model on all rows."""
    size = max(1, num_rows(look.x))
    for first, rows in parts(x):
        for start in range(0, num_rows(rows), size):
            part = rows_from(rows, start, size)
            found = Look.at(look.program, part, rows=None)
            for name in names:
                if name in found.model:
                    where = _named(look, name)
                    possible_values(found.model[name], where, mistakes, first + start)
            if mistakes:
                return


def _has_bounds_by_row(site: Site) -> bool:
    """Whether the values that a site takes may differ from row to row, as a count of trials."""

    def by_row(bound: Any) -> bool:
        if isinstance(bound, Tensor):
            return bound.dim() >= site.value.dim()
        if isinstance(bound, constraints.Constraint):
            bound = list(vars(bound).values())
        return isinstance(bound, list | tuple) and any(map(by_row, bound))

    try:
        return by_row(site.law.support)
    except (NotImplementedError, AttributeError):
        return False  # no support that could be asked


def require_all_data(look: Look, num_data: int) -> None:
    """Refuse shared latents whose plate speaks of another number of data than there are.

    Their terms would count too often or too seldom beside those of the data.

    Args:
        look: at the program, on a whole minibatch.
        num_data: N.

    Raises:
        ValueError: N as the plate has it, and as the data do.
    """
    shared = [name for name, site in look.latents.items() if site.is_global]
    plate = look.rows_plate
    if shared and look.num_data != num_data:
        raise ValueError(
            f'latent site "{shared[0]}" is shared by all data, of which pyro.plate("{plate}", ...) '
            f"counts {look.num_data} where there are {num_data}: write "
            f'pyro.plate("{plate}", {num_data}, subsample_size=len(x)), or build the program with '
            f"num_data={num_data}"
        )


def require_own_parameters(program: nn.Module, x: Rows) -> None:
    """Refuse a program whose densities depend on parameters that it does not know.

    They would stay what they are while everything else is trained.

    Raises:
        ValueError: naming the site.
    """
    mistakes = Mistakes()
    few = map_rows(lambda t: t[:FEW], x)
    with torch.enable_grad(), looking(program):
        guide, model = sites_of_both(program, few)
        scored: dict[tuple[Role, str], Tensor] = {
            ("guide", n): s.density() for n, s in guide.items()
        }
        scored |= {("model", name): site.density() for name, site in model.items()}
        strangers(program, scored, mistakes)
    if mistakes:
        raise ValueError(mistakes[0])


def require_numbers(values: Tensor, what: str) -> None:
    """Refuse what is not a number for some datum, (N,).

    Raises:
        ValueError: how many, which is the first, and the next step.
    """
    bad = values.isnan()
    if bad.any():
        row = int(bad.nonzero()[0])
        raise ValueError(
            f"{what} is not a number for {int(bad.sum())} of {len(values)} data (row {row}), "
            "expected one for each: a distribution's parameter is impossible or not finite there; "
            "pv.check(program, x) on that row and its neighbours says which"
        )
