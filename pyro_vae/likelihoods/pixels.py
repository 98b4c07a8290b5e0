"""Likelihoods of pixels in levels."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae import distributions, errors
from pyro_vae.networks.mlp import positive
from pyro_vae.program.families import NetworkLikelihood

GRIDS = ((16, 17), (255, 256), (256, 256))  # pixels are k / divisor, of so many levels


class DiscretizedLogistic(NetworkLikelihood):
    r"""p(x | z): a logistic law a pixel, rounded to its levels; bits per dimension.

    Its numbers are probabilities of the levels themselves, so that
    :func:`pyro_vae.distributions.bits_per_dimension` of them is what papers report, however the
    pixels are scaled.  The mean of a pixel is a sigmoid of the network, and its scale is learnt.

    Args:
        levels: such as 256; inferred from the data.
        step: the distance of two levels, in units of x; None is 1 / (levels - 1).  Inferred from
            the data: 1 for 0, 1, ..., 255; 1 / 255 and 1 / 256 for pixels that were divided.
        floor: the least scale, in units of the whole range.

    Source: Salimans et al. (2017), PixelCNN++; Kingma et al. (2016), arXiv:1606.04934.
    """

    heads = 2

    def __init__(
        self,
        *sizes: Any,
        levels: int = 256,
        step: float | None = None,
        floor: float = 1e-3,
        **networks: Any,
    ) -> None:
        super().__init__(*sizes, **networks)
        self.levels = errors.whole("levels", levels, 2)
        self.step = 1 / (self.levels - 1) if step is None else errors.positive("step", step)
        self.floor = errors.positive("floor", floor)

    @classmethod
    def infer(cls, x: Tensor) -> dict[str, Any]:
        if not len(x):
            return {}
        high, whole = x.max().item(), bool((x == x.round()).all())
        if x.min() >= 0 and whole and high > 1:  # not divided
            return {
                "levels": 17 if high <= 16 else 256 if high <= 255 else int(high) + 1,
                "step": 1.0,
            }
        for divisor, levels in GRIDS:
            level = x * divisor
            on_grid = bool((level - level.round()).abs().max() < 0.01)
            if on_grid and x.min() >= 0 and level.max().round() < levels:
                return {"levels": levels, "step": 1 / divisor}
        off = (x * 255 - (x * 255).round()).abs() + (x < 0) + (x > 255)
        row = int(off.flatten(1).amax(1).argmax())
        value = x[row].flatten()[off[row].flatten().argmax()].item()
        raise ValueError(
            f"DiscretizedLogistic: x has values such as {value:g} (row {row}), expected 0, 1, ..., "
            "255, or these divided by 255 or 256: give levels= and step= of the grid that they lie "
            "on, or choose another likelihood"
        )

    def law(self, logit: Tensor, log_square: Tensor) -> dist.TorchDistribution:
        span = self.step * (self.levels - 1)
        scale = span * positive(log_square - 4, self.floor)  # at 0, a seventh of the range
        return distributions.DiscretizedLogistic(
            span * logit.sigmoid(), scale, self.levels, self.step
        )

    def bits_per_dimension(self, log_p: Tensor) -> Tensor:
        """Of log p(x), or of its bounds, in nats a row."""
        size = torch.Size(self.event).numel()
        return distributions.bits_per_dimension(log_p, size)
