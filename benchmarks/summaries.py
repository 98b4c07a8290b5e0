"""How long the posterior of many data takes to summarize, and how much memory.

    python benchmarks/summaries.py [--rows 10000] [--latents 20] [--draws 1000]

An untrained 784-500-J net: the time does not depend on the numbers.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch

import pyro_vae as pv
from pyro_vae.models import bernoulli_vae


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--latents", type=int, default=20)
    parser.add_argument("--draws", type=int, default=1000)
    args = parser.parse_args()
    torch.manual_seed(0)
    vae = bernoulli_vae.build(784, latent_dim=args.latents, hidden_dim=500)
    x = (torch.rand(args.rows, 784) < 0.3).float()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    found = pv.summarize(vae, x, num_draws=args.draws)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{args.rows:,} data x {args.latents} latents, {args.draws:,} draws of each")
    print(f"{seconds:.1f} s on {torch.get_num_threads()} threads; result {found.nbytes:,} bytes")
    print(f"peak memory {peak / 2**20:.2f} GiB, of which {before / 2**20:.2f} before")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
