"""What products in bfloat16 do to the bound that training ends at, beside what chance does.

    python benchmarks/precision.py [--samples 1000000] [--seeds 6] [--optimizer Adagrad]

MNIST, the paper's net.  Each seed trains three times: in single precision; with data in another
order and other noise, which is what chance comes to; and with large products in bfloat16.  The
bound is that of the test images, in single precision.  Adam's runs end close to each other; those
of Adagrad, from whose first step all weights move by 0.02, as much as six nats apart.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch

import pyro_vae as pv
from pyro_vae.models import bernoulli_vae

WAYS = {"single precision": (0, "highest"), "another order": (1000, "highest"),
        "bfloat16": (0, "medium")}  # fmt: skip


def trained(
    data: pv.datasets.Data, seed: int, samples: int, optimizer: str, more: int, precision: str
) -> float:
    """The test bound after so many samples."""
    torch.manual_seed(seed)
    program = bernoulli_vae.build(data.dim, latent_dim=20, hidden_dim=500)
    pv.fit(
        program, data.train, samples=samples, seed=seed + more, progress=False, engine="compiled",
        optimizer=getattr(torch.optim, optimizer), matmul_precision=precision,
    )  # fmt: skip
    return float(pv.elbo(program, data.test, seed=0).mean())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--optimizer", default="Adam", choices=("Adam", "Adagrad"))
    options = parser.parse_args()
    data = pv.datasets.load("mnist")
    bounds: dict[str, list[float]] = {way: [] for way in WAYS}
    for seed in range(options.seeds):
        for way, how in WAYS.items():
            started = time.perf_counter()
            bounds[way].append(trained(data, seed, options.samples, options.optimizer, *how))
            seconds = time.perf_counter() - started
            print(f"seed {seed}, {way}: {bounds[way][-1]:.2f}, {seconds:.0f} s", flush=True)
    exact = bounds["single precision"]
    for way, found in bounds.items():
        apart = [b - a for a, b in zip(exact, found, strict=True)]
        error = statistics.stdev(apart) / len(apart) ** 0.5
        print(f"{way}: mean {statistics.mean(found):.2f}, less single precision "
              f"{statistics.mean(apart):+.2f} with standard error {error:.2f}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
