"""What is converted: one program, a run, or several of either, each looked at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from pyro_vae.checking.guards import require_possible_data
from pyro_vae.densities.look import Look
from pyro_vae.densities.sites import Sites, latents_of
from pyro_vae.densities.tables import Densities
from pyro_vae.evidence.importance import require_weights
from pyro_vae.inference_data.draws import form_of, observed_values, whole_types
from pyro_vae.inference_data.judging import Terms
from pyro_vae.inference_data.shared import shared_latents
from pyro_vae.program.rows import Rows


class Source(NamedTuple):
    """A program, and the run that trained it, where that is known."""

    program: nn.Module
    run: Any = None


def sources_of(given: Any) -> list[Source]:
    """Programs from what a user passes: one, a ``Run``, or a list of either.

    Raises:
        TypeError: something else.
        ValueError: none at all; one program twice; a run that trained no guide.
    """
    several = isinstance(given, (list, tuple))
    sources = []
    for each in given if several else [given]:
        is_run = hasattr(each, "history") and hasattr(each, "manifest") and hasattr(each, "program")
        sources.append(Source(each.program, each) if is_run else Source(each))
        if not isinstance(sources[-1].program, nn.Module):
            raise TypeError(
                f"program is {type(each).__name__}, expected a program, what pv.fit returns, or a "
                "list of either; two functions become one by pv.Program(model, guide)"
            )
        objective = str(sources[-1].run.manifest["objective"]) if is_run else ""
        if objective.startswith("MonteCarloEM"):
            raise ValueError(
                f"the run was trained by {objective}, which trains no guide whose draws these "
                "would be: use pyro_vae.chains.sample_posterior, or pass run.program for a guide "
                "that was trained elsewhere"
            )
    if not sources:
        raise ValueError("the list of programs is empty, expected one program for each chain")
    if len({id(source.program) for source in sources}) < len(sources):
        raise ValueError(
            "one program stands in the list twice, expected independent trainings: chains that "
            "are one program agree, whatever it learnt (chains=4 deals its draws to four)"
        )
    return sources


def chain_numbers(sources: Sequence[Source]) -> np.ndarray:
    """What stands along ``chain``: the seeds of the runs where these differ, else numbers."""
    seeds = [s.run.manifest.get("seed") if s.run is not None else None for s in sources]
    if None not in seeds and len(set(seeds)) == len(seeds):
        return np.asarray(seeds)
    return np.arange(len(sources))


@dataclass(frozen=True)
class Plan:
    """What a program has on these rows, seen before anything is drawn.

    Attributes:
        program: the program, in evaluation mode.
        look: at it on the first rows.
        form: one particle of these.
        shared, own: names of latents that all data share, and of those of each datum.
        observed: what each site observes, (N, ...), whole numbers as such.
        whole: integer types of sites.
        terms: the KL terms.
    """

    program: nn.Module
    look: Look
    form: Densities
    shared: list[str]
    own: list[str]
    observed: dict[str, Tensor]
    whole: dict[str, torch.dtype]
    terms: Terms

    @classmethod
    def of(
        cls, program: nn.Module, x: Any, rows: Rows, predictive: bool, batch_size: int, draws: int
    ) -> Plan:
        look = Look.at(program, rows)
        require_possible_data(look, rows)
        shared = shared_latents(look)
        require_weights(look, together=bool(shared))
        form = form_of(look, program, predictive)
        observed = observed_values(program, rows, batch_size)
        whole = whole_types(x, look, observed)
        own = [name for name in form.latents if not look.guide[name].is_global]
        terms = Terms(look, draws)
        return cls(program, look, form, shared, own, cast(observed, whole), whole, terms)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of each latent, without the rows."""
        latents = self.form.latents
        return {n: tuple(v.shape[1:] if n in self.own else v.shape) for n, v in latents.items()}

    @property
    def of_the_model_alone(self) -> Sites:
        """Latents of a datum that the guide does not have, which draws of the prior have."""
        prior = latents_of(self.look.model)
        return {n: s for n, s in prior.items() if n not in self.form.latents and not s.is_global}


def require_alike(plans: Sequence[Plan]) -> None:
    """Refuse programs that cannot be chains of one object, because they are not of one form."""
    first = plans[0]
    for number, plan in enumerate(plans[1:], 1):
        for what, mine, its in (
            ("latents", first.shapes, plan.shapes),
            ("observed sites", list(first.observed), list(plan.observed)),
            ("shared latents", first.shared, plan.shared),
        ):
            if mine != its:
                raise ValueError(
                    f"program {number} has the {what} {_shown(its)} and program 0 {_shown(mine)}, "
                    "expected trainings of one model: convert them apart, and compare their "
                    "log_evidence"
                )


def _shown(names: Any) -> str:
    if isinstance(names, Mapping):
        return ", ".join(f"{n} {shape}" for n, shape in names.items()) or "none"
    return ", ".join(names) or "none"


def cast(values: dict[str, Tensor], types: Mapping[str, torch.dtype]) -> dict[str, Tensor]:
    """Values by site, those of whole numbers in the types of the data."""
    return {name: value.to(types.get(name, value.dtype)) for name, value in values.items()}


def training_curves(sources: Sequence[Source], chains: np.ndarray) -> Any:
    """The history of runs as an xarray data set: by step, and by chain where there are several.

    Of runs that were recorded at other steps than the first, numbers are missing (nan) between.
    """
    import xarray as xr

    found = []
    for chain, source in zip(chains, sources, strict=len(sources) > 1):
        if source.run is None or not len(source.run.history):
            continue
        frame = source.run.history.select_dtypes("number").set_index("step")
        columns = {str(n).replace("/", "."): ("step", frame[n].to_numpy()) for n in frame.columns}
        curve = xr.Dataset(columns, coords={"step": frame.index.to_numpy()})
        found.append(curve if len(sources) == 1 else curve.expand_dims(chain=[chain]))
    if not found:
        return None
    return found[0] if len(sources) == 1 else xr.concat(found, "chain", join="outer")
