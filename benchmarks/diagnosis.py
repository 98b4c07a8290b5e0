r"""Whether a diagnosis says what is true: false alarms of each verdict, and what it finds.

    python benchmarks/diagnosis.py
        [alarms | clean | power | rejections | coverage | gaussian | speed] [--runs 200]

* ``alarms``: the guide is the exact posterior of a linear-Gaussian model, new in each run, and the
  data are the model's own.  Printed is how often each verdict is "bad", with the stated rate.
* ``clean``: the same of whole diagnoses, at 10,000 simulated data.
* ``power``: guides that are wrong in a known way, at 10,000 simulated data: which verdict says so.
* ``rejections``: how often the ranks alone reject such guides.
* ``coverage``: 90 % intervals of q = N(0, s^2) for a posterior N(0, 1), against the exact share.
* ``gaussian``: mutual information of the exact guide against log det(I + W^T W / sigma^2) / 2.
* ``speed``: ``pv.diagnose`` of a 784-500-20 program on 1,000 images, in seconds.
"""

from __future__ import annotations

import argparse
import collections
import math
import time

import pyro
import pyro.distributions as dist
import torch
from scipy.stats import norm

import pyro_vae as pv
from pyro_vae.calibration import simulate, simulated_ranks
from pyro_vae.diagnostics.calibrated import Calibration
from pyro_vae.diagnostics.latents import profile
from pyro_vae.diagnostics.misspecification import misspecification
from pyro_vae.diagnostics.predictive_checks import predictive_checks
from pyro_vae.diagnostics.reliability import reliability
from pyro_vae.models import bernoulli_vae, linear_gaussian

LEVEL = 0.01


def oracle(
    seed: int, *, data_dim: int = 5, latent_dim: int = 2, scale: float = 1.0, shift: float = 0.0
):
    """A linear-Gaussian program; its guide is the posterior, scaled and shifted."""
    torch.manual_seed(seed)
    weight = torch.randn(data_dim, latent_dim)
    program = linear_gaussian.build(
        data_dim, latent_dim=latent_dim, posterior="full", weight=weight
    )
    program.guide_is_exact_posterior()
    with torch.no_grad():
        covariance = program.posterior_precision().inverse()
        program.guide_noise.set(covariance * scale**2)
        program.guide_bias += shift * covariance.diagonal().sqrt()
    return program


def alarms(runs: int) -> None:
    """Of the answers that are tests, and of the weights, whose stated rate is 0."""
    bad: collections.Counter[str] = collections.Counter()
    levels: dict[str, float | None] = {}
    for seed in range(runs):
        program = oracle(seed)
        x = simulate(program, 300, like=torch.zeros(2, 5), seed=seed + 10_000).x
        pairs = simulate(program, 1000, like=x, seed=seed)
        trust = reliability(
            program, x, num_particles=200, bound_particles=20, seed=seed, progress=False
        )
        ranks = simulated_ranks(program, simulated=pairs, seed=seed)
        given = {"seed": seed, "level": LEVEL, "progress": False}
        parts = [
            trust,
            Calibration(ranks, LEVEL),
            profile(program, x, pairs.latents, level=LEVEL, seed=seed),
            predictive_checks(program, x, **given),
            misspecification(program, x, known=trust.evidence, num_particles=200, **given),
        ]
        for finding in [finding for part in parts for finding in part.findings()]:
            levels[finding.question] = finding.level
            bad[finding.question] += finding.verdict == "bad"
            if finding.verdict == "bad":
                print(f"  seed {seed}: {finding.question}: {finding.text}", flush=True)
    print(f"{'question':<28} {'stated':>8} {'seen':>8}   three standard errors, {runs} runs")
    for question, level in levels.items():
        allowed = 3 * math.sqrt((level or 0) * (1 - (level or 0)) / runs)
        stated = "-" if level is None else f"{level:.3f}"
        print(f"{question:<28} {stated:>8} {bad[question] / runs:>8.3f}   {allowed:.3f}")


def clean(runs: int) -> None:
    """How many exact guides the whole page finds nothing against."""
    dirty = 0
    for seed in range(runs):
        found = pv.diagnose(oracle(seed), 300, like=torch.zeros(2, 5), seed=seed, progress=False)
        dirty += not found.clean
        for finding in found.bad:
            print(f"  seed {seed}: {finding.question}: {finding.text}", flush=True)
    print(f"clean: {runs - dirty} of {runs}")


