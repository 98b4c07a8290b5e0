"""The pictures of ``slides``, from its numbers alone."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np

from pyro_vae.plotting.autoencoders import autoencoders
from pyro_vae.plotting.figures import COLOURS, new_figure

MASS = (0.5, 0.9)  # of a two-dimensional normal inside its drawn ellipses
EXACT, GUIDE = COLOURS[0], COLOURS[1]
DASHED = (0, (4, 2))


def draw(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Four figures."""
    codes = numbers["autoencoder"]
    found = {
        name: SimpleNamespace(**{part: np.array(values) for part, values in each.items()})
        for name, each in codes["found"].items()
    }
    return {
        "slides-posteriors": _posteriors(numbers["linear"], numbers["logistic"]),
        "slides-bound": _bound(numbers["linear"]["trace"]),
        "slides-reparameterizations": _reparameterizations(numbers["reparameterizations"]),
        "slides-autoencoder": autoencoders(
            np.array(codes["data"]), found, tuple(codes["image_shape"])
        )[0, 0].figure,
    }


def _posteriors(linear: Mapping[str, Any], logistic: Mapping[str, Any]) -> Any:
    figure, axes = new_figure(len(linear["exact"]["mean"]), 2, width=2.7, height=2.7)
    for number, axis in enumerate(axes[0]):
        for name, colour, dash in (("exact", EXACT, "-"), ("guide", GUIDE, DASHED)):
            part = linear[name]
            _ellipses(axis, part["mean"][number], part["covariance"][number], colour, dash)
        axis.set_title(f"LVM 1, datum {number + 1}", fontsize=10)
        axis.autoscale_view()
        axis.set_aspect("equal", adjustable="datalim")
    line = np.array(logistic["line"])
    for number, axis in enumerate(axes[1][: len(logistic["density"])]):
        density = np.array(logistic["density"][number])
        axis.contour(line, line, density.T, levels=_levels(density), colors=EXACT, linewidths=1.4)
        part = logistic["guide"]
        _ellipses(axis, part["mean"][number], part["covariance"][number], GUIDE, DASHED)
        axis.set_title(f"LVM 2, datum {number + 1}", fontsize=10)
        center = np.array(part["mean"][number])
        axis.set(
            xlim=center[0] + np.array([-2, 2]), ylim=center[1] + np.array([-2, 2]), aspect="equal"
        )
    for axis in axes.flat:
        axis.set_xlabel("z[0]", fontsize=8)
        axis.set_ylabel("z[1]", fontsize=8)
    from matplotlib.lines import Line2D

    figure.legend(
        handles=[
            Line2D([], [], color=EXACT, label="exact posterior"),
            Line2D([], [], color=GUIDE, linestyle=DASHED, label="guide, trained by AEVB"),
        ],
        fontsize=10, frameon=False, loc="outside lower center", ncols=2,
    )  # fmt: skip
    figure.suptitle("50 % and 90 % of the mass of each posterior", fontsize=11)
    return figure


def _ellipses(axis: Any, mean: Any, covariance: Any, colour: str, dash: Any) -> None:
    """Where a normal in two dimensions holds these shares of its mass."""
    angle = np.linspace(0, 2 * np.pi, 100)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    factor = np.linalg.cholesky(np.array(covariance))
    for mass in MASS:
        radius = np.sqrt(-2 * np.log(1 - mass))
        x, y = np.array(mean)[:, None] + radius * factor @ circle
        axis.plot(x, y, color=colour, linestyle=dash, linewidth=1.4)


def _levels(density: np.ndarray) -> list[float]:
    """Heights above which these shares of the mass lie, ascending."""
    flat = np.sort(density.ravel())[::-1]
    share = np.cumsum(flat) / flat.sum()
    return sorted(float(flat[np.searchsorted(share, mass)]) for mass in MASS)


def _bound(trace: Any) -> Any:
    """L below, KL on top of it; their sum is a straight line."""
    figure, ((axis,),) = new_figure(width=6.4, height=3.6)
    # What happens is over early: up to where KL is a hundredth of what it was, and half again.
    late = [point["kl"] < 0.01 * trace[0]["kl"] for point in trace]
    trace = trace[: max(2, int(1.5 * (late.index(True) if any(late) else len(trace))))]
    x = np.array([point["samples"] for point in trace])
    bound, kl, log_p = (np.array([p[name] for p in trace]) for name in ("bound", "kl", "log_p"))
    low = bound.min() - 0.15 * (log_p.max() - bound.min())
    axis.fill_between(x, low, bound, color=COLOURS[0], alpha=0.25, linewidth=0)
    axis.fill_between(x, bound, bound + kl, color=COLOURS[1], alpha=0.25, linewidth=0, hatch="//")
    axis.plot(x, bound, color=COLOURS[0], linewidth=2)
    axis.plot(x, log_p, color="0.2", linewidth=2, linestyle=DASHED)
    place = int((kl < 0.7 * kl[0]).argmax())
    axis.annotate("log p(x): never moves", (x[-1], log_p[-1]), xytext=(0, 5), ha="right",
                  textcoords="offset points", fontsize=10)  # fmt: skip
    axis.text(
        0.6 * x[-1], low + 0.35 * (bound[-1] - low), "L, the bound", color=COLOURS[0],
        fontsize=11, ha="center", va="center",
    )  # fmt: skip
    axis.annotate(
        "KL(q ‖ p(z | x))", (x[place], (bound[place] + log_p[0]) / 2), xytext=(0.4, 0.62),
        textcoords="axes fraction", color=COLOURS[1], fontsize=11,
        arrowprops={"arrowstyle": "-", "color": COLOURS[1]},
    )  # fmt: skip
    axis.set_ylim(low, log_p.max() + 0.1 * (log_p.max() - low))
    axis.set_xlim(0, x[-1])
    axis.set_xlabel("training samples of the guide; the model stands still")
    axis.set_ylabel("nats, one datum")
    axis.set_title("log p(x) = L + KL(q ‖ p(z | x))", fontsize=11)
    return figure


def _reparameterizations(found: Mapping[str, Any]) -> Any:
    from scipy import stats

    laws = {
        "normal": (stats.norm(1.0, 0.5), "z = μ + σ ε,  ε ~ N(0, 1)"),
        "exponential": (stats.expon(scale=1 / 1.5), "z = −log(1 − ε) / λ,  ε ~ U(0, 1)"),
        "gamma": (stats.gamma(3, scale=0.5), "z = −θ Σᵢ log(1 − εᵢ),  3 uniforms"),
    }
    figure, axes = new_figure(3, width=3.7, height=3.0)
    for axis, (name, (law, formula)) in zip(axes[0], laws.items(), strict=True):
        edges, density = np.array(found[name]["edges"]), np.array(found[name]["density"])
        axis.stairs(density, edges, fill=True, color=COLOURS[5], alpha=0.6, label="draws")
        x = np.linspace(edges[0], edges[-1], 300)
        axis.plot(x, law.pdf(x), color="0.1", linewidth=1.6, label="exact density")
        if name == "normal":
            wrong = stats.norm(1.0, 0.25).pdf(x)
            axis.plot(x, wrong, color=COLOURS[1], linestyle=DASHED, linewidth=1.3,
                      label="the slide's μ + σ² ε")  # fmt: skip
        axis.set_title(f"{name}: {formula}", fontsize=9)
        axis.set_xlabel("z")
        axis.legend(frameon=False, fontsize=8, loc="upper right")
        axis.set_ylim(0, None)
    axes[0, 0].set_ylabel("density")
    return figure
