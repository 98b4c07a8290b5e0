"""One objective under two names: how often does a comparison tell them apart?  It should in 5 %.

    python benchmarks/null_comparison.py [--runs 4000] [--samples 3000] [--json FILE]

AEVB trains many small programs on the embedded digits, each from a seed of its own; log p(x) of the
held-out digits is exact, by quadrature.  Runs are dealt out, without any put back, to comparisons
of two names with 2, 3 or 5 seeds each, and the table's 95 % interval counts as wrong where it
leaves out 0.  Beside it stand twice the standard error, as one would read it with many seeds, and
the standard error over data alone.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time

import numpy as np
import torch

import pyro_vae as pv
from pyro_vae.evidence.paired import paired_mean
from pyro_vae.models import bernoulli_vae

TOGETHER = 200  # runs that are trained as one batched program
LINE = torch.linspace(-5, 5, 61)


def log_evidence(vae: torch.nn.Module, x: torch.Tensor) -> np.ndarray:
    """log p(x) by the trapezoidal rule over z, (B,)."""
    z = torch.cartesian_prod(LINE, LINE)
    with torch.no_grad():
        logits = vae.likelihood(z).base_dist.logits  # (Z, D)
        log_p = x @ logits.T - torch.nn.functional.softplus(logits).sum(1) + vae.prior().log_prob(z)
    return (log_p.logsumexp(1).double() + 2 * (LINE[1] - LINE[0]).log()).numpy()


def scores_of(digits: pv.datasets.DataSet, seeds: list[int], samples: int) -> np.ndarray:
    """Held-out log p(x) of a run a seed, (run, datum)."""
    programs = []
    for seed in seeds:
        torch.manual_seed(seed)
        programs.append(bernoulli_vae.build(digits.dim, latent_dim=2, hidden_dim=16, init_std=None))
    runs = pv.fit(
        programs, digits.train, pv.objectives.AEVB(), samples=samples, seed=seeds,
        optimizer=torch.optim.Adam, lr=1e-2, progress=False,
    )  # fmt: skip
    return np.stack([log_evidence(run.program, digits.test.rows()) for run in runs])


def told_apart(scores: np.ndarray, seeds: int) -> dict[str, float]:
    """Shares of comparisons of two names whose statement excludes that they are one."""
    counts = {"comparisons": 0.0, "interval": 0.0, "twice ±": 0.0, "twice ± of data": 0.0}
    for start in range(0, len(scores) - 2 * seeds + 1, 2 * seeds):
        difference = scores[start : start + seeds] - scores[start + seeds : start + 2 * seeds]
        mean = paired_mean(difference)
        of_data = difference.mean(0).std(ddof=1) / math.sqrt(difference.shape[1])
        counts["comparisons"] += 1
        counts["interval"] += abs(mean.value) > mean.half_width
        counts["twice ±"] += abs(mean.value) > 1.96 * mean.standard_error
        counts["twice ± of data"] += abs(mean.value) > 1.96 * of_data
    total = counts["comparisons"]
    return {n: count if n == "comparisons" else count / total for n, count in counts.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=4000)
    parser.add_argument("--samples", type=int, default=3000)
    parser.add_argument("--json", help="write every number here")
    options = parser.parse_args()
    digits, started = pv.datasets.load("digits"), time.perf_counter()
    parts = []
    for first in range(0, options.runs, TOGETHER):
        seeds = list(range(first, min(first + TOGETHER, options.runs)))
        parts.append(scores_of(digits, seeds, options.samples))
        print(f"{seeds[-1] + 1} runs, {time.perf_counter() - started:.0f} s", file=sys.stderr)
    scores = np.concatenate(parts)
    print(f"log p(x) {scores.mean():.2f}, sd over seeds {scores.mean(1).std(ddof=1):.2f} nats")
    found = {seeds: told_apart(scores, seeds) for seeds in (2, 3, 5)}
    for seeds, shares in found.items():
        words = [f"{n} {s:.1%}" for n, s in shares.items() if n != "comparisons"]
        print(f"{seeds} seeds, {shares['comparisons']:.0f} comparisons: {', '.join(words)}")
    if options.json:
        with open(options.json, "w") as file:
            json.dump(found, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
