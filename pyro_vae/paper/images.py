"""Walls of decoded images, and how they are kept among numbers."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.paper.figure_2 import Curve, load_grey, record_of, train
from pyro_vae.paper.shelf import Shelf
from pyro_vae.predictive import decode


def packed(images: Tensor) -> dict[str, Any]:
    """Grey values in [0, 1] as bytes, in text: error 1/510."""
    grey = (images.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
    return {
        "shape": list(grey.shape),
        "bytes": base64.b64encode(zlib.compress(grey.tobytes(), 9)).decode("ascii"),
    }


def unpacked(kept: Mapping[str, Any]) -> np.ndarray:
    """Grey values 0..255."""
    return np.frombuffer(zlib.decompress(base64.b64decode(kept["bytes"])), np.uint8).reshape(
        kept["shape"]
    )


def wall(images: np.ndarray, columns: int, shape: Sequence[int]) -> np.ndarray:
    """Images (n, height x width) row by row as one picture."""
    height, width = shape
    grid = images.reshape(-1, columns, height, width)
    return grid.transpose(0, 2, 1, 3).reshape(len(grid) * height, columns * width)


def show_wall(axis: Any, found: Mapping[str, Any]) -> None:
    """Dark ink on white for digits, faces as they are."""
    picture = wall(unpacked(found["images"]), found["columns"], found["image_shape"])
    ink = "gray_r" if found["data"] == "mnist" else "gray"
    axis.imshow(picture, cmap=ink, vmin=0, vmax=255, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[:].set_visible(False)


def decoded(
    shelf: Shelf,
    curve: Curve,
    latents: Tensor,
    columns: int,
    *,
    budget: int,
    data_dir: str | Path | None,
    seed: int = 0,
) -> dict[str, Any]:
    """What a trained curve makes of some latents (n, J): decoder means, with its own record."""
    data = load_grey(curve.data, data_dir)
    run = train(shelf, curve, data, seed, budget)
    parameter = next(run.program.parameters())
    images: Any = decode(run.program, latents.to(parameter))
    # (Weights are those that are there; a run that went further is not taken back.)
    record = record_of(curve, seed, run, run.manifest["samples"])
    return {
        **{name: record[name] for name in ("data", "latent_dim", "method", "seed", "seconds")},
        "samples": record["samples"][-1],
        "test": record["test"][-1],
        "columns": columns,
        "image_shape": list(data.image_shape),
        "images": packed(images.reshape(len(latents), -1)),
    }


def table(numbers: Mapping[str, Any]) -> Any:
    """One row a wall: what was trained, how long, and its held-out bound."""
    import pandas as pd

    names = ["data", "latent_dim", "samples", "test", "seconds"]
    rows = [{name: found[name] for name in names} for found in numbers["walls"]]
    return pd.DataFrame(rows).set_index(["data", "latent_dim"])