class Squares(pv.Program):
    """x = z^2 + noise: a posterior of two modes; the guide has one."""

    def __init__(self, *, broad: bool) -> None:
        super().__init__()
        self.broad = broad
        self.bias = torch.nn.Parameter(torch.zeros(1))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.square(), 0.1).to_event(1), obs=x)

    def guide(self, x):
        root = x.clamp_min(0.01).sqrt()
        if self.broad:
            mean, scale = torch.zeros_like(x), root
        else:
            mean, scale = root, 0.05 / root
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(mean + 0 * self.bias, scale).to_event(1))


def power(runs: int) -> None:
    wrong = {
        "exact": lambda: oracle(0),
        "sigma x 0.9": lambda: oracle(0, scale=0.9),
        "sigma x 1.1": lambda: oracle(0, scale=1.1),
        "mean + 0.1 sigma": lambda: oracle(0, shift=0.1),
        "guide = prior": prior_as_guide,
        "two modes, broad": lambda: Squares(broad=True),
        "two modes, one held": lambda: Squares(broad=False),
    }
    for name, make in wrong.items():
        program = make()
        like = torch.zeros(2, 1 if isinstance(program, Squares) else 5)
        found = pv.diagnose(program, 500, like=like, num_particles=500, progress=False)
        print(f"--- {name}: {'clean' if found.clean else 'not clean'}")
        for finding in found.findings:
            if finding.verdict == "bad" or finding.question == "calibration":
                print(f"  {finding.question}: {finding.verdict}: {finding.text}", flush=True)


def prior_as_guide():
    program = oracle(0)
    with torch.no_grad():
        program.guide_weight.zero_()
        program.guide_bias.zero_()
        program.guide_noise.set(torch.eye(2))
    return program


class Still(pv.Program):
    """p(z | x) = N(0, 1), whatever x is; the guide is N(0, s^2)."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor([scale]))

    def model(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), self.scale).to_event(1))


def coverage(runs: int) -> None:
    number = 10_000
    for scale in (0.5, 0.7, 1.3):
        ranks = simulated_ranks(
            Still(scale), torch.zeros(2, 1), num_simulations=number, num_draws=999
        )
        exact = 1 - 2 * norm.sf(norm.ppf(0.95) * scale)
        error = math.sqrt(exact * (1 - exact) / number)
        share = ranks.coverage(0.9)["z[0]"]
        print(
            f"s = {scale}: exact {exact:.3%}, found {share:.3%}, "
            f"{(share - exact) / error:+.1f} standard errors"
        )


def gaussian(runs: int) -> None:
    for latent_dim in (1, 2, 4):
        program = oracle(latent_dim, data_dim=6, latent_dim=latent_dim)
        made = simulate(program, 2000, like=torch.zeros(2, 6))
        found = profile(program, made.x, made.latents)
        gram = (program.weight.T @ program.weight).detach()
        exact = float(torch.logdet(torch.eye(latent_dim) + gram)) / 2
        low, error = found.information
        rate, spread = float(found.rate.mean()), float(found.rate.std()) / math.sqrt(2000)
        print(
            f"J = {latent_dim}: exact {exact:.3f}, information {low:.3f} ± {error:.3f}, rate "
            f"{rate:.3f} ± {spread:.3f}"
        )


def speed(runs: int) -> None:
    digits = pv.datasets.load("mnist")
    vae = bernoulli_vae.build(digits.dim, latent_dim=20, hidden_dim=500)
    pv.fit(vae, digits.train, steps=2000, progress=False)
    began = time.perf_counter()
    found = pv.diagnose(vae, digits.test[:1000], progress=True)
    print(f"{time.perf_counter() - began:.1f} s\n\n{found}")


def power_of_calibration(runs: int) -> None:
    """How often ranks reject each wrong guide at 10,000 simulated data, at level 0.01."""
    for name, options in {
        "sigma x 0.9": {"scale": 0.9}, "sigma x 1.1": {"scale": 1.1}, "mean + 0.1": {"shift": 0.1},
    }.items():  # fmt: skip
        rejected = 0
        for seed in range(runs):
            ranks = simulated_ranks(oracle(seed, **options), torch.zeros(2, 5), seed=seed)
            rejected += bool(Calibration(ranks, 0.01).failed)
        print(f"{name}: rejected in {rejected} of {runs}")


def main() -> None:
    chosen = {
        "alarms": alarms, "clean": clean, "power": power, "coverage": coverage,
        "gaussian": gaussian, "speed": speed, "rejections": power_of_calibration,
    }  # fmt: skip
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=chosen, nargs="?", default="alarms")
    parser.add_argument("--runs", type=int, default=200)
    given = parser.parse_args()
    torch.set_num_threads(min(2, torch.get_num_threads()))
    chosen[given.what](given.runs)


if __name__ == "__main__":
    main()
