"""Where the sites of a program must be and what shape they have: plates, latents, observations.

Each rule here takes the sites that model and guide met on one batch, and writes down the mistakes
that show in them.  :func:`pyro_vae.check` runs the program and calls them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.densities.dreams import is_x_itself
from pyro_vae.densities.rules import without_counterpart
from pyro_vae.densities.sites import Site, base_law, data_frame, is_deterministic

Role = Literal["guide", "model"]
ROLES: tuple[Role, Role] = ("guide", "model")
Sites = dict[str, Site]


class Mistakes(list[str]):
    """One line a mistake, and the exception of user code behind the first, where there is one."""

    cause: BaseException | None = None

    def add(self, where: str, got: str, expected: str, advice: str) -> None:
        line = f"{where}: {got}, expected {expected}: {advice}"
        if line not in self:
            self.append(line)


@dataclass
class Met:
    """The sites of guide and model on one batch, the model at the guide's latents.

    Attributes:
        guide, model: the sites by name.
        x: the observed rows.
        observed: the name of the observed site.
        outside: latents and observations of a datum that are not in the data plate.
        scored: log densities (batch shape), with their gradients, of the sites that have one.
    """

    guide: Sites
    model: Sites
    x: Tensor
    observed: str
    outside: set[str] = field(default_factory=set)
    scored: dict[tuple[Role, str], Tensor] = field(default_factory=dict)

    def sites(self, role: Role) -> Sites:
        return self.guide if role == "guide" else self.model

    def __iter__(self) -> Iterator[tuple[Role, str, Site]]:
        for role in ROLES:
            for name, site in self.sites(role).items():
                yield role, name, site

    def axis(self, site: Site) -> int | None:
        """The batch dimension that counts the rows, from the right; None for a global site."""
        frame, batch = data_frame(site), site["fn"].batch_shape
        if frame is not None:
            return frame.dim
        found = [dim for dim in range(-len(batch), 0) if batch[dim] == len(self.x)]
        return found[0] if found and site["name"] in self.outside else None


def label(role: Role, name: str) -> str:
    return f'site "{name}" of the {role}'


def is_factor(site: Site) -> bool:
    return isinstance(site["fn"], dist.Unit)


def is_observation(site: Site) -> bool:
    return site["is_observed"] and not is_factor(site) and not is_deterministic(site)


def family(site: Site | None) -> str | None:
    """The name of a site's distribution."""
    return None if site is None else type(base_law(site["fn"])).__name__


def by_row(events: Tensor, axis: int | None) -> Tensor:
    """Sum over all batch dimensions but that of the rows: (B,), or () for a global site."""
    if axis is None:
        return events.sum()
    return events.movedim(axis, 0).flatten(1).sum(1) if events.dim() > 1 else events


def first_line(error: BaseException) -> str:
    """An exception in one line."""
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}"


# --- the rules -----------------------------------------------------------------------------------


def plates(met: Met, mistakes: Mistakes) -> None:
    """Rows live in the plate "data"; a latent outside it is global."""
    write = 'with pyro.plate("data", len(x)):'
    other: set[str] = set()  # plates of another name that hold the observed rows
    if met.observed in met.model and data_frame(met.model[met.observed]) is None:
        other = {frame.name for frame in met.model[met.observed]["cond_indep_stack"]}
    for role, name, site in met:
        if is_deterministic(site):
            continue
        frame, where = data_frame(site), label(role, name)
        declared = {frame.dim for frame in site["cond_indep_stack"]}
        batch = tuple(site["fn"].batch_shape)
        extra = [d for d in range(-len(batch), 0) if batch[d] != 1 and d not in declared]
        misnamed = other & {frame.name for frame in site["cond_indep_stack"]}
        if frame is not None and frame.dim is not None:
            if extra:
                mistakes.add(
                    where,
                    f"batch shape {batch} has dimensions {extra} that no plate declares",
                    "rows alone",
                    "declare the others as dimensions of an event with .to_event(n)",
                )
            continue
        if frame is not None:
            got, advice = 'pyro.plate("data", ...) is a for loop', f"write `{write}`"
        elif misnamed:
            got, advice = f'lives in pyro.plate("{min(misnamed)}", ...)', f"write `{write}`"
        elif extra or name == met.observed:
            got = f'batch shape {batch} outside pyro.plate("data", ...)'
            advice = f"indent the statement under `{write}`"
            if name != met.observed:
                advice += "; if it is global, declare its dimensions with .to_event(n)"
        else:
            continue
        met.outside.add(name)
        mistakes.add(where, got, 'all rows at once in a plate named "data"', advice)
    for name in sorted(met.guide.keys() & met.model.keys() - met.outside):
        in_guide = data_frame(met.guide[name]) is not None
        if in_guide != (data_frame(met.model[name]) is not None):
            inside, outside = ("guide", "model") if in_guide else ("model", "guide")
            met.outside.add(name)
            mistakes.add(
                f'site "{name}"',
                f'inside pyro.plate("data", ...) in the {inside} and outside in the {outside}',
                "one of the two",
                "put it inside in both if it belongs to a datum, outside if it is global",
            )


