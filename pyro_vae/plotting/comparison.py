"""Pictures of a comparison: learning curves, and log p(x) at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pyro_vae.evidence.paired import paired_mean
from pyro_vae.plotting.figures import (
    COLOURS,
    DASHES,
    apart,
    axes_of,
    label_lines,
    lead,
    new_figure,
    note,
    plain,
    set_limits,
    short,
    thousands,
    under_way,
)

if TYPE_CHECKING:
    import xarray as xr

MARKERS = "os^D"


class Row(NamedTuple):
    """A model under an objective: its scores, and how it looks in every picture."""

    name: str
    scores: xr.Dataset
    colour: str
    dash: Any
    marker: str


def is_comparison(thing: Any) -> bool:
    """Whether this is a comparison, or the data set of one."""
    return hasattr(getattr(thing, "dataset", thing), "log_evidence") and hasattr(
        getattr(thing, "dataset", thing), "curve_bound"
    )


def dataset_of(thing: Any) -> Any:
    """The data set of a comparison, or itself.

    Raises:
        TypeError: anything else.
    """
    if not is_comparison(thing):
        raise TypeError(
            f"comparison is {type(thing).__name__}, expected what pv.compare returns, or its "
            'data set, xarray.open_dataset("comparison.nc")'
        )
    return getattr(thing, "dataset", thing)


def curves_and_evidence(comparison: Any) -> Any:
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
        comparison: a :class:`~pyro_vae.comparison.Comparison`, or its data set.

    Returns:
        The two Axes, an array.
    """
    dataset = dataset_of(comparison)
    more = max(0, len(rows_of(dataset)) - 4)
    _, axes = new_figure(columns=2, width=5.4 + 0.3 * more, height=4 + 0.2 * more)
    left, right = axes[0]
    bound_axis(left, dataset)
    evidence_axis(right, dataset)
    title = f"{plain(dataset.attrs['data'])}, binarize: {dataset.attrs['binarize']}"
    left.set_title(title, fontsize=11, loc="left")
    return axes[0]


def comparison_table(comparison: Any, *, ax: Any = None) -> Any:
    """A comparison's table as a picture: each row's difference to the first, and its log p(x).

    The bar is the 95 % interval of the paired difference, over data and seeds, as in the table; of
    a single seed it is one standard error over data, which tells two runs apart, not algorithms.

    Args:
        comparison: a :class:`~pyro_vae.comparison.Comparison`, or its data set.
        ax: matplotlib Axes to draw into; None makes a figure.

    Returns:
        The Axes.
    """
    rows = rows_of(dataset_of(comparison))
    axis = axes_of(ax, 7.4, 1.5 + 0.38 * len(rows))
    first = rows[0].scores.log_evidence.values  # (seed, datum)
    axis.axvline(0, color="black", linewidth=1, linestyle="--")
    beside = {"xycoords": axis.get_yaxis_transform(), "textcoords": "offset points"}
    beside |= {"va": "center", "fontsize": 9, "annotation_clip": False}
    columns = ((10, "log p(x)"), (66, "ELBO"), (122, "difference"))  # points from the axes
    for place, row in enumerate(rows):
        scores = row.scores.log_evidence.values
        found = paired_mean(scores - first)
        half = found.standard_error if len(first) == 1 else found.half_width
        look = {"color": row.colour, "marker": row.marker, "markersize": 7, "capsize": 3}
        axis.errorbar(found.value, place, xerr=half if place else None, linestyle="", **look)
        bound = float(np.mean(row.scores.bound.values)) if "bound" in row.scores else np.nan
        said = (
            f"{scores.mean():.2f}",
            f"{bound:.2f}" if np.isfinite(bound) else "—",
            f"{found.value:+.2f} ± {half:.2f}" if place else "",
        )
        for (where, _), text in zip(columns, said, strict=True):
            axis.annotate(text.replace("-", "−"), (1, place), xytext=(where, 0), **beside)
    for where, title in columns:
        axis.annotate(title, (1, -0.65), xytext=(where, 0), color="0.4", **beside)
    axis.set_yticks(range(len(rows)), [plain(row.name) for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.grid(False, axis="y")
    bars = "95 % interval" if len(first) > 1 else "± one standard error, one seed"
    axis.set_xlabel(f"log p(x) less that of {plain(rows[0].name)}, nats per datum ({bars})")
    return axis


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


def bound_axis(axis: Any, dataset: xr.Dataset, by: str = "samples") -> None:
    """The learning curves: held-out bound against training samples, or seconds.

    Raises:
        ValueError: a data set that was saved without seconds.
    """
    if f"curve_{by}" not in dataset:
        raise ValueError(
            f"the comparison holds no {by} of its curves, expected those of pv.compare: it was "
            'saved by an earlier version; take by="samples"'
        )
    curves, without = [], []
    for row in rows_of(dataset):
        bound = row.scores.curve_bound.values  # (seed, record)
        x = row.scores[f"curve_{by}"].values.mean(0)
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
        for x, bound, _, colour in curves:
            lead(axis, x[-1], last, bound.mean(0)[-1], colour)
        label_lines(axis, last, [(b.mean(0)[-1], name, colour) for _, b, name, colour in curves])
    thousands(axis.xaxis)
    if without:
        note(axis, f"{', '.join(without)}: no guide, so no bound")
    of = "seconds of training, all seeds together"
    axis.set_xlabel("training samples (rows × updates)" if by == "samples" else of)
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
    names = [plain(row.name) for row in rows]
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
