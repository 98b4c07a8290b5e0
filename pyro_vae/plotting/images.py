"""Images out of rows: which shape they have, and many of them as one picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from pyro_vae.plotting.figures import COLOURS, plain

KNOWN = {560: (28, 20)}  # Frey Face
MISSING = 2.0  # stands for a missing pixel, beyond all values of a wall
LEAST_SIDE = 6  # of a flat image whose shape is guessed
Shape = tuple[int, ...]


def image_shape_of(event: Shape, given: Any = None, columns: Any = None) -> Shape | None:
    """(height, width) or (channels, height, width) of a datum; None where it is no image.

    Args:
        event: the shape of one datum.
        given: what the caller says: a shape; False for "no images"; None guesses: what has two
            dimensions is an image, and three with one or three channels in front; flat rows are
            where their length is a square from 36 on (8 x 8, 28 x 28), or 560 (28 x 20).
        columns: names of the columns, which pixels do not have.

    Raises:
        ValueError: a shape of another size.
    """
    size = math.prod(event)
    if given is False:
        return None
    if given is not None:
        sides = np.atleast_1d(given)
        whole = sides.dtype.kind in "iu" and sides.ndim == 1 and sides.min(initial=1) > 0
        shape = tuple(int(side) for side in sides) if whole else ()
        if len(shape) not in (2, 3) or math.prod(shape) != size or not _channels(shape):
            raise ValueError(
                f"image_shape is {given}, expected (height, width) or (channels, height, width) "
                f"of {size} numbers, 1 or 3 channels: a datum has shape {event}"
            )
        return shape
    if columns is not None:
        return None
    if len(event) in (2, 3) and min(event[-2:]) > 1 and _channels(event):
        return event
    if len(event) != 1:
        return None
    side = math.isqrt(size)
    return (side, side) if side**2 == size and side >= LEAST_SIDE else KNOWN.get(size)


def _channels(shape: Shape) -> bool:
    return len(shape) == 2 or shape[0] in (1, 3)


def images_of(values: np.ndarray, shape: Shape) -> np.ndarray:
    """Rows (N, ...) as grey images (N, height, width), or of colours, (N, height, width, 3)."""
    images = values.reshape(len(values), *shape)
    if len(shape) == 2:
        return images
    return images[:, 0] if shape[0] == 1 else images.transpose(0, 2, 3, 1)


def limits_of(*values: np.ndarray) -> tuple[float, float]:
    """What is drawn black and what white: 0 and 1 where all values are between, else their ends."""
    there = np.concatenate([each[np.isfinite(each)] for each in values])
    low, high = (float(there.min()), float(there.max())) if there.size else (0.0, 1.0)
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def moments_of(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column, of what is there; 0 and 1 where there is none."""
    there = np.isfinite(values)
    count = np.maximum(there.sum(0), 1)
    center = np.where(there, values, 0.0).sum(0) / count
    spread = np.sqrt(np.where(there, (values - center) ** 2, 0.0).sum(0) / count)
    return center, np.where(spread > 0, spread, 1.0)


def wall_of(images: np.ndarray, low: float, high: float, gap: int = 1) -> np.ndarray:
    """Images (rows, columns, height, width[, 3]) as one from 0 to 1.

    It is nan between images and where :func:`whole_rows` has put none, and 2 at missing pixels.
    """
    lacking, missing = np.isneginf(images), np.isnan(images)
    with np.errstate(invalid="ignore"):
        scaled = np.clip((images - low) / max(high - low, 1e-12), 0, 1).astype(float)
    scaled[missing], scaled[lacking] = MISSING, np.nan
    edges = ((0, 0), (0, 0), (0, gap), (0, gap), *[(0, 0)] * (images.ndim - 4))
    tiles = np.pad(scaled, edges, constant_values=np.nan)
    rows, columns, height, width = tiles.shape[:4]
    wall = tiles.swapaxes(1, 2).reshape(rows * height, columns * width, *tiles.shape[4:])
    return wall[: rows * height - gap, : columns * width - gap]


def show_wall(
    axis: Any, images: np.ndarray, limits: tuple[float, float], cmap: str, extent: Any = None
) -> None:
    """Draw images (rows, columns, height, width[, 3]) side by side; missing pixels are orange."""
    import matplotlib

    wall = wall_of(images, *limits)
    if wall.ndim == 3:
        wall = np.where(np.isnan(wall), 1.0, np.minimum(wall, 1.0))
    colours = matplotlib.colormaps[cmap].with_extremes(bad="white", over=COLOURS[4])
    aspect = "auto" if extent is not None else "equal"
    look = {"vmin": 0, "vmax": 1, "interpolation": "nearest", "extent": extent, "aspect": aspect}
    axis.imshow(wall, cmap=colours, **look)
    axis.grid(False)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def wall_size(rows: int, columns: int, shape: Shape, width: float = 6.4) -> tuple[float, float]:
    """Inches of a figure that a wall of images fills, as wide as ``width`` at most."""
    height, across = shape[-2:]
    tall = width * (rows * height) / (columns * across)
    return (width, tall) if tall <= 1.5 * width else (width * 1.5 * width / tall, 1.5 * width)


def across_of(number: int, shape: Shape) -> int:
    """How many images stand in a row, so that the wall is about square and its rows are full."""
    ideal = max(1.0, (number * shape[-2] / shape[-1]) ** 0.5)
    full = [c for c in range(1, number + 1) if number % c == 0 and ideal / 2 <= c <= 2 * ideal]
    return min(full, key=lambda c: abs(math.log(c / ideal)), default=min(number, round(ideal)))


def column_names(columns: Any, number: int) -> list[str]:
    """Names of the columns of a table, or their numbers."""
    return [f"column {j}" for j in range(number)] if columns is None else list(map(plain, columns))


def whole_rows(images: np.ndarray, columns: int) -> np.ndarray:
    """Images (N, ...) in rows of so many; the last row is filled up with -inf."""
    rows = -(-len(images) // columns)
    lacking = np.full((rows * columns - len(images), *images.shape[1:]), -np.inf)
    return np.concatenate([images, lacking]).reshape(rows, columns, *images.shape[1:])


def one_of(values: Mapping[str, Any], wanted: str | None, what: str, option: str) -> str:
    """The name that is wanted, or the only one.

    Raises:
        ValueError: no such name, or several and none is wanted.
    """
    names = ", ".join(values) or "none"
    if wanted is not None and wanted not in values:
        raise ValueError(f'{option}="{wanted}", expected one of the {what}: {names}')
    if wanted is None and len(values) != 1:
        raise ValueError(f"the program has the {what} {names}, expected one: say which, {option}=")
    return next(iter(values)) if wanted is None else wanted
