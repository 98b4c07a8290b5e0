"""Ours over theirs: bands over seeds, and the published curves dashed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pyro_vae.paper.published import Published
from pyro_vae.plotting.figures import COLOURS

METHODS = {"AEVB": COLOURS[0], "wake-sleep": COLOURS[1], "Monte Carlo EM": COLOURS[2]}
WIDTHS = {"test": 1.9, "train": 0.9}
DASHED = (0, (4, 2))
NAMES = {"mnist": "MNIST", "frey_face": "Frey Face"}


def draw_published(axis: Any, curve: Published | None) -> None:
    """Dashed; thin where it is of training data."""
    if curve is None:
        return
    axis.plot(
        curve.samples, curve.nats, linestyle=DASHED, color=METHODS[curve.method], alpha=0.75,
        linewidth=WIDTHS[curve.split] * 0.8,
    )  # fmt: skip


def draw_ours(
    axis: Any, curves: Sequence[tuple[Sequence[float], Sequence[float]]], method: str, split: str
) -> None:
    """The mean over seeds, in a band from the lowest to the highest of them."""
    found = [(np.asarray(x, float), np.asarray(y, float)) for x, y in curves if len(x)]
    if not found:
        return
    colour, width = METHODS[method], WIDTHS[split]
    end = min(float(x[-1]) for x, _ in found)
    x = found[0][0]
    x = x[x <= end]
    values = np.stack([np.interp(np.log(x), np.log(a), b) for a, b in found])
    look = {"marker": "o", "markersize": 4} if len(x) == 1 else {}
    axis.plot(x, values.mean(0), color=colour, linewidth=width, **look)
    if len(values) > 1:
        axis.fill_between(x, values.min(0), values.max(0), color=colour, alpha=0.2, linewidth=0)


def legend(axis: Any, methods: Sequence[str], *, seeds: int, crosses: str = "") -> None:
    """What the lines are, on an axis of its own or in a free corner."""
    from matplotlib.lines import Line2D

    entries = [Line2D([], [], color=METHODS[m], linewidth=2, label=m) for m in methods]
    band = ", band over seeds" if seeds > 1 else ""
    entries += [
        Line2D([], [], color="0.3", linewidth=2, label=f"ours{band}"),
        Line2D([], [], color="0.3", linewidth=1.5, linestyle=DASHED, label="published"),
        Line2D([], [], color="0.3", linewidth=WIDTHS["test"], label="test: thick"),
        Line2D([], [], color="0.3", linewidth=WIDTHS["train"], label="train: thin"),
    ]
    if crosses:
        entries.append(Line2D([], [], color="0.3", linestyle="none", marker="x", label=crosses))
    axis.legend(handles=entries, fontsize=9, frameon=False, loc="center")


def sample_axis(axis: Any) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    axis.set_xscale("log")
    low, high = axis.get_xlim()
    axis.xaxis.set_major_locator(LogLocator(subs=(1,) if high > 200 * low else (1, 3)))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.xaxis.set_minor_formatter(NullFormatter())


def blank(axis: Any) -> None:
    axis.set_axis_off()
