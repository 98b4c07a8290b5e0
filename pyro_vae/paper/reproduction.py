"""What a reproduction is: numbers, a table and pictures made from them, and words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pyro_vae import errors
from pyro_vae.paper.shelf import write_json

SEEDS = 1


class Style(NamedTuple):
    """How the numbers of a figure are shown; each function takes the numbers alone."""

    table: Callable[[Mapping[str, Any]], Any]
    draw: Callable[[Mapping[str, Any]], dict[str, Any]]  # a matplotlib figure by name
    words: Callable[[Mapping[str, Any]], str] = lambda numbers: ""
    digits: int = 2  # of the table, where it is printed


@dataclass(frozen=True, eq=False)
class Reproduction:
    """A figure of the paper, computed anew.

    Attributes:
        name: "figure2", "appendix-d", ...
        numbers: everything that was measured and how: plain values, as in ``numbers.json``.
        out: the folder that it was written to.
    """

    name: str
    numbers: dict[str, Any]
    style: Style = field(repr=False)
    out: Path | None = None

    def table(self) -> Any:
        """A data frame, as in ``table.csv``."""
        return self.style.table(self.numbers)

    def plot(self, path: str | Path | None = None) -> Any:
        """The picture; saves it to ``path``.

        Returns:
            A matplotlib figure, or a dict of them where there are several; then ``path`` names a
            folder.
        """
        figures = self.style.draw(self.numbers)
        if len(figures) == 1:
            (figure,) = figures.values()
            if path is not None:
                save_picture(figure, Path(path))
            return figure
        for name, figure in figures.items():
            if path is not None:
                save_picture(figure, Path(path) / f"{name}.png")
        return figures

    def words(self) -> str:
        """What came out, and where it differs from the paper."""
        return self.style.words(self.numbers)

    def save(self, folder: str | Path | None = None) -> list[Path]:
        """Write numbers.json, table.csv and the pictures; returns what was written."""
        if folder is None and self.out is None:
            raise ValueError("folder is None and nothing was written before: name a folder")
        target = Path(folder or self.out or ".")
        written = [write_json(target / "numbers.json", self.numbers)]
        table = target / "table.csv"
        self.table().to_csv(table)
        written.append(table)
        for name, figure in self.style.draw(self.numbers).items():
            written.append(save_picture(figure, target / f"{name}.png"))
        return written

    def __repr__(self) -> str:
        return f"<{self.name}; see .plot() and .words()>\n{self.printed()}"

    def printed(self) -> str:
        """The table for a terminal."""
        return self.table().round(self.style.digits).to_string()


MOST_BYTES = 145_000  # of a picture that stands in a page


def save_picture(figure: Any, path: Path) -> Path:
    """As PNG with few colours, a fifth of the size; coarser where it is large all the same."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    for colours, dpi in ((128, 130), (64, 100), (32, 100), (32, 80)):
        figure.savefig(path, dpi=dpi)
        with Image.open(path) as picture:
            # (Median cut would wash out the few pixels that are black.)
            method = Image.Quantize.MEDIANCUT if colours > 64 else Image.Quantize.MAXCOVERAGE
            small = picture.convert("RGB").quantize(colours, method, dither=Image.Dither.NONE)
        small.save(path, optimize=True)
        if path.stat().st_size <= MOST_BYTES:
            break
    return path


def whole_budget(budget: float | int, least: int = 1) -> int:
    """A number of training samples; 1e6 is one."""
    if isinstance(budget, float) and budget.is_integer():
        budget = int(budget)
    return errors.whole("budget", budget, least, why="of training samples, rows x updates")


def chosen(known: list[str], only: Any) -> list[str]:
    """The curves that are asked for, in their order; all of them where none is.

    Raises:
        ValueError: one is not known.
    """
    asked = [only] if isinstance(only, str) else list(only or ())
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise ValueError(f"only is {unknown[0]!r}, expected some of {', '.join(known)}")
    return [name for name in known if not asked or name in asked]