def scales(met: Met, mistakes: Mistakes) -> None:
    """One size and one scale N / B for all rows, 1 for everything else."""
    frames = {(role, name): data_frame(site) for role, name, site in met}
    first = frames.get(("model", met.observed)) or next(filter(None, frames.values()), None)
    for role, name, site in met:
        frame, where, scale = frames[role, name], label(role, name), 1.0
        if frame is not None and first is not None:
            total = frame.full_size or frame.size
            scale = total / frame.size
            if frame.size != len(met.x):
                mistakes.add(
                    where,
                    f'pyro.plate("data", ...) has {frame.size} rows',
                    f"the {len(met.x)} of x",
                    "pass len(x), or subsample_size=len(x)",
                )
            elif total < frame.size:
                mistakes.add(
                    where,
                    f'pyro.plate("data", ...) has size {total}',
                    f"at least the {frame.size} rows of x",
                    "pass the number N of all data, or len(x)",
                )
            if total != (first.full_size or first.size):
                mistakes.add(
                    where,
                    f'pyro.plate("data", ...) has size {total}',
                    f"{first.full_size or first.size} as at the observed site",
                    "give the plate one size in model and guide",
                )
        if abs(float(site["scale"]) - scale) > 1e-6 * scale:
            mistakes.add(
                where,
                f"log density scaled by {float(site['scale']):g}",
                f"{scale:g}",
                'subsample only pyro.plate("data", ...), and weigh terms in an objective of your '
                "own in place of poutine.scale",
            )


def latents(met: Met, mistakes: Mistakes) -> None:
    """Model and guide have the same latents, but for those that the guide's points hang on."""
    for name, site in met.model.items():
        if not site["is_observed"] and name not in met.guide and name != met.observed:
            mistakes.add(
                label("model", name),
                "missing in the guide",
                "each latent in both",
                f'add pyro.sample("{name}", ...) to the guide, else it is drawn from the prior',
            )
    for name, site in met.guide.items():
        if is_observation(site):
            mistakes.add(
                label("guide", name), "observed in the guide", "latents alone", "drop obs=..."
            )
    for name, site in met.guide.items():
        if name in met.model and not _same_mask(site["mask"], met.model[name]["mask"]):
            mistakes.add(
                label("guide", name),
                "masked otherwise than in the model",
                "one mask, or none, in both",
                "else log p(z) and log q(z | x) speak of different rows: put the same "
                "poutine.mask around both",
            )
    for name in without_counterpart(met.guide, met.model):
        mistakes.add(
            label("guide", name),
            "missing in the model",
            "each latent in both",
            "add it to the model, or, where the guide's other latents are Delta at a function of "
            'it with the log_density of that change, mark it with infer={"is_auxiliary": True}',
        )


def _same_mask(a: Any, b: Any) -> bool:
    """Whether two masks are equal once broadcast; none is True."""
    a, b = (torch.as_tensor(True if mask is None else mask).bool() for mask in (a, b))
    try:
        return bool((a == b).all())
    except RuntimeError:  # of shapes that do not go together
        return False


def shapes(met: Met, mistakes: Mistakes) -> None:
    """A value has the batch and event shape of its distribution; Pyro would broadcast it."""
    for name, site in met.model.items():
        if name in met.outside or is_factor(site) or is_deterministic(site):
            continue
        batch, event = tuple(site["fn"].batch_shape), tuple(site["fn"].event_shape)
        got, advice = "observed shape", "reshape x, or let the likelihood return this shape"
        if not site["is_observed"]:
            got, advice = "the guide draws shape", "give model and guide the same event shape"
        if tuple(site["value"].shape) != batch + event:
            mistakes.add(
                label("model", name),
                f"{got} {tuple(site['value'].shape)}",
                f"{batch + event} = batch {batch} + event {event}",
                advice,
            )


def observation(met: Met, mistakes: Mistakes) -> None:
    """One site is observed, and its value is x itself."""
    observed = [name for name, site in met.model.items() if is_observation(site)]
    where = label("model", met.observed)
    if met.observed not in observed:
        got = "a latent" if met.observed in met.model else "missing"
        advice = f'pass obs=x to pyro.sample("{met.observed}", ...)'
        if observed:
            got += f" (observed: {', '.join(observed)})"
            advice += f', or say which it is with pv.Program(..., observed="{observed[0]}")'
        mistakes.add(where, got, "an observed site", advice)
        return
    if not is_x_itself(met.model[met.observed]["value"], met.x):
        mistakes.add(
            where,
            "observes something computed from x",
            "obs=x itself, or a view of it",
            "put the function into the likelihood, or transform the data before they enter",
        )
    for name in observed:
        if name != met.observed:
            mistakes.add(
                label("model", name),
                f'observed as well as "{met.observed}"',
                "one observed site",
                "join the two into one x with one likelihood, or condition on the value as a "
                "covariate, without pyro.sample",
            )
