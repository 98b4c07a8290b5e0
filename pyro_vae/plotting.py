"""Pictures.  Each function returns a matplotlib figure, and saves it where a path is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

# Okabe & Ito's palette: told apart by readers of every colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, width_ratios=ratios)
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
        bound_axis(left, part)
        evidence_axis(right, part)
        title = f"{dataset.attrs['data']}, binarize: {dataset.attrs['binarize']}"
        left.set_title(
            title if len(models) == 1 else f"{model} on {title}", fontsize=11, loc="left"
        )
    return saved(figure, path)


def bound_axis(axis: Any, part: xr.Dataset) -> None:
    """The learning curves of one model: held-out bound against training samples."""
    curves, without = [], []
    for colour, objective in zip(COLOURS * 3, part.objective.values, strict=False):
        one, name = part.sel(objective=objective), _short(objective)
        bound = one.curve_bound.values  # (seed, record)
        x = one.curve_samples.values.mean(0)
        keep = np.isfinite(x) & np.isfinite(bound).all(0)
        keep[keep] = _apart(x[keep])
        if not keep.any():
            without.append(name)
            continue
        x, bound = x[keep], bound[:, keep]
        axis.plot(x, bound.T, color=colour, alpha=0.35, linewidth=0.8)
        axis.plot(x, bound.mean(0), color=colour, linewidth=2)
        curves.append((x, bound, name, colour))
    axis.set_xscale("log")
    if curves:
        low = min(bound[:, _under_way(bound.mean(0)) :].min() for _, bound, *_ in curves)
        high = max(bound.max() for _, bound, *_ in curves)
        first = min(x[max(0, int((bound < low).all(0).sum()) - 1)] for x, bound, *_ in curves)
        last = max(x[-1] for x, *_ in curves)
        _set_limits(axis, low, high)
        axis.set_xlim(first * 0.98, last * 1.02)
        _label_lines(axis, last, [(b.mean(0)[-1], name, colour) for _, b, name, colour in curves])
    _thousands(axis.xaxis)
    if without:
        _note(axis, f"{', '.join(without)}: no guide, so no bound")
    axis.set_xlabel("training samples (rows × updates)")
    axis.set_ylabel("held-out ELBO, nats per datum")


def evidence_axis(axis: Any, part: xr.Dataset) -> None:
    """Held-out log p(x) of one model at the end of training, by algorithm."""
    names = [_short(o) for o in part.objective.values]
    per_datum = part.log_evidence.mean("seed").values  # (objective, datum)
    differences = per_datum - per_datum[:1]
    errors = differences.std(1, ddof=1) / np.sqrt(differences.shape[1])
    axis.axhline(per_datum[0].mean(), color=COLOURS[0], linewidth=1, linestyle=(0, (4, 4)))
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
    title = f"bars: ± one standard error of the difference to {names[0]}"
    axis.set_title(title, fontsize=9, loc="right")


def training_curve(history: Any, path: str | Path | None = None) -> Any:
    """One run: the bound on training minibatches and on held-out data, against samples.

    The held-out line lies in a band of one standard error over data.  The axis leaves out how low
    the first records are, and says so.

    Args:
        history: the data frame of a :class:`~pyro_vae.training.Run`.
        path: where to save the picture.
    """
    figure, axes = new_figure()
    axis, curves = axes[0, 0], []
    columns = {"bound": "training", "log_joint": "log p(x, z)", "validation_bound": "held out"}
    if not any(column in history for column in columns):  # an auto-encoder's
        columns = {"reconstruction": "log p(x | z)"}
    shown = [column for column in columns if column in history]
    for colour, column in zip(COLOURS, shown, strict=False):
        records = history.dropna(subset=column)
        records = records[_apart(records["samples"].to_numpy(float))]
        x, values = records["samples"].to_numpy(float), records[column].to_numpy(float)
        held_out = column == "validation_bound"
        look = {"linewidth": 2.2} if held_out else {"linewidth": 0.9, "alpha": 0.6}
        axis.plot(x, values, color=colour, **look)
        curves.append((values, columns[column], colour))
        if held_out:
            error = records["validation_bound_standard_error"].to_numpy(float)
            band = {"color": colour, "alpha": 0.2, "linewidth": 0}
            axis.fill_between(x, values - error, values + error, **band)
    if curves:
        low = min(values[_under_way(values) :].min() for values, *_ in curves)
        high = max(values.max() for values, *_ in curves)
        lowest = min(values.min() for values, *_ in curves)
        _set_limits(axis, low, high)
        axis.set_xlim(0, None)
        ends = [(float(values[-1]), name, colour) for values, name, colour in curves]
        _label_lines(axis, float(history["samples"].iloc[-1]), ends)
        if lowest < axis.get_ylim()[0]:
            _note(axis, f"first records go down to {lowest:,.1f}".replace("-", "−"))
    _thousands(axis.xaxis)
    axis.set_xlabel("training samples (rows × updates)")
    axis.set_ylabel("nats per datum")
    return saved(figure, path)


def gradient_dots(dataset: xr.Dataset, path: str | Path | None = None) -> Any:
    """A row a group of parameters: signal-to-noise, variance and bias of each gradient.

    A line connects the settings of one kind of objective.  A hollow dot is a bias that may be none:
    as large a distance would come about between equal means once in a thousand times.  What a
    logarithmic axis cannot show is written at its left: "< e" for a length of 0, of which e would
    have gone unnoticed.

    Args:
        dataset: that of a :class:`~pyro_vae.gradients.GradientReport`.
        path: where to save the picture.
    """
    groups, names = dataset.group.values, [_with_options(o) for o in dataset.objective.values]
    kinds = [name.split("(")[0] for name in names]
    every = list(dict.fromkeys(kinds))
    height = 1.1 + 0.26 * len(names)
    figure, axes = new_figure(columns=3, rows=len(groups), width=3.6, height=height)
    for row, group in zip(axes, groups, strict=True):
        part = dataset.sel(group=group)
        for axis, column in zip(row, ("snr", "variance", "bias"), strict=True):
            values, errors = part[column].values, part[f"{column}_standard_error"].values
            drawn = (values > 0) & np.isfinite(values)
            hollow = ~(part.bias_p.values < 1e-3) & (column == "bias")
            for number, kind in enumerate(every):
                look = {"color": COLOURS[number % 7], "marker": "os^"[number // 7 % 3]}
                mine = np.flatnonzero(np.array([k == kind for k in kinds]) & drawn)
                axis.plot(values[mine], mine, color=look["color"], linewidth=1, alpha=0.5)
                for place in mine:
                    x, e = values[place], errors[place]
                    axis.plot([max(x - e, x / 1e3), x + e], [place] * 2, color=look["color"])
                    fill = "white" if hollow[place] else look["color"]
                    axis.plot(x, place, markersize=6, markerfacecolor=fill, **look)
            for place in np.flatnonzero(~drawn):
                value, error = values[place], errors[place]
                text = "no noise" if value == np.inf else "0" if not error > 0 else f"< {error:.1g}"
                if column == "bias" and np.isnan(part.bias_p.values[place]):
                    text = "reference"
                beside = axis.get_yaxis_transform()
                axis.text(0.03, place, text, transform=beside, va="center", color="0.4")
            _log_axis(axis, values[drawn])
            axis.set_ylim(len(names) - 0.5, -0.5)
            axis.set_yticks(range(len(names)), names if column == "snr" else [])
        row[0].set_ylabel(f"{group} parameters")
    reference = _with_options(dataset.attrs["reference"])
    titles = ("signal-to-noise of one draw", "variance of one draw", f"bias against {reference}")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=11, loc="left")
    axes[-1, 2].set_xlabel("hollow: no more than chance", fontsize=9)
    return saved(figure, path)


# --- parts --------------------------------------------------------------------------------------


def _short(objective: Any) -> str:
    return str(objective).removesuffix("()")


def _with_options(objective: Any) -> str:
    """IWAE(10) for IWAE(num_particles=10)."""
    return _short(objective).replace("num_particles=", "").replace("estimator=", "")


def _apart(x: np.ndarray) -> np.ndarray:
    """False for a record just before the last one: the two would be drawn as a hook."""
    keep = np.ones(len(x), dtype=bool)
    if len(x) > 2:
        keep[-2] = x[-1] - x[-2] > 0.2 * (x[-2] - x[-3])
    return keep


def _under_way(values: np.ndarray) -> int:
    """The record from which on a curve is to be seen whole.

    It stands still while an optimizer only accumulates; the first fifth of what follows climbs from
    the untrained value.  Either would squeeze all else.
    """
    still = int(np.isclose(values, values[0], rtol=1e-6).sum())
    return min(len(values) - 1, still + (len(values) - still) // 5)


def _set_limits(axis: Any, low: float, high: float) -> None:
    span = max(high - low, 1e-3 * abs(high), 1e-9)
    axis.set_ylim(low - 0.05 * span, high + 0.08 * span)


def _thousands(axis: Any) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    if axis.get_scale() == "log":
        low, high = axis.get_view_interval()
        axis.set_major_locator(
            LogLocator(subs=(1, 2, 5) if high > 8 * low else (1, 1.5, 2, 3, 5, 7))
        )
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(EngFormatter(sep=""))


def _log_axis(axis: Any, values: np.ndarray) -> None:
    """A logarithmic axis with a few plain numbers on it; none where there is nothing to show."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    if not len(values):
        axis.set_xticks([])
        return
    low, high = values.min() / 1.5, values.max() * 1.5
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    decades = np.log10(high / low)
    few = LogLocator(subs=(1, 2, 5) if decades < 2 else (1,), numticks=6 if decades < 4 else 4)
    axis.xaxis.set_major_locator(MaxNLocator(3) if decades < 0.7 else few)
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())


def _note(axis: Any, text: str) -> None:
    """In the corner that a rising curve leaves free."""
    axis.text(0.98, 0.03, text, transform=axis.transAxes, ha="right", fontsize=8, color="0.4")


def _label_lines(axis: Any, x: float, ends: list[tuple[float, str, str]]) -> None:
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
            name, (x, place), xytext=(6, 0), textcoords="offset points", color=colour,
            va="center", fontsize=10, annotation_clip=False,
        )  # fmt: skip
