"""Where variables go, a batch of rows after the other: into memory, netCDF or zarr.

A file has another name until it is whole, in a folder beside it that ends in ``.partial``: what is
killed leaves nothing that looks finished.
"""

from __future__ import annotations

import abc
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae import errors
from pyro_vae.inference_data.assembling import Variable, Variables
from pyro_vae.inference_data.limits import mebibytes
from pyro_vae.inference_data.naming import Naming

CHUNK = 2**24  # bytes that a file reads at a time, at most
FORMATS = {".nc": ("h5netcdf",), ".zarr": ("zarr",)}

About = Callable[[str], dict[str, Any]]  # the attributes of a group


class Store(abc.ABC):
    """Takes variables in, by group.

    Args:
        about: the attributes of a group.
    """

    def __init__(self, about: About) -> None:
        self.about = about
        self._sizes: dict[str, dict[str, int]] = {}
        self._known: set[tuple[str, str]] = set()

    def put(
        self, group: str, variables: Variables, naming: Naming, start: int = 0, rows: int = 0
    ) -> None:
        """Take in the values of some rows; what has no dimension ``data`` is whole.

        Args:
            group: its name.
            variables: by name.
            naming: says what stands along dimensions.
            start: the first of these rows.
            rows: how many there will be in all.
        """
        new = {n: v for n, v in variables.items() if (group, n) not in self._known}
        if new:
            shapes = {name: self._shape(v, rows) for name, v in new.items()}
            sizes = {
                dim: size
                for name, v in new.items()
                for dim, size in zip(v.dims, shapes[name], strict=True)
            }
            known = self._sizes.setdefault(group, {})
            known |= sizes
            self._create(group, new, shapes, naming.coords(known))
            self._known |= {(group, name) for name in new}
        self._write(group, {n: (self._place(v, start), v.values) for n, v in variables.items()})

    @staticmethod
    def _shape(variable: Variable, rows: int) -> tuple[int, ...]:
        sizes = zip(variable.dims, variable.values.shape, strict=True)
        return tuple(rows if dim == "data" and rows else size for dim, size in sizes)

    @staticmethod
    def _place(variable: Variable, start: int) -> tuple[Any, ...]:
        sizes = zip(variable.dims, variable.values.shape, strict=True)
        return tuple(slice(start, start + n) if dim == "data" else slice(None) for dim, n in sizes)

    @abc.abstractmethod
    def _create(
        self,
        group: str,
        variables: Variables,
        shapes: Mapping[str, tuple[int, ...]],
        coords: Mapping[str, Any],
    ) -> None:
        """Make room for variables of these shapes, and write all coordinates of the group."""

    @abc.abstractmethod
    def _write(self, group: str, values: Mapping[str, tuple[tuple[Any, ...], np.ndarray]]) -> None:
        """Write values to their places."""

    @abc.abstractmethod
    def add(self, group: str, dataset: Any) -> None:
        """Take in a group that is whole."""

    @abc.abstractmethod
    def finish(self) -> dict[str, Any]:
        """The data sets of all groups, those of a file opened and not read."""

    @abc.abstractmethod
    def drop(self) -> None:
        """Leave nothing behind: something failed."""


class Memory(Store):
    """Variables as arrays."""

    def __init__(self, about: About) -> None:
        super().__init__(about)
        self._groups: dict[str, Any] = {}
        self._coords: dict[str, dict[str, Any]] = {}

    def _create(self, group, variables, shapes, coords) -> None:
        own = self._groups.setdefault(group, {})
        self._coords.setdefault(group, {}).update(coords)
        for name, v in variables.items():
            own[name] = (v.dims, np.empty(shapes[name], v.values.dtype), dict(v.attrs))

    def _write(self, group, values) -> None:
        for name, (place, value) in values.items():
            self._groups[group][name][1][place] = value

    def add(self, group, dataset) -> None:
        self._groups[group] = dataset

    def finish(self) -> dict[str, Any]:
        import xarray as xr

        found = {}
        for group, own in self._groups.items():
            if isinstance(own, dict):
                own = xr.Dataset(own, coords=self._coords[group])
            found[group] = own.assign_attrs(self.about(group))
        return found

    def drop(self) -> None:
        self._groups.clear()


