"""A picture of an auto-encoder beside a VAE: reconstructions, decoded draws, codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pyro_vae.plotting.figures import COLOURS, new_figure

ACROSS = 10  # pictures in a row
LINES = 20  # rows that are no pictures, drawn as curves


def autoencoders(
    data: np.ndarray,
    found: Mapping[str, Any],
    image_shape: tuple[int, int] | None = None,
) -> Any:
    """One line of axes for each of the two.

    On the left are data over their reconstructions; in the middle what draws of the prior decode
    to; on the right codes and draws of the prior, along the two directions in which the codes of
    that line vary most.  Rows that are no images are drawn as points where x has two columns, else
    as curves over columns.

    Args:
        data: held-out rows (N, ...).
        found: name -> :class:`~pyro_vae.comparison.autoencoders.Codes`.
        image_shape: (height, width) of a row, or None.

    Returns:
        The Axes, an array (name, 3).
    """
    if image_shape is None and data.ndim == 3:
        image_shape = data.shape[1:]
    _, axes = new_figure(columns=3, rows=len(found), width=4.4, height=3.2)
    for line, (name, codes) in zip(axes, found.items(), strict=True):
        _reconstructions(line[0], data, codes.reconstructed, image_shape)
        _draws(line[1], data, codes.decoded, image_shape)
        _codes(line[2], codes.codes, codes.prior)
        line[0].set_ylabel(name, fontsize=12)
    for axis, title in zip(
        axes[0], ("data, and their reconstructions", "decoded draws of the prior", ""), strict=True
    ):
        axis.set_title(title, fontsize=11)
    axes[0, 2].set_title("codes of held-out data, and the prior", fontsize=11)
    return axes


def _tiled(images: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Pictures (rows, across, height x width) as one."""
    height, width = shape
    tiles = np.pad(
        images.reshape(*images.shape[:2], height, width), ((0, 0), (0, 0), (1, 1), (1, 1))
    )
    return tiles.transpose(0, 2, 1, 3).reshape(len(images) * (height + 2), -1)


def _show(axis: Any, picture: np.ndarray, low: float, high: float) -> None:
    axis.imshow(picture, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.grid(False)


def _reconstructions(
    axis: Any, data: np.ndarray, reconstructed: np.ndarray, shape: tuple[int, int] | None
) -> None:
    if shape is None:
        _curves(axis, data, COLOURS[6], "data")
        _curves(axis, reconstructed, COLOURS[1], "reconstruction")
        axis.legend(fontsize=8, loc="upper right", frameon=False)
        return
    rows = [
        part[half * ACROSS : (half + 1) * ACROSS]
        for half in (0, 1, 2)
        for part in (data, reconstructed)
    ]
    rows = [row for row in rows if len(row) == ACROSS] or [data[:1], reconstructed[:1]]
    _show(axis, _tiled(np.stack(rows), shape), data.min(), data.max())


def _draws(axis: Any, data: np.ndarray, decoded: np.ndarray, shape: tuple[int, int] | None) -> None:
    if shape is None:
        _curves(axis, data, "0.7", "data")
        _curves(axis, decoded, COLOURS[0], "decoded draw")
        axis.legend(fontsize=8, loc="upper right", frameon=False)
        return
    rows = max(1, min(6, len(decoded) // ACROSS))
    across = min(ACROSS, len(decoded))
    pictures = decoded[: rows * across].reshape(rows, across, -1)
    _show(axis, _tiled(pictures, shape), data.min(), data.max())


def _curves(axis: Any, values: np.ndarray, colour: str, label: str) -> None:
    flat = values.reshape(len(values), -1)
    if flat.shape[1] == 2:
        axis.plot(flat[:, 0], flat[:, 1], ".", markersize=3, color=colour, label=label, alpha=0.6)
        return
    lines = axis.plot(flat[:LINES].T, color=colour, linewidth=0.8, alpha=0.6)
    lines[0].set_label(label)


def _codes(axis: Any, codes: np.ndarray, prior: np.ndarray) -> None:
    a, b = codes, prior
    names = ["z[0]", "z[1]"]
    if codes.shape[1] > 2:
        center = codes.mean(0)
        _, _, directions = np.linalg.svd(codes - center, full_matrices=False)
        a, b = (codes - center) @ directions[:2].T, (prior - center) @ directions[:2].T
        names = ["first principal direction", "second"]
    if codes.shape[1] == 1:
        edges = np.histogram_bin_edges(np.concatenate([a, b]), bins=40)
        axis.hist(a[:, 0], edges, color=COLOURS[1], alpha=0.6, label="codes")
        axis.hist(b[:, 0], edges, color=COLOURS[0], histtype="step", label="prior")
    else:
        axis.plot(a[:, 0], a[:, 1], ".", markersize=3, color=COLOURS[1], label="codes", alpha=0.6)
        axis.plot(b[:, 0], b[:, 1], ".", markersize=3, color=COLOURS[0], label="prior", alpha=0.6)
        axis.set_ylabel(names[1], fontsize=9)
        axis.set_aspect("equal", adjustable="datalim")
    axis.set_xlabel(names[0], fontsize=9)
    axis.legend(fontsize=8, loc="upper right", frameon=False)
