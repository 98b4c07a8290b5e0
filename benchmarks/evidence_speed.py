"""How long log p(x) by importance sampling takes, beside the matrix products in it.

    python benchmarks/evidence_speed.py [--rows 1000] [--particles 1000] [--rounds 5]

The paper's MNIST net, 784-500-20-500-784, untrained: the time does not depend on the numbers.
The first call compiles (seconds, kept on disk) and is printed apart.  Peak memory is that of the
whole process, and stays where it is however many particles are asked for.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
import warnings

import torch

import pyro_vae as pv
from pyro_vae.models import bernoulli_vae

SIZES = (784, 500, 20)


def products(rows: int, particles: int, at_once: int = 5000) -> None:
    """The encoder's of each row and the decoder's of each particle, and nothing else."""
    D, H, J = SIZES
    x, encoder, heads = torch.rand(rows, D), torch.rand(D, H), torch.rand(H, 2 * J)
    z, decoder, last = torch.rand(at_once, J), torch.rand(J, H), torch.rand(H, D)
    (x @ encoder) @ heads
    for _ in range(rows * particles // at_once):
        (z @ decoder) @ last


def seconds(function, *args, **options) -> float:
    start = time.perf_counter()
    function(*args, **options)
    return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--particles", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    warnings.simplefilter("ignore", pv.PyroVaeWarning)  # of the untrained net's weights
    D, H, J = SIZES
    vae = bernoulli_vae.build(D, latent_dim=J, hidden_dim=H, init_std=None)
    x = (torch.rand(options.rows, D) < 0.13).float()
    ours = {"num_particles": options.particles}
    print(f"the first call: {seconds(pv.log_evidence, vae, x, **ours):.1f} s")
    floors, times = [], []
    for _ in range(options.rounds):
        floors.append(seconds(products, options.rows, options.particles))
        times.append(seconds(pv.log_evidence, vae, x, **ours))
    ratios = [t / f for t, f in zip(times, floors, strict=True)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"log p(x) of {options.rows} rows, K = {options.particles}, "
        f"{torch.get_num_threads()} threads: {statistics.median(times):.2f} s; "
        f"matrix products alone {statistics.median(floors):.2f} s; "
        f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); "
        f"peak memory {peak:.0f} MiB"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
