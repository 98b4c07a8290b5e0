r"""Appendix E: Monte Carlo EM, on a model whose log p(x) is exact.

Probabilistic principal component analysis, x = W z + b + noise: the likelihood of its maximum has
a closed form (Tipping & Bishop, 1999), so one sees how far learning from one HMC draw a datum
comes, with the step size tuned to the paper's acceptance of 90 %.

Source: Kingma & Welling (2014), appendix E.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae import errors, optimizers
from pyro_vae.comparison.comparing import built
from pyro_vae.models import linear_gaussian
from pyro_vae.noise import Stream, seeded
from pyro_vae.objectives import MonteCarloEM
from pyro_vae.paper.drawing import sample_axis
from pyro_vae.paper.reproduction import SEEDS, Reproduction, Style, whole_budget
from pyro_vae.paper.shelf import Shelf
from pyro_vae.plotting.figures import COLOURS

NAME = "appendix-e"
BUDGET = 300_000
FULL = 3_000_000
DATA_DIM, LATENT_DIM, NUM_DATA = 8, 2, 1000
MARKS = tuple(a * 10**k for k in range(3, 9) for a in (1, 3))


def data(num_data: int = NUM_DATA) -> Tensor:
    """Draws of a model of this family, (N, D)."""
    with seeded(*Stream.OWN.key(0)):
        weight = torch.randn(DATA_DIM, LATENT_DIM)
        z = torch.randn(num_data, LATENT_DIM)
        return z @ weight.T + 0.5 * torch.randn(num_data, DATA_DIM)


def highest(x: Tensor, latent_dim: int = LATENT_DIM) -> float:
    """The largest log p(X) / N of this model: Tipping & Bishop (1999), section 3.2."""
    values = torch.linalg.eigvalsh(torch.cov(x.double().T, correction=0)).flip(0)
    rest = values[latent_dim:]
    logs = values[:latent_dim].log().sum() + len(rest) * rest.mean().log()
    return float(-0.5 * (x.shape[1] * math.log(2 * math.pi) + logs + x.shape[1]))


def reproduce(
    *,
    budget: float = BUDGET,
    seeds: int = SEEDS,
    out: str | Path = f"reproduction/{NAME}",
    runs: str | Path | None = None,
    progress: Any = None,
) -> Reproduction:
    """Train by Monte Carlo EM; at marks in between, log p(x), acceptance and step size.

    Args:
        budget, seeds, out, runs, progress: as of ``figure_2.reproduce``.
    """
    budget, seeds = whole_budget(budget, MARKS[0]), errors.whole("seeds", seeds)
    shelf = Shelf(out, runs=runs, progress=progress)
    x = data()
    curves = []
    for seed in range(seeds):
        points = []
        for mark in [m for m in MARKS if m <= budget]:
            settings = {"seed": seed, "samples": mark, "lr": 0.1}
            name = f"appendix-e-seed{seed}"
            points.append(
                shelf.piece(f"{name}-{mark}", settings, lambda m=mark, s=seed: _at(shelf, x, s, m))  # type: ignore[misc]
            )
        curves.append({"seed": seed, "points": points})
    numbers = {"name": NAME, "budget": budget, "seeds": seeds, "highest": highest(x)}
    numbers["curves"] = curves
    result = Reproduction(NAME, numbers, STYLE, shelf.out)
    result.save()
    return result


def _at(shelf: Shelf, x: Tensor, seed: int, samples: int) -> dict[str, Any]:
    """What has been learnt after so many samples."""
    run = shelf.run(
        f"appendix-e-seed{seed}",
        {"seed": seed, "lr": 0.1},
        lambda: built(
            lambda: linear_gaussian.build(
                DATA_DIM, latent_dim=LATENT_DIM, weight=0.01 * torch.randn(DATA_DIM, LATENT_DIM)
            ),
            seed,
        ),
        x,
        MonteCarloEM(),
        samples=samples,
        optimizer=functools.partial(optimizers.Adagrad, accumulate_steps=0),
        lr=0.1,
        weight_prior=0.0,  # the maximum of the likelihood is what it is held against
        seed=seed,
        engine="eager",
    )
    model: Any = run.program
    if run.manifest["samples"] > samples + run.manifest["batch_size"]:
        raise ValueError(
            f"{shelf.runs} holds a run of {run.manifest['samples']:,} samples and no numbers of "
            f"{samples:,}: name another folder as out"
        )
    return {
        "samples": samples,
        "log_p": float(model.log_evidence(x).detach().mean()),
        "accept": float(run.history.accept.dropna().tail(20).mean()),
        "step_size": float(run.state.shared["log_step"].exp()),
    }


# --- what is shown ------------------------------------------------------------------------------


def table(numbers: Mapping[str, Any]) -> Any:
    """``below``: the nats by which log p(x) is below its highest value."""
    import pandas as pd

    rows = [{"seed": c["seed"], **point} for c in numbers["curves"] for point in c["points"]]
    frame = pd.DataFrame(rows)
    frame["below"] = numbers["highest"] - frame.log_p
    return frame.set_index(["seed", "samples"])


def draw(numbers: Mapping[str, Any]) -> dict[str, Any]:
    from pyro_vae.plotting.figures import new_figure

    figure, axes = new_figure(3, width=3.6, height=3.0)
    parts = (
        ("log_p", "log p(x), nats a datum", numbers["highest"], "its highest value"),
        ("accept", "acceptance", 0.9, "0.9, the paper's"),
        ("step_size", "step size", None, ""),
    )
    for axis, (name, label, aim, said) in zip(axes[0], parts, strict=True):
        for curve in numbers["curves"]:
            x = [point["samples"] for point in curve["points"]]
            y = [point[name] for point in curve["points"]]
            axis.plot(x, y, color=COLOURS[2], marker="o", markersize=4, linewidth=1.5)
        if aim is not None:
            axis.axhline(aim, color="0.3", linestyle=(0, (4, 2)), linewidth=1.2)
            axis.annotate(
                said, (0.02, aim), xycoords=("axes fraction", "data"), xytext=(0, -4),
                textcoords="offset points", ha="left", va="top", fontsize=8, color="0.3",
            )  # fmt: skip
        sample_axis(axis)
        axis.set_xlabel("training samples")
        axis.set_ylabel(label)
    axes[0, 1].set_ylim(0, 1.05)
    axes[0, 2].set_ylim(0, None)
    return {NAME: figure}


def words(numbers: Mapping[str, Any]) -> str:
    last = table(numbers).groupby(level="seed").tail(1)
    return (
        f"After {last.index[-1][1]:,} samples log p(x) is {last.below.mean():.3f} nats a datum "
        f"below its highest value, {numbers['highest']:.3f}; acceptance {last.accept.mean():.2f} "
        f"(aim 0.9) at a step size of {last.step_size.mean():.2f}."
    )


STYLE = Style(table, draw, words, digits=3)
