r"""Appendix F: full variational Bayes, which the paper left without an experiment.

.. math:: \log p(X) = KL(q(\theta) \| p(\theta \mid X)) + L(\phi; X)

*Conjugate*: mu ~ N(0, 1), z_n ~ N(mu, r^2), x_n ~ N(z_n, s^2).  The guide holds the posterior, so
L must climb to log p(X), which has a closed form.

*MNIST*: the decoder's weights are uncertain, with the prior N(0, 1) that the other figures only
maximize under (MAP).  What a new datum costs is compared at equal samples: its bound without
KL(q(theta) || p(theta)), which the training data have paid.

Source: Kingma & Welling (2014), appendix F.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import errors, optimizers
from pyro_vae.comparison.comparing import built
from pyro_vae.evidence import elbo
from pyro_vae.models import bayesian_vae, bernoulli_vae
from pyro_vae.noise import Stream, seeded
from pyro_vae.objectives import AEVB
from pyro_vae.paper.drawing import sample_axis
from pyro_vae.paper.figure_2 import load_grey
from pyro_vae.paper.reproduction import SEEDS, Reproduction, Style, chosen, whole_budget
from pyro_vae.paper.shelf import Shelf
from pyro_vae.plotting.figures import COLOURS
from pyro_vae.program import Program

NAME = "appendix-f"
BUDGET = 100_000
FULL = 30_000_000
LATENT_DIM, HIDDEN_DIM = 3, 100
SIZES = (1000, 50_000)
FULL_VB, MAP = "full VB", "MAP"
MARKS = {
    "conjugate": tuple(a * 10**k for k in range(3, 6) for a in (1, 3)),
    "mnist": tuple(a * 10**k for k in range(4, 9) for a in (1, 3))[1:],
}
ACCUMULATE = 100  # first steps on MNIST, as in figure 2
LR = 0.02
CONJUGATE = "conjugate"
PARTS = [CONJUGATE, *(f"mnist-{n}" for n in SIZES)]


class ConjugateMean(Program):
    """mu ~ N(0, 1), z_n ~ N(mu, r^2), x_n ~ N(z_n, s^2); q(mu) q(z_n | x_n, mu), both Gaussian."""

    spread, noise = 0.6, 0.8  # r and s

    def __init__(self, num_data: int) -> None:
        super().__init__()
        self.num_data = num_data
        self.mean = nn.Parameter(torch.tensor(0.0))
        self.log_std = nn.Parameter(torch.tensor(0.0))
        self.to_x, self.to_mu = nn.Parameter(torch.tensor(0.0)), nn.Parameter(torch.tensor(0.0))
        self.log_local = nn.Parameter(torch.tensor(0.0))

    def model(self, x: Tensor) -> None:  # p(mu) prod_n p(z_n | mu) p(x_n | z_n)
        mu = pyro.sample("mu", dist.Normal(torch.zeros_like(self.mean), 1.0))
        with pyro.plate("data", self.num_data, subsample_size=len(x)):
            z = pyro.sample("z", dist.Normal(mu.expand(len(x)), self.spread))
            pyro.sample("x", dist.Normal(z, self.noise), obs=x)

    def guide(self, x: Tensor) -> None:  # q(mu) prod_n q(z_n | x_n, mu)
        mu = pyro.sample("mu", dist.Normal(self.mean, self.log_std.exp()))
        with pyro.plate("data", self.num_data, subsample_size=len(x)):
            mean = self.to_x * x + self.to_mu * mu
            pyro.sample("z", dist.Normal(mean, self.log_local.exp()))

    def log_evidence_of_all(self, x: Tensor) -> float:
        """log N(x; 0, (r^2 + s^2) I + 1 1'), nats for all N data."""
        v, n = self.spread**2 + self.noise**2, len(x)
        x = x.double()
        inner = float((x**2).sum() - x.sum() ** 2 / (v + n)) / v
        return -0.5 * (n * math.log(2 * math.pi * v) + math.log1p(n / v) + inner)


def reproduce(
    *,
    budget: float = BUDGET,
    seeds: int = SEEDS,
    out: str | Path = f"reproduction/{NAME}",
    data_dir: str | Path | None = None,
    device: str | None = None,
    only: Sequence[str] | str | None = None,
    runs: str | Path | None = None,
    progress: Any = None,
) -> Reproduction:
    """Train full variational Bayes on both models, and MAP beside it on MNIST.

    Args:
        budget, seeds, out, data_dir, device, runs, progress: as of ``figure_2.reproduce``.
        only: "conjugate", "mnist-1000", "mnist-50000".
    """
    budget, seeds = whole_budget(budget, MARKS["mnist"][0]), errors.whole("seeds", seeds)
    parts = chosen(PARTS, only)
    shelf = Shelf(out, runs=runs, progress=progress, device=device)
    needs_data = any(part != CONJUGATE for part in parts)
    digits = load_grey("mnist", data_dir) if needs_data else None
    curves = []
    for seed in range(seeds):
        for part in parts:
            for method in (FULL_VB,) if part == CONJUGATE else (FULL_VB, MAP):
                marks = [m for m in MARKS[part.split("-")[0]] if m <= budget]
                points = [_at(shelf, part, method, digits, seed, mark) for mark in marks]
                curves.append({"part": part, "method": method, "seed": seed, "points": points})
    x = conjugate_data()
    numbers = {"name": NAME, "budget": budget, "seeds": seeds, "curves": curves}
    numbers["conjugate_log_p"] = ConjugateMean(len(x)).log_evidence_of_all(x) / len(x)
    result = Reproduction(NAME, numbers, STYLE, shelf.out)
    result.save()
    return result


def conjugate_data(num_data: int = 100) -> Tensor:
    with seeded(*Stream.OWN.key(0)):
        return 1.0 + torch.randn(num_data)


def _at(
    shelf: Shelf, part: str, method: str, digits: Any, seed: int, mark: int
) -> dict[str, float]:
    """What was reached after so many samples."""
    name = f"{part}-{method.lower().replace(' ', '-')}-seed{seed}"
    prior = 1.0 if method == MAP else 0.0
    settings = {"part": part, "method": method, "seed": seed, "lr": LR, "weight_prior": prior}
    settings["accumulate_steps"] = 0 if part == CONJUGATE else ACCUMULATE

    def reached() -> dict[str, float]:
        if part == CONJUGATE:
            x: Any = conjugate_data()
            optimizer: Any = torch.optim.Adam
            test, build = x, lambda: ConjugateMean(len(x))
        else:
            optimizer = functools.partial(optimizers.Adagrad, accumulate_steps=ACCUMULATE)
            x, test = digits.train[: int(part.split("-")[1])], digits.test
            build = functools.partial(_vae, method, digits.dim, len(x))
        run = shelf.run(
            name,
            settings,
            lambda: built(build, seed),
            x,
            AEVB(),
            samples=mark,
            optimizer=optimizer,
            lr=LR,
            weight_prior=prior,
            seed=seed,
            engine="eager",
        )  # fmt: skip
        if run.manifest["samples"] > mark + run.manifest["batch_size"]:
            raise ValueError(
                f"{shelf.runs / name} is already at {run.manifest['samples']:,} samples, and its "
                f"bound at {mark:,} is not known: name another folder as out"
            )
        share = kl_of_weights(run.program) / len(x)
        draws = 100 if part == CONJUGATE else 1
        bounds = {
            split: float(
                elbo(run.program, rows, num_particles=draws, seed=seed, batch_size=500).mean()
            )
            for split, rows in (("train", x), ("test", test))
        }
        return {"samples": mark, "kl": share, "seconds": run.manifest["seconds"], **bounds}

    return shelf.piece(f"{name}-{mark}", {**settings, "mark": mark}, reached)


def _vae(method: str, data_dim: int, num_data: int) -> Any:
    sizes: dict[str, Any] = {"latent_dim": LATENT_DIM, "hidden_dim": HIDDEN_DIM}
    if method == MAP:
        return bernoulli_vae.build(data_dim, soft_targets=True, **sizes)
    # (A weight's spread of 0.05 at the start is the model's default; the paper says none.)
    return bayesian_vae.build(data_dim, num_data=num_data, soft_targets=True, **sizes)


@torch.no_grad()
def kl_of_weights(program: Any) -> float:
    """KL(q(theta) || N(0, I)) of a Bayesian VAE in nats, by appendix B; 0 of the other programs."""
    if not isinstance(program, bayesian_vae.BayesianVAE):
        return 0.0
    total = 0.0
    for key, log_variance in program.log_variance.items():
        mean = program.likelihood.get_parameter(key.replace("/", "."))
        variance = log_variance.exp() + program.floor**2
        total += float(0.5 * (mean**2 + variance - 1 - variance.log()).sum())
    return total


# --- what is shown ------------------------------------------------------------------------------


def table(numbers: Mapping[str, Any]) -> Any:
    """What each curve came to, nats a datum.

    ``bound`` is L / N of the training data, ``KL(theta)`` their share of the weights' divergence,
    ``new datum`` the bound of a test datum without it.
    """
    import pandas as pd

    rows = []
    for curve in numbers["curves"]:
        last = curve["points"][-1]
        row = {"part": curve["part"], "method": curve["method"], "seed": curve["seed"]}
        row |= {"samples": last["samples"], "bound": last["train"], "KL(theta)": last["kl"]}
        if curve["part"] == CONJUGATE:
            row["log p(X) / N"] = numbers["conjugate_log_p"]
        else:
            row["training datum"] = last["train"] + last["kl"]
            row["new datum"] = last["test"] + last["kl"]
        rows.append(row)
    return pd.DataFrame(rows).set_index(["part", "method", "seed"])


def draw(numbers: Mapping[str, Any]) -> dict[str, Any]:
    from pyro_vae.plotting.figures import new_figure

    parts = list(dict.fromkeys(curve["part"] for curve in numbers["curves"]))
    figure, axes = new_figure(len(parts), width=4.0, height=3.4)
    for axis, part in zip(axes[0], parts, strict=True):
        for curve in numbers["curves"]:
            if curve["part"] == part:
                _curve(axis, curve)
        if part == CONJUGATE:
            log_p = numbers["conjugate_log_p"]
            axis.axhline(log_p, color="0.3", linestyle=(0, (4, 2)), linewidth=1.2)
            axis.annotate(
                "exact log p(X) / N", (0.98, log_p), xycoords=("axes fraction", "data"),
                xytext=(0, 4), textcoords="offset points", ha="right", fontsize=8, color="0.3",
            )  # fmt: skip
            axis.set_title("conjugate model: L(φ; X) / N", fontsize=10)
        else:
            axis.set_title(
                f"MNIST, N = {int(part.split('-')[1]):,}, Nz = {LATENT_DIM}", fontsize=10
            )
            axis.set_ylim(-215, None)
            axis.legend(frameon=False, fontsize=8, loc="upper left")
        sample_axis(axis)
        axis.set_xlabel("training samples")
    axes[0, 0].set_ylabel("nats a datum")
    return {NAME: figure}


def _curve(axis: Any, curve: Mapping[str, Any]) -> None:
    x = [point["samples"] for point in curve["points"]]
    of_vb = curve["method"] == FULL_VB
    colour = COLOURS[0] if of_vb else COLOURS[1]
    marker = "o" if of_vb else "s"
    label = curve["method"] if curve["seed"] == 0 else None
    if curve["part"] == CONJUGATE:
        axis.plot(x, [p["train"] for p in curve["points"]], color=colour, marker=marker)
        return
    new = [point["test"] + point["kl"] for point in curve["points"]]
    seen = [point["train"] + point["kl"] for point in curve["points"]]
    axis.plot(x, new, color=colour, marker=marker, markersize=4, linewidth=1.9,
              label=label and f"{label}: a new datum")  # fmt: skip
    axis.plot(x, seen, color=colour, linewidth=0.9, label=label and f"{label}: a training datum")


def words(numbers: Mapping[str, Any]) -> str:
    frame = table(numbers)
    lines = []
    if CONJUGATE in frame.index.get_level_values("part"):
        row = frame.loc[CONJUGATE].iloc[0]
        gap = abs(row["log p(X) / N"] - row["bound"])
        lines.append(f"Conjugate: L(phi; X) / N ends within {gap:.4f} nats of log p(X) / N.")
    for part in PARTS[1:]:
        if part in frame.index.get_level_values("part"):
            new = frame.loc[part]["new datum"].groupby(level="method").mean()
            lines.append(
                f"{part}: a new datum costs {-new[FULL_VB]:.1f} nats under full VB and "
                f"{-new[MAP]:.1f} under MAP."
            )
    return "\n".join(lines)


STYLE = Style(table, draw, words)
