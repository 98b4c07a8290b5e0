"""``pyro-vae reproduce``."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from typing import Any

from pyro_vae.cli.flags import nearest
from pyro_vae.cli.sources import require_device, results
from pyro_vae.cli.telling import Note

ALL = "all"


def run_reproduce(
    figure: str | None = None,
    /,
    *,
    budget: int | None = None,
    full: bool = False,
    seeds: int | None = None,
    out: Path | None = None,
    data_dir: Path | None = None,
    device: str | None = None,
    only: list[str] = [],  # noqa: B006
) -> int:
    """Compute a figure of the paper anew and set it over the published one.

    A budget that ends within minutes is taken where none is given; the same command goes on where
    the one before was stopped, and a larger budget goes on from a smaller one.

    Args:
        budget: training samples of each curve, such as 1e6; each figure has a quick one.
        full: the paper's own budget, for a GPU.
        seeds: runs of each curve.
        out: folder for runs, numbers, table and pictures (default: reproduction/FIGURE).
        data_dir: folder that holds the data sets' files (default: PYRO_VAE_DATA).
        device: cpu or cuda.
        only: names of curves, such as mnist-aevb-3.
    """
    from pyro_vae.paper.reproducing import FIGURES, module_of

    known = [*FIGURES, ALL]
    if figure is None:
        raise ValueError(f"which figure? pyro-vae reproduce NAME, one of {', '.join(known)}")
    if figure not in known:
        raise ValueError(f"figure: {nearest(figure, known)}")
    if full and budget is not None:
        raise ValueError("--full and --budget both say how long to train: give one of them")
    if figure == ALL and only:
        raise ValueError("--only is for one figure: name it in place of all")
    if device is not None:
        require_device(device)
    given = {
        "budget": budget, "seeds": seeds, "data_dir": data_dir, "device": device,
        "only": only or None,
    }  # fmt: skip
    names = list(FIGURES) if figure == ALL else [figure]
    root = Path("reproduction") if figure == ALL else Path("reproduction") / figure
    root = root if out is None else out
    for name in names:
        module = module_of(name)
        takes = inspect.signature(module.reproduce).parameters
        options: dict[str, Any] = {n: v for n, v in given.items() if v is not None}
        if full and "budget" in takes:
            options["budget"] = module.FULL
        for option in [n for n in options if n not in takes]:
            if figure != ALL:
                raise ValueError(f"--{option} is no option of {name}")
            del options[option]
        folder = root / name if figure == ALL else root
        if figure == ALL and "runs" in takes:
            options["runs"] = root / "runs"  # figures that need the same trainings share them
        with results(folder, "matplotlib", "pandas"):
            warnings.warn(f"{name} into {folder}", Note, stacklevel=2)
            result = module.reproduce(out=folder, **options)
        print(_shown(result))
    return 0


def _shown(result: Any) -> str:
    parts = result.printed(), result.words(), f"written: {result.out}"
    return "\n\n".join(part for part in parts if part)
