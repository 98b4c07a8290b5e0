"""Every objective on the same net, data order and budget, scored alike.

    python benchmarks/objectives.py [--data mnist] [--seeds 0 1] [--samples N] [--lr LR] [--json F]

MNIST is grey, net and settings are the paper's (784-500-20-500-784, Adagrad 0.02 after 100 steps
that only accumulate, weight prior, N(0, 0.01^2) initialization); digits are binary, 64-128-2.
``bound`` is the guide's own ELBO on all test data; ``log p(x)`` is importance-sampled from the
guide, K = 1000, on the first 1000 of them (for the auto-encoder, whose guide is not trained as a
posterior, from Hamiltonian Monte Carlo on the first 100); ``khat`` counts those whose proposal
misses a part.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
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


def build(data) -> pv.Program:
    digits = data.dim == 64
    return bernoulli_vae.build(
        data.dim,
        latent_dim=2 if digits else 20,
        hidden_dim=128 if digits else 500,
        soft_targets=not digits,
        **({"init_std": None} if digits else {}),
    )


def load(name: str, data_dir: str | None) -> pv.datasets.DataSet:
    binarize = {"binarize": "none"} if name == "mnist" else {}
    return pv.datasets.load(name, data_dir=data_dir, **binarize)


def train(objective: pv.objectives.Objective, data, samples: int, seed: int, lr: float) -> pv.Run:
    torch.manual_seed(seed)
    optimizer = functools.partial(pv.optimizers.Adagrad, accumulate_steps=100)
    return pv.fit(
        build(data), data.train, objective, samples=samples, optimizer=optimizer, lr=lr,
        weight_prior=1.0, seed=seed, progress=False,
    )  # fmt: skip


def score(run: pv.Run, has_bound: bool, data, seed: int) -> dict:
    """Without a trained guide log p(x) is by chains, of 100 data."""
    bound = pv.elbo(run.program, data.test, num_particles=10, seed=seed) if has_bound else None
    how = {"seed": seed, "num_particles": 1000}
    if has_bound:
        evidence = pv.log_evidence(run.program, data.test[:1000], **how)
    else:
        evidence = pv.log_evidence(run.program, data.test[:100], proposal="hmc", **how)
    return {
        "bound": math.nan if bound is None else float(bound.mean()),
        "log_evidence": evidence.mean(),
        "standard_error": evidence.mean_standard_error(),
        "khat": float((~(evidence.khat <= 0.7)).double().mean()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist", choices=("mnist", "digits"))
    parser.add_argument("--data-dir", help="folder with mnist/")
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--only", action="append", help="an objective, as the table names it")
    parser.add_argument("--json", help="write every number here")
    options = parser.parse_args()
    warnings.simplefilter("ignore", pv.PyroVaeWarning)  # of khat, which has a column here
    data = load(options.data, options.data_dir)
    rows = []
    for name in options.only or objectives(1):
        for seed in options.seeds:
            objective = objectives(options.samples // 100)[name]
            run = train(objective, data, options.samples, seed, options.lr)
            row = {"objective": name, "seed": seed, "lr": options.lr}
            row |= {key: run.manifest[key] for key in ("seconds", "engine")}
            rows.append(row := row | score(run, objective.has_bound, data, seed))
            print(
                f"{name:30s} seed {seed}  bound {row['bound']:8.2f}   "
                f"log p(x) {row['log_evidence']:8.2f} ± {row['standard_error']:.2f}   "
                f"khat > 0.7: {row['khat']:5.1%}   {row['seconds']:.0f} s",
                flush=True,
            )
            if options.json:
                with open(options.json, "w") as file:
                    json.dump(rows, file, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
