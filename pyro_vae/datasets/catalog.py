"""Which data sets there are, getting their files, and verifying them.

A file in this folder that defines `load` is a data set, the first line of its docstring says
what it is, and its `PUBLISHED`, if it has one, names the files that it reads.
"""

import contextlib
import difflib
import importlib
import os
import pkgutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Literal

from tqdm import tqdm

from pyro_vae.datasets.fetching import files, https
from pyro_vae.datasets.fetching.download import Transfer, fetch
from pyro_vae.datasets.fetching.files import Published
from pyro_vae.datasets.fetching.locking import alone


@dataclass(frozen=True)
class Entry:
    """A row of `available`.

    Attributes:
        name: what `load`, `get` and `verify` call it.
        what: one line about it.
        files: number of its files; 0 where it comes with a library.
        bytes: of all files; None where they are not known beforehand.
        present: all files are there. Their digests are not computed: see `verify`.
    """

    name: str
    what: str
    files: int
    bytes: int | None
    present: bool


@dataclass(frozen=True)
class Fetched:
    """A file that is there and right.

    Attributes:
        path: where it is.
        bytes: its size.
        source: the address it came from; None where it was there before.
    """

    path: Path
    bytes: int
    source: str | None


@dataclass(frozen=True)
class Verified:
    """What `verify` found of one file.

    Attributes:
        path: where it is, or should be.
        status: "ok", "missing" or "damaged".
        detail: what is wrong and what to do; empty for "ok".
    """

    path: Path
    status: Literal["ok", "missing", "damaged"]
    detail: str


def names() -> tuple[str, ...]:
    """The names that `load`, `get` and `verify` know."""
    return tuple(name for name in _modules() if hasattr(_module(name), "load"))


def find(name: str) -> ModuleType:
    """The module of a data set.

    Raises:
        ValueError: there is none of that name.
    """
    # Only names of files in this folder are ever imported.
    if name in _modules() and hasattr(module := _module(name), "load"):
        return module
    near = difflib.get_close_matches(str(name).lower().replace("-", "_"), names(), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "; for your own data see from_array"
    raise ValueError(f"name: got {name!r}, expected one of {', '.join(names())}{hint}")


def available(data_dir: str | os.PathLike[str] | None = None) -> tuple[Entry, ...]:
    """All data sets, and which are in the data directory.

    Args:
        data_dir: folder of all data sets; by default PYRO_VAE_DATA, else ~/.cache/pyro_vae.
    """
    folder = files.folder(data_dir)
    rows = []
    for name in names():
        module, published = find(name), _published(name)
        what = (module.__doc__ or name).splitlines()[0].rstrip(".")
        known = all(file.sha256 for file in published)
        size = sum(file.size for file in published) if known else None
        present = all(os.path.isfile(folder / file.name) for file in published)
        rows.append(Entry(name, what, len(published), size, present))
    return tuple(rows)


def get(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    progress: bool | Callable[[Transfer], object] | None = None,
) -> tuple[Fetched, ...]:
    """Download the files of a data set that are missing or damaged, over https.

    A file is under its final name only when it is complete and right; an interrupted download
    leaves `<file>.part`, with which the next one goes on. A second process waits for the first.

    Args:
        name: one of `names()`.
        data_dir: folder of all data sets, made where it is missing; by default PYRO_VAE_DATA,
            else `$XDG_CACHE_HOME/pyro_vae` or ~/.cache/pyro_vae, where `load` looks too.
        progress: True or False for a line on stderr, None for one on a terminal only, or a
            callable that is given a `Transfer` after each chunk.

    Returns:
        One `Fetched` per file, none for a data set that comes with a library.

    Raises:
        ValueError: unknown name; no address gave a file (the message says what to do by hand);
            the folder cannot be written.
    """
    published, folder = _published(name), files.folder(data_dir)
    sources: dict[str, str] = {}
    # Checked before locking, too: a folder of complete files may be read-only.
    if any(_fault(file, folder / file.name) for file in published):
        with alone(folder / name):
            opener = https.opener()
            for file in published:
                path = folder / file.name
                if _fault(file, path):
                    with _reporter(progress, file) as report:
                        sources[file.name] = fetch(file, path, opener=opener, report=report)
    paths = {file.name: folder / file.name for file in published}
    return tuple(Fetched(p, p.stat().st_size, sources.get(n)) for n, p in paths.items())


def verify(name: str, data_dir: str | os.PathLike[str] | None = None) -> tuple[Verified, ...]:
    """Read the files of a data set and compare them with the published ones.

    Args:
        name: one of `names()`.
        data_dir: folder of all data sets; by default PYRO_VAE_DATA, else ~/.cache/pyro_vae.

    Returns:
        One `Verified` per file, none for a data set that comes with a library.

    Raises:
        ValueError: unknown name.
    """
    folder, again = files.folder(data_dir), files.command("get", name, data_dir)
    found = []
    for file in _published(name):
        path = folder / file.name
        fault = _fault(file, path)
        if not fault:
            found.append(Verified(path, "ok", ""))
        elif fault == _MISSING:
            detail = f"run `{again}`, or {file.by_hand(path)}" if file.urls else file.by_hand(path)
            found.append(Verified(path, "missing", detail))
        else:
            mend = f"run `{again}` to fetch it again" if file.urls else file.by_hand(path)
            found.append(Verified(path, "damaged", f"{fault}; {mend}"))
    return tuple(found)


_MISSING = "missing"


def _fault(file: Published, path: Path) -> str:
    """What is wrong with the file at `path`; empty if nothing is."""
    try:
        file.check(path)
    except ValueError as error:
        if isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)):
            return _MISSING
        return str(error).removeprefix(f"{path}: ")
    return ""


def _published(name: str) -> tuple[Published, ...]:
    return getattr(find(name), "PUBLISHED", ())


@contextlib.contextmanager
def _reporter(
    progress: bool | Callable[[Transfer], object] | None, file: Published
) -> Iterator[Callable[[Transfer], object]]:
    if callable(progress):
        yield progress
        return
    show = sys.stderr.isatty() if progress is None else progress
    with tqdm(
        desc=file.name, unit="B", unit_scale=True, disable=not show, file=sys.stderr,
        dynamic_ncols=True,
    ) as line:  # fmt: skip

        def report(transfer: Transfer) -> None:
            line.total = transfer.total
            line.update(transfer.done - line.n)  # also backwards, where it starts over

        yield report


def _modules() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]))


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__package__}.{name}")
