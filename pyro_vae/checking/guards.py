"""What ``fit`` and evidence ask of a program and its data before they begin."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_vae.checking.sites import ROLES, Mistakes, label
from pyro_vae.checking.values import possible_parameters, possible_values
from pyro_vae.densities.sites import data_frame, one_scale
from pyro_vae.densities.traces import sites_of, trace_program
from pyro_vae.noise import LOOK, seeded
from pyro_vae.program.rows import Rows, map_rows, num_rows, observed_rows


def require_possible_data(program: Any, x: Rows) -> None:
    """Refuse data to which the likelihood gives no density, looking at every row.

    With validation off, which captured graphs and ``python -O`` have, a Bernoulli scores a pixel
    of 255 without complaint, and the more the better.  So do impossible parameters, such as a
    negative scale, which are looked for in the first rows.

    Raises:
        ValueError: what was found, what the site takes, and the next step.
    """
    with torch.no_grad(), seeded(*LOOK), pyro.validation_enabled(False):
        # A support does not depend on the row but for bounds such as a count of trials; of those
        # the first rows say nothing about the others, and the comparison below passes them over.
        traces = trace_program(program, map_rows(lambda t: t[:2], x), reparameterize=False)
    mistakes = Mistakes()
    for role, trace in zip(ROLES, traces, strict=True):
        for name, site in sites_of(trace).items():
            possible_parameters(site, label(role, name), mistakes)
    site = sites_of(traces[1]).get(getattr(program, "observed", "x"), {})
    if isinstance(site.get("value"), Tensor) and site["mask"] is None:
        rows = observed_rows(x)
        value = rows.reshape(len(rows), *site["value"].shape[1:])
        possible_values({**site, "value": value}, "data", mistakes)
    if mistakes:
        raise ValueError(mistakes[0])


def require_all_data(program: Any, x: Rows, num_data: int) -> None:
    """Refuse shared latents whose plate speaks of another number of data than there are.

    Their terms would count too often or too seldom beside those of the data.

    Raises:
        ValueError: N as the plate has it, and as the data do.
    """
    with torch.no_grad(), seeded(*LOOK), pyro.validation_enabled(False):
        guide, model = map(sites_of, trace_program(program, x, reparameterize=False))
    shared = [n for n, s in guide.items() if not s["is_observed"] and data_frame(s) is None]
    if not shared:
        return
    declared = round(one_scale(guide, model) * num_rows(x))
    if declared != num_data:
        raise ValueError(
            f'latent site "{shared[0]}" is shared by all data, of which pyro.plate("data", ...) '
            f"counts {declared} where there are {num_data}: write "
            f'pyro.plate("data", {num_data}, subsample_size=len(x)), or build the program with '
            f"num_data={num_data}"
        )


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
