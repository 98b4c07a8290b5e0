r"""Appendix D: the estimator of log p(x) from posterior draws, against exact values in 1 to 4 D.

.. math:: \frac1{p(x)} = E_{p(z|x)} \frac{q(z)}{p(x, z)}

is averaged over draws, so the estimate of log p(x) errs upward (Jensen), as importance sampling
errs downward; between the two lies the truth.  Data come from linear-Gaussian models, whose log
p(x) has a closed form.

Source: Kingma & Welling (2014), appendix D.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pyro_vae import errors
from pyro_vae.evidence import log_evidence
from pyro_vae.models import linear_gaussian
from pyro_vae.noise import Stream, seeded
from pyro_vae.paper.reproduction import Reproduction, Style
from pyro_vae.paper.shelf import Shelf
from pyro_vae.plotting.figures import COLOURS

NAME = "appendix-d"
DATA_DIM, NUM_DATA = 8, 200
DIMS = (1, 2, 3, 4)
DRAWS = (24, 100, 400)
LEAPFROGS = 4  # the paper's
ESTIMATES = {"reciprocal": "appendix D", "importance": "importance sampling"}


def reproduce(
    *,
    seeds: int = 1,
    out: str | Path = f"reproduction/{NAME}",
    dims: Sequence[int] = DIMS,
    draws: Sequence[int] = DRAWS,
    num_data: int = NUM_DATA,
    progress: Any = None,
) -> Reproduction:
    """Both estimates at growing numbers of draws L, minus the exact log p(x).

    Half of the L posterior draws fit q, the other half are averaged, as in appendix D; importance
    sampling takes L draws of a density that is fitted to the same chains.

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
    """Mean error of both estimates, its standard error, and the error that they state."""
    with seeded(*Stream.OWN.key(seed, dim)):
        model = linear_gaussian.build(data_dim, latent_dim=dim, noise_scale=0.5)
        z = torch.randn(num_data, dim)
        x = z @ model.weight.detach().T + 0.5 * torch.randn(num_data, data_dim)
    exact = model.log_evidence(x).detach().double()
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # few draws are what is looked at here
        found = log_evidence(
            model, x, method="reciprocal", num_draws=draws, num_particles=draws, seed=seed,
            leapfrog_steps=LEAPFROGS, progress=False,
        )  # fmt: skip
        below = log_evidence(
            model, x, method="importance", proposal="hmc", num_draws=draws, num_particles=draws,
            seed=seed, leapfrog_steps=LEAPFROGS, progress=False,
        )  # fmt: skip
    cell: dict[str, Any] = {"dim": dim, "draws": draws, "seed": seed, "num_data": num_data}
    for name, estimate in (("reciprocal", found), ("importance", below)):
        error = estimate.value - exact
        cell[name] = {
            "error": float(error.mean()),
            "standard_error": float(error.std()) / num_data**0.5,
            "spread": float(error.square().mean().sqrt()),
            "stated": float(estimate.standard_error.square().mean().sqrt()),
        }
    return cell


# --- what is shown ------------------------------------------------------------------------------


def table(numbers: Mapping[str, Any]) -> Any:
    """Per latent dimension and L: bias, its standard error, and root mean square errors.

    ``bias`` is the mean over data of the estimate minus the truth, ``error`` the root mean square,
    ``stated`` what the estimates say of it themselves; all in nats a datum.
    """
    import pandas as pd

    rows: dict[tuple[int, int], dict[str, float]] = {}
    frame = pd.DataFrame(
        [
            {"dim": c["dim"], "draws": c["draws"], "estimate": words, **c[name]}
            for c in numbers["cells"]
            for name, words in ESTIMATES.items()
        ]
    )
    for (dim, draws), group in frame.groupby(["dim", "draws"], sort=False):
        row = rows[dim, draws] = {}
        for words, of in group.groupby("estimate", sort=False):
            row[f"{words}: bias"] = of.error.mean()
            row["±" if "±" not in row else "± "] = (of.standard_error**2).mean() ** 0.5 / len(
                of
            ) ** 0.5
            row[f"{words}: error"] = (of.spread**2).mean() ** 0.5
            row[f"{words}: stated"] = (of.stated**2).mean() ** 0.5
    result = pd.DataFrame(rows).T
    result.index.names = ["dim", "L"]
    return result


def draw(numbers: Mapping[str, Any]) -> dict[str, Any]:
    from pyro_vae.plotting.figures import new_figure

    frame = table(numbers).reset_index()
    dims = list(dict.fromkeys(frame.dim))
    figure, axes = new_figure(len(dims), width=3.2, height=3.0)
    largest = max(abs(frame[f"{words}: bias"]).max() for words in ESTIMATES.values())
    for axis, dim in zip(axes[0], dims, strict=True):
        part = frame[frame.dim == dim]
        axis.axhline(0, color="0.3", linewidth=1)
        looks = zip(ESTIMATES.values(), ("±", "± "), "os", COLOURS, strict=False)
        for words, error, marker, colour in looks:
            axis.errorbar(
                part.L, part[f"{words}: bias"], yerr=2 * part[error], marker=marker,
                color=colour, markersize=5, capsize=2, linewidth=1.3, label=words,
            )  # fmt: skip
        axis.set_xscale("log")
        axis.set_yscale("symlog", linthresh=0.01, linscale=0.6)
        axis.set_ylim(-1.6 * largest, 1.6 * largest)
        axis.set_title(f"{dim} latent dimension{'s' * (dim > 1)}", fontsize=10)
        axis.set_xlabel("posterior draws L")
    axes[0, 0].set_ylabel("estimate − exact log p(x), nats")
    axes[0, 0].legend(frameon=False, fontsize=8, loc="upper right")
    return {NAME: figure}


def words(numbers: Mapping[str, Any]) -> str:
    frame = table(numbers)
    first, last = frame.iloc[0], frame.iloc[-1]
    upper, lower = (f"{each}: bias" for each in ESTIMATES.values())
    dim = frame.index[-1][0]
    return (
        f"Appendix D errs upward ({first[upper]:+.3f} nats at L = {frame.index[0][1]} in one "
        f"dimension, {last[upper]:+.3f} at L = {frame.index[-1][1]} in {dim}), importance sampling "
        f"downward ({first[lower]:+.3f} and {last[lower]:+.3f}); both biases fall as L grows."
    )


STYLE = Style(table, draw, words)
