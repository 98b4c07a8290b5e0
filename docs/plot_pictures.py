"""The pictures of docs/plots.md: ``python docs/plot_pictures.py`` (about a minute).

A small VAE of the embedded digits, and two more where pictures compare; nothing is downloaded.
"""

from __future__ import annotations

import argparse
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import pyro_vae as pv
from pyro_vae.calibration import simulated_ranks
from pyro_vae.models import bernoulli_vae

OUT = Path(__file__).parent / "plots"
SAMPLES = 150_000


def trained(digits: Any, latent_dim: int, samples: int) -> Any:
    torch.manual_seed(0)
    vae = bernoulli_vae.build(digits.dim, latent_dim=latent_dim, hidden_dim=128, init_std=None)
    return pv.fit(
        vae, digits.train, samples=samples, optimizer=torch.optim.Adam, lr=2e-3,
        validation=digits.validation, progress=False,
    )  # fmt: skip


def pictures(samples: int, sims: int) -> dict[str, Callable[[], Any]]:
    """Each picture by the name of its file."""
    digits = pv.datasets.load("digits")
    runs = {f"J = {dim}": trained(digits, dim, samples) for dim in (2, 10)}
    run, wide = runs.values()
    test, p = digits.test, pv.plotting
    evidence = {name: pv.log_evidence(each.program, test) for name, each in runs.items()}
    ranks = simulated_ranks(run.program, num_simulations=sims, num_draws=99)
    compared = pv.compare(
        digits,
        builds={"vae": lambda: bernoulli_vae.build(64, latent_dim=2, init_std=None)},
        objectives=[pv.objectives.AEVB(), pv.objectives.WakeSleep()],
        seeds=3, samples=samples // 5, proposal="guide", progress=False,
    )  # fmt: skip
    return {
        "learning_curves": lambda: p.learning_curves(runs),
        "learning_curves_seconds": lambda: p.learning_curves(compared, by="seconds"),
        "training_curve": lambda: p.training_curve(run),
        "reconstructions": lambda: p.reconstructions(wide, test),
        "samples": lambda: p.samples(wide, 64),
        "latent_manifold": lambda: p.latent_manifold(run),
        "latent_scatter": lambda: p.latent_scatter(run, test),
        "traversals": lambda: p.traversals(wide, test, datum=3),
        "kl_per_latent": lambda: p.kl_per_latent(wide, test),
        "khat_map": lambda: p.khat_map(evidence["J = 2"], pv.encode(run.program, test)),
        "khat_sorted": lambda: p.khat_map(evidence["J = 10"]),
        "evidence_differences": lambda: p.evidence_differences(evidence),
        "calibration_ranks": lambda: p.calibration_ranks(ranks),
        "coverage": lambda: p.coverage(ranks),
        "comparison_table": lambda: p.comparison_table(compared),
        "curves_and_evidence": lambda: p.curves_and_evidence(compared)[0],
    }


def save(figure: Any, path: Path) -> None:
    """As a PNG of few colours, because a page loads it with every look."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    with Image.open(buffer) as picture:
        small = picture.convert("RGB").quantize(128, dither=Image.Dither.NONE)
        small.save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the pictures of docs/plots.md.")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--quick", action="store_true", help="hardly trained, to see that it runs")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    samples, sims = (2_000, 200) if options.quick else (SAMPLES, 4_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pv.PyroVaeWarning)  # of khat, which the pictures show
        for name, draw in pictures(samples, sims).items():
            save(draw().figure, options.out / f"{name}.png")
            print(name, flush=True)


if __name__ == "__main__":
    main()
