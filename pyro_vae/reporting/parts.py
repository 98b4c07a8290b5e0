"""What a page consists of: sections, and pictures with a text for those who do not see them."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

COLOURS = 128  # of a picture, which keeps a page light


@dataclass(frozen=True)
class Picture:
    """A picture of a page.

    Attributes:
        source: a data URI.
        alt: what it shows, in words.
        caption: below it.
        width, height: pixels.
    """

    source: str
    alt: str
    caption: str
    width: int
    height: int


@dataclass
class Section:
    """A section of a page; whatever is empty is left out.

    Attributes:
        name: of its anchor.
        title: its heading.
        text: paragraphs.
        facts: pairs (name, value).
        columns, rows: a table, its cells as text.
        note: below the table.
        findings: (question, verdict, text) of a diagnosis.
        pictures: side by side where there is room.
        plane: the map of a latent plane.
        code: lines that are shown as they are.
    """

    name: str
    title: str
    text: list[str] = field(default_factory=list)
    facts: list[tuple[str, str]] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    note: str = ""
    findings: list[Any] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    plane: Any = None
    code: str = ""

    def draw(self, draw: Callable[[], Any], alt: str, caption: str = "") -> None:
        """Add what a function of ``pv.plotting`` draws; say in words where it draws nothing."""
        try:
            axes = draw()
        except (ValueError, RuntimeError) as error:
            self.text.append(f"Not drawn: {' '.join(str(error).split())}.")
            return
        self.pictures.append(picture_of(axes.figure, alt, caption))


def picture_of(figure: Any, alt: str, caption: str = "") -> Picture:
    """A figure as a picture of a page."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    with Image.open(buffer) as whole:
        few = whole.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
        return Picture(png_uri(few), alt, caption, *few.size)


def png_uri(picture: Any) -> str:
    """A picture of Pillow's as a data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def number(value: float, digits: int = 2) -> str:
    """A number with a true minus sign; a dash where there is none."""
    if value is None or not np.isfinite(value):
        return "—"
    return f"{value:,.{digits}f}".replace("-", "−")
