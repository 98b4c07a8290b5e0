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
MOST_CHECKS = 12
TOP = 2.0  # of khat, on a picture
LEAST_NATS = 0.1  # to either side of zero, so that rounding is not drawn as large


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
    highest = float(khat[finite].max(initial=0.0))
    top = min(max(1.0, 1.05 * highest), TOP)
    share = (np.arange(len(khat)) + 0.5) / len(khat)
    large = ~(khat <= 0.7)
    left.axhspan(0.7, top, color=WRONG, alpha=0.08, linewidth=0)
    left.scatter(share[~large], khat[~large], s=8, color=FINE)
    left.scatter(
        share[large], np.minimum(np.where(finite, khat, top), top)[large], s=8, color=WRONG,
        clip_on=False,
    )  # fmt: skip
    if highest > top:
        left.annotate(
            f"up to {highest:.1f}", (0.98, top), xytext=(0, -4), textcoords="offset points",
            ha="right", va="top", fontsize=8, color="0.4",
        )  # fmt: skip
    left.set(
        xlabel="share of the data", ylabel=r"$\hat k$", xlim=(0, 1), ylim=(None, top),
        title=f"weights: {large.sum():,} of {len(khat):,} data above 0.7",
    )  # fmt: skip
    distance = _array(part.distance)
    most = float(np.quantile(distance, 0.98))
    shown = distance[distance <= max(most, 1e-3)]
    right.hist(shown, bins=min(50, max(5, len(shown) // 10)), color=FINE)
    if len(shown) < len(distance):
        right.text(
            0.98, 0.95, f"{len(distance) - len(shown):,} more, up to {distance.max():.3g}",
            transform=right.transAxes, ha="right", va="top", fontsize=8, color="0.4",
        )  # fmt: skip
    if distance.mean() <= most:
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
        title=f"log p(x) between its bounds (blue): {abs((upper - lower).mean()):.2f} nats apart",
    )  # fmt: skip
    _whole_numbers(axis)
    _not_smaller(axis)
    axis.legend(frameon=False)
    return figure


def _calibration(part: Any, level: float) -> Any:
    """The distribution of ranks less the uniform one, with its band; and coverage."""
    ranks = part.ranks
    u, lower, upper, curves = ranks.curves(1 - level)
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
        ylim=(0, max(1.0, 1.05 * float(activity.max()))),
    )  # fmt: skip
    _whole_numbers(axis)
    for axis, which in zip(axes[0, 1:], order, strict=True):
        mine, prior = _array(part.draw)[:, which], _array(part.prior)[:, which]
        low, high = np.quantile(np.concatenate([mine, prior]), [0.001, 0.999])
        bins = np.linspace(low, high, 31) if high > low else 10
        axis.hist(prior, bins, density=True, color="0.8", label="prior")
        axis.hist(mine, bins, density=True, histtype="step", color=FINE, label="guide, all data")
        axis.set(xlabel=part.names[which], yticks=[], title=f"distance {distance[which]:.2f}")
    figure.legend(*axes[0, 1].get_legend_handles_labels(), loc="outside lower right", ncols=2)
    return figure


def _gaps(part: Any, level: float) -> Any:
    """The two gaps of each datum, one upon the other."""
    figure, axes = new_figure(width=7.0)
    axis = axes[0, 0]
    family, network = _array(part.approximation), _array(part.amortization)
    order = np.argsort(-(family + network))
    places = np.arange(len(order))
    axis.bar(places, family[order], color=FINE, label="approximation: the family")
    base = np.maximum(family[order], 0)
    axis.bar(places, network[order], bottom=base, color=WRONG, label="amortization: the network")
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set(
        xlabel="datum, by both gaps", ylabel="nats",
        title=f"gaps: {family.mean():.2f} of the family, {network.mean():.2f} of the network",
    )  # fmt: skip
    _whole_numbers(axis)
    _not_smaller(axis)
    axis.legend(frameon=False)
    return figure


def _predictions(part: Any, level: float) -> Any:
    """Each statistic of the data among that of replicated data."""
    checks = part.checks[:MOST_CHECKS]
    columns = min(4, len(checks))
    figure, axes = new_figure(columns, -(-len(checks) // columns), width=3.4, height=2.6)
    adjusted = part.adjusted()
    for axis, check, p in zip(axes.flat, checks, adjusted, strict=False):
        made = _array(check.replicated)
        axis.hist(made, bins=25, color="0.75")
        axis.axvline(check.observed, color=WRONG if p <= part.level else FINE, linewidth=2)
        of = f" of {check.site}" if check.site and len({c.site for c in part.checks}) > 1 else ""
        axis.set_title(f"{check.statistic.rstrip(',')}{of}", fontsize="medium")
        axis.set_yticks([])
        axis.tick_params(axis="x", labelsize="small")
    for axis in list(axes.flat)[len(checks) :]:
        axis.remove()
    figure.suptitle("statistics of the data (line) and of replicated data (grey)")
    return figure


def _misspecification(part: Any, level: float) -> Any:
    """log p(x) of the data and of the model's own."""
    figure, axes = new_figure(width=6.4)
    axis = axes[0, 0]
    data, own = _array(part.log_evidence), _array(part.simulated)
    low, high = np.quantile(np.concatenate([data, own]), [0.002, 0.998])
    bins = np.linspace(low, high, 41) if high > low else 10
    axis.hist(own, bins, density=True, color="0.8", label="data of the model")
    axis.hist(data, bins, density=True, histtype="step", linewidth=1.5, color=FINE, label="data")
    axis.set(
        xlabel=r"$\log \hat p(x)$, nats", yticks=[],
        title=f"log p(x) of the data and of the model's own (p = {part.uniformity:.2g})",
    )  # fmt: skip
    axis.legend(frameon=False)
    return figure


def _not_smaller(axis: Any) -> None:
    """The range of nats on the vertical axis."""
    low, high = axis.get_ylim()
    axis.set_ylim(min(low, -LEAST_NATS), max(high, LEAST_NATS))


def _whole_numbers(axis: Any) -> None:
    """On the horizontal axis."""
    from matplotlib.ticker import MaxNLocator

    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
