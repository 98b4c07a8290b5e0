"""Where the sites of a program must be and what shape they have: plates, latents, observations.

Each rule here takes the sites that model and guide met on one batch, and writes down the mistakes
that show in them.  :func:`pyro_vae.check` runs the program and calls them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from pyro_vae.densities.look import Look
from pyro_vae.densities.observations import is_observation
from pyro_vae.densities.plates import Role
from pyro_vae.densities.rules import or_sum_it_out, unsummable, without_counterpart
from pyro_vae.densities.sites import Site, Sites, latents_of, same_mask
from pyro_vae.program.rows import num_rows

LIKEWISE = " (likewise "
MAX_NAMED = 10  # places named for one mistake, before "and 52 more"


class Mistakes(list[str]):
    """One line a cause, and the exception of user code behind the first, where there is one.

    What is wrong in the same way at several places is one line that names them.
    """

    cause: BaseException | None = None

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[tuple[str, ...], tuple[int, list[str]]] = {}

    def add(self, where: str, got: str, expected: str, advice: str) -> None:
        name = where.partition('"')[2].rpartition('"')[0]  # which advice may repeat
        said = tuple(text.replace(f'"{name}"', '""') for text in (got, expected, advice))
        if said not in self._places:
            self._places[said] = len(self), [where]
            self.append(f"{where}: {got}, expected {expected}: {advice}")
            return
        number, places = self._places[said]
        if where in places:
            return
        places.append(where)
        named = ", ".join(places[1:MAX_NAMED])
        more = len(places) - MAX_NAMED
        named += f" and {more} more" if more > 0 else ""
        self[number] = f"{self[number].partition(LIKEWISE)[0]}{LIKEWISE}{named})"

    def speaks_of(self, where: str) -> bool:
        """Whether something is wrong at a place."""
        return any(where in places for _, places in self._places.values())


@dataclass(frozen=True, eq=False)
class Met(Look):
    """A look with gradients, and what the rules find out about its sites.

    Attributes:
        outside: latents and observations of a datum that are not in the data plate.
        scored: log densities (batch shape), with their gradients, of the sites that have one.
        notes: what is no mistake, and good to know.
        has_gaps: whether missing values are a mistake already, of which others are consequences.
    """

    outside: set[str] = field(default_factory=set)
    scored: dict[tuple[Role, str], Tensor] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    has_gaps: bool = False

    def axis(self, site: Site) -> int | None:
        """The batch dimension that counts the rows, from the right; None for a global site."""
        if not site.is_global or site.name not in self.outside:
            return site.axis
        batch, rows = site.batch_shape, num_rows(self.x)
        return next((dim for dim in range(-len(batch), 0) if batch[dim] == rows), None)


def label(role: Role, name: str) -> str:
    return f'site "{name}" of the {role}'


def first_line(error: BaseException) -> str:
    """An exception in one line."""
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}"


# --- the rules -----------------------------------------------------------------------------------


def _undeclared(site: Site) -> list[int]:
    """Batch dimensions that no plate declares, from the right."""
    batch, declared = site.batch_shape, {plate.dim for plate in site.plates}
    return [d for d in range(-len(batch), 0) if batch[d] != 1 and d not in declared]


def dimensions(met: Met, mistakes: Mistakes) -> None:
    """A site of a datum has its rows, and no batch dimensions beside those of its plates."""
    rows = num_rows(met.x)
    for role, name, site in met:
        if site.axis is None or site.is_deterministic:
            continue
        where, batch = label(role, name), tuple(site.batch_shape)
        if extra := _undeclared(site):
            mistakes.add(
                where,
                f"batch shape {batch} has dimensions {extra} that no plate declares",
                "rows alone",
                "declare the others as dimensions of an event with .to_event(n)",
            )
        lacks = len(batch) < -site.axis or batch[site.axis] != rows
        if site.plate and site.plate.size == rows and lacks and not site.is_factor:
            plate = f'pyro.plate("{site.plate.name}", ...)'
            mistakes.add(
                where,
                f"batch shape {batch} in {plate} without a size, which repeats nothing",
                f"one draw for each of {rows} rows",
                f'write `with pyro.plate("{site.plate.name}", len(x)):`',
            )
            met.outside.add(name)


def plates(met: Met, mistakes: Mistakes) -> None:
    """The sites of a datum live in the plate of the rows; a latent outside it is global."""
    name_of_plate, rows = met.rows_plate, num_rows(met.x)
    plate = f'pyro.plate("{name_of_plate}", ...)'
    write = f'with pyro.plate("{name_of_plate}", len(x)):'
    for role, name, site in met:
        if site.is_deterministic:
            continue
        where, batch = label(role, name), tuple(site.batch_shape)
        extra = _undeclared(site)
        if site.axis is not None:
            continue
        if not site.is_global:
            got, advice = f"{plate} is a for loop", f"write `{write}`"
        elif extra or is_observation(site):
            got = f"batch shape {batch} outside {plate}"
            advice = f"indent the statement under `{write}`"
            if rows in site.event_shape[:1]:
                got += f", its event of shape {tuple(site.event_shape)} holding the rows"
                advice += " and leave the rows out of .to_event(n)"
            elif not site.observed:
                advice += "; if it is global, declare its dimensions with .to_event(n)"
        else:
            continue
        met.outside.add(name)
        mistakes.add(where, got, "all rows at once in the plate of the rows", advice)
    for name in sorted(met.guide.keys() & met.model.keys() - met.outside):
        in_guide = not met.guide[name].is_global
        if in_guide == met.model[name].is_global:
            inside, outside = ("guide", "model") if in_guide else ("model", "guide")
            met.outside.add(name)
            mistakes.add(
                f'site "{name}"',
                f"inside {plate} in the {inside} and outside in the {outside}",
                "one of the two",
                "put it inside in both if it belongs to a datum, outside if it is global",
            )


def scales(met: Met, mistakes: Mistakes) -> None:
    """One size and one scale N / B for all rows, 1 for everything else."""
    rows = num_rows(met.x)
    plates = [site.plate for _, _, site in met if site.plate is not None]
    first = (met.likelihood and met.likelihood.plate) or next(iter(plates), None)
    weighed: dict[str, float] = {}
    for role, name, site in met:
        plate, where = site.plate, label(role, name)
        named = "" if plate is None else f'pyro.plate("{plate.name}", ...)'
        if plate is not None and first is not None:
            if plate.size != rows:
                mistakes.add(
                    where,
                    f"{named} has {plate.size} rows",
                    f"the {rows} of x",
                    "pass len(x), or subsample_size=len(x)",
                )
            elif plate.total < plate.size:
                mistakes.add(
                    where,
                    f"{named} has size {plate.total}",
                    f"at least the {plate.size} rows of x",
                    "pass the number N of all data, or len(x)",
                )
            if plate.total != first.total:
                mistakes.add(
                    where,
                    f"{named} has size {plate.total}",
                    f"{first.total} as at the observed site",
                    "give the plate one size in model and guide",
                )
        for other in site.plates:
            if other is not plate and other.scale != 1.0:
                mistakes.add(
                    where,
                    f'pyro.plate("{other.name}", ...) holds {other.size} of {other.total}',
                    "all of them",
                    "subsample the plate of the rows alone",
                )
        if site.is_deterministic or (factor := site.factor) == 1.0:
            continue
        both = role == "model" and name in met.guide and not site.observed
        if both and met.guide[name].factor != factor:
            mistakes.add(
                where,
                f"log density scaled by {factor:g}",
                f"{met.guide[name].factor:g} as in the guide",
                "put the same poutine.scale around both, which weighs the KL term, or pass "
                "AEVB(kl_weight=...)",
            )
        weighed[name] = factor
    if weighed:
        terms = ", ".join(f'"{name}" by {factor:g}' for name, factor in weighed.items())
        met.notes.append(
            f"poutine.scale weighs {terms}: AEVB trains so, which is not the ELBO; elbo, "
            "log_evidence and ArviZ are of the program without it"
        )


def latents(met: Met, mistakes: Mistakes) -> None:
    """Model and guide have the same latents, but for those that the guide's points hang on."""
    for name in latents_of(met.model):
        if name not in met.guide and name != met.observed:
            site = met.model[name]
            if site.is_marked:
                if (why := unsummable(site)) is not None:
                    got, expected, advice = why
                    mistakes.add(
                        label("model", name), f"marked to be summed out and {got}", expected, advice
                    )
                continue
            mistakes.add(
                label("model", name),
                "missing in the guide",
                "each latent in both",
                f'add pyro.sample("{name}", ...) to the guide, else it is drawn from the prior'
                f"{or_sum_it_out(site)}",
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
        if not isinstance(site.value, Tensor):
            what = f"obs={site.value!r}" if site.observed else "a value"
            mistakes.add(
                label("model", name),
                f"{what[:60]} of type {type(site.value).__name__}",
                f"a tensor of shape {batch + event}",
                f'pass the data, pyro.sample("{name}", ..., obs=x), or a tensor',
            )
        elif tuple(site.value.shape) != batch + event:
            mistakes.add(
                label("model", name),
                f"{got} {tuple(site.value.shape)}",
                f"{batch + event} = batch {batch} + event {event}",
                advice,
            )


def observation(met: Met, mistakes: Mistakes) -> None:
    """Something is observed; notes on what that leaves out."""
    found, entries = met.observations, met.entries
    where = label("model", met.observed)
    weighing = [f'"{name}"' for name, site in met.model.items() if site.is_factor]
    if weighing and not found and met.observed not in met.model:
        met.notes.append(
            f"no site observes x, and the pyro.factor {', '.join(weighing)} stands for its "
            "density: it is trained and scored, but there is no x to sample, reconstruct or dream"
        )
        return
    if met.observed not in found:
        got = "a latent" if met.observed in met.model else "missing"
        advice = f'pass obs=x to pyro.sample("{met.observed}", ...)'
        if found:
            got += f" (observed: {', '.join(found)})"
            advice += f', or say which it is with pv.Program(..., observed="{next(iter(found))}")'
        mistakes.add(where, got, "an observed site", advice)
        return
    if len(found) > 1:
        names = ", ".join(f'"{name}"' for name in found)
        met.notes.append(f"{names} are observed: sample, reconstruct and ArviZ have one of each")
    computed = [f'"{name}"' for name, entry in entries.items() if entry is None]
    if computed:
        met.notes.append(
            f"{', '.join(computed)} observes something computed from x: it is trained and scored, "
            "but a draw of it is no x that the guide could take, so WakeSleep cannot dream"
        )
