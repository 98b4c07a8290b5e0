"""Names of dimensions and their coordinates: of plates, ``event_dims``, and what the user says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pyro_vae.densities.look import Look
from pyro_vae.densities.sites import Site, latents_of
from pyro_vae.program.frames import names_of_rows

AXES = ("chain", "draw", "data")
LABEL = "label"  # a coordinate of the data beside their numbers

Dims = Mapping[str, Sequence[str | None]]
Coords = Mapping[str, Any]


def written(name: str) -> str:
    """The name of a variable: neither netCDF nor a tree of groups has any with a slash."""
    return name.replace("/", ".")


class Naming:
    """What the dimensions of each variable are called, and what stands along them.

    A dimension of an event is called as ``infer={"event_dims": ["topic"]}`` of its site says, as in
    ArviZ's converter for NumPyro; one of a further plate as the plate; else ``z_dim``, or
    ``z_dim_0``, ``z_dim_1``, ...  What the user says goes before all of these.

    Args:
        look: at the program.
        dims: for a variable the names of its dimensions, those of the data left out or first.
        coords: values along a dimension.
        rows: coordinates of ``data``: its numbers, and perhaps labels.
        chains: what the chains are called.
        columns: names along the one dimension of an event, by site or entry of x.
    """

    def __init__(
        self,
        look: Look,
        dims: Dims | None,
        coords: Coords | None,
        rows: Mapping[str, np.ndarray],
        chains: np.ndarray,
        columns: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._said = {written(name): _words(name, d) for name, d in (dims or {}).items()}
        self._inferred = {written(name): found for name, found in _inferred(look).items()}
        self._coords = {name: np.asarray(values) for name, values in (coords or {}).items()}
        self._rows, self._chains = dict(rows), chains
        self._columns = {written(name): names for name, names in (columns or {}).items()}
        self._sizes: dict[str, tuple[int, str]] = {}  # dimension -> size, and a variable with it
        self._names: dict[str, tuple[str, ...]] = {}

    def add(self, name: str, shape: Sequence[int], *, of_data: bool = True, like: str = "") -> None:
        """Name the dimensions of a variable.

        Args:
            name: of the site, or of the entry of x.
            shape: without chains, draws and data.
            of_data: whether it has a value for each datum.
            like: a site whose dimensions it shares.

        Raises:
            ValueError: more names than dimensions; one name for two sizes, or for a variable too.
        """
        variable, source = written(name), written(like or name)
        said = self._said.get(variable, self._said.get(source))
        inferred = self._inferred.get(source, [])
        if said is not None and of_data and said[:1] == ["data"]:
            said = said[1:]
        given = said if said is not None else inferred if len(inferred) == len(shape) else []
        if len(given) > len(shape):
            raise ValueError(
                f'dims of "{name}" are {", ".join(map(str, given))}, expected at most '
                f"{len(shape)}, because a value of it has shape {tuple(shape)}"
            )
        names = tuple(
            own or (f"{source}_dim" if len(shape) == 1 else f"{source}_dim_{i}")
            for i, own in enumerate([*given, *[None] * (len(shape) - len(given))])
        )
        for i, (dim, size) in enumerate(zip(names, shape, strict=True)):
            if dim in (*AXES, LABEL) or dim in names[:i]:
                raise ValueError(
                    f'"{name}" has a dimension called "{dim}", expected a name that neither the '
                    "result nor another of its dimensions has: rename it by dims= or event_dims"
                )
            known, first = self._sizes.setdefault(dim, (size, name))
            if known != size:
                raise ValueError(
                    f'the dimension "{dim}" has size {known} in "{first}" and {size} in "{name}": '
                    "give one of them another name by dims= or event_dims"
                )
        self._names[variable] = names
        own = self._columns.get(variable)
        if own is not None and tuple(shape) == (len(own),):
            self._coords.setdefault(names[0], np.asarray(own))

    def done(self) -> None:
        """Refuse what the user says of variables and dimensions that are not there."""
        for variable in self._said.keys() - self._names.keys():
            raise ValueError(
                f'dims has "{variable}", expected some of {", ".join(sorted(self._names))}'
            )
        if both := self._sizes.keys() & self._names.keys():
            raise ValueError(
                f'"{min(both)}" is the name of a variable and of a dimension: call the dimension '
                "otherwise by dims= or event_dims"
            )
        sizes = {dim: size for dim, (size, _) in self._sizes.items()}
        if "data" in self._coords:
            sizes["data"] = len(self._rows["data"])
        for dim, values in self._coords.items():
            if dim not in sizes:
                raise ValueError(
                    f'coords has "{dim}", expected some of {", ".join(sorted(sizes))}, data'
                )
            if values.shape != (sizes[dim],):
                raise ValueError(
                    f'coords of "{dim}" have shape {values.shape}, expected ({sizes[dim]},)'
                )

    def dims(self, name: str) -> tuple[str, ...]:
        """The dimensions of a variable besides chains, draws and data."""
        return self._names[written(name)]

    def values(self, dim: str, size: int) -> np.ndarray:
        """What stands along a dimension."""
        if dim in self._coords:
            return self._coords[dim]
        if dim == "chain" and size == len(self._chains):  # the prior may have one alone
            return self._chains
        return self._rows["data"] if dim == "data" else np.arange(size)

    def coords(self, sizes: Mapping[str, int]) -> dict[str, Any]:
        """The coordinates of a group with these dimensions, as xarray takes them."""
        found: dict[str, Any] = {dim: self.values(dim, size) for dim, size in sizes.items()}
        if "data" in sizes and LABEL in self._rows:
            found[LABEL] = ("data", self._rows[LABEL])
        return found

    @property
    def has_labels(self) -> bool:
        return LABEL in self._rows

    def of_other_rows(self, rows: Mapping[str, np.ndarray]) -> Naming:
        """The same names for other data."""
        other = object.__new__(Naming)
        other.__dict__ = {**self.__dict__, "_rows": dict(rows)}
        other._coords = {name: v for name, v in self._coords.items() if name != "data"}
        return other


def rows_of(x: Any, count: int) -> dict[str, np.ndarray]:
    """What the rows are called, and their labels, where ``x`` has them.

    By a frame's index; else by their numbers in the original data.
    """
    index, labels = getattr(x, "index", None), getattr(x, "labels", None)
    is_data = hasattr(x, "batch") and hasattr(x, "digest")  # a list has an ``index`` too
    found = {"data": index.cpu().numpy() if is_data and index is not None else np.arange(count)}
    if (names := names_of_rows(x)) is not None and len(names) == count:
        found["data"] = names
    if is_data and labels is not None:
        found[LABEL] = labels.cpu().numpy()
    return found


def refuse_names(names: Sequence[str], labels: bool) -> None:
    """Refuse names that two things would have."""
    twice = {written(n) for n in names if sum(written(n) == written(m) for m in {*names}) > 1}
    if twice:
        raise ValueError(
            f'two sites or entries of x are written as "{min(twice)}", because a slash becomes a '
            "dot: rename one"
        )
    reserved = {*names} & {*AXES, *([LABEL] if labels else [])}
    if reserved:
        raise ValueError(
            f'"{min(reserved)}" is the name of a dimension of the result and of a site or an entry '
            "of x: rename the site or the entry"
        )


def _words(name: str, dims: Any) -> list[str | None]:
    if isinstance(dims, str) or not isinstance(dims, Iterable):
        raise TypeError(
            f'dims of "{name}" are {dims!r}, expected a list of names, one a dimension: ["{dims}"]'
        )
    return list(dims)


def _inferred(look: Look) -> dict[str, list[str | None]]:
    """For each site the names of what stands behind the rows, None where nobody names it."""
    found: dict[str, list[str | None]] = {}
    prior = latents_of(look.model)
    for name, site in {**prior, **look.latents, **look.observations}.items():
        own = prior.get(name, site)
        found[name] = [*_plates(own), *_events(own if own.event_dims else site)]
    return found


def _plates(site: Site) -> list[str | None]:
    by_dim = {plate.dim: plate.name for plate in site.plates}
    depth = site.value.dim() - len(site.event_shape)
    return [by_dim.get(dim) for dim in range(-depth, 0) if dim != site.axis]


def _events(site: Site) -> list[str | None]:
    depth, said = len(site.event_shape), site.event_dims
    if len(said) > depth:
        raise ValueError(
            f'event_dims of site "{site.name}" are {", ".join(said)}, expected at most {depth}, '
            f"because its events have shape {tuple(site.event_shape)}"
        )
    return [*said, *[None] * (depth - len(said))]
