r"""Whether log p(x) by chains says where it is wrong: posteriors with modes, and ordinary ones.

    python benchmarks/modes.py [--rows 500] [--seed 0] [--method importance] [--cases NAME ...]

Every case has its log p(x) in closed form or by quadrature in one dimension.  A row is *quiet*
where khat is at most 0.7 and R-hat at most 1.1, and *off* where the estimate is further from the
truth than three of its standard errors.  Printed are the share of rows that are quiet and off,
which should be none; the share that is not off and yet not quiet, a false alarm; the error over the
standard error of quiet rows (root of the mean square, 1 where the error is honest); the bias of
p(x) itself; the median standard error; and seconds of the processor.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
import warnings
from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import pyro_vae as pv


class Case(NamedTuple):
    """A program, data drawn from it, and log p(x) of each datum."""

    program: pv.Program
    x: Tensor
    truth: Tensor


def program_of(prior: Callable, likelihood: Callable) -> pv.Program:
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", likelihood(z), obs=x)

    return pv.Program(model, lambda x: None)


def normals(center: Tensor, scale: float) -> dist.TorchDistribution:
    return dist.Normal(center, scale).to_event(1)


def mixture(weights: list[float], components: list[tuple[Tensor, float]]) -> dist.MixtureSameFamily:
    """Of normals that differ in centre (..., J) and scale."""
    centers = torch.stack([center for center, _ in components], -2)
    scales = torch.tensor([scale for _, scale in components], dtype=centers.dtype).unsqueeze(-1)
    law = dist.Independent(dist.Normal(centers, scales.expand_as(centers)), 1)
    return dist.MixtureSameFamily(dist.Categorical(torch.tensor(weights)), law)


def modes(rows: int, *weights: float, dim: int = 1, scale: float = 0.3, sd: float = 2.0) -> Case:
    """x = z + s or z - s, of that probability, and so the posterior: s is 3 in each coordinate."""
    shifts = torch.linspace(-3, 3, len(weights))
    x = 0.3 * torch.randn(rows, dim)
    total = math.sqrt(sd**2 + scale**2)
    terms = [
        math.log(w) + dist.Normal(s, total).log_prob(x).sum(-1)
        for w, s in zip(weights, shifts.tolist(), strict=True)
    ]
    program = program_of(
        lambda: normals(torch.zeros(dim), sd),
        lambda z: mixture(list(weights), [(z + s, scale) for s in shifts]),
    )
    return Case(program, x, torch.stack(terms).logsumexp(0))


def needle(rows: int, *, width: float = 1e-3, dim: int = 1, sd: float = 1.0) -> Case:
    """Half of the posterior in a mode of this width, inside of one of width 0.7."""
    x = 0.3 * torch.randn(rows, dim)
    broad, narrow = math.sqrt(sd**2 + 1), math.sqrt(sd**2 + width**2)
    share = 1 / (1 + (narrow / broad) ** dim)  # equal mass at x = 0
    terms = [
        math.log(share) + dist.Normal(0.0, broad).log_prob(x).sum(-1),
        math.log(1 - share) + dist.Normal(0.0, narrow).log_prob(x).sum(-1),
    ]
    program = program_of(
        lambda: normals(torch.zeros(dim), sd),
        lambda z: mixture([share, 1 - share], [(z, 1.0), (z, width)]),
    )
    return Case(program, x, torch.stack(terms).logsumexp(0))


def squares(rows: int, *, dim: int = 1, noise: float = 0.1) -> Case:
    """x = z^2 + noise in each coordinate: 2^J modes, by quadrature in one coordinate at a time."""
    x = torch.randn(rows, dim).square() + 0.5
    z = torch.linspace(-6, 6, 20_001)
    log_p = dist.Normal(0.0, 1.0).log_prob(z)
    log_p = log_p + dist.Normal(z.square(), noise).log_prob(x.reshape(-1, 1))
    truth = (log_p.logsumexp(-1) + (z[1] - z[0]).log()).reshape(x.shape).sum(-1)
    program = program_of(
        lambda: normals(torch.zeros(dim), 1.0), lambda z: normals(z.square(), noise)
    )
    return Case(program, x, truth)


def correlated(rows: int, *, dim: int = 5, condition: float = 600.0) -> Case:
    """A Gaussian posterior whose covariance has this condition number, in no one's coordinates."""
    turn = torch.linalg.qr(torch.randn(dim, dim)).Q
    gain = torch.logspace(0, math.log10(condition), dim).sub(1).clamp_min(0).sqrt()
    weight = gain[:, None] * turn  # precision I + W'W
    z = torch.randn(rows, dim)
    x = z @ weight.T + torch.randn(rows, dim)
    covariance = weight @ weight.T + torch.eye(dim)
    program = program_of(
        lambda: normals(torch.zeros(dim), 1.0), lambda z: normals(z @ weight.T, 1.0)
    )
    law = dist.MultivariateNormal(torch.zeros(dim), covariance_matrix=covariance)
    return Case(program, x, law.log_prob(x))


