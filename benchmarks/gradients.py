"""The gradient laboratory on a net that AEVB has trained for a while: which gradient is worth what?

    python benchmarks/gradients.py [--data digits] [--samples 10000 1000000] [--out FILE.png]

Net and settings are those of ``objectives.py``; a batch of 100 training rows.  One picture for the
last of the budgets, one table for each.
"""

from __future__ import annotations

import argparse
import sys
import warnings

from objectives import load, train

import pyro_vae as pv
from pyro_vae.objectives import (
    AEVB,
    IWAE,
    DReG,
    ReweightedWakeSleep,
    ScoreFunction,
    StickingTheLanding,
    WakeSleep,
)

OBJECTIVES = [
    AEVB("B"),
    AEVB("A"),
    StickingTheLanding(),
    ScoreFunction(5),
    WakeSleep(),
    *[kind(k) for kind in (IWAE, DReG, ReweightedWakeSleep) for k in (5, 50)],
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits", choices=("mnist", "digits"))
    parser.add_argument("--data-dir", help="folder with mnist/")
    parser.add_argument("--samples", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="draw the last report there")
    options = parser.parse_args()
    warnings.simplefilter("ignore", pv.PyroVaeWarning)  # of k-hat; nothing is scored here
    data = load(options.data, options.data_dir)
    for samples in options.samples:
        run = train(AEVB(), data, samples, options.seed, 0.02)
        report = pv.gradient_report(
            run.program, data.train[:100], OBJECTIVES, num_draws=options.draws, seed=options.seed
        )
        print(f"\n{options.data}, AEVB after {samples:,} samples: {report}", flush=True)
    if options.out:
        report.plot(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