class File(Store):
    """Variables in a file of this path.

    Raises:
        ValueError: another ending; a path that exists; a library that is not there; or a folder
            that cannot be written, or has no room for so many bytes.
    """

    def __init__(self, about: About, path: Path, needed: int) -> None:
        super().__init__(about)
        self.path = path
        try:
            self._folder = Path(
                tempfile.mkdtemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".partial")
            )
        except OSError as error:
            raise ValueError(
                f"out={str(path)!r}: {error.strerror}, name a folder that can be written"
            ) from None
        self._partial = self._folder / path.name
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            self.drop()
            raise ValueError(
                f"the result takes {mebibytes(needed)} MiB and {path.parent} has "
                f"{mebibytes(free)} MiB: pass fewer rows, lower num_draws, or name another folder"
            )

    def drop(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _done(self) -> None:
        os.replace(self._partial, self.path)
        self.drop()

    @staticmethod
    def _chunks(variable: Variable, shape: tuple[int, ...]) -> tuple[int, ...]:
        """As many rows as come at once, and of these as many draws as are read at a time."""
        chunks = [
            min(n, size) if dim == "data" else size
            for dim, n, size in zip(variable.dims, variable.values.shape, shape, strict=True)
        ]
        for axis, dim in enumerate(variable.dims):
            each = variable.values.itemsize * math.prod(chunks)
            if each > CHUNK and dim in ("chain", "draw", "data"):
                chunks[axis] = max(1, chunks[axis] * CHUNK // each)
        return tuple(max(1, n) for n in chunks)


class NetCDF(File):
    """One file of HDF5."""

    _options: Mapping[str, Any] = {"engine": "h5netcdf"}

    def _create(self, group, variables, shapes, coords) -> None:
        import h5netcdf
        import xarray as xr

        self.add(group, xr.Dataset(coords=coords))
        with h5netcdf.File(self._partial, "a") as file:
            for name, v in variables.items():
                dtype = np.int8 if v.values.dtype == bool else v.values.dtype
                chunks = self._chunks(v, shapes[name]) or None
                made = file[group].create_variable(name, v.dims, dtype, chunks=chunks)
                about = {"dtype": "bool"} if v.values.dtype == bool else {}
                for key, value in {**v.attrs, **about}.items():
                    made.attrs[key] = value

    def _write(self, group, values) -> None:
        import h5netcdf

        with h5netcdf.File(self._partial, "a") as file:
            for name, (place, value) in values.items():
                file[group].variables[name][place or ...] = value

    def add(self, group, dataset) -> None:
        mode: Any = "a" if self._partial.exists() else "w"
        whole = dataset.assign_attrs(self.about(group))
        whole.to_netcdf(self._partial, mode=mode, group=group, engine="h5netcdf")

    def finish(self) -> dict[str, Any]:
        import h5netcdf
        import xarray as xr

        with h5netcdf.File(self._partial, "r") as file:
            groups = list(file.groups)
        self._done()
        return {g: xr.open_dataset(self.path, group=g, engine="h5netcdf") for g in groups}


class Zarr(File):
    """A folder of chunks, in zarr's format 2, which every reader of zarr knows."""

    def _create(self, group, variables, shapes, coords) -> None:
        import xarray as xr

        self.add(group, xr.Dataset(coords=coords))
        for name, v in variables.items():
            made = self._open(group).create_array(
                name,
                shape=shapes[name],
                chunks=self._chunks(v, shapes[name]),
                dtype=v.values.dtype,
                fill_value=None,
            )
            made.attrs.update({"_ARRAY_DIMENSIONS": list(v.dims), **v.attrs})

    def _open(self, group: str) -> Any:
        import zarr

        return zarr.open_group(self._partial, path=group, mode="r+", zarr_format=2)

    def _write(self, group, values) -> None:
        opened = self._open(group)
        for name, (place, value) in values.items():
            opened[name][place or ...] = value

    def add(self, group, dataset) -> None:
        whole = dataset.assign_attrs(self.about(group))
        whole.to_zarr(self._partial, group=group, mode="a", zarr_format=2, consolidated=False)

    def finish(self) -> dict[str, Any]:
        import xarray as xr
        import zarr

        groups = list(zarr.open_group(self._partial, mode="r").group_keys())
        zarr.consolidate_metadata(self._partial, zarr_format=2)
        self._done()
        return {g: xr.open_dataset(self.path, group=g, engine="zarr", chunks=None) for g in groups}


def require_path(out: Any) -> Path:
    """A path that a store can be made for, refused before there is anything to lose.

    Raises:
        ValueError: another ending; something that is there; a library that is not.
    """
    path = Path(out)
    if path.suffix not in FORMATS:
        raise ValueError(f"out={str(out)!r} ends otherwise than in .nc or .zarr: name such a file")
    if path.exists():
        raise ValueError(f"out={str(out)!r} exists and would be lost: name another, or remove it")
    if not path.parent.is_dir():
        raise ValueError(f"out={str(out)!r}: there is no folder {path.parent}, make it first")
    errors.require_libraries(*FORMATS[path.suffix])
    if path.suffix == ".zarr" and int(version("zarr").split(".")[0]) < 3:
        raise ValueError(f"zarr is of version {version('zarr')}, expected 3: pip install 'zarr>=3'")
    return path


def store_for(path: Path | None, about: About, needed: int) -> Store:
    """A store of this path, or in memory."""
    if path is None:
        return Memory(about)
    return (NetCDF if path.suffix == ".nc" else Zarr)(about, path, needed)
