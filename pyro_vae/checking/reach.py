"""Data where the mean of a likelihood cannot come: possible, and learnt as nothing but noise."""

from __future__ import annotations

from torch import Tensor

from pyro_vae.checking.values import divisor_for
from pyro_vae.densities.sites import Site
from pyro_vae.program.parts import MeanRange

SLACK = 0.1  # of the range, for the noise around a mean at its end


def out_of_reach(site: Site, mean_range: MeanRange | None) -> str | None:
    """What to say of observed values far outside of where their means can be; None if none are.

    A normal distribution gives every value a density, so that nothing else objects: its scale
    grows until it covers what the mean cannot follow.

    Args:
        site: the likelihood, with the values.
        mean_range: where its mean can be; None where nothing is known.
    """
    value = site.value
    if mean_range is None or not isinstance(value, Tensor) or not value.is_floating_point():
        return None
    known = value.isfinite() & site.whole_mask().to(value.device)
    if not known.any():
        return None
    value = value[known]
    low, high = value.min().item(), value.max().item()
    slack = SLACK * min(mean_range.high - mean_range.low, high - low)
    if low >= mean_range.low - slack and high <= mean_range.high + slack:
        return None
    advice = mean_range.advice
    if low >= 0 and mean_range[:2] == (0.0, 1.0):
        advice = f"scale them, pv.datasets.from_array(x, scale={divisor_for(high)}), or {advice}"
    return (
        f'the mean of site "{site.name}" can only be from {mean_range.low:g} to '
        f"{mean_range.high:g}, where the data are from {low:g} to {high:g}: what lies outside is "
        f"learnt as noise; {advice}"
    )
