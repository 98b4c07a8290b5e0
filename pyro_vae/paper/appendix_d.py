r"""Appendix D: the estimator of log p(x) from posterior draws, against exact values in 1 to 4 D.

.. math:: \frac1{p(x)} = E_{p(z|x)} \frac{q(z)}{p(x, z)}

is averaged over draws, so with independent draws the estimate of log p(x) errs upward (Jensen), as
importance sampling errs downward; between the two lies the truth.  Data come from linear-Gaussian
models, whose posterior can be drawn from and whose log p(x) has a closed form.

Draws of a short chain are not independent: those that are averaged stand near those that q was
fitted to, where q is high, and the estimate then comes out too low.  Both are shown.

Source: Kingma & Welling (2014), appendix D.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae import errors
from pyro_vae.errors import PyroVaeWarning
from pyro_vae.evidence import log_evidence
from pyro_vae.evidence.markov import from_reciprocal_weights, kernel_log_density
from pyro_vae.evidence.weights import Evidence, from_log_weights
from pyro_vae.models import linear_gaussian
from pyro_vae.noise import Stream, seeded
from pyro_vae.paper.reproduction import Reproduction, Style
from pyro_vae.paper.shelf import Shelf
from pyro_vae.plotting.figures import COLOURS

NAME = "appendix-d"
DATA_DIM, NUM_DATA = 8, 100
MORE = 20  # times as many data where no chains are run
DIMS = (1, 2, 3, 4)
DRAWS = (24, 100, 400)
LEAPFROGS = 4  # the paper's
ESTIMATES = {
    "independent": "appendix D, independent draws",
    "reciprocal": "appendix D, HMC",
    "prior": "importance sampling, prior",
    "importance": "importance sampling, HMC",
}


def reproduce(
    *,
    seeds: int = 1,
    out: str | Path = f"reproduction/{NAME}",
    dims: Sequence[int] = DIMS,
    draws: Sequence[int] = DRAWS,
    num_data: int = NUM_DATA,
    progress: Any = None,
) -> Reproduction:
    """All estimates at growing numbers of draws L, minus the exact log p(x).

    Half of the L posterior draws fit q, the other half are averaged, as in appendix D.
    Importance sampling takes L draws of the prior, or of a density fitted to the same chains.

    Args:
        seeds: models, data and chains; errors are taken over all of their data.
        out: folder for numbers, table and picture.
        dims: latent dimensions.
        draws: the numbers L.
        num_data: data of each model.
        progress: as of ``pv.fit``.
    """
    seeds, num_data = errors.whole("seeds", seeds), errors.whole("num_data", num_data, 2)
    shelf = Shelf(out, progress=progress)
    cells = []
    for dim in dims:
        for number in draws:
            for seed in range(seeds):
                settings = {"dim": dim, "draws": number, "seed": seed, "num_data": num_data}
                settings["data_dim"] = DATA_DIM
                name = f"dim{dim}-draws{number}-seed{seed}"
                cells.append(shelf.piece(name, settings, lambda s=settings: _measured(**s)))  # type: ignore[misc]
    numbers = {"name": NAME, "seeds": seeds, "data_dim": DATA_DIM, "cells": cells}
    result = Reproduction(NAME, numbers, STYLE, shelf.out)
    result.save()
    return result


def _measured(*, dim: int, draws: int, seed: int, num_data: int, data_dim: int) -> dict[str, Any]:
    """Mean error of the estimates, its standard error, and the error that they state."""
    with seeded(*Stream.OWN.key(seed, dim)):
        model = linear_gaussian.build(data_dim, latent_dim=dim, noise_scale=0.5)
        z = torch.randn(MORE * num_data, dim)
        x = z @ model.weight.detach().T + 0.5 * torch.randn(MORE * num_data, data_dim)
    model.requires_grad_(False)
    exact = model.log_evidence(x).double()
    options: dict[str, Any] = {"num_draws": draws, "num_particles": draws, "seed": seed}
    options |= {"leapfrog_steps": LEAPFROGS, "progress": False}
    few = x[:num_data]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PyroVaeWarning)  # few draws are what is looked at here
        found = {
            "independent": _independent(model, x, draws, seed),
            "reciprocal": log_evidence(model, few, method="reciprocal", **options),
            "prior": _from_prior(model, x, draws, seed),
            "importance": log_evidence(model, few, proposal="hmc", **options),
        }
    cell: dict[str, Any] = {"dim": dim, "draws": draws, "seed": seed}
    for name, estimate in found.items():
        error = estimate.value - exact[: len(estimate.value)]
        cell[name] = {
            "error": float(error.mean()),
            "standard_error": float(error.std()) / len(error) ** 0.5,
            "spread": float(error.square().mean().sqrt()),
            "stated": float(estimate.standard_error.square().mean().sqrt()),
        }
    return cell


def _independent(model: Any, x: Tensor, draws: int, seed: int) -> Evidence:
    """Appendix D with draws of the exact posterior."""
    with seeded(*Stream.OWN.key(seed, 1)):
        z = model.posterior(x).sample((draws,))  # (L, N, J)
    fit, new = z[: draws // 2], z[draws // 2 :]
    parts = []
    for rows in torch.arange(len(x)).split(100):
        log_joint = model.noise.around(new[:, rows] @ model.weight.T + model.bias).log_prob(x[rows])
        log_joint = log_joint + model.prior().log_prob(new[:, rows])
        log_r = kernel_log_density(fit[:, rows], new[:, rows]) - log_joint
        parts.append(from_reciprocal_weights(log_r))
    return _joined(parts)


def _from_prior(model: Any, x: Tensor, draws: int, seed: int) -> Evidence:
    with seeded(*Stream.OWN.key(seed, 2)):
        z = model.prior().sample((draws, len(x)))
    log_w = model.noise.around(z @ model.weight.T + model.bias).log_prob(x)
    return from_log_weights(log_w)


def _joined(parts: Sequence[Evidence]) -> Evidence:
    columns: list[dict[str, Any]] = [part.columns() for part in parts]
    joined: dict[str, Any] = {n: torch.cat([each[n] for each in columns]) for n in columns[0]}
    return Evidence(**joined)


# --- what is shown ------------------------------------------------------------------------------


def table(numbers: Mapping[str, Any]) -> Any:
    """Per latent dimension, L and estimate: errors over data, in nats.

    ``bias`` is the mean of the estimate minus the truth and ± its standard error, ``error`` the
    root mean square, ``stated`` what the estimates say of it themselves.
    """
    import pandas as pd

    rows = [
        {"dim": cell["dim"], "L": cell["draws"], "estimate": words, **cell[name]}
        for cell in numbers["cells"]
        for name, words in ESTIMATES.items()
    ]
    frame = pd.DataFrame(rows).rename(columns={"error": "bias"})
    groups = frame.groupby(["dim", "L", "estimate"], sort=False)
    squares = frame.assign(**{n: frame[n] ** 2 for n in ("standard_error", "spread", "stated")})
    mean = squares.groupby(["dim", "L", "estimate"], sort=False).mean()
    return pd.DataFrame(
        {
            "bias": mean.bias,
            "±": (mean.standard_error / groups.size()) ** 0.5,
            "error": mean.spread**0.5,
            "stated": mean.stated**0.5,
        }
    )


def draw(numbers: Mapping[str, Any]) -> dict[str, Any]:
    from pyro_vae.plotting.figures import new_figure

    frame = table(numbers).reset_index()
    dims = list(dict.fromkeys(frame.dim))
    figure, axes = new_figure(len(dims), width=3.2, height=3.4)
    for axis, dim in zip(axes[0], dims, strict=True):
        axis.axhline(0, color="0.3", linewidth=1)
        for number, words in enumerate(ESTIMATES.values()):
            part = frame[(frame.dim == dim) & (frame.estimate == words)]
            axis.errorbar(
                part.L * (1 + 0.04 * number), part.bias, yerr=2 * part["±"],
                marker="os^D"[number], linestyle=("-", "--", "-", "--")[number],
                color=COLOURS[number // 2], markersize=5, capsize=2, linewidth=1.3, label=words,
                markerfacecolor="white" if number % 2 else None,
            )  # fmt: skip
        axis.set_xscale("log")
        axis.set_yscale("symlog", linthresh=0.01, linscale=0.6)
        axis.set_ylim(-10, 1)
        axis.set_yticks([-10, -1, -0.1, 0, 0.1, 1], ["−10", "−1", "−0.1", "0", "0.1", "1"])
        axis.set_yticks([], minor=True)
        draws = list(dict.fromkeys(frame.L))
        axis.set_xticks(draws, [str(number) for number in draws])
        axis.set_xticks([], minor=True)
        axis.set_title(f"{dim} latent dimension{'s' * (dim > 1)}", fontsize=10)
        axis.set_xlabel("draws L")
    axes[0, 0].set_ylabel("estimate − exact log p(x), nats")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, frameon=False, fontsize=9, loc="outside lower center", ncols=len(ESTIMATES)
    )
    return {NAME: figure}


def words(numbers: Mapping[str, Any]) -> str:
    frame = table(numbers)
    least, (dim, most, _) = frame.index[0][1], frame.index[-1]
    lines = []
    for each in ESTIMATES.values():
        first, last = (frame.loc[(dim, number, each)] for number in (least, most))
        lines.append(
            f"{each}, {dim} D: bias {first.bias:+.3f} ± {first['±']:.3f} at L = {least}, "
            f"{last.bias:+.4f} ± {last['±']:.4f} at {most}"
        )
    return "\n".join(lines)


STYLE = Style(table, draw, words, digits=4)
