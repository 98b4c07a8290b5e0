"""Every objective on the same net, data order and budget, scored alike.

    python benchmarks/objectives.py [--data mnist] [--seeds 0 1] [--samples 1000000] [--json FILE]

MNIST is grey, net and settings are the paper's (784-500-20-500-784, Adagrad 0.02 after 100 steps
that only accumulate, weight prior, N(0, 0.01^2) initialization); digits are binary, 64-128-2.
``bound`` is the guide's own ELBO on all test data; ``log p(x)`` is importance-sampled from the
guide, K = 1000, on the first 1000 of them; ``khat`` counts those whose guide misses a part.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
import warnings

import torch

import pyro_vae as pv
from pyro_vae.models import bernoulli_vae
from pyro_vae.objectives import (
    AEVB,
    IWAE,
    Autoencoder,
    DReG,
    ReweightedWakeSleep,
    ScoreFunction,
    StickingTheLanding,
    WakeSleep,
)


def objectives(updates: int) -> dict[str, pv.objectives.Objective]:
    return {
        "AEVB, estimator B": AEVB(),
        "AEVB, estimator A": AEVB("A"),
        "sticking the landing": StickingTheLanding(),
        "AEVB, KL warm-up": AEVB(kl_warmup=updates // 5),
        "AEVB, 2 free nats": AEVB(free_bits=2.0),
        "wake-sleep": WakeSleep(),
        "IWAE, K = 5": IWAE(5),
        "DReG, K = 5": DReG(5),
        "reweighted wake-sleep, K = 5": ReweightedWakeSleep(5),
        "the same, half asleep": ReweightedWakeSleep(5, insomnia=0.5),
        "score function, K = 5": ScoreFunction(5),
        "auto-encoder": Autoencoder(),
    }


def train(name: str, data, samples: int, seed: int) -> dict:
    objective = objectives(samples // 100)[name]
    digits = data.dim == 64
    torch.manual_seed(seed)
    program = bernoulli_vae.build(
        data.dim,
        latent_dim=2 if digits else 20,
        hidden_dim=128 if digits else 500,
        soft_targets=not digits,
        **({"init_std": None} if digits else {}),
    )
    optimizer = functools.partial(pv.optimizers.Adagrad, lr=0.02, accumulate_steps=100)
    run = pv.fit(
        program, data.train, objective, samples=samples, optimizer=optimizer, lr=0.02,
        weight_prior=1.0, seed=seed, progress=False,
    )  # fmt: skip
    started = time.perf_counter()
    row = {"objective": name, "seed": seed, "seconds": run.manifest["seconds"]}
    row["engine"] = run.manifest["engine"]
    if not objective.has_bound:
        return row
    bound = pv.elbo(program, data.test, num_particles=10, seed=seed)
    evidence = pv.log_evidence(program, data.test[:1000], num_particles=1000, seed=seed)
    row |= {
        "bound": float(bound.mean()),
        "log_evidence": evidence.mean(),
        "standard_error": evidence.mean_standard_error(),
        "khat": float((~(evidence.khat <= 0.7)).double().mean()),
        "scored_in": time.perf_counter() - started,
    }
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist", choices=("mnist", "digits"))
    parser.add_argument("--data-dir", help="folder with mnist/")
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--only", action="append", help="an objective, as the table names it")
    parser.add_argument("--json", help="write every number here")
    options = parser.parse_args()
    warnings.simplefilter("ignore", pv.PyroVaeWarning)  # of khat, which has a column here
    binarize = {"binarize": "none"} if options.data == "mnist" else {}
    data = pv.datasets.load(options.data, data_dir=options.data_dir, **binarize)
    rows = []
    for name in options.only or objectives(1):
        for seed in options.seeds:
            rows.append(row := train(name, data, options.samples, seed))
            print(
                f"{name:30s} seed {seed}  bound {row.get('bound', float('nan')):8.2f}   "
                f"log p(x) {row.get('log_evidence', float('nan')):8.2f} "
                f"± {row.get('standard_error', float('nan')):.2f}   "
                f"khat > 0.7: {row.get('khat', float('nan')):5.1%}   {row['seconds']:.0f} s",
                flush=True,
            )
            if options.json:
                with open(options.json, "w") as file:
                    json.dump(rows, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
