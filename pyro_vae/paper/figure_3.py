r"""Figure 3: log p(x) against training samples: AEVB, wake-sleep and Monte Carlo EM.

MNIST, 100 hidden units, 3 latents, N = 1,000 and 50,000 training data.  log p(x) of the first data
of both splits is estimated by appendix D, as in the paper, and by importance sampling from a
density fitted to the same chains.  The first errs upward, the second downward; each says its error.

Monte Carlo EM counts as in the paper's figure: leapfrog steps and updates, 10 + 5 a datum and
iteration, so three for each of the ``samples`` of :func:`pyro_vae.fit`.  Departure: here an
iteration is of a minibatch, there of all data, which with N = 50,000 makes it slow to begin.

Source: Kingma & Welling (2014), section 5, figure 3, appendices D and E.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae import errors, objectives, optimizers
from pyro_vae.comparison.comparing import built
from pyro_vae.errors import PyroVaeWarning
from pyro_vae.evidence import log_evidence
from pyro_vae.models import bernoulli_vae
from pyro_vae.paper import drawing
from pyro_vae.paper.differences import difference_table, last_differences
from pyro_vae.paper.figure_2 import load_grey
from pyro_vae.paper.published import the
from pyro_vae.paper.reproduction import SEEDS, Reproduction, Style, chosen, whole_budget
from pyro_vae.paper.shelf import Shelf

NAME = "figure3"
BUDGET = 300_000
FULL = 60_000_000
LATENT_DIM, HIDDEN_DIM = 3, 100
POINTS = 100  # first data of each split; the paper has 1000
DRAWS = 100  # of each datum's chains; half of them fit q, half are averaged
SIZES = (1000, 50_000)
# Where log p(x) is estimated, on a logarithmic scale that no budget moves.
MARKS = (60_000, *(a * 10**k for k in range(5, 9) for a in (1, 3, 6)))
ACCUMULATE, WEIGHT_PRIOR = 100, 1.0  # as in figure 2
OBJECTIVES = {
    "AEVB": objectives.AEVB,
    "wake-sleep": objectives.WakeSleep,
    "Monte Carlo EM": objectives.MonteCarloEM,
}
# Of the paper's 0.01, 0.02 and 0.1; at N = 1000 wake-sleep with 0.01 was at -175 nats at 10^6.
STEPS = {"AEVB": 0.02, "wake-sleep": 0.02, "Monte Carlo EM": 0.02}
COUNTS = {"AEVB": 1, "wake-sleep": 1, "Monte Carlo EM": 3}  # as plotted, for each of fit's samples


@dataclass(frozen=True)
class Curve:
    """What one curve is of."""

    num_data: int
    method: str

    @property
    def name(self) -> str:
        return f"{self.method.lower().replace(' ', '-')}-{self.num_data}"


CURVES = [Curve(n, method) for n in SIZES for method in OBJECTIVES]


def reproduce(
    *,
    budget: float = BUDGET,
    seeds: int = SEEDS,
    out: str | Path = f"reproduction/{NAME}",
    data_dir: str | Path | None = None,
    device: str | None = None,
    only: Sequence[str] | str | None = None,
    points: int = POINTS,
    runs: str | Path | None = None,
    progress: Any = None,
) -> Reproduction:
    """Train the curves, or go on with them, and estimate log p(x) at marks in between.

    Args:
        budget: of each curve, as plotted.
        seeds, out, data_dir, device, runs, progress: as of ``figure_2.reproduce``.
        only: names of curves, such as "aevb-1000"; default: all six.
        points: of how many data of each split log p(x) is estimated.
    """
    budget, seeds = whole_budget(budget, MARKS[0]), errors.whole("seeds", seeds)
    points = errors.whole("points", points, 2)
    names = chosen([curve.name for curve in CURVES], only)
    shelf = Shelf(out, runs=runs, progress=progress, device=device)
    data = load_grey("mnist", data_dir)
    result = Reproduction(NAME, {}, STYLE, shelf.out)
    found = []
    for seed in range(seeds):
        for curve in [c for c in CURVES if c.name in names]:
            marks = [
                _at(shelf, curve, data, seed, mark, points) for mark in MARKS if mark <= budget
            ]
            found.append(_record(curve, seed, marks))
            result.numbers.update(
                name=NAME, budget=budget, seeds=seed + 1, points=points, curves=found
            )
            result.save()
    return result


def _at(shelf: Shelf, curve: Curve, data: Any, seed: int, mark: int, points: int) -> dict[str, Any]:
    """Both estimates after so many samples; training goes on to there if they are not known."""
    name = f"{curve.name}-seed{seed}"
    settings = {
        "curve": curve.name, "seed": seed, "lr": STEPS[curve.method],
        "weight_prior": WEIGHT_PRIOR, "accumulate_steps": ACCUMULATE, "data": data.train.digest,
    }  # fmt: skip

    def estimated() -> dict[str, Any]:
        run = _trained(shelf, name, settings, curve, data, seed, mark)
        found: dict[str, Any] = {"samples": mark, "seconds": run.manifest["seconds"]}
        for split, rows in (("train", data.train), ("test", data.test)):
            found[split] = estimates(run.program, rows[:points], seed)
        return found

    return shelf.piece(
        f"{name}-{mark}", {**settings, "points": points, "draws": DRAWS, "mark": mark}, estimated
    )


def _trained(
    shelf: Shelf, name: str, settings: Any, curve: Curve, data: Any, seed: int, mark: int
) -> Any:
    count, rate = COUNTS[curve.method], STEPS[curve.method]
    run = shelf.run(
        name,
        settings,
        lambda: built(
            lambda: bernoulli_vae.build(
                data.dim, latent_dim=LATENT_DIM, hidden_dim=HIDDEN_DIM, soft_targets=True
            ),
            seed,
        ),
        data.train[: curve.num_data],
        OBJECTIVES[curve.method](),
        samples=mark // count,
        optimizer=functools.partial(optimizers.Adagrad, accumulate_steps=ACCUMULATE),
        lr=rate,
        weight_prior=WEIGHT_PRIOR,
        seed=seed,
    )
    if run.manifest["samples"] > mark // count + 5 * run.manifest["batch_size"]:
        raise ValueError(
            f"{shelf.runs / name} is already at {run.manifest['samples'] * count:,} samples, and "
            f"log p(x) at {mark:,} is not known: name another folder as out"
        )
    return run


def estimates(program: Any, x: Any, seed: int = 0) -> dict[str, float]:
    """Appendix D and importance sampling of the same data, with errors of their means.

    ``error`` is that of the estimation alone, by the errors that both state; ``agree`` the share of
    data where the two differ by no more than twice their stated errors together.
    """
    how: dict[str, Any] = {"num_draws": DRAWS, "seed": seed, "progress": False}
    how |= {"warmup": 50, "leapfrog_steps": 4}  # the paper's
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PyroVaeWarning)
        above = log_evidence(program, x, method="reciprocal", num_particles=DRAWS, **how)
        below = log_evidence(
            program, x, method="importance", proposal="hmc", num_particles=DRAWS, **how
        )
    number = len(above.value)
    both = (above.standard_error.square() + below.standard_error.square()).sqrt()
    return {
        "appendix_d": float(above.value.mean()),
        "appendix_d_error": float(above.standard_error.square().sum().sqrt()) / number,
        "importance": float(below.value.mean()),
        "importance_error": float(below.standard_error.square().sum().sqrt()) / number,
        "agree": float(((above.value - below.value).abs() <= 2 * both).double().mean()),
    }


def _record(curve: Curve, seed: int, marks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A curve as plain numbers; ``train`` and ``test`` are appendix D's."""
    found: dict[str, Any] = {
        "data": "mnist",
        "num_data": curve.num_data,
        "latent_dim": LATENT_DIM,
        "method": curve.method,
        "seed": seed,
        "samples": [m["samples"] for m in marks],
        "seconds": [round(m["seconds"], 1) for m in marks],
    }
    for split in ("train", "test"):
        found[split] = [round(m[split]["appendix_d"], 3) for m in marks]
        for name in ("appendix_d_error", "importance", "importance_error", "agree"):
            found[f"{split}_{name}"] = [round(m[split][name], 4) for m in marks]
    return found