def funnel(rows: int, *, dim: int = 2, spread: float = 1.5, noise: float = 1.0) -> Case:
    """v ~ N(0, spread), z_i ~ N(0, e^(v/2)), x_i ~ N(z_i, noise): integrated over v on a grid."""

    def model(x):
        with pyro.plate("data", len(x)):
            v = pyro.sample("v", dist.Normal(x.new_zeros(()), spread))
            width = (v / 2).exp().unsqueeze(-1)
            z = pyro.sample("z", normals(torch.zeros(dim), width))
            pyro.sample("x", normals(z, noise), obs=x)

    v = spread * torch.randn(rows, 1)
    x = (v / 2).exp() * torch.randn(rows, dim) + noise * torch.randn(rows, dim)
    grid = torch.linspace(-9 * spread, 9 * spread, 4001)
    total = (grid.exp() + noise**2).sqrt()
    log_p = dist.Normal(0.0, total).log_prob(x[:, :, None]).sum(1)
    log_p = log_p + dist.Normal(0.0, spread).log_prob(grid) + (grid[1] - grid[0]).log()
    return Case(pv.Program(model, lambda x: None), x, log_p.logsumexp(-1))


CASES: dict[str, Callable[[int], Case]] = {
    "modes .9/.1": lambda n: modes(n, 0.9, 0.1),
    "modes .5/.5": lambda n: modes(n, 0.5, 0.5),
    "modes .9/.1, J = 3": lambda n: modes(n, 0.9, 0.1, dim=3, scale=0.6),
    "modes .5/.5, J = 5": lambda n: modes(n, 0.5, 0.5, dim=5, scale=0.6),
    "modes .7/.2/.1, J = 2": lambda n: modes(n, 0.7, 0.2, 0.1, dim=2),
    "needle of 1e-3": lambda n: needle(n),
    "needle, prior twice as wide": lambda n: needle(n, sd=2.0),
    "needle of 1e-2, J = 2": lambda n: needle(n, width=1e-2, dim=2),
    "squares, 2 modes": lambda n: squares(n),
    "squares, 8 modes": lambda n: squares(n, dim=3),
    "squares, 32 modes": lambda n: squares(n, dim=5),
    "Gaussian, condition 600": lambda n: correlated(n),
    "Gaussian, condition 1000": lambda n: correlated(n, condition=1000.0),
    "Gaussian, J = 20": lambda n: correlated(n, dim=20, condition=100.0),
    "funnel, J = 3": lambda n: funnel(n),
    "funnel, J = 10": lambda n: funnel(n, dim=9, spread=3.0),
}


def measure(case: Case, **options) -> dict[str, float]:
    start = time.process_time()
    evidence = pv.log_evidence(case.program, case.x, **options)
    seconds = time.process_time() - start
    error = evidence.value - case.truth
    off = ~(error.abs() <= 3 * evidence.standard_error)
    quiet = (evidence.khat <= 0.7) & (evidence.rhat <= 1.1)
    z = error / evidence.standard_error
    return {
        "off": float(off.double().mean()),
        "quiet and off": float((quiet & off).double().mean()),
        "false alarms": float((~quiet & ~off).double().mean()),
        "khat": float((evidence.khat > 0.7).double().mean()),
        "rhat": float((evidence.rhat > 1.1).double().mean()),
        "z": float(z[quiet].square().mean().sqrt()) if quiet.any() else math.nan,
        "bias": float((-error).exp().reciprocal().mean() - 1),
        "se": float(evidence.standard_error.median()),
        "seconds": seconds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--method", choices=["importance", "reciprocal"], default="importance")
    parser.add_argument("--cases", nargs="*", choices=list(CASES), default=list(CASES))
    options = parser.parse_args()
    warnings.simplefilter("ignore", pv.PyroVaeWarning)  # what they say has columns here
    torch.set_default_dtype(torch.float64)
    print(
        f"{'case':28}   off  quiet+off  false alarms   khat   rhat  rms z    bias      se  seconds"
    )
    for name in options.cases:
        torch.manual_seed(options.seed)
        case = CASES[name](options.rows)
        how = {"num_draws": 1000} if options.method == "reciprocal" else {"proposal": "hmc"}
        r = measure(case, method=options.method, seed=options.seed, **how)
        print(
            f"{name:28} {r['off']:5.1%} {r['quiet and off']:9.1%} {r['false alarms']:12.1%} "
            f"{r['khat']:7.1%} {r['rhat']:6.1%} {r['z']:6.2f} {r['bias']:+7.4f} {r['se']:7.4f} "
            f"{r['seconds']:7.1f}",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
