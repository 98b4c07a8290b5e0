"""The paper's published curves: figures 2 and 3, read off the vector paths of its PDF."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Published:
    """One curve of figure 2 or 3.

    Attributes:
        figure: 2, a variational lower bound, or 3, an estimate of log p(x).
        data: "mnist" or "frey_face".
        latent_dim: J.
        num_data: N of figure 3, None in figure 2.
        method: "AEVB", "wake-sleep" or "Monte Carlo EM".
        split: "train" or "test".
        samples, nats: the points of the curve.
    """

    figure: int
    data: str
    latent_dim: int
    num_data: int | None
    method: str
    split: str
    samples: np.ndarray
    nats: np.ndarray

    def at(self, samples: float) -> float:
        """The curve's value, straight in log samples; nan outside of what was evaluated."""
        if not self.samples[0] <= samples <= self.samples[-1]:
            return math.nan
        return float(np.interp(math.log(samples), np.log(self.samples), self.nats))


@functools.cache
def _contents() -> dict[str, Any]:
    return json.loads(resources.files(__package__).joinpath("published.json").read_text())


def about() -> dict[str, Any]:
    """The source, what the numbers are, how exactly they were read, and their conventions."""
    return {name: value for name, value in _contents().items() if name != "curves"}


def published(**wanted: Any) -> list[Published]:
    """The curves that have these attributes.

    Example:
        >>> curve, = published(
        ...     figure=2, data="mnist", latent_dim=20, method="AEVB", split="test"
        ... )
        >>> round(curve.at(1e6))
        -124
    """
    return [
        Published(
            **{
                **curve,
                "samples": 100.0 * np.array(curve["samples"]),  # they are kept in hundreds
                "nats": np.array(curve["nats"]),
            }
        )
        for curve in _contents()["curves"]
        if all(curve[name] == value for name, value in wanted.items())
    ]


def the(**wanted: Any) -> Published | None:
    """The one curve that has these attributes; None where the paper has none."""
    found = published(**wanted)
    if len(found) > 1:
        raise ValueError(f"{len(found)} curves are {wanted}, expected one: name more attributes")
    return found[0] if found else None
