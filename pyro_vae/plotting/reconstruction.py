"""Data beside what a program makes of them, and data of the program's own."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from pyro_vae import errors
from pyro_vae.plotting.figures import COLOURS, array_of, axes_of
from pyro_vae.plotting.images import (
    across_of,
    column_names,
    image_shape_of,
    images_of,
    limits_of,
    moments_of,
    one_of,
    show_wall,
    wall_size,
    whole_rows,
)
from pyro_vae.plotting.programs import expected, first_rows, observation, program_of
from pyro_vae.predictive import reconstruct, sample

MOST_COLUMNS = 40  # of a table, drawn side by side
TABLE_ROWS = 500  # of a table, drawn as dots
MARKERS = "os^DvP"


def reconstructions(
    program: Any,
    x: Any,
    *,
    num: int = 10,
    site: str | None = None,
    image_shape: Any = None,
    cmap: str = "gray",
    ax: Any = None,
) -> Any:
    """Data above what the program makes of them: the mean of p(x | z) at the guide's mean of z.

    Rows of a table are drawn as dots, a colour and a mark a column: the reconstructed value against
    the datum's, both in standard deviations of the column.

    Args:
        program: a program or a run.
        x: data; the first ``num`` are drawn, of a table the first 500.
        num: how many images.
        site: which observed site, where there are several.
        image_shape: (height, width) of a flat datum, where it is no square; False for no image.
        cmap: matplotlib's name of the colours of grey values; "gray_r" prints with less ink.
        ax: matplotlib Axes to draw into; None makes a figure.

    Returns:
        The Axes.

    Raises:
        ValueError: several observed sites, or an image shape of another size.
    """
    program, num = program_of(program), errors.whole("num", num)
    rows = first_rows(program, x, max(num, TABLE_ROWS))
    seen = observation(program, rows, site)
    original = array_of(seen.rows_first(seen.value)).astype(float)
    found: Any = reconstruct(program, rows)
    if isinstance(found, dict):
        found = found[one_of(found, seen.name, "observed sites", "site")]
    made = expected(found, seen).reshape(original.shape)
    columns = getattr(x, "columns", None)
    shape = image_shape_of(original.shape[1:], image_shape, columns)
    if shape is None:
        return _table_of_both(axes_of(ax, 4.6, 4.4), original, made, columns)
    original, made = original[:num], made[:num]
    pair = np.stack([images_of(original, shape), images_of(made, shape)])
    axis = axes_of(ax, *wall_size(2, len(original), shape, 0.8 * len(original)))
    show_wall(axis, pair, limits_of(original, made), cmap)
    middle = pair.shape[2] + 1
    axis.set_yticks([middle / 2 - 0.5, 1.5 * middle - 0.5], ["data", "reconstruction"])
    axis.tick_params(left=False)
    return axis


def _table_of_both(axis: Any, original: np.ndarray, made: np.ndarray, columns: Any) -> Any:
    flat, back = (each.reshape(len(each), -1) for each in (original, made))
    center, spread = moments_of(flat)
    flat, back = (flat - center) / spread, (back - center) / spread
    number = flat.shape[1]
    names = column_names(columns, number)
    few = number <= len(MARKERS)
    for j in range(number):
        look = {"color": COLOURS[j], "marker": MARKERS[j], "label": names[j]} if few else {}
        look = look or {"color": COLOURS[0], "marker": "o"}
        axis.scatter(flat[:, j], back[:, j], s=10 if few else 5, alpha=0.6, linewidths=0, **look)
    there = flat[np.isfinite(flat)]
    ends = [there.min(initial=0.0), there.max(initial=0.0)]
    axis.plot(ends, ends, color="black", linewidth=1)
    if few:
        axis.legend(frameon=False, fontsize=8, markerscale=1.6)
    axis.set(xlabel="datum, in sd of its column", ylabel="reconstruction, in sd of its column")
    return axis


def samples(
    program: Any,
    num: int = 64,
    *,
    like: Any = None,
    mean: bool = True,
    site: str | None = None,
    image_shape: Any = None,
    cmap: str = "gray",
    seed: int = 0,
    ax: Any = None,
) -> Any:
    """What the program draws: z ~ p(z), decoded.

    Of a table the median and the interval of 90 % of each column's draws are drawn, beside those of
    the data where these are given.

    Args:
        program: a program or a run.
        num: how many images; of a table 1000 rows are drawn, whatever this says.
        like: data: needed where the program does not say what x looks like, or takes covariates.
        mean: the mean of p(x | z) in place of a draw of it, as pictures of images usually show; of
            a table draws are shown in any case.
        site: which observed site, where there are several.
        image_shape, cmap, ax: as of :func:`reconstructions`.
        seed: of the draws.

    Returns:
        The Axes.
    """
    program, num = program_of(program), errors.whole("num", num)
    found: Any = sample(program, num, like=like, mean=mean, seed=seed)
    name = None
    if isinstance(found, dict):
        name = one_of(found, site or ("x" if "x" in found else None), "observed sites", "site")
        found = found[name]
    values = array_of(found).astype(float)
    columns = getattr(like, "columns", None)
    if mean and like is not None:
        seen = observation(program, first_rows(program, like, 2), name or site)
        values = expected(found, seen)
    shape = image_shape_of(values.shape[1:], image_shape, columns)
    if shape is None:
        if mean or num < 1000:
            found = sample(program, 1000, like=like, seed=seed)
            values = array_of(found if name is None else found[name]).astype(float)
        return _table_of_draws(ax, values, program, like, name, columns)
    across = across_of(len(values), shape)
    images = whole_rows(images_of(values, shape), across)
    axis = axes_of(ax, *wall_size(len(images), across, shape, 4.8))
    show_wall(axis, images, limits_of(values), cmap)
    return axis


def _table_of_draws(
    ax: Any, values: np.ndarray, program: Any, like: Any, name: str | None, columns: Any
) -> Any:
    values = values.reshape(len(values), -1)
    number = values.shape[1]
    if number > MOST_COLUMNS:
        raise ValueError(
            f"a datum has {number} numbers and no image shape, expected at most {MOST_COLUMNS} "
            "columns, or an image: pass image_shape=(height, width), or plot columns of "
            "pv.sample(program, n) yourself"
        )
    drawn = {"draws": values}
    if like is not None:
        seen = observation(program, first_rows(program, like, 10_000), name)
        data = array_of(seen.rows_first(seen.value)).astype(float)
        drawn = {"data": data.reshape(len(data), -1), **drawn}
    names = column_names(columns, number)
    axis = axes_of(ax, 5.6, max(2.4, 1.2 + 0.32 * number))
    first = next(iter(drawn.values()))
    center, spread = moments_of(first)
    for place, (label, each) in enumerate(drawn.items()):
        with warnings.catch_warnings():  # a column of which there is nothing has no dot
            warnings.simplefilter("ignore", RuntimeWarning)
            low, middle, high = np.nanquantile((each - center) / spread, [0.05, 0.5, 0.95], axis=0)
        where = np.arange(number) + (0.24 * place - 0.12 if len(drawn) > 1 else 0)
        look: dict[str, Any] = {"color": COLOURS[(6, 1)[place] if len(drawn) > 1 else 1]}
        look |= {
            "marker": "os"[place],
            "linestyle": "",
            "capsize": 2,
            "markersize": 4,
            "label": label,
        }
        axis.errorbar(middle, where, xerr=[middle - low, high - middle], **look)
    axis.set_yticks(range(number), names)
    axis.set_ylim(number - 0.5, -0.5)
    of = "the data" if like is not None else "the draws"
    axis.set(xlabel=f"median and 90 %, in sd of {of}")
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return axis
