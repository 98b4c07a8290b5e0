"""Pictures of a comparison: learning curves, and log p(x) at the end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pyro_vae.paired import paired_mean
from pyro_vae.plotting.figures import (
    COLOURS,
    apart,
    label_lines,
    new_figure,
    note,
    saved,
    set_limits,
    short,
    thousands,
    under_way,
)

if TYPE_CHECKING:
    import xarray as xr

DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
MARKERS = "os^D"


class Row(NamedTuple):
    """A model under an objective: its scores, and how it looks in every picture."""

    name: str
    scores: xr.Dataset
    colour: str
    dash: Any
    marker: str


def learning_curves(dataset: xr.Dataset, path: str | Path | None = None) -> Any:
    """Held-out bound against training samples, and held-out log p(x) at the end.

    All models and objectives share the two axes, because their nats are on one scale.  Where there
    are several of both, a colour is a model, and a kind of line and dot an objective.  One thin
    line or small dot is a seed, a thick one their mean.  An algorithm without a guide has no bound,
    and so no line.

    Bars are the table's ``against first 95 %``: the 95 % interval, over data and seeds, of the
    paired difference to the first row, the dashed line.  With a single seed they are one standard
    error over data, and tell runs apart, not algorithms.  A bar much longer than all the rest of
    the picture runs out of it.

    Args:
        dataset: that of a :class:`~pyro_vae.comparison.Comparison`.
        path: where to save the picture.
    """
    more = max(0, len(rows_of(dataset)) - 4)
    figure, ((left, right),) = new_figure(columns=2, width=5.4 + 0.3 * more, height=4 + 0.2 * more)
    bound_axis(left, dataset)
    evidence_axis(right, dataset)
    title = f"{dataset.attrs['data']}, binarize: {dataset.attrs['binarize']}"
    left.set_title(title, fontsize=11, loc="left")
    return saved(figure, path)


def rows_of(dataset: xr.Dataset) -> list[Row]:
    """The rows of the table, in its order, by the shortest names that tell them apart."""
    models, objectives = dataset.model.values, dataset.objective.values
    rows = []
    for i, model in enumerate(models):
        for j, objective in enumerate(objectives):
            both = len(models) > 1 and len(objectives) > 1
            name = short(objective) if len(models) == 1 else str(model)
            colour = i if len(models) > 1 else j
            rows.append(
                Row(
                    f"{name}, {short(objective)}" if both else name,
                    dataset.isel(model=i, objective=j),
                    COLOURS[colour % len(COLOURS)],
                    DASHES[j % len(DASHES)] if both else "-",
                    MARKERS[j % len(MARKERS)] if both else "o",
                )
            )
    return rows


def bound_axis(axis: Any, dataset: xr.Dataset) -> None:
    """The learning curves: held-out bound against training samples."""
    curves, without = [], []
    for row in rows_of(dataset):
        bound = row.scores.curve_bound.values  # (seed, record)
        x = row.scores.curve_samples.values.mean(0)
        keep = np.isfinite(x) & np.isfinite(bound).all(0)
        keep[keep] = apart(x[keep])
        if not keep.any():
            without.append(row.name)
            continue
        x, bound = x[keep], bound[:, keep]
        look = {"color": row.colour, "linestyle": row.dash}
        axis.plot(x, bound.T, alpha=0.35, linewidth=0.8, **look)
        axis.plot(x, bound.mean(0), linewidth=2, **look)
        curves.append((x, bound, row.name, row.colour))
    axis.set_xscale("log")
    if curves:
        low = min(bound[:, under_way(bound.mean(0)) :].min() for _, bound, *_ in curves)
        high = max(bound.max() for _, bound, *_ in curves)
        first = min(x[max(0, int((bound < low).all(0).sum()) - 1)] for x, bound, *_ in curves)
        last = max(x[-1] for x, *_ in curves)
        set_limits(axis, low, high)
        axis.set_xlim(first * 0.98, last * 1.02)
        label_lines(axis, last, [(b.mean(0)[-1], name, colour) for _, b, name, colour in curves])
    thousands(axis.xaxis)
    if without:
        note(axis, f"{', '.join(without)}: no guide, so no bound")
    axis.set_xlabel("training samples (rows × updates)")
    axis.set_ylabel("held-out ELBO, nats per datum")


def evidence_axis(axis: Any, dataset: xr.Dataset) -> None:
    """Held-out log p(x) at the end of training, with the interval of the difference to the first.

    Bars stand around each row's mean; one that does not reach the dashed line is a difference.
    """
    rows = rows_of(dataset)
    first = rows[0].scores.log_evidence.values  # (seed, datum)
    axis.axhline(first.mean(), color=rows[0].colour, linewidth=1, linestyle=(0, (4, 4)))
    dots, ends = [], []
    for place, row in enumerate(rows):
        scores = row.scores.log_evidence.values
        seeds, difference = scores.mean(1), paired_mean(scores - first)
        bar = difference.standard_error if len(seeds) == 1 else difference.half_width
        look = {"color": row.colour, "marker": row.marker, "linestyle": "none"}
        axis.plot(np.full(len(seeds), place), seeds, alpha=0.35, markersize=4, **look)
        axis.errorbar(place + 0.12, scores.mean(), yerr=bar, markersize=7, capsize=3, **look)
        dots += [*seeds, scores.mean()]
        ends += [scores.mean() - bar, scores.mean() + bar]
    low, high = np.min(dots), np.max(dots)
    span = high - low
    if np.isfinite(ends).all() and max(ends) - min(ends) > 4 * span > 0:  # keep the dots apart
        axis.set_ylim(max(min(ends), low - span), min(max(ends), high + span))
        note(axis, "bars that leave the picture: see the table")
    names = [row.name for row in rows]
    axis.set_xticks(range(len(names)), names)
    if sum(map(len, names)) > 45:
        axis.tick_params("x", rotation=35)
        for label in axis.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axis.set_xlim(-0.5, len(names) - 0.5)
    axis.set_ylabel("held-out log p(x), nats per datum")
    title = f"bars: 95 % interval of the difference to {names[0]}"
    if len(first) == 1:
        title = f"bars: ± one standard error of this one run's difference to that of {names[0]}"
    axis.set_title(title, fontsize=9, loc="right")
