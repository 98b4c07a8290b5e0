"""Pictures of a diagnosis, one figure a question."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae.plotting.figures import COLOURS, new_figure

FINE, WRONG, OTHER = COLOURS[0], COLOURS[1], "0.6"
MOST = 6  # latents with a picture of their own
MOST_NAMES = 5  # in a legend


def draw_diagnosis(
    parts: Mapping[str, Any], level: float, folder: str | Path | None = None
) -> dict[str, Any]:
    """A figure for each question that was answered, by name.

    Args:
        parts: of a :class:`~pyro_vae.diagnostics.Diagnosis`.
        level: of its tests.
        folder: where to save them as PNG; made if it is not there.
    """
    drawings: dict[str, Callable[[Any, float], Any]] = {
        "weights": _weights,
        "log p(x)": _bounds,
        "calibration": _calibration,
        "latents": _latents,
        "gaps": _gaps,
        "predictions": _predictions,
        "misspecification": _misspecification,
    }
    figures = {
        name.replace("(x)", "").replace(" ", "_"): draw(parts[name], level)
        for name, draw in drawings.items()
        if parts.get(name) is not None
    }
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            figure.savefig(Path(folder) / f"{name}.png", dpi=150)
    return figures


def _weights(part: Any, level: float) -> Any:
    """khat of each datum, and how far the guide is from each posterior."""
    figure, axes = new_figure(2, width=5.2)
    left, right = axes[0]
    khat = np.sort(_array(part.evidence.khat))
    finite = np.isfinite(khat)
    top = max(1.0, float(khat[finite].max(initial=0.0)) * 1.05)
    share = (np.arange(len(khat)) + 0.5) / len(khat)
    large = ~(khat <= 0.7)
    left.axhspan(0.7, top, color=WRONG, alpha=0.08, linewidth=0)
    left.scatter(share[~large], khat[~large], s=8, color=FINE)
    left.scatter(share[large], np.where(finite, khat, top)[large], s=8, color=WRONG)
    left.set(
        xlabel="share of the data", ylabel=r"$\hat k$", xlim=(0, 1), ylim=(None, top),
        title=f"weights: {large.sum():,} of {len(khat):,} data above 0.7",
    )  # fmt: skip
    distance = _array(part.distance)
    right.hist(distance, bins=min(50, max(5, len(distance) // 10)), color=FINE)
    right.axvline(distance.mean(), color="black", linewidth=1)
    right.set(
        xlabel=r"$\log \hat p(x)$ - ELBO, nats", ylabel="data",
        title=f"distance to the posterior: mean {distance.mean():.2f} nats",
    )  # fmt: skip
    return figure


def _bounds(part: Any, level: float) -> Any:
    """log p(x) of each datum from both sides, less the lower bound's mean."""
    figure, axes = new_figure(width=7.0)
    axis = axes[0, 0]
    lower, upper = _array(part.bounds.lower), _array(part.bounds.upper)
    guide = _array(part.importance)
    middle = (lower + upper) / 2
    order = np.argsort(upper - lower)
    places = np.arange(len(order))
    axis.vlines(places, (lower - middle)[order], (upper - middle)[order], color=FINE, linewidth=5)
    axis.scatter(
        places, (guide - middle)[order], color=WRONG, s=20, zorder=3,
        label="importance sampling from the guide",
    )  # fmt: skip
    axis.set(
        xlabel="datum, by the gap", ylabel="nats above the middle",
        title=f"log p(x) between its bounds (blue): {float((upper - lower).mean()):.2f} nats apart",
    )  # fmt: skip
    axis.legend(frameon=False)
    return figure


def _calibration(part: Any, level: float) -> Any:
    """The distribution of ranks less the uniform one, with its band; and coverage."""
    ranks = part.ranks
    u, lower, upper, curves = part.curves(1 - level)
    figure, axes = new_figure(3, width=4.6)
    latents = [name for name in ranks.ranks if ranks.is_latent[name]]
    others = [name for name in ranks.ranks if not ranks.is_latent[name]]
    for axis, names, title in ((axes[0, 0], latents, "latents"), (axes[0, 1], others, "densities")):
        axis.fill_between(u, lower, upper, color="0.85", linewidth=0)
        for name, style in _styles(names, part.failed):
            axis.plot(u, curves[name], **style)
        axis.set(xlabel="rank of the truth, from 0 to 1", title=f"ranks of {title}")
        if any(name in part.failed for name in names):
            axis.legend(frameon=False, fontsize="small")
    axes[0, 0].set_ylabel("distribution function - uniform")
    axis = axes[0, 2]
    probs = np.linspace(0.05, 0.95, 19)
    axis.plot([0, 1], [0, 1], color="black", linewidth=1)
    covered = [ranks.coverage(float(prob)) for prob in probs]
    for name, style in _styles(latents, part.failed):
        axis.plot(probs, [c[name] for c in covered], **style)
    axis.set(
        xlabel="probability of the guide's interval", ylabel="share of truths inside",
        title="coverage", xlim=(0, 1), ylim=(0, 1),
    )  # fmt: skip
    return figure


def _styles(names: list[str], failed: list[str]) -> Any:
    """Grey for what passes, colours and a name for the worst that fail."""
    bad = [name for name in failed if name in names]
    for name in sorted(names, key=lambda n: n in bad):
        if name not in bad:
            yield name, {"color": OTHER, "linewidth": 0.8}
        elif (place := bad.index(name)) < MOST_NAMES:
            yield name, {"color": COLOURS[1:][place % 6], "linewidth": 1.5, "label": name}
        else:
            yield name, {"color": WRONG, "linewidth": 0.8, "alpha": 0.5}


def _latents(part: Any, level: float) -> Any:
    """Activity of each latent, and those least like the prior."""
    distance, _ = part.distances()
    order = np.argsort(-distance)[:MOST]
    figure, axes = new_figure(len(order) + 1, width=3.2, height=3.2)
    axis = axes[0, 0]
    activity = np.sort(_array(part.activity))[::-1]
    colours = [FINE if a > 0.01 else OTHER for a in activity]
    axis.bar(np.arange(len(activity)), activity, color=colours)
    axis.set(
        xlabel="latent, by activity", ylabel="variance of its mean / prior's",
        title=f"{int(_array(part.active).sum())} of {len(activity)} active",
    )  # fmt: skip
    for axis, which in zip(axes[0, 1:], order, strict=True):
        mine, prior = _array(part.draw)[:, which], _array(part.prior)[:, which]
        low, high = np.quantile(np.concatenate([mine, prior]), [0.001, 0.999])
        bins = np.linspace(low, high, 31) if high > low else 10
        axis.hist(prior, bins, density=True, color="0.8", label="prior")
        axis.hist(mine, bins, density=True, histtype="step", color=FINE, label="guide, all data")
        axis.set(xlabel=part.names[which], yticks=[], title=f"distance {distance[which]:.2f}")
    axes[0, 1].legend(frameon=False, fontsize="small")
    return figure


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
