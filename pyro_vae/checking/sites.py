"""Where the sites of a program must be and what shape they have: plates, latents, observations.

Each rule here takes the sites that model and guide met on one batch, and writes down the mistakes
that show in them.  :func:`pyro_vae.check` runs the program and calls them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from pyro_vae.densities.dreams import is_x_itself
from pyro_vae.densities.look import Look, Role
from pyro_vae.densities.rules import without_counterpart
from pyro_vae.densities.sites import Site, Sites, latents_of, same_mask
from pyro_vae.program.rows import num_rows, observed_rows


class Mistakes(list[str]):
    """One line a mistake, and the exception of user code behind the first, where there is one."""

    cause: BaseException | None = None

    def add(self, where: str, got: str, expected: str, advice: str) -> None:
        line = f"{where}: {got}, expected {expected}: {advice}"
        if line not in self:
            self.append(line)


@dataclass(frozen=True, eq=False)
class Met(Look):
    """A look with gradients, and what the rules find out about its sites.

    Attributes:
        outside: latents and observations of a datum that are not in the data plate.
        scored: log densities (batch shape), with their gradients, of the sites that have one.
    """

    outside: set[str] = field(default_factory=set)
    scored: dict[tuple[Role, str], Tensor] = field(default_factory=dict)

    def axis(self, site: Site) -> int | None:
        """The batch dimension that counts the rows, from the right; None for a global site."""
        if not site.is_global or site.name not in self.outside:
            return site.axis
        batch, rows = site.batch_shape, num_rows(self.x)
        return next((dim for dim in range(-len(batch), 0) if batch[dim] == rows), None)


def label(role: Role, name: str) -> str:
    return f'site "{name}" of the {role}'


def is_observation(site: Site) -> bool:
    return site.observed and not site.is_factor and not site.is_deterministic


def first_line(error: BaseException) -> str:
    """An exception in one line."""
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}"


# --- the rules -----------------------------------------------------------------------------------


def plates(met: Met, mistakes: Mistakes) -> None:
    """Rows live in the plate "data"; a latent outside it is global."""
    write = 'with pyro.plate("data", len(x)):'
    other: set[str] = set()  # plates of another name that hold the observed rows
    if met.likelihood is not None and met.likelihood.is_global:
        other = {plate.name for plate in met.likelihood.plates}
    for role, name, site in met:
        if site.is_deterministic:
            continue
        where, batch = label(role, name), tuple(site.batch_shape)
        declared = {plate.dim for plate in site.plates}
        extra = [d for d in range(-len(batch), 0) if batch[d] != 1 and d not in declared]
        misnamed = other & {plate.name for plate in site.plates}
        if site.axis is not None:
            if extra:
                mistakes.add(
                    where,
                    f"batch shape {batch} has dimensions {extra} that no plate declares",
                    "rows alone",
                    "declare the others as dimensions of an event with .to_event(n)",
                )
            continue
        if not site.is_global:
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
        in_guide = not met.guide[name].is_global
        if in_guide == met.model[name].is_global:
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
    rows = num_rows(met.x)
    plates = [site.plate for _, _, site in met if site.plate is not None]
    first = (met.likelihood and met.likelihood.plate) or next(iter(plates), None)
    for role, name, site in met:
        plate, where, scale = site.plate, label(role, name), 1.0
        if plate is not None and first is not None:
            scale = plate.total / plate.size
            if plate.size != rows:
                mistakes.add(
                    where,
                    f'pyro.plate("data", ...) has {plate.size} rows',
                    f"the {rows} of x",
                    "pass len(x), or subsample_size=len(x)",
                )
            elif plate.total < plate.size:
                mistakes.add(
                    where,
                    f'pyro.plate("data", ...) has size {plate.total}',
                    f"at least the {plate.size} rows of x",
                    "pass the number N of all data, or len(x)",
                )
            if plate.total != first.total:
                mistakes.add(
                    where,
                    f'pyro.plate("data", ...) has size {plate.total}',
                    f"{first.total} as at the observed site",
                    "give the plate one size in model and guide",
                )
        if abs(float(site.scale) - scale) > 1e-6 * scale:
            mistakes.add(
                where,
                f"log density scaled by {float(site.scale):g}",
                f"{scale:g}",
                'subsample only pyro.plate("data", ...), and weigh terms in an objective of your '
                "own in place of poutine.scale",
            )


def latents(met: Met, mistakes: Mistakes) -> None:
    """Model and guide have the same latents, but for those that the guide's points hang on."""
    for name in latents_of(met.model):
        if name not in met.guide and name != met.observed:
            mistakes.add(
                label("model", name),
                "missing in the guide",
                "each latent in both",
                f'add pyro.sample("{name}", ...) to the guide, else it is drawn from the prior',
            )
    for name, site in met.guide.items():
        if site.observed and not site.is_deterministic:
            mistakes.add(
                label("guide", name),
                "a factor in the guide" if site.is_factor else "observed in the guide",
                "latents alone",
                "write a change of variables as the log_density of a Delta"
                if site.is_factor
                else "drop obs=...",
            )
    masks(met.guide, met.model, mistakes)
    for name in without_counterpart(met.guide, met.model):
        mistakes.add(
            label("guide", name),
            "missing in the model",
            "each latent in both",
            "add it to the model, or, where the guide's other latents are Delta at a function of "
            'it with the log_density of that change, mark it with infer={"is_auxiliary": True}',
        )


def masks(guide: Sites, model: Sites, mistakes: Mistakes) -> None:
    """A latent has one mask in model and guide."""
    for name, site in guide.items():
        if name in model and not site.observed and not same_mask(site, model[name]):
            mistakes.add(
                label("guide", name),
                "masked otherwise than in the model",
                "one mask, or none, in both",
                "else log p(z) and log q(z | x) speak of different rows: put the same "
                "poutine.mask around both",
            )


def shapes(met: Met, mistakes: Mistakes) -> None:
    """A value has the batch and event shape of its distribution; Pyro would broadcast it."""
    for name, site in met.model.items():
        if name in met.outside or site.is_factor or site.is_deterministic:
            continue
        batch, event = tuple(site.batch_shape), tuple(site.event_shape)
        got, advice = "observed shape", "reshape x, or let the likelihood return this shape"
        if not site.observed:
            got, advice = "the guide draws shape", "give model and guide the same event shape"
        if tuple(site.value.shape) != batch + event:
            mistakes.add(
                label("model", name),
                f"{got} {tuple(site.value.shape)}",
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
    if not is_x_itself(met.model[met.observed].value, observed_rows(met.x)):
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
