"""Pictures.  Each function returns a matplotlib figure, and saves it where a path is given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

# Okabe & Ito's palette: told apart by readers of every colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def new_figure(columns: int = 1, rows: int = 1, *, width: float = 6.4, height: float = 4.0) -> Any:
    """A figure without any global state of pyplot's, and its axes (rows, columns)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(True, color="0.92", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def saved(figure: Any, path: str | Path | None) -> Any:
    """Write the figure where a path is given; returns it."""
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def learning_curves(dataset: xr.Dataset, path: str | Path | None = None) -> Any:
    """Held-out bound against training samples: one thin line a seed, a thick one for their mean.

    Args:
        dataset: that of a :class:`~pyro_vae.comparison.Comparison`.
        path: where to save the picture.
    """
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    models = [str(m) for m in dataset.model.values]
    figure, axes = new_figure(columns=len(models))
    for axis, model in zip(axes[0], models, strict=True):
        ends = []
        for colour, objective in zip(COLOURS * 3, dataset.objective.values, strict=False):
            part = dataset.sel(model=model, objective=objective)
            x = part.curve_samples.values.mean(0)
            for values in part.curve_bound.values:
                axis.plot(x, values, color=colour, alpha=0.35, linewidth=0.8)
            mean = part.curve_bound.values.mean(0)
            axis.plot(x, mean, color=colour, linewidth=2)
            ends.append((mean[-1], str(objective), colour))
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel("training samples (rows × updates)")
        axis.set_ylabel("held-out ELBO, nats per datum")
        # The first fifth of a run climbs from the untrained value and would squeeze all else.
        shown = dataset.curve_bound.sel(model=model).values
        low, high = shown[..., shown.shape[-1] // 5 :].min(), shown.max()
        axis.set_ylim(low - 0.05 * (high - low), high + 0.08 * (high - low))
        _label_lines(axis, x[-1], ends)
        title = f"{dataset.attrs['data']}, binarize: {dataset.attrs['binarize']}"
        axis.set_title(title if len(models) == 1 else f"{model} on {title}", fontsize=11)
    return saved(figure, path)


def _label_lines(axis: Any, x: float, ends: list[tuple[float, str, str]]) -> None:
    """Write each line's name at its end, pushed apart where two would overlap."""
    ends = sorted(ends)
    low, high = axis.get_ylim()
    least = 0.06 * (high - low)
    place = -np.inf
    for value, name, colour in ends:
        place = max(value, place + least)
        axis.annotate(
            name, (x, place), xytext=(6, 0), textcoords="offset points", color=colour,
            va="center", fontsize=10, annotation_clip=False,
        )  # fmt: skip
