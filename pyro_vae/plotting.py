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
    """A row a model: held-out bound against training samples, and held-out log p(x) at the end.

    One thin line or small dot a seed, a thick one for their mean.  An algorithm without a guide has
    no bound, and so no line.  Bars are one standard error over data of the paired difference to
    the first algorithm, because that is what tells two algorithms apart.

    Args:
        dataset: that of a :class:`~pyro_vae.comparison.Comparison`.
        path: where to save the picture.
    """
    models = [str(m) for m in dataset.model.values]
    figure, axes = new_figure(rows=len(models), columns=2, width=5.4)
    for (left, right), model in zip(axes, models, strict=True):
        part = dataset.sel(model=model)
        _curves(left, part)
        _final_evidence(right, part)
        title = f"{dataset.attrs['data']}, binarize: {dataset.attrs['binarize']}"
        left.set_title(
            title if len(models) == 1 else f"{model} on {title}", fontsize=11, loc="left"
        )
    return saved(figure, path)


def _curves(axis: Any, part: xr.Dataset) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    ends, lows, highs, last = [], [], [], 1.0
    for colour, objective in zip(COLOURS * 3, part.objective.values, strict=False):
        one = part.sel(objective=objective)
        bound = one.curve_bound.values  # (seed, record)
        if np.isnan(bound).all():
            continue
        x = one.curve_samples.values.mean(0)
        keep = np.isfinite(x)
        for values in bound:
            axis.plot(x, values, color=colour, alpha=0.35, linewidth=0.8)
        mean = bound.mean(0)
        axis.plot(x, mean, color=colour, linewidth=2)
        ends.append((mean[keep][-1], str(objective), colour))
        # The first fifth of a run climbs from the untrained value and would squeeze all else.
        lows.append(np.nanmin(bound[:, bound.shape[1] // 5 :]))
        highs.append(np.nanmax(bound))
        last = x[keep][-1]
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.xaxis.set_minor_formatter(NullFormatter())
    if ends:
        low, high = min(lows), max(highs)
        axis.set_ylim(low - 0.05 * (high - low), high + 0.08 * (high - low))
        _label_lines(axis, last, ends)
    axis.set_xlabel("training samples (rows × updates)")
    axis.set_ylabel("held-out ELBO, nats per datum")


def _final_evidence(axis: Any, part: xr.Dataset) -> None:
    names = [str(o) for o in part.objective.values]
    per_datum = part.log_evidence.mean("seed").values  # (objective, datum)
    differences = per_datum - per_datum[:1]
    errors = differences.std(1, ddof=1) / np.sqrt(differences.shape[1])
    for place, colour in zip(range(len(names)), COLOURS * 3, strict=False):
        seeds = part.log_evidence.isel(objective=place).mean("datum").values
        axis.plot(np.full(len(seeds), place), seeds, "o", color=colour, alpha=0.35, markersize=4)
        axis.errorbar(
            place + 0.12, per_datum[place].mean(), yerr=errors[place], fmt="o", color=colour,
            markersize=7, capsize=3,
        )  # fmt: skip
    axis.set_xticks(range(len(names)), names)
    axis.set_xlim(-0.5, len(names) - 0.5)
    axis.set_ylabel("held-out log p(x), nats per datum")
    axis.set_title(f"bars: ± one standard error against {names[0]}", fontsize=9, loc="right")


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


def training_curve(history: Any, path: str | Path | None = None) -> Any:
    """One run: the bound on training minibatches and on held-out data, against samples.

    Args:
        history: the data frame of a :class:`~pyro_vae.training.Run`.
        path: where to save the picture.
    """
    figure, axes = new_figure()
    axis, ends = axes[0, 0], []
    columns = {"bound": "training", "log_joint": "log p(x, z)", "validation_bound": "held out"}
    for colour, (column, name) in zip(COLOURS, columns.items(), strict=False):
        if column in history:
            points = history[["samples", column]].dropna().to_numpy(float)
            axis.plot(*points.T, color=colour, linewidth=2, marker="o", markersize=2)
            ends.append((points[-1, 1], name, colour))
    if ends:
        _label_lines(axis, float(history["samples"].iloc[-1]), ends)
    axis.set_xlabel("training samples (rows × updates)")
    axis.set_ylabel("nats per datum")
    return saved(figure, path)
