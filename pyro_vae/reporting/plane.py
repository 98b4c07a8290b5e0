"""The map of a latent plane: images decoded once, on a grid, for a page to look up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pyro_vae.plotting.images import image_shape_of, images_of, limits_of
from pyro_vae.plotting.programs import Latent, latent_of
from pyro_vae.plotting.walks import ordered
from pyro_vae.reporting.parts import png_uri

MOST_SIDE = 21  # images a side
LEAST_SIDE = 9
GAP = 1  # pixels of white to the right of an image and below it
PIXELS = 720  # of the whole map, a side


@dataclass(frozen=True)
class Plane:
    """A grid of decoded images.

    Attributes:
        source: all of them as one PNG, a data URI; the first row is the lowest in the prior's
            order, drawn at the bottom.
        columns, rows: how many images.
        width, height: of one, in pixels.
        gap: pixels between two.
        names: of the numbers that run to the right and upwards.
        across, up: their values, (columns,) and (rows,).
        u_across, u_up: the prior probabilities below these.
        rest: what was done with the others, in words.
    """

    source: str
    columns: int
    rows: int
    width: int
    height: int
    gap: int
    names: list[str]
    across: list[float]
    up: list[float]
    u_across: list[float]
    u_up: list[float]
    rest: str

    def data(self) -> dict[str, Any]:
        """What the script of a page reads."""
        return {
            "columns": self.columns, "rows": self.rows, "gap": self.gap, "names": self.names,
            "across": self.across, "up": self.up, "uAcross": self.u_across, "uUp": self.u_up,
        }  # fmt: skip


def plane_of(program: Any, x: Any = None, image_shape: Any = None) -> Plane:
    """The map of a program's latent, or of the two numbers of it that data move most.

    Args:
        program: the program.
        x: data, to choose the two by, and where the program does not say what x looks like.
        image_shape: as of :func:`pyro_vae.plotting.reconstructions`.

    Raises:
        ValueError: data that are no images, or latents that cannot be moved one at a time.
    """
    from PIL import Image

    latent = latent_of(program, x)
    order, start = ordered(latent, x if latent.dim > 2 else None)
    chosen = [0, 1][: latent.dim] if latent.dim <= 2 else [int(j) for j in order[:2]]
    shape = image_shape_of(_form(latent), image_shape, getattr(x, "columns", None))
    if shape is None:
        raise ValueError(
            "a datum is no image, so there is nothing to show under the pointer; pass "
            "image_shape=(height, width) if it is one"
        )
    side = int(np.clip(PIXELS // max(shape[-2:]), LEAST_SIDE, MOST_SIDE))
    side -= 1 - side % 2  # odd: the median is in the middle
    u = (np.arange(side) + 0.5) / side
    walk = latent.marginals(u)  # (side, J)
    rows = side if len(chosen) == 2 else 1
    z = np.repeat(start[None], rows * side, 0).reshape(rows, side, -1)
    z[:, :, chosen[0]] = walk[:, chosen[0]]
    if rows > 1:
        z[:, :, chosen[1]] = walk[:, chosen[1], None]
    values = latent.decoded(z.reshape(rows * side, -1))
    images = images_of(values, shape)
    low, high = limits_of(values)
    grey = np.clip(255 * (images - low) / max(high - low, 1e-12), 0, 255).astype(np.uint8)
    height, width = grey.shape[1:3]
    edges = ((0, 0), (0, GAP), (0, GAP), *[(0, 0)] * (grey.ndim - 3))
    grey = np.pad(grey, edges, constant_values=255)
    grid = grey.reshape(rows, side, *grey.shape[1:])[::-1]  # upwards
    whole = grid.swapaxes(1, 2).reshape(
        rows * (height + GAP), side * (width + GAP), *grey.shape[3:]
    )
    others = latent.dim - len(chosen)
    rest = ""
    if others:
        rest = (
            f"These are the two of {latent.dim} numbers of {latent.name} that the data move most; "
            "the others stay at the prior's median."
            if x is not None
            else f"The other {others} numbers of {latent.name} stay at the prior's median."
        )
    second = chosen[1] if rows > 1 else chosen[0]
    return Plane(
        png_uri(Image.fromarray(whole)), side, rows, width, height, GAP,
        [latent.names[j] for j in chosen], _rounded(walk[:, chosen[0]]),
        _rounded(walk[:, second]) if rows > 1 else [0.0], _rounded(u),
        _rounded(u) if rows > 1 else [0.5], rest,
    )  # fmt: skip


def _form(latent: Latent) -> tuple[int, ...]:
    """The shape of one decoded datum."""
    return latent.decoded(latent.marginals(np.array([0.5]))).shape[1:]


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 3) for value in values]
