"""One look at a program: its sites on a few rows, at fixed noise, and nothing of it moves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import torch

from pyro_vae.densities.observations import entries_of, observations_of, observed_site
from pyro_vae.densities.plates import Role
from pyro_vae.densities.scales import one_scale
from pyro_vae.densities.sites import Site, Sites, latents_of
from pyro_vae.densities.traces import sites_of_both
from pyro_vae.noise import LOOK, Key, NoiseMode, keyed, seeded
from pyro_vae.program.calling import failing_in_words, left_as_it_was
from pyro_vae.program.parts import MeanRange, mean_range_of
from pyro_vae.program.rows import Rows, map_rows, num_rows
from pyro_vae.torch_internals import no_modes

ROLES: tuple[Role, Role] = ("guide", "model")

FEW = 64  # rows that show what a program consists of


@contextlib.contextmanager
def looking(program: Any, key: Key = LOOK, *, validate: bool = False) -> Iterator[None]:
    """Run a program without leaving a mark: on torch's generators, on its buffers, on a capture.

    Args:
        program: what is looked at.
        key: of the noise.
        validate: let Pyro's validation be as it is; else it is off, as in training.
    """
    validation = contextlib.nullcontext() if validate else pyro.validation_enabled(False)
    with (
        no_modes(),
        left_as_it_was(program, parameters=False),
        validation,
        seeded(*key),
        NoiseMode(keyed(*key)),
    ):
        yield


@dataclass(frozen=True, eq=False)
class Look:
    """The sites of guide and model on a few rows, the model at the guide's latents.

    Attributes:
        guide, model: the sites by name.
        x: the rows.
        observed: the name of the site that observes x, or the first of several.
        program: what was looked at.
        mean_range: where the mean of the likelihood can be, if a part of the program says so.
    """

    guide: Sites
    model: Sites
    x: Rows
    observed: str
    mean_range: MeanRange | None = None
    program: Any = None

    @classmethod
    def at(cls, program: Any, x: Rows, *, rows: int | None = FEW, key: Key = LOOK) -> Look:
        """Run guide and model once, without gradients and with Pyro's validation off.

        Args:
            program: the program; parameters that it makes on its first call stay, everything else
                is left as it was.
            x: data (N, ...).
            rows: how many of the first rows to look at; None for all.
            key: of the noise.

        Raises:
            ValueError: where model or guide fail on such rows.
        """
        few = x if rows is None else map_rows(lambda t: t[:rows], x)
        with torch.no_grad(), failing_in_words(program, few), looking(program, key):
            guide, model = sites_of_both(program, few, reparameterize=False)
        observed = observed_site(program, model, few)
        return cls(guide, model, few, observed, mean_range_of(program), program)

    def sites(self, role: Role) -> Sites:
        return self.guide if role == "guide" else self.model

    def __iter__(self) -> Iterator[tuple[Role, str, Site]]:
        for role in ROLES:
            for name, site in self.sites(role).items():
                yield role, name, site

    @property
    def likelihood(self) -> Site | None:
        """The site that observes x."""
        return self.model.get(self.observed)

    @property
    def observations(self) -> Sites:
        """All sites that observe data."""
        return observations_of(self.model)

    @property
    def entries(self) -> dict[str, str | None]:
        """For each of them the entry of x that it takes as it is, or None."""
        return entries_of(self.program, self.observations, self.x)

    @property
    def latents(self) -> Sites:
        """The guide's latents."""
        return latents_of(self.guide)

    @property
    def rows_plate(self) -> str:
        """The name of the plate that counts the rows, or of the one that should be there."""
        return next((site.plate.name for _, _, site in self if site.plate is not None), "data")

    @property
    def num_data(self) -> int:
        """N, as the plate of the data counts them."""
        return round(one_scale(self.guide, self.model) * num_rows(self.x))
