"""Walks through latent space: the manifold of two latents, and one latent moved at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pyro_vae import errors
from pyro_vae.plotting.figures import axes_of, two_of
from pyro_vae.plotting.images import (
    column_names,
    image_shape_of,
    images_of,
    limits_of,
    show_wall,
    wall_size,
)
from pyro_vae.plotting.programs import Latent, codes_of, latent_of, program_of

ENDS = (0.02, 0.98)  # quantiles between which a latent is moved


def latent_manifold(
    program: Any,
    *,
    num: int = 16,
    dims: Sequence[int] | None = None,
    span: tuple[float, float] | None = None,
    like: Any = None,
    site: str | None = None,
    observed: str | None = None,
    image_shape: Any = None,
    cmap: str = "gray",
    ax: Any = None,
) -> Any:
    r"""Decoded images over the unit square, at :math:`z = F^{-1}(u)` of the prior.

    Every equal area of the picture has the same prior probability.  (Kingma & Welling (2014),
    figure 4, where F is the normal distribution function.)

    Args:
        program: a program or a run.
        num: images a side, at the middles of so many equal parts of the unit interval.
        dims: which two numbers of a larger latent; the others stay at the prior's median.
        span: (low, high): a grid over the latent itself in place of quantiles, for priors that
            have none.
        like: data, where the program does not say what x looks like, takes covariates, or has
            other latents, which the guide places for the first row.
        site: which latent, where a datum has several.
        observed: which observed site, where there are several.
        image_shape, cmap, ax: as of :func:`~pyro_vae.plotting.reconstructions`.

    Returns:
        The Axes; u runs to the right and upwards.

    Raises:
        ValueError: a latent of another size, a prior without quantiles, or data that are no images.
    """
    num = errors.whole("num", num, 2)
    latent = latent_of(program, like, site, observed)
    z = manifold_points(latent, num, dims, span)
    values = latent.decoded(z)
    shape = image_shape_of(values.shape[1:], image_shape, getattr(like, "columns", None))
    if shape is None:
        raise ValueError(
            f"a datum has shape {values.shape[1:]} and is no image, expected one: pass "
            "image_shape=(height, width), or look at traversals or pv.explore"
        )
    images = images_of(values, shape)
    axis = axes_of(ax, *wall_size(num, num, shape, 5.0))
    wall = images.reshape(num, num, *images.shape[1:])[::-1]  # upwards
    low, high = span or (0, 1)
    show_wall(axis, wall, limits_of(values), cmap, extent=(low, high, low, high))
    axis.set_box_aspect(shape[-2] / shape[-1])
    first, second = _two(latent, dims)
    names = latent.names
    ticks = np.linspace(low, high, 3)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    of = "{}" if span else "prior probability below {}"
    axis.set(xlabel=of.format(names[first]), ylabel=of.format(names[second]))
    return axis


def _two(latent: Latent, dims: Sequence[int] | None) -> tuple[int, int]:
    if latent.dim < 2:
        raise ValueError(
            f'"{latent.name}" has {latent.dim} number, expected two or more for a plane: '
            "traversals shows what one number moves"
        )
    if dims is None:
        if latent.dim != 2:
            raise ValueError(
                f'"{latent.name}" has {latent.dim} number{"s" * (latent.dim > 1)}, expected 2 for '
                "a plane: "
                + (
                    "pass dims=(0, 1), say, and the others stay at the prior's median; or use "
                    if latent.dim > 1
                    else "use "
                )
                + "traversals"
            )
        return 0, 1
    return two_of(dims, latent.dim)


def manifold_points(
    latent: Latent,
    num: int,
    dims: Sequence[int] | None = None,
    span: tuple[float, float] | None = None,
) -> np.ndarray:
    """Points over the plane, (num * num, J): the first number runs fastest.

    Raises:
        ValueError: a latent of another size than two, or a prior without quantiles.
    """
    first, second = _two(latent, dims)
    middles = (np.arange(num) + 0.5) / num
    up, across = np.meshgrid(middles, middles, indexing="ij")
    u = np.full((num * num, latent.dim), 0.5)
    u[:, first], u[:, second] = across.ravel(), up.ravel()
    if span is None:
        return latent.quantiles(u)
    try:
        low, high = map(float, span)
    except (TypeError, ValueError):
        low = high = math.nan
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"span is {span}, expected (low, high) with low below high")
    z = np.repeat(latent.marginals(np.array([0.5])), num * num, 0)
    z[:, [first, second]] = low + (high - low) * u[:, [first, second]]
    return z


def traversals(
    program: Any,
    x: Any = None,
    *,
    num: int = 9,
    most: int = 8,
    datum: int | None = None,
    site: str | None = None,
    observed: str | None = None,
    image_shape: Any = None,
    cmap: str = "gray",
    ax: Any = None,
) -> Any:
    """What each latent does: a row a latent, moved from one end of the prior to the other.

    It runs from the prior's quantile 0.02 to 0.98; the others stay at the prior's median, or at the
    posterior mean of a datum.  With data, the latents that these move most come first.

    Of a table it is drawn, a column of colours a latent, how far each column's mean moves from end
    to end.

    Args:
        program: a program or a run.
        x: data, to order the latents by; needed as ``like`` is of
            :func:`~pyro_vae.plotting.latent_manifold`.
        num: images a row.
        most: rows, at most.
        datum: the number of a row of x, from whose posterior mean the walks start.
        site: which latent, where a datum has several.
        observed: which observed site, where there are several.
        image_shape, cmap, ax: as of :func:`~pyro_vae.plotting.reconstructions`.

    Returns:
        The Axes.
    """
    num, most = errors.whole("num", num, 2), errors.whole("most", most)
    program = program_of(program)
    latent = latent_of(program, x, site, observed)
    ends = np.linspace(*ENDS, num)
    walk = latent.marginals(ends)  # (num, J)
    order, start = ordered(latent, x, datum)
    order = order[:most]
    z = np.repeat(start[None], len(order) * num, 0).reshape(len(order), num, -1)
    for row, j in enumerate(order):
        z[row, :, j] = walk[:, j]
    values = latent.decoded(z.reshape(len(order) * num, -1))
    columns = getattr(x, "columns", None)
    shape = image_shape_of(values.shape[1:], image_shape, columns)
    names = [latent.names[j] for j in order]
    if shape is None:
        return _moves(ax, values.reshape(len(order), num, -1), names, columns)
    images = images_of(values, shape)
    width, height = wall_size(len(order), num, shape, 0.6 * num)
    axis = axes_of(ax, width + 0.5, height + 0.6)  # inches of names and quantiles around the wall
    images = images.reshape(len(order), num, *images.shape[1:])
    show_wall(axis, images, limits_of(values), cmap)
    side, across = images.shape[2] + 1, images.shape[3] + 1
    axis.set_yticks((np.arange(len(order)) + 0.5) * side - 1, names)
    places = [0, (num - 1) // 2, num - 1] if num > 4 else [0, num - 1]
    axis.set_xticks([(p + 0.5) * across - 1 for p in places], [f"{ends[p]:.2g}" for p in places])
    axis.tick_params(left=False, bottom=False)
    axis.set_xlabel("quantile of the prior")
    return axis


def ordered(latent: Latent, x: Any, datum: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of a latent, the most active first where data are given; and a start, (J,).

    Raises:
        ValueError: no such datum.
    """
    start = latent.marginals(np.array([0.5]))[0]
    if x is None:
        if datum is not None:
            raise ValueError(f"datum is {datum} and there are no data, expected x: pass both")
        return np.arange(latent.dim), start
    _, codes = codes_of(latent.program, x, latent.name)
    if datum is not None:
        start = codes[errors.whole("datum", datum, 0, len(codes) - 1)]
    spread = np.diff(latent.marginals(np.array([0.25, 0.75])), axis=0)[0]
    moved = codes.std(0) / np.where(spread > 0, spread, 1.0)
    return np.argsort(-moved, kind="stable"), start


def _moves(ax: Any, values: np.ndarray, names: list[str], columns: Any) -> Any:
    """How far the mean of each column goes, in units of the most that any latent moves it."""
    moved = values[:, -1] - values[:, 0]  # (rows, D)
    scale = np.abs(moved).max(0)
    shown = (moved / np.where(scale > 0, scale, 1.0)).T  # (D, rows)
    axis = axes_of(ax, 3.4 + 0.5 * len(names), max(2.4, 1.2 + 0.32 * len(shown)))
    picture = axis.imshow(shown, cmap="PuOr", vmin=-1, vmax=1, aspect="auto")
    axis.grid(False)
    axis.set_xticks(range(len(names)), names)
    axis.set_yticks(range(len(shown)), column_names(columns, len(shown)))
    if shown.size <= 120:  # told in numbers too, for print and for all eyes
        for (column, row), value in np.ndenumerate(moved.T):
            dark = abs(shown[column, row]) > 0.6
            axis.text(row, column, f"{value:.2g}".replace("-", "−"), ha="center", va="center",
                      fontsize=8, color="white" if dark else "black")  # fmt: skip
    bar = axis.figure.colorbar(picture, ax=axis)
    bar.set_label("change of mean, largest of a row = 1")
    return axis
