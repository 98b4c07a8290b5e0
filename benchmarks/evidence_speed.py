"""How long evaluations take, beside the matrix products in them.

    python benchmarks/evidence_speed.py [--case NAME ...] [--rounds 5] [--json FILE]

The paper's MNIST net, 784-500-20-500-784, untrained: the time does not depend on the numbers.  A
case's floor is its own products: every matrix product of one call that was not compiled is written
down by its shapes, and these are multiplied again and nothing else.  The first call of each case
compiles (seconds, kept on disk) and is printed apart.  Peak memory is that of the whole process.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from machine import about
from torch.utils._python_dispatch import TorchDispatchMode

import pyro_vae as pv
from pyro_vae.graphs import compiling
from pyro_vae.models import bernoulli_vae

aten = torch.ops.aten
Shapes = tuple[tuple[int, ...], tuple[int, ...]]
D, H, J = 784, 500, 20
CASES: dict[str, tuple[int, Callable[[Any, torch.Tensor], Any]]] = {
    "log p(x), K 1000": (1000, lambda vae, x: pv.log_evidence(vae, x, num_particles=1000)),
    "log p(x), HMC proposal": (50, lambda vae, x: pv.log_evidence(vae, x, proposal="hmc")),
    "log p(x), annealed": (10, lambda vae, x: pv.log_evidence(vae, x, method="annealed")),
    "posterior draws by HMC": (
        400,
        lambda vae, x: pv.chains.sample_posterior(vae, x, num_draws=100, warmup=100),
    ),
    "ELBO of 10,000": (10_000, lambda vae, x: pv.elbo(vae, x)),
    "diagnose": (100, lambda vae, x: pv.diagnose(vae, x, progress=False)),
}


class Products(TorchDispatchMode):
    """How often matrices of which shapes are multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[Shapes] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (aten.mm.default, aten.bmm.default, aten.addmm.default):
            a, b = args[-2:]
            self.seen[tuple(a.shape), tuple(b.shape)] += 1
        return func(*args, **(kwargs or {}))


def products_of(call: Callable[[], object]) -> Counter[Shapes]:
    """Those of a call of which nothing is compiled."""
    gain, compiling._gain = compiling._gain, lambda graph, runs: -1.0
    try:
        with Products() as found:
            call()
    finally:
        compiling._gain = gain
    return found.seen


def floor(shapes: Counter[Shapes]) -> Callable[[], None]:
    pairs = [(torch.rand(a), torch.rand(b), count) for (a, b), count in shapes.items()]

    def run() -> None:
        for a, b, count in pairs:
            for _ in range(count):
                a @ b

    return run


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(name: str, rounds: int) -> dict[str, float]:
    rows, function = CASES[name]
    torch.manual_seed(0)
    vae = bernoulli_vae.build(D, latent_dim=J, hidden_dim=H, init_std=None)
    x = (torch.rand(rows, D) < 0.13).float()

    def call() -> object:
        return function(vae, x)

    products = floor(products_of(call))
    first = seconds(call)
    floors, times = [], []
    for _ in range(rounds):
        floors.append(seconds(products))
        times.append(seconds(call))
    ratios = [t / f for t, f in zip(times, floors, strict=True)]
    return {
        "rows": rows, "first_call_s": first, "s": statistics.median(times),
        "products_s": statistics.median(floors), "over_products": statistics.median(ratios),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", help="write every number here")
    options = parser.parse_args()
    warnings.simplefilter("ignore", pv.PyroVaeWarning)  # of the untrained net's weights
    report = {}
    print(f"{torch.get_num_threads()} threads, {options.rounds} rounds")
    print(f"{'':26s}{'rows':>7s}{'first, s':>10s}{'s':>8s}{'over products':>15s}{'MiB':>7s}")
    for name in options.case or CASES:
        report[name] = found = measure(name, options.rounds)
        print(
            f"{name:26s}{found['rows']:7d}{found['first_call_s']:10.1f}{found['s']:8.2f}"
            f"{found['over_products']:15.2f}{found['peak_mib']:7.0f}",
            flush=True,
        )
    if options.json:
        with open(options.json, "w") as file:
            json.dump({"machine": about(), "cases": report}, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
