"""How far apart the two bounds of log p(x) are, and on which sides of it, by temperatures.

    python benchmarks/sandwich.py [--dimensions 10] [--rows 200] [--temperatures 10 30 100 300]

Linear-Gaussian models whose columns of W are alike, with the best mean-field guide, and pairs
(z, x) of the model, so that the upper bound starts from draws of the posterior.  Errors are means
over the data, nats, beside log p(x) in closed form.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings

import torch

import pyro_vae as pv
from pyro_vae.models import linear_gaussian


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dimensions", type=int, default=10)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--temperatures", type=int, nargs="+", default=[10, 30, 100, 300])
    options = parser.parse_args()
    warnings.simplefilter("ignore", pv.PyroVaeWarning)
    J, D = options.dimensions, 2 * options.dimensions
    torch.manual_seed(0)
    weight = torch.randn(D, J) @ (torch.eye(J) + 0.5 * torch.ones(J, J)) / J**0.5
    program = linear_gaussian.build(D, latent_dim=J, weight=weight, noise_scale=0.5)
    program.guide_is_best()
    z = torch.randn(options.rows, J)
    x = z @ weight.T + 0.5 * torch.randn(options.rows, D)
    exact = program.log_evidence(x).detach().double()
    found = pv.log_evidence(program, x, num_particles=5000)
    print(f"importance, K = 5000: {float((found.value - exact).mean()):+.3f}")
    print("from    T     lower    upper    gap      seconds")
    for proposal in ("guide", "prior"):
        for temperatures in options.temperatures:
            began = time.perf_counter()
            found = pv.log_evidence(
                program, x, method="sandwich", proposal=proposal, true_latents={"z": z},
                num_temperatures=temperatures, num_particles=2,
            )  # fmt: skip
            low, high = (float((b - exact).mean()) for b in (found.lower, found.upper))
            seconds = time.perf_counter() - began
            print(
                f"{proposal}  {temperatures:4d}   {low:+.3f}   {high:+.3f}   {high - low:.3f}   "
                f"{seconds:5.1f}",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
