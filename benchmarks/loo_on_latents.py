"""What az.loo says of models with a latent for each datum, beside log p(x) in closed form.

    python benchmarks/loo_on_latents.py [--rows 60] [--draws 2000]

Linear-Gaussian models of J = 1, 2, 4 latents, and data of the one with J = 2.  Draws are exact, so
nothing is the fault of a guide: leaving out x_i, az.loo keeps the latent that was fitted to it.
"""

from __future__ import annotations

import argparse
import sys
import warnings

import torch

import pyro_vae as pv
from pyro_vae.models import linear_gaussian

D, NOISE = 6, 0.5


def pointwise(program, x, draws: int):
    """log p(x | z) at exact draws of p(z | x), (chain, draw, datum), and the draws."""
    z = program.posterior(x).sample((draws,))
    log_likelihood = program.noise.around(z @ program.weight.T + program.bias).log_prob(x)
    return log_likelihood.detach().unflatten(0, (4, -1)), z.unflatten(0, (4, -1))


def loo(log_likelihood, z):
    import arviz as az

    groups = {"posterior": {"z": z.numpy()}, "log_likelihood": {"x": log_likelihood.numpy()}}
    old = az.__version__.startswith("0")
    found = az.loo(az.from_dict(**groups) if old else az.from_dict(groups), pointwise=True)
    total = found["elpd_loo"] if old else found.elpd
    return float(total), float(found.se), float((found.pareto_k.values > 0.7).mean())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--draws", type=int, default=2000)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    weight = torch.randn(D, 4).double()
    z = torch.randn(options.rows, 2).double()
    x = z @ weight[:, :2].T + NOISE * torch.randn(options.rows, D).double()
    evidence = {}
    print("J   sum of log p(x)   az.loo's elpd ± se   share of k above 0.7")
    for J in (1, 2, 4):
        program = linear_gaussian.build(
            D, latent_dim=J, weight=weight[:, :J], noise_scale=NOISE, posterior="full"
        ).double()
        evidence[f"J = {J}"] = pv.log_evidence(program, x, method="exact")
        elpd, error, bad = loo(*pointwise(program, x, options.draws))
        total = float(evidence[f"J = {J}"].value.sum())
        print(f"{J}   {total:15.1f}   {elpd:13.1f} ± {error:4.1f}   {bad:.0%}")
    print(pv.compare_evidence(evidence)[["elpd", "elpd_diff", "dse"]].round(1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
