"""Pictures of a comparison: learning curves, and log p(x) at the end."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

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
        one, name = part.sel(objective=objective), short(objective)
        bound = one.curve_bound.values  # (seed, record)
        x = one.curve_samples.values.mean(0)
        keep = np.isfinite(x) & np.isfinite(bound).all(0)
        keep[keep] = apart(x[keep])
        if not keep.any():
            without.append(name)
            continue
        x, bound = x[keep], bound[:, keep]
        axis.plot(x, bound.T, color=colour, alpha=0.35, linewidth=0.8)
        axis.plot(x, bound.mean(0), color=colour, linewidth=2)
        curves.append((x, bound, name, colour))
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


def evidence_axis(axis: Any, part: xr.Dataset) -> None:
    """Held-out log p(x) of one model at the end of training, by algorithm."""
    names = [short(o) for o in part.objective.values]
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
