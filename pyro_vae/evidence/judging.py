"""What is said of an estimate that is not to be trusted, and what to do."""

from __future__ import annotations

import warnings

from torch import Tensor

from pyro_vae.errors import PyroVaeWarning, users_line
from pyro_vae.evidence.weights import MOST_RHAT, Evidence

RISING = 0.05  # nats of predicted bias, of a datum or in the mean
SHARE = 0.1  # of the data, which are many
WIDE = 1.0  # nats between two bounds
APART = 3.0  # standard errors by which an upper bound lies below a lower one


def predicted_bias(standard_error: Tensor) -> Tensor:
    r"""By how much the logarithm of a mean of weights is too low, nats, (N,).

    .. math:: \log E w - E \log \bar w \approx \frac{\mathrm{Var}(w / E w)}{2 K}

    by Taylor expansion: half of the squared standard error by the delta method.  Estimated from
    the same weights it is at most 1/2, so near that it says "unknown".
    """
    return standard_error.square() / 2


def warn_about_rising(evidence: Evidence, more: str) -> None:
    """Say where log p(x) would still rise with more draws."""
    bias = predicted_bias(evidence.standard_error)
    much, mean = int((bias > RISING).sum()), float(bias.nanmean())
    if mean > RISING or much > SHARE * len(bias):
        _warn(
            f"log p(x) still rises with the number of draws: by Var(w / Ew) / 2K it is too low by "
            f"{mean:.2g} nats in the mean, and by more than {RISING} for {much} of {len(bias)} "
            f"data (an estimate that never exceeds 1/2): {more}"
        )


def warn_about_bounds(evidence: Evidence, true: bool) -> None:
    """Say where two bounds leave log p(x) open, or contradict each other."""
    gap = evidence.upper - evidence.lower
    wide = int((~(gap <= WIDE)).sum())  # nan is no good sign
    if wide > SHARE * len(gap) or not float(gap.mean()) <= WIDE:
        _warn(
            f"the bounds of log p(x) are more than {WIDE:g} nat apart for {wide} of {len(gap)} "
            f"data ({float(gap.mean()):.2g} in the mean): raise num_temperatures or chains"
        )
    # Of the two errors the squares add up to those of the value without half of the gap.
    noise = 2 * (evidence.standard_error.square() - (gap / 2).square()).clamp_min(0).sqrt()
    crossed = int((-gap > APART * noise.clamp_min(1e-3)).sum())
    if crossed > 0.01 * len(gap) and not true:
        _warn(
            f"the upper bound lies below the lower one for {crossed} of {len(gap)} data by more "
            "than their noise: the chains that the upper one starts from have missed a part of the "
            "posterior; raise warmup, chains or num_temperatures"
        )


def warn_about_dimensions(dim: int) -> None:
    """Say that a kernel density is none of the posterior in many dimensions."""
    if dim > 5:
        _warn(
            f"the reciprocal estimate is not to be trusted with {dim} latent dimensions: a kernel "
            'density misses the posterior above five; use method="importance"'
        )


def warn_about_chains(rhat: Tensor, method: str) -> None:
    """Say where chains have not met."""
    apart = int((~(rhat <= MOST_RHAT)).sum())  # nan is no good sign
    if apart:
        why = {
            "importance": "the proposal leaves out a part of what their chains found, or (where it "
            "is inf) there are more modes than could be looked for",
            "reciprocal": "their chains have not met, as in a posterior with several modes, or are "
            "too short to tell",
            "sandwich": "the chains that the upper bound starts from have not met, as in a "
            "posterior with several modes, or are too short to tell",
        }[method]
        more = "warmup" if method == "sandwich" else "warmup, num_draws"
        _warn(
            f"R-hat exceeds {MOST_RHAT} for {apart} of {len(rhat)} data: {why}, so log p(x) may be "
            f"wrong by more than its standard error and khat say; raise {more} or "
            "leapfrog_steps"
        )


def consequence(method: str, proposal: str) -> str:
    """What a large khat means there, and the next step."""
    if method == "reciprocal":
        return "the fitted density has heavier tails than their posterior; raise num_draws"
    if proposal == "hmc":
        return (
            "the density fitted to HMC draws misses a part of their posterior, so their log p(x) "
            "hangs on a few draws; raise num_draws or num_particles"
        )
    return (
        "the guide misses a part of their posterior, so their log p(x) is too low by more than its "
        "standard error says; raise num_particles or improve the guide"
    )


def _warn(text: str) -> None:
    warnings.warn(text, PyroVaeWarning, stacklevel=users_line())
