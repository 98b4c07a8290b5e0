"""Draws of latents and data, with their densities, in the groups that ArviZ knows.

A group is a dict of arrays (K, B, ...): K particles of a batch of B rows.  Batches and chunks of
particles bound what is held besides the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from pyro.distributions import Bernoulli
from torch import Tensor, nn

from pyro_vae.densities.dreams import draws_of
from pyro_vae.densities.look import Look, looking
from pyro_vae.densities.observations import entries_of_rows
from pyro_vae.densities.particles import densities, takes_repeated
from pyro_vae.densities.plates import plate_named_by
from pyro_vae.densities.rules import require_rows
from pyro_vae.densities.sites import latents_of, values_of
from pyro_vae.densities.tables import Densities, tabulated
from pyro_vae.densities.traces import sites_of
from pyro_vae.evaluation import RowFunction, event_size, row_chunks
from pyro_vae.program.inputs import as_tensor
from pyro_vae.program.rows import Rows, num_rows, repeated

Groups = dict[str, dict[str, Any]]  # group -> variable -> values
Cast = Callable[[dict[str, Tensor]], dict[str, Tensor]]  # to the dtypes of the data, by site
Chunk = Callable[[Any, Rows], Groups]  # (B, ...) -> values (K, B, ...)
OfSize = Callable[[int], Chunk]  # for a number of particles


SIGNED = {torch.bool: torch.int8, torch.uint8: torch.int16}


def posterior_groups(observed: Sequence[str], predictive: bool, cast: Cast) -> OfSize:
    """For a number of particles: latents of the guide, their densities, and x drawn at them."""

    def of_size(size: int) -> Chunk:
        def draw(program: Any, rows: Rows) -> Groups:
            d = densities(program, rows, size, reparameterize=False)
            groups: Groups = {
                "posterior": dict(d.latents),
                "sample_stats": {"lp": d.log_p, "log_q": d.log_q},
                "log_likelihood": by_site(d, observed),
            }
            if predictive:
                flat = {name: value.flatten(0, 1) for name, value in d.latents.items()}
                replicated, _ = draws_of(program, repeated(rows, size), flat)
                groups["posterior_predictive"] = cast(replicated)
            return by_particle(groups, size, num_rows(rows))

        return draw

    return of_size


def prior_groups(predictive: bool, cast: Cast) -> OfSize:
    """For a number of particles: latents of the prior, and x drawn at them."""

    def of_size(size: int) -> Chunk:
        def draw(program: Any, rows: Rows) -> Groups:
            many = repeated(rows, size)
            if predictive:
                replicated, latents = draws_of(program, many)
                groups: Groups = {"prior": latents, "prior_predictive": cast(replicated)}
            else:
                groups = {"prior": values_of(sites_of(program, "model", many))}
            return by_particle(groups, size, num_rows(rows))

        return draw

    return of_size


def by_site(d: Densities, observed: Sequence[str]) -> dict[str, Tensor]:
    """log p of each observed site; of a single one with the factors of its datum."""
    if len(observed) == 1:
        return {observed[0]: d.log_likelihood}
    return {name: d.observations[name] for name in observed}


def observed_values(program: nn.Module, x: Rows, batch_size: int) -> dict[str, Tensor]:
    """What each site observes, (N, ...), in the form of the entry of x that it takes."""
    parts: dict[str, list[Tensor]] = {}
    for count, rows in row_chunks(x, batch_size):
        look = Look.at(program, rows, rows=None)
        forms, entries = entries_of_rows(rows), look.entries
        for name, site in look.observations.items():
            entry = entries[name]
            value = site.rows_first(site.value) if entry is None else forms[entry]
            parts.setdefault(name, []).append(value[:count])
    return {name: torch.cat(values).clone() for name, values in parts.items()}


def by_particle(groups: Groups, particles: int, rows: int) -> Groups:
    """Bring (K B, ...) into (K, B, ...)."""

    def fold(name: str, value: Tensor) -> Tensor:
        if value.shape[:2] == (particles, rows):
            return value
        if len(value) != particles * rows:
            raise ValueError(
                f'the values of "{name}" have shape {tuple(value.shape)} for {particles * rows} '
                'rows, expected the rows in front: let pyro.plate("data", ...) be the leftmost '
                "plate, or make further dimensions events with .to_event"
            )
        return value.reshape(particles, rows, *value.shape[1:])

    return {
        group: {name: fold(name, value) for name, value in values.items()}
        for group, values in groups.items()
    }


def pieces(
    x: Rows, particles: int, batch_size: int, max_elements: int = 2**21, first: int = 0
) -> tuple[int, int]:
    """How many rows and how many particles of each are drawn at a time."""
    rows = rows_at_once(x, batch_size, max_elements)
    rows = rows if first else min(rows, num_rows(x))
    return rows, max(1, min(particles, max_elements // (event_size(x) * rows)))


def numbered(x: Rows, batch_size: int, first: int) -> Iterator[tuple[int, int, Rows]]:
    """Batches of rows, ``(number, rows that count, rows)``; ``first`` is the number of the first.

    Rows that are not the first of the data are cut as they would be among all of them.
    """
    chunks = row_chunks(x, batch_size, fill=first > 0)
    for number, (count, rows) in enumerate(chunks, first):
        yield number, count, rows


def rows_at_once(x: Rows, batch_size: int, max_elements: int = 2**21) -> int:
    return max(1, min(batch_size, max_elements // event_size(x)))


def drawn(
    program: nn.Module,
    x: Rows,
    of_size: OfSize,
    particles: int,
    key: tuple[int, ...],
    batch_size: int,
    max_elements: int = 2**21,
    first: int = 0,
) -> Iterator[Groups]:
    """All particles of a batch of rows after the other, (K, B, ...).

    Chunks of particles bound what is held besides.  ``first`` is the number of the first batch,
    by which its noise goes.
    """
    batch_size, size = pieces(x, particles, batch_size, max_elements, first)
    if size > 1 and not takes_repeated(program, next(row_chunks(x, batch_size))[1]):
        size = 1
    functions: dict[int, RowFunction] = {}
    for number, count, rows in numbered(x, batch_size, first):
        result: Groups = {}
        for part, start in enumerate(range(0, particles, size)):
            now = min(size, particles - start)
            if now not in functions:
                functions[now] = RowFunction(program, of_size(now))
            for group, values in functions[now](rows, *key, number, part).items():
                whole = result.setdefault(group, {})
                for name, value in values.items():
                    array = as_array(value)
                    if name not in whole:
                        shape = (particles, count, *array.shape[2:])
                        whole[name] = np.empty(shape, array.dtype)
                    whole[name][start : start + now] = array[:, :count]
        yield result


class GuideAlone(nn.Module):
    """A program whose model is its guide: its particles are latents, and no model runs.

    Args:
        program: whose guide it is.
    """

    program: Any

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program
        self.plate = plate_named_by(program)

    def guide(self, x: Rows) -> Any:
        return self.program.guide(x)

    def model(self, x: Rows) -> Any:
        return self.program.guide(x)


def latents_alone(size: int) -> Chunk:
    """The guide's latents of each datum; what depends on x alone is computed once.

    (Of several latents in the first two calls of a form for each particle.)
    """

    def draw(alone: Any, rows: Rows) -> Groups:
        guide = latents_of(sites_of(alone, "guide", rows))
        if len(guide) == 1:
            ((name, site),) = guide.items()
            values = site.law.sample((size,))
            if values.shape[1:] == site.value.shape:
                return {"posterior": {name: site.rows_first(values).transpose(0, 1)}}
        d = densities(alone, rows, size, reparameterize=False)
        return by_particle({"posterior": dict(d.latents)}, size, num_rows(rows))

    return draw


def predictions(cast: Cast) -> OfSize:
    """For a number of particles: latents of the guide, and x drawn at them."""

    def of_size(size: int) -> Chunk:
        def draw(program: Any, rows: Rows) -> Groups:
            many = repeated(rows, size)
            latents = values_of(sites_of(program, "guide", many))
            replicated, _ = draws_of(program, many, latents)
            return by_particle(
                {"predictions": {**latents, **cast(replicated)}}, size, num_rows(rows)
            )

        return draw

    return of_size


def whole_types(x: Any, look: Look, values: Mapping[str, Tensor]) -> dict[str, torch.dtype]:
    """The integer types of data that are whole numbers by law, and of what is drawn like them.

    ArviZ draws bars of signed integers, and densities of everything else: bits become int8, bytes
    int16, and whole numbers that were given as real ones int64.  Real data are left out: those of a
    law that is not discrete, and grey values in place of bits.

    Args:
        x: the data as the user passed them.
        look: at the program on them.
        values: what each site observes.
    """
    rows = x.rows() if hasattr(x, "rows") and hasattr(x, "batch") else x
    given = rows if isinstance(rows, dict) else {"x": rows}
    types = {}
    for name, entry in look.entries.items():
        site, raw = look.model[name], given.get(entry)
        raw = as_tensor(raw) if isinstance(raw, (Tensor, np.ndarray)) else values[name]
        bits = isinstance(site.base, Bernoulli)  # whose soft kin takes grey values, and draws bits
        try:
            discrete = bits or bool(site.law.support.is_discrete)
        except (NotImplementedError, AttributeError):
            continue  # no support that could be asked
        if not discrete or bool((raw != raw.to(torch.int64)).any()):
            continue
        if raw.is_floating_point():
            types[name] = torch.int8 if bits else torch.int64
        else:
            types[name] = {torch.bool: torch.int8, torch.uint8: torch.int16}.get(
                raw.dtype, raw.dtype
            )
    return types


def form_of(look: Look, program: nn.Module, predictive: bool) -> Densities:
    """One particle of the rows of a look, which tells the shapes; refuses what has no such form."""
    require_rows(look.guide, look.model, num_rows(look.x))
    if predictive:
        try:
            with torch.no_grad(), looking(program):
                draws_of(program, look.x)
        except ValueError as error:
            raise ValueError(
                f"no x can be drawn for the predictive groups: {error}; or leave them out, "
                "predictive=False"
            ) from error
    with torch.no_grad(), pyro.validation_enabled(False):
        return tabulated(look.x, look.guide, look.model)


def as_array(value: Any) -> np.ndarray:
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
