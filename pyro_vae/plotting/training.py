"""Learning curves: of one run, of several, of a comparison."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from pyro_vae.plotting.comparison import bound_axis, dataset_of, is_comparison
from pyro_vae.plotting.figures import (
    COLOURS,
    DASHES,
    apart,
    axes_of,
    label_lines,
    lead,
    note,
    set_limits,
    short,
    thousands,
    under_way,
)

By = Literal["samples", "seconds"]
LABELS = {"samples": "training samples (rows × updates)", "seconds": "seconds of training"}
COLUMNS = ("validation_bound", "bound", "log_joint", "reconstruction")


def learning_curves(
    runs: Any, *, by: By = "samples", column: str | None = None, ax: Any = None
) -> Any:
    """How the bound rises while algorithms learn, against samples or seconds.

    Of one run these are its training and its held-out bound, :func:`training_curve`; of a
    comparison a thin line is a seed and a thick one their mean.  The first records, which may be
    hundreds of nats down, are left out of the axes.

    Args:
        runs: a run, its history (a data frame), a list or a dict by name of either, or a
            comparison.  Runs that have one name share a colour.
        by: "samples" or "seconds".
        column: of the histories of several runs; None takes the held-out bound where all have it,
            else the bound.
        ax: matplotlib Axes to draw into; None makes a figure.

    Returns:
        The Axes.

    Raises:
        ValueError, TypeError: nothing to draw, or no such column.
    """
    _require_by(by)
    if is_comparison(runs):
        dataset = dataset_of(runs)
        axis = axes_of(ax, 6.0, 4.0)
        bound_axis(axis, dataset, by)
        return axis
    if isinstance(runs, Iterator):
        runs = list(runs)
    if not isinstance(runs, (Mapping, Sequence)):
        return training_curve(runs, by=by, ax=ax)
    named = list(_named(runs))
    if not named:
        raise ValueError("runs is empty, expected one or more: pass what pv.fit returns")
    frames = [frame for _, frame in named]
    shared = [c for c in COLUMNS if all(c in frame for frame in frames)]
    if column is None and not shared:
        raise ValueError(
            f"the runs have no column of {', '.join(COLUMNS)} in common, expected one: pass column="
        )
    column = shared[0] if column is None else column
    for name, frame in named:
        _require(frame, column, name)
        _require(frame, by, name)
    axis = axes_of(ax, 6.0, 4.0)
    names = list(dict.fromkeys(name for name, _ in named))
    curves, last = [], 0.0
    for name, frame in named:
        number = names.index(name)
        records = _finite(frame, column)
        x, values = (records[c].to_numpy(float) for c in (by, column))
        if not len(x):
            raise ValueError(f'{name} has nothing in column "{column}", expected finite numbers')
        keep = apart(x)
        look = {"color": COLOURS[number % 7], "linestyle": DASHES[number % len(DASHES)]}
        axis.plot(x[keep], values[keep], linewidth=1.6, **look)
        curves.append((x, values, name, COLOURS[number % 7]))
        last = max(last, float(x[-1]))
    for x, values, _, colour in curves:
        lead(axis, x[-1], last, values[-1], colour)
    _frame(axis, [rest for _, *rest in curves], last, by)
    label = {"validation_bound": "held-out ELBO", "bound": "ELBO, training"}.get(column, column)
    axis.set_ylabel(f"{label}, nats per datum")
    return axis


def _named(runs: Any) -> Any:
    """Names and histories; runs without a name are called by what tells them apart."""
    if isinstance(runs, Mapping):
        for name, run in runs.items():
            yield str(name), _history(run)
        return
    manifests = [getattr(run, "manifest", {}) for run in runs]
    whole = [f"{short(m.get('objective', ''))} {m.get('program', '')}".strip() for m in manifests]
    objectives = [short(m.get("objective", "")) for m in manifests]
    names = objectives if len(set(whole)) == len(set(objectives)) else whole
    for number, (name, run) in enumerate(zip(names, runs, strict=True)):
        yield name or f"run {number + 1}", _history(run)


def training_curve(history: Any, *, by: By = "samples", ax: Any = None) -> Any:
    """One run: the bound on training minibatches and on held-out data.

    The held-out line lies in a band of one standard error over data.  The axis leaves out how low
    the first records are, and says so.

    Args:
        history: a run, or its history, a data frame.
        by: "samples" or "seconds".
        ax: matplotlib Axes to draw into; None makes a figure.

    Returns:
        The Axes.
    """
    _require_by(by)
    history = _history(history)
    _require(history, by, "the run")
    curves: list[Any] = []
    columns = {"bound": "training", "log_joint": "log p(x, z)", "validation_bound": "held out"}
    if not any(column in history for column in columns):  # an auto-encoder's
        columns = {"reconstruction": "log p(x | z)"}
    there = {column: _finite(history, column) for column in columns if column in history}
    found = {column: records for column, records in there.items() if len(records)}
    if not len(history) or (there and not found):
        raise ValueError(
            f"the run has no record with a finite {' or '.join(columns)}, so there is nothing to "
            "draw: has it learnt at all?"
        )
    axis = axes_of(ax)
    for colour, (column, records) in zip(COLOURS, found.items(), strict=False):
        records = records[apart(records[by].to_numpy(float))]
        x, values = records[by].to_numpy(float), records[column].to_numpy(float)
        held_out = column == "validation_bound"
        look = {"linewidth": 2.2} if held_out else {"linewidth": 0.9, "alpha": 0.6}
        axis.plot(x, values, color=colour, **look)
        curves.append((values, columns[column], colour))
        if held_out and "validation_bound_standard_error" in records:
            error = records["validation_bound_standard_error"].to_numpy(float)
            band = {"color": colour, "alpha": 0.2, "linewidth": 0}
            axis.fill_between(x, values - error, values + error, **band)
    _frame(axis, curves, float(history[by].iloc[-1]), by)
    axis.set_ylabel("nats per datum")
    return axis


def _frame(axis: Any, curves: list[Any], last: float, by: str) -> None:
    """Limits that show where curves are under way, and their names at their ends."""
    if curves:
        low = min(values[under_way(values) :].min() for values, *_ in curves)
        high = max(values.max() for values, *_ in curves)
        lowest = min(values.min() for values, *_ in curves)
        set_limits(axis, low, high)
        axis.set_xlim(0, None)
        ends: dict[str, list[tuple[float, str]]] = {}
        for values, name, colour in curves:
            ends.setdefault(name, []).append((float(values[-1]), colour))
        label_lines(
            axis,
            last,
            [(float(np.mean([v for v, _ in e])), name, e[0][1]) for name, e in ends.items()],
        )
        if lowest < axis.get_ylim()[0]:
            note(axis, f"first records go down to {lowest:,.1f}".replace("-", "−"))
    thousands(axis.xaxis)
    axis.set_xlabel(LABELS[by])


def _finite(frame: Any, column: str) -> Any:
    """The records that have a number in this column; an infinite one has no place on an axis."""
    return frame[np.isfinite(frame[column].to_numpy(float))]


def _require_by(by: Any) -> None:
    if not isinstance(by, str) or by not in LABELS:
        raise ValueError(f'by is {by!r}, expected "samples" or "seconds"')


def _history(run: Any) -> Any:
    frame = getattr(run, "history", run)
    if not (hasattr(frame, "dropna") and "samples" in frame):
        raise TypeError(
            f"a run is {type(run).__name__}, expected what pv.fit or pv.load returns, or its "
            "history, a data frame with a column samples"
        )
    return frame


def _require(frame: Any, column: str, name: str) -> None:
    if column not in frame:
        known = ", ".join(map(str, frame.columns))
        raise ValueError(f'{name} has no column "{column}", expected one of {known}')
