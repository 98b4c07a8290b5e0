"""``report``: one page that says what was run, and what came of it."""

from __future__ import annotations

import datetime
import os
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pyro_vae import errors
from pyro_vae.comparison import Comparison
from pyro_vae.datasets import DataSet
from pyro_vae.defaults import __version__
from pyro_vae.diagnostics import Diagnosis
from pyro_vae.plotting.programs import program_of
from pyro_vae.reporting.comparisons import sections_of_comparison
from pyro_vae.reporting.parts import Section
from pyro_vae.reporting.recipe import reproduction
from pyro_vae.reporting.runs import sections_of_run
from pyro_vae.runs import load

BUDGETS = ("quick", "full", "none")


def report(
    run: Any,
    data: Any = None,
    out: str | Path = "report.html",
    *,
    diagnosis: Diagnosis | Mapping[str, Any] | str = "quick",
    title: str | None = None,
    image_shape: Any = None,
    command: str | None = None,
    seed: int = 0,
    progress: Any = None,
) -> Path:
    """Write one HTML file about a run or a comparison: it needs no network and no other file.

    It says what was run, with tables and learning curves; shows draws, reconstructions and the
    latent plane, with the decoded image under the pointer or the arrow keys; says in words how far
    to trust the posterior; and how to make it all again.  It fits paper, and every picture has an
    alternative text.

    Args:
        run: a run, a program, a comparison, or the folder of a saved run or of ``pyro-vae
            compare``.
        data: held-out data: a ``DataSet``, whose test part counts, or rows.  Without data there
            are no reconstructions and no diagnosis.
        out: the file to write; one that is there is replaced once the page is whole.
        diagnosis: "quick" judges the posterior of at most 300 data in a minute or so, "full" at
            the budget of ``pv.diagnose``, "none" not at all; a dict has options of
            ``pv.diagnose``; and one that is made already is taken as it is.
        title: of the page.
        image_shape: (height, width) of a flat datum, where it is no square; False for no image.
        command: a command line, for the section on how to make it again.
        seed: of draws and diagnosis.
        progress: as of ``pv.diagnose``.

    Returns:
        The path of the file.

    Raises:
        ValueError: a folder that holds neither, an unknown budget, or a file that cannot be
            written: before any work is done.

    Example:
        >>> import tempfile, torch
        >>> from pyro_vae.models import bernoulli_vae
        >>> vae = bernoulli_vae.build(64, latent_dim=2, hidden_dim=8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     page = report(vae, out=f"{folder}/page.html").read_text(encoding="utf8")
        >>> page.count("<h1>")
        1
    """
    seed = errors.seed_number(seed)
    if isinstance(diagnosis, str) and diagnosis not in BUDGETS:
        raise ValueError(
            f'diagnosis is "{diagnosis}", expected one of {", ".join(BUDGETS)}, options of '
            "pv.diagnose, or a diagnosis"
        )
    if not isinstance(diagnosis, (str, Mapping, Diagnosis)):
        raise TypeError(
            f"diagnosis is {type(diagnosis).__name__}, expected one of {', '.join(BUDGETS)}, a "
            "dict of options of pv.diagnose, or what it returned"
        )
    place = _writable(out)
    where = str(run) if isinstance(run, (str, os.PathLike)) else None
    thing = run if where is None else opened(where)
    rows = data.test if isinstance(data, DataSet) else data
    if isinstance(thing, Comparison):
        sections = sections_of_comparison(thing, rows, image_shape, seed)
        manifests = [each.manifest for each in thing.runs.values()]
        of = f"{thing.dataset.attrs.get('data', 'data')}"
        heading = f"Comparison on {of}"
        again = reproduction({}, None, command, None)
        if manifests:
            versions = manifests[0]["versions"]
            again.facts = [(name, str(version)) for name, version in versions.items()]
        sections += [again] if again.facts or again.code else []
    else:
        program_of(thing)
        sections = sections_of_run(thing, rows, diagnosis, image_shape, seed, progress)
        program, manifest = getattr(thing, "program", thing), getattr(thing, "manifest", {})
        heading = f"{manifest['objective']} on " if manifest else ""
        heading += type(program).__name__ if where is None else Path(where).name
        build = getattr(program, "build_record", None)
        again = reproduction(manifest, build, command, where)
        sections += [again] if again.code else []
    _written(place, _page(title or heading, sections))
    return place


def opened(folder: str | Path) -> Any:
    """The run, or the comparison, of a folder.

    Raises:
        ValueError: it holds neither.
    """
    folder = Path(folder)
    file = folder if folder.suffix == ".nc" else folder / "comparison.nc"
    if file.is_file():
        return comparison_of(file)
    if folder.is_dir():
        return load(folder)
    raise ValueError(
        f"{folder} is no folder, expected that of a saved run, run.save(path), or of a "
        "comparison, with comparison.nc in it"
    )


def comparison_of(file: str | Path) -> Comparison:
    """A comparison that was saved, without its runs.

    Raises:
        ValueError: a file that holds none.
    """
    import xarray as xr

    try:
        dataset = xr.load_dataset(file, engine="h5netcdf")
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read ({error}): compare again") from error
    lacking = [n for n in ("log_evidence", "bound", "curve_bound", "khat") if n not in dataset]
    if lacking:
        raise ValueError(
            f"{file} has no {', '.join(lacking)}, expected what pyro-vae compare has written"
        )
    return Comparison({}, dataset)


def _page(title: str, sections: list[Section]) -> str:
    import jinja2

    folder = resources.files("pyro_vae.reporting")
    html, style, script = (
        (folder / name).read_text(encoding="utf8") for name in ("page.html", "page.css", "page.js")
    )
    from markupsafe import Markup

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(html).render(
        title=title,
        sections=sections,
        version=__version__,
        date=datetime.date.today().isoformat(),
        style=Markup(style),  # our own, which no value of a user's is in
        script=Markup(script),
    )


def _writable(out: str | Path) -> Path:
    """The path, tried before any work.

    Raises:
        ValueError: it is a folder, or nothing can be written there.
    """
    place = Path(out)
    try:
        if place.is_dir():
            raise ValueError(f"out={str(out)!r} is a folder, expected a file such as report.html")
        _beside(place).unlink(missing_ok=True)  # which says whether such a name can be
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=place.parent):
            pass
    except OSError as error:
        raise ValueError(
            f"out={str(out)!r} cannot be written ({error.strerror}): name another file"
        ) from None
    return place


def _beside(place: Path) -> Path:
    """Where a page is written before it is whole: one for each process."""
    return place.with_name(f".{place.name}.{os.getpid()}")


def _written(place: Path, text: str) -> None:
    """Write beside the place and rename, so that no page is there by half."""
    part = _beside(place)
    try:
        part.write_text(text, encoding="utf8")
        os.replace(part, place)
    finally:
        part.unlink(missing_ok=True)
