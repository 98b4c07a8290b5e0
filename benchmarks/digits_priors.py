"""Priors on digits of 17 levels a pixel, by exact log p(x): quadrature in two dimensions.

    python benchmarks/digits_priors.py [--seeds 0 1 2] [--samples N] [--json FILE]

64-256-2-256-64 x 17 for all; 200 validation digits choose the weights (``keep="best"``).  log p(x)
is the sum of p(z) p(x | z) over a square grid: nobody's guide counts.  The same on every second
point of the grid, and the prior's mass on it, say how far to trust the sum.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
import warnings
from typing import Any

import torch
from torch import Tensor

import pyro_vae as pv
from pyro_vae import likelihoods, priors

LEVELS = 17
PRIORS = {
    "standard": priors.StandardNormal(),
    "mixture of 10": priors.MixtureOfNormals(num_components=10),
    "VampPrior-100": priors.VampPrior(100, bounds=(0.0, 16.0)),
    "flow": priors.Flow(),
}


@torch.no_grad()
def by_quadrature(vae: Any, x: Tensor, points: int = 441) -> dict[str, Any]:
    """log p(x) of each row, (N,), from a grid of points x points over where the prior draws."""
    draws = vae.prior().sample((20_000,))
    margin = 0.1 * (draws.amax(0) - draws.amin(0))
    low, high = draws.amin(0) - margin, draws.amax(0) + margin
    axes = [torch.linspace(low[j], high[j], points) for j in range(2)]
    grid = torch.cartesian_prod(*axes)
    area = ((high - low) / (points - 1)).prod()
    log_prior = torch.cat([vae.prior().log_prob(z) for z in grid.split(4096)]) + area.log()
    one_hot = torch.nn.functional.one_hot(x.long(), LEVELS).flatten(1).to(grid.dtype)
    tables = []
    for z in grid.split(4096):  # the likelihoods of all digits are one product
        law = vae.likelihood(z).base_dist
        tables.append(law.logits.flatten(1) @ one_hot.T)
    joint = (torch.cat(tables) + log_prior.unsqueeze(1)).double()
    # Every second point in each direction has four times the area.
    coarse = joint.reshape(points, points, -1)[::2, ::2].flatten(0, 1) + math.log(4)
    value = joint.logsumexp(0)
    return {
        "low": low.tolist(),
        "high": high.tolist(),
        "mass": log_prior.double().logsumexp(0).exp().item(),
        "log_p": value.tolist(),
        "grid_error": (value - coarse.logsumexp(0)).abs().max().item(),
        "grid_bias": (value - coarse.logsumexp(0)).mean().item(),
    }


def run(name: str, data: pv.datasets.DataSet, seeds: list[int], samples: int) -> list[dict]:
    """All seeds of one prior, side by side."""
    programs = []
    for seed in seeds:
        torch.manual_seed(seed)
        programs.append(
            pv.VAE.build(
                data,
                latent_dim=2,
                hidden_dim=256,
                prior=PRIORS[name],
                likelihood=likelihoods.Categorical(num_categories=LEVELS),
                init_std=None,
            )
        )
    started = time.process_time()
    runs = pv.fit(
        programs,
        data.train,
        samples=samples,
        optimizer=torch.optim.Adam,
        lr=1e-3,
        seed=seeds,
        validation=data.validation,
        evaluate_every=120,
        keep="best",
    )
    seconds = time.process_time() - started
    rows = []
    for seed, each in zip(seeds, runs, strict=True):
        torch.manual_seed(seed)  # of the draws that say where the grid is
        found = by_quadrature(each.program, data.test.x)
        bound = pv.elbo(each.program, data.test, num_particles=50, seed=seed)
        rows.append({
            "prior": name, "seed": seed, "bound": float(bound.mean()),
            "kept_step": each.manifest["kept_step"], "engine": each.manifest["engine"],
            "core_seconds": seconds, **found,
        })  # fmt: skip
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=300_000)
    parser.add_argument("--only", choices=PRIORS, action="append")
    parser.add_argument("--json", help="write every number here, and go on from it")
    options = parser.parse_args()
    warnings.simplefilter("ignore", pv.PyroVaeWarning)  # of KL terms that are sampled
    data = pv.datasets.load("digits", binarize="none", scale=1.0)
    results: list[dict[str, Any]] = []
    if options.json and os.path.exists(options.json):
        with open(options.json) as file:
            results = json.load(file)
    for name in options.only or PRIORS:
        if any(row["prior"] == name for row in results):
            continue
        rows = run(name, data, options.seeds, options.samples)
        results += rows
        for row in rows:
            log_p = torch.tensor(row["log_p"], dtype=torch.float64)
            base = [r for r in results if r["prior"] == "standard" and r["seed"] == row["seed"]]
            less = log_p - torch.tensor(base[0]["log_p"]) if base else log_p * math.nan
            print(
                f"{name:15s} seed {row['seed']}  log p(x) {log_p.mean():.2f} ± "
                f"{log_p.std() / len(log_p) ** 0.5:.2f}   against standard {less.mean():+.2f} ± "
                f"{less.std() / len(less) ** 0.5:.2f}   bound {row['bound']:.2f}   grid error "
                f"{row['grid_error']:.1e}   mass {row['mass']:.4f}   "
                f"step {row['kept_step']}   {row['core_seconds']:.0f} core s for all seeds",
                flush=True,
            )
        if options.json:
            with open(options.json, "w") as file:
                json.dump(results, file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
