"""The picture of one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyro_vae.plotting.figures import (
    COLOURS,
    apart,
    label_lines,
    new_figure,
    note,
    saved,
    set_limits,
    thousands,
    under_way,
)


def training_curve(history: Any, path: str | Path | None = None) -> Any:
    """One run: the bound on training minibatches and on held-out data, against samples.

    The held-out line lies in a band of one standard error over data.  The axis leaves out how low
    the first records are, and says so.

    Args:
        history: the data frame of a :class:`~pyro_vae.Run`.
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
        records = records[apart(records["samples"].to_numpy(float))]
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
        low = min(values[under_way(values) :].min() for values, *_ in curves)
        high = max(values.max() for values, *_ in curves)
        lowest = min(values.min() for values, *_ in curves)
        set_limits(axis, low, high)
        axis.set_xlim(0, None)
        ends = [(float(values[-1]), name, colour) for values, name, colour in curves]
        label_lines(axis, float(history["samples"].iloc[-1]), ends)
        if lowest < axis.get_ylim()[0]:
            note(axis, f"first records go down to {lowest:,.1f}".replace("-", "−"))
    thousands(axis.xaxis)
    axis.set_xlabel("training samples (rows × updates)")
    axis.set_ylabel("nats per datum")
    return saved(figure, path)
