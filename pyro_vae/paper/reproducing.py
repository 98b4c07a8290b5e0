"""All figures by name."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

from pyro_vae.paper.reproduction import Reproduction
from pyro_vae.paper.shelf import read_json

FIGURES = {
    "figure2": "figure_2",
    "figure3": "figure_3",
    "figure4": "figure_4",
    "figure5": "figure_5",
    "appendix-d": "appendix_d",
    "appendix-e": "appendix_e",
    "appendix-f": "appendix_f",
    "slides": "slides",
}


def module_of(name: str) -> Any:
    """The file of a figure.

    Raises:
        ValueError: there is none.
    """
    if name not in FIGURES:
        raise ValueError(f"name is {name!r}, expected one of {', '.join(FIGURES)}")
    return importlib.import_module(f"pyro_vae.paper.{FIGURES[name]}")


def reproduce(name: str, **options: Any) -> Reproduction:
    """Compute a figure anew, or go on with it.

    Args:
        name: one of ``FIGURES``: "figure2", "appendix-d", ...
        options: of the figure's own ``reproduce``: out, and of those that train budget, seeds,
            data_dir, device, only.

    Raises:
        ValueError: an option that this figure does not have.

    Returns:
        :class:`Reproduction`.
    """
    module = module_of(name)
    takes = list(inspect.signature(module.reproduce).parameters)
    for option in options:
        if option not in takes:
            raise ValueError(f"{option} is no option of {name}, which has {', '.join(takes)}")
    return module.reproduce(**options)


def read(path: str | Path) -> Reproduction:
    """A reproduction from its numbers, to be drawn again without training.

    Args:
        path: ``numbers.json`` or the folder that holds it.
    """
    path = Path(path)
    file = path / "numbers.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"path is {str(path)!r}, where no numbers.json is: name an out folder")
    numbers = read_json(file)
    return Reproduction(numbers["name"], numbers, module_of(numbers["name"]).STYLE, file.parent)