# --- what is shown ------------------------------------------------------------------------------


def table(numbers: Mapping[str, Any]) -> Any:
    """Differences at common budgets, or, where there are none, what was estimated in the end."""
    import pandas as pd

    found = difference_table(3, numbers["curves"])
    if len(found):
        return found
    rows = [
        {
            **{n: c[n] for n in ("num_data", "method", "seed")},
            "split": split,
            "samples": c["samples"][-1],
            "appendix D": c[split][-1],
            "±": c[f"{split}_appendix_d_error"][-1],
            "importance": c[f"{split}_importance"][-1],
            "± ": c[f"{split}_importance_error"][-1],
        }
        for c in numbers["curves"]
        for split in ("train", "test")
    ]
    return pd.DataFrame(rows).set_index(["num_data", "method", "split"])


def draw(numbers: Mapping[str, Any]) -> dict[str, Any]:
    from pyro_vae.plotting.figures import new_figure

    found = numbers["curves"]
    sizes = [n for n in SIZES if any(c["num_data"] == n for c in found)]
    figure, axes = new_figure(
        len(sizes) + 1, width=4.4, height=3.8, ratios=[1] * len(sizes) + [0.5]
    )
    for axis, size in zip(axes[0], sizes, strict=False):
        for method in OBJECTIVES:
            ours = [c for c in found if c["num_data"] == size and c["method"] == method]
            for split in ("train", "test") if ours else ():
                drawing.draw_published(
                    axis,
                    the(figure=3, data="mnist", num_data=size, method=method, split=split),
                )
                drawing.draw_ours(axis, [(c["samples"], c[split]) for c in ours], method, split)
                for curve in ours:
                    axis.plot(
                        curve["samples"], curve[f"{split}_importance"], linestyle="none",
                        marker="x", markersize=5, color=drawing.METHODS[method], alpha=0.8,
                    )  # fmt: skip
        axis.set_title(f"N = {size:,}", fontsize=11)
        last = max(max(c["samples"]) for c in found)
        axis.set_xlim(1e5, max(6e7, last))
        axis.set_ylim(-170, -100 if size == 1000 else -125)
        drawing.sample_axis(axis)
        axis.set_xlabel("training samples (Monte Carlo EM: leapfrogs + updates)", fontsize=9)
    axes[0, 0].set_ylabel("log p(x), nats a datum")
    drawing.blank(axes[0, -1])
    methods = [m for m in OBJECTIVES if any(c["method"] == m for c in found)]
    drawing.legend(
        axes[0, -1], methods, seeds=numbers["seeds"], crosses="importance sampling; lines: app. D"
    )
    return {NAME: figure}


def words(numbers: Mapping[str, Any]) -> str:
    lines = []
    for name, row in last_differences(difference_table(3, numbers["curves"])):
        side = "above" if row.difference >= 0 else "below"
        lines.append(
            f"{name}: {row.ours:.1f} against {row.published:.1f} at {row.samples:.2g} samples, "
            f"{abs(row.difference):.1f} {side}"
        )
    gaps = [
        curve[split][-1] - curve[f"{split}_importance"][-1]
        for curve in numbers["curves"]
        for split in ("train", "test")
    ]
    agree = [np.mean(c[f"{s}_agree"]) for c in numbers["curves"] for s in ("train", "test")]
    lines.append(
        f"Appendix D lies {min(gaps):.2f} to {max(gaps):.2f} nats above importance sampling at the "
        f"end; {np.mean(agree):.0%} of data agree within twice their stated errors."
    )
    return "\n".join(lines)


STYLE = Style(table, draw, words)
