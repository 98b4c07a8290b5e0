"""The paper's Figure 3 at a small budget: AEVB, wake-sleep and Monte Carlo EM on 1000 images.

    python benchmarks/three_ways.py --data-dir DIR [--samples 2000000] [--seeds 1] [--json FILE]

MNIST (grey, soft targets), the first 1000 training images, 100 hidden units, 3 latent dimensions.
All are scored on the same held-out images by importance sampling from densities fitted to HMC
draws (biased downward) and by the paper's appendix D (biased upward): the truth lies between.
Samples are rows x updates; Monte Carlo EM takes 2 gradients of log p(x, z) a sample besides, while
the paper's count for it is 15 for each datum and iteration of 5 updates.
"""

from __future__ import annotations

import argparse
import json
import math
import sys

import torch

import pyro_vae as pv
from pyro_vae.models import bernoulli_vae

SANDWICHED = 100  # test images on which appendix D is taken as well
PUBLISHED = {"AEVB": -143.2, "WakeSleep": -144.8, "MonteCarloEM": -141.6}  # at 6e7 samples


def train(
    name: str, data: pv.datasets.DataSet, options: argparse.Namespace
) -> list[torch.nn.Module]:
    """One program for each seed, trained side by side."""
    programs = []
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        programs.append(
            bernoulli_vae.build(data.dim, latent_dim=3, hidden_dim=100, soft_targets=True)
        )
    runs = pv.fit(
        programs, data.train[:1000], getattr(pv.objectives, name)(), samples=options.samples,
        seed=list(range(options.seeds)), weight_prior=1.0, optimizer=pv.optimizers.Adagrad,
        lr=options.lr,
    )  # fmt: skip
    return [run.program for run in runs]


def score(program: torch.nn.Module, x: pv.datasets.Data) -> dict[str, torch.Tensor]:
    chains = {"warmup": 100, "leapfrog_steps": 5}
    low = pv.log_evidence(program, x, proposal="hmc", num_draws=100, num_particles=500, **chains)
    some = x[:SANDWICHED]
    high = pv.log_evidence(program, some, method="reciprocal", num_draws=800, **chains)
    return {"low": low.value, "high": high.value, "ess": low.ess, "rhat": low.rhat}


def mean_and_error(values: torch.Tensor) -> tuple[float, float]:
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="folder with mnist/")
    parser.add_argument("--samples", type=int, default=2_000_000)
    parser.add_argument("--test-images", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--lr", type=float, default=0.02, help="Adagrad's step")
    parser.add_argument("--json", help="write every number here")
    options = parser.parse_args()
    data = pv.datasets.load("mnist", binarize="none", data_dir=options.data_dir)
    test, report = data.test[: options.test_images], []
    scores: dict[str, list[dict[str, torch.Tensor]]] = {}
    for name in PUBLISHED:
        scores[name] = [score(program, test) for program in train(name, data, options)]
        for seed, (s, first) in enumerate(zip(scores[name], scores["AEVB"], strict=True)):
            (low, error), (high, _) = mean_and_error(s["low"]), mean_and_error(s["high"])
            gap, gap_error = mean_and_error(s["high"] - s["low"][:SANDWICHED])
            paired, paired_error = mean_and_error(s["low"] - first["low"])
            report.append({"seed": seed, "name": name, "low": low, "error": error, "high": high,
                           "gap": gap, "gap_error": gap_error, "against_aevb": paired,
                           "against_aevb_error": paired_error,
                           "ess": float(s["ess"].median())})  # fmt: skip
            print(
                f"seed {seed} {name:13s} importance {low:8.2f} ± {error:.2f}  "
                f"(appendix D above by {gap:.3f} ± {gap_error:.3f})  against AEVB {paired:+.2f} ± "
                f"{paired_error:.2f}  paper at 6e7 {PUBLISHED[name]:.1f}",
                flush=True,
            )
    if options.json:
        with open(options.json, "w") as file:
            json.dump(report, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
