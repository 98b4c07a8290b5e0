"""The picture of a gradient report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_vae.plotting.figures import COLOURS, new_figure, short

if TYPE_CHECKING:
    import xarray as xr


def gradient_dots(dataset: xr.Dataset) -> Any:
    """A row a group of parameters: signal-to-noise, variance and bias of each gradient.

    A line connects the settings of one kind of objective.  A hollow dot is not to be relied on: a
    bias that may be none, because as large a distance would come about between equal means once in
    a thousand times; a signal or variance of heavy tails (khat above 0.5), whose error is too
    small.  What a logarithmic axis cannot show is written at its left: "< e" for a length of 0, of
    which e would have gone unnoticed.

    Args:
        dataset: a :class:`~pyro_vae.gradients.GradientReport`, or its data set.

    Returns:
        The Axes, an array (group, 3).
    """
    dataset = getattr(dataset, "dataset", dataset)
    groups, names = dataset.group.values, [short(o) for o in dataset.objective.values]
    kinds = [name.split("(")[0] for name in names]
    every = list(dict.fromkeys(kinds))
    height = 1.1 + 0.26 * len(names)
    _, axes = new_figure(columns=3, rows=len(groups), width=3.6, height=height)
    for row, group in zip(axes, groups, strict=True):
        part = dataset.sel(group=group)
        for axis, column in zip(row, ("snr", "variance", "bias"), strict=True):
            values, errors = part[column].values, part[f"{column}_standard_error"].values
            drawn = (values > 0) & np.isfinite(values)
            chance = ~(part.bias_p.values < 1e-3)
            hollow = chance if column == "bias" else part.khat.values > 0.5
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
    reference = short(dataset.attrs["reference"])
    titles = ("signal-to-noise of one draw", "variance of one draw", f"bias against {reference}")
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=11, loc="left")
    axes[-1, 2].set_xlabel("hollow: no more than chance", fontsize=9)
    if (dataset.khat > 0.5).any():
        axes[-1, 1].set_xlabel("hollow: heavy tails, error too small", fontsize=9)
    return axes


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
