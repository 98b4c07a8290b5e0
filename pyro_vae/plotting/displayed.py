"""Axes that a notebook shows as a picture when they are the last line of a cell.

Figures here are made without pyplot, whose list of open figures is global state; so nothing but
the axes themselves can tell a notebook what to show.
"""

from __future__ import annotations

import io

from matplotlib.axes import Axes


class DisplayedAxes(Axes):
    """Axes whose rich display is their whole figure."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.get_figure(root=True).savefig(buffer, format="png", dpi=100)  # type: ignore[union-attr]
        return buffer.getvalue()
