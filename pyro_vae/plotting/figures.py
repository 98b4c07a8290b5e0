"""What pictures share: colours, figures and axes, labels at the ends of lines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae import errors

# Okabe & Ito's palette: told apart by readers of every colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))


def new_figure(
    columns: int = 1,
    rows: int = 1,
    *,
    width: float = 6.4,
    height: float = 4.0,
    ratios: Sequence[float] | None = None,
) -> Any:
    """A figure without any global state of pyplot's, and its axes (rows, columns).

    ``width`` and ``height`` are inches an axis, ``ratios`` how the columns share the width.
    """
    columns, rows = errors.whole("columns", columns), errors.whole("rows", rows)
    width, height = errors.positive("width", width), errors.positive("height", height)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from pyro_vae.plotting.displayed import DisplayedAxes

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    shown = {"axes_class": DisplayedAxes}
    axes = figure.subplots(rows, columns, squeeze=False, width_ratios=ratios, subplot_kw=shown)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, color="0.92", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def axes_of(ax: Any, width: float = 6.4, height: float = 4.0) -> Any:
    """The axes to draw into: those that are given, or those of a new figure.

    Raises:
        TypeError: something else is given.
    """
    if ax is None:
        return new_figure(width=width, height=height)[1][0, 0]
    if not (hasattr(ax, "plot") and hasattr(ax, "transAxes")):
        raise TypeError(
            f"ax is {type(ax).__name__}, expected matplotlib Axes, one panel: pass one of "
            "figure.subplots(), or leave it out"
        )
    return ax


def array_of(values: Any, name: str = "values") -> np.ndarray:
    """Numbers as an array, off the device and without gradients.

    Raises:
        TypeError: they are no numbers.
    """
    values = values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
    if values.dtype.kind not in "biuf":
        raise TypeError(f"{name} is of {values.dtype}, expected an array of numbers")
    return values


def two_of(dims: Any, number: int) -> tuple[int, int]:
    """Two numbers of a latent of so many, checked.

    Raises:
        ValueError, TypeError: other than two different ones that are there.
    """
    try:
        chosen = [errors.whole("dims", d, 0, number - 1) for d in dims]
    except TypeError as error:
        raise TypeError(f"dims is {dims!r}, expected two whole numbers such as (0, 1)") from error
    if len(chosen) != 2 or chosen[0] == chosen[1]:
        raise ValueError(f"dims is {dims}, expected two different numbers such as (0, 1)")
    return chosen[0], chosen[1]


def plain(text: Any) -> str:
    """A name as it is written: matplotlib reads $ as mathematics, and hides names from legends."""
    text = str(text).replace("$", r"\$")
    return f"\u200b{text}" if text.startswith("_") else text


def saved(figure: Any, path: str | Path | None) -> Any:
    """Write the figure where a path is given; returns it."""
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def lines_of(names: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """How to draw the line of each name: a colour, and a kind of line for print in grey."""
    for number, name in enumerate(names):
        dash = DASHES[(number + number // len(COLOURS)) % len(DASHES)]
        yield name, {"color": COLOURS[number % len(COLOURS)], "linestyle": dash, "linewidth": 1.6}


# --- parts --------------------------------------------------------------------------------------


def short(objective: Any) -> str:
    """Its name on a picture: AEVB for AEVB(), IWAE(10) for IWAE(num_particles=10)."""
    name = str(objective).removesuffix("()")
    return name.replace("num_particles=", "").replace("estimator=", "")


def apart(x: np.ndarray) -> np.ndarray:
    """False for a record just before the last one: the two would be drawn as a hook."""
    keep = np.ones(len(x), dtype=bool)
    if len(x) > 2:
        keep[-2] = x[-1] - x[-2] > 0.2 * (x[-2] - x[-3])
    return keep


def under_way(values: np.ndarray) -> int:
    """The record from which on a curve is to be seen whole.

    It stands still while an optimizer only accumulates; the first fifth of what follows climbs from
    the untrained value.  Either would squeeze all else.
    """
    still = int(np.isclose(values, values[0], rtol=1e-6).sum())
    return min(len(values) - 1, still + (len(values) - still) // 5)


def set_limits(axis: Any, low: float, high: float) -> None:
    span = max(high - low, 1e-3 * abs(high), 1e-9)
    axis.set_ylim(low - 0.05 * span, high + 0.08 * span)


def thousands(axis: Any) -> None:
    """Numbers from a thousand on as 1k, 1M; smaller ones as they are."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

    if axis.get_scale() == "log":
        low, high = axis.get_view_interval()
        axis.set_major_locator(
            LogLocator(subs=(1, 2, 5) if high > 8 * low else (1, 1.5, 2, 3, 5, 7))
        )
        axis.set_minor_formatter(NullFormatter())
    large = EngFormatter(sep="")
    axis.set_major_formatter(FuncFormatter(lambda v, _: large(v) if v >= 1000 else f"{v:g}"))


def note(axis: Any, text: str) -> None:
    """In the corner that a rising curve leaves free."""
    axis.text(0.98, 0.03, text, transform=axis.transAxes, ha="right", fontsize=8, color="0.4")


def lead(axis: Any, x: float, last: float, value: float, colour: str) -> None:
    """Dots from the end of a line to its name, where other lines go on for longer."""
    if x < 0.98 * last:
        axis.plot([x, last], [value, value], color=colour, linewidth=1, linestyle=(0, (1, 3)))


def label_lines(axis: Any, x: float, ends: list[tuple[float, str, str]]) -> None:
    """Write each line's name at its end, pushed apart where two would overlap."""
    ends = sorted(ends)
    low, high = axis.get_ylim()
    least = 0.06 * (high - low)
    places = [value for value, *_ in ends]
    for _ in ends:  # each pass parts what the one before pushed together
        for i in range(len(places) - 1):
            lacking = max(0.0, places[i] + least - places[i + 1])
            places[i] -= lacking / 2
            places[i + 1] += lacking / 2
    for place, (_, name, colour) in zip(places, ends, strict=True):
        axis.annotate(
            plain(name), (x, place), xytext=(6, 0), textcoords="offset points", color=colour,
            va="center", fontsize=10, annotation_clip=False,
        )  # fmt: skip
