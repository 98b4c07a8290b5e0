"""One part of a VAE exchanged, all else equal: priors and posteriors on images.

    python benchmarks/images.py fashion --data-dir DIR --json FILE [--seeds 0 1] [--epochs 2000]

Each variant of a setting has the same seed, first weights, data order, budget and test rows, so
differences of log p(x) are paired by row.  A setting's defaults are what one core does in minutes;
the published budgets are ``--epochs 2000 --particles 5000 --rows 10000`` (fashion and frey, with
``--batch-size 100 --lr 0.0005``).  FILE keeps every log p(x), is written after each run, and
finished runs in it are not repeated.

* ``fashion``: Fashion-MNIST, binarized anew at each epoch, scored on the fixed draw of epoch 0.
* ``frey``: Frey Face in 256 levels, the discretized logistic law, bits per dimension; 200 of the
  training frames choose the weights (``keep="best"``).
* ``mnist``: MNIST, binarized once; posteriors.  A flow's KL term is sampled; the diagonal one's is
  closed, which learns faster, or sampled too.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import sys
import time
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import torch

import pyro_vae as pv
from pyro_vae import likelihoods, networks, posteriors, priors


@dataclass(frozen=True)
class Setting:
    """What all variants have in common, and what differs."""

    data: str
    binarize: str
    likelihood: Any
    variants: dict[str, dict[str, Any]]
    published: dict[str, float]
    network: Any = field(default_factory=lambda: networks.MLP(hidden=(300, 300), gated=True))
    latent_dim: int = 40
    epochs: int = 25
    batch_size: int = 200
    lr: float = 1e-3
    warmup: float = 0.1  # share of the updates in which the KL term is taken in
    validation: int = 0  # rows of the training set that choose the weights
    rows: int = 1000
    particles: int = 1000
    bits: bool = False


SETTINGS = {
    "fashion": Setting(
        "fashion_mnist",
        "dynamic",
        likelihoods.Bernoulli(),
        {
            "N(0, I)": {"prior": priors.StandardNormal()},
            "VampPrior-500": {"prior": priors.VampPrior(500, bounds=(0.0, 1.0))},
        },
        {"N(0, I)": -228.70, "VampPrior-500": -227.35},
    ),
    "frey": Setting(
        "frey_face",
        "none",
        likelihoods.DiscretizedLogistic(),
        {
            "N(0, I)": {"prior": priors.StandardNormal()},
            "VampPrior-500": {"prior": priors.VampPrior(500, bounds=(0.0, 1.0))},
            "flow": {"prior": priors.Flow(kind="affine")},
        },
        {"N(0, I)": 4.63, "VampPrior-500": 4.57},
        epochs=300,
        batch_size=100,
        validation=200,
        rows=400,
        bits=True,
    ),
    "mnist": Setting(
        "mnist",
        "static",
        likelihoods.Bernoulli(),
        {
            "diagonal": {"posterior": posteriors.Gaussian()},
            "autoregressive flow": {"posterior": posteriors.AutoregressiveFlow()},
            "diagonal, sampled KL": {"posterior": posteriors.Gaussian(), "estimator": "A"},
        },
        {"diagonal": -97.10, "autoregressive flow": -95.33},
        network=networks.MLP(hidden=(256, 256), activation="relu"),
        latent_dim=128,
        epochs=20,
    ),
}


def load(setting: Setting, data_dir: str | None) -> tuple[Any, Any, Any]:
    """Training rows, those that choose the weights (or None), and test rows."""
    data = pv.datasets.load(setting.data, binarize=setting.binarize, data_dir=data_dir)
    train, held_out = data.train, None
    if setting.validation:  # the training rows are in random order
        train, held_out = train[setting.validation :], train[: setting.validation]
    return train, held_out, data.test[: setting.rows]


def run(setting: Setting, variant: str, seed: int, rows: tuple[Any, Any, Any]) -> dict[str, Any]:
    """Train and score one variant."""
    train, held_out, test = rows
    parts = dict(setting.variants[variant])
    estimator = parts.pop("estimator", "B")  # which samples the KL terms that are not closed
    torch.manual_seed(seed)
    vae = pv.VAE.build(
        train,
        latent_dim=setting.latent_dim,
        likelihood=setting.likelihood,
        network=setting.network,
        **parts,
    )
    steps = setting.epochs * math.ceil(len(train) / setting.batch_size)
    started = time.process_time()
    fitted = pv.fit(
        vae,
        train,
        pv.objectives.AEVB(estimator, kl_warmup=round(setting.warmup * steps)),
        steps=steps,
        batch_size=setting.batch_size,
        optimizer=functools.partial(torch.optim.AdamW, weight_decay=1e-4),
        lr=setting.lr,
        schedule=functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=steps),
        seed=seed,
        validation=held_out,
        keep=None if held_out is None else "best",
    )
    trained = time.process_time()
    evidence = pv.log_evidence(vae, test, num_particles=setting.particles, seed=seed)
    bound = pv.elbo(vae, test, num_particles=10, seed=seed)
    return {
        "variant": variant,
        "seed": seed,
        "epochs": setting.epochs,
        "batch_size": setting.batch_size,
        "lr": setting.lr,
        "engine": fitted.manifest["engine"],
        "kept_step": fitted.manifest["kept_step"],
        "core_seconds": {
            "training": trained - started,
            "scoring": time.process_time() - trained,
        },
        "khat_above": float((~(evidence.khat <= 0.7)).double().mean()),
        "bound": float(bound.mean()),
        "kl": float(fitted.history["kl.z"].tail(5).mean()),
        "dim": train.dim,
        "log_p": [round(v, 4) for v in evidence.value.tolist()],
    }


def shown(value: float, error: float, sign: bool = False) -> str:
    return f"{value:{'+' if sign else ''}.3f} ± {error:.3f}"


def table(setting: Setting, results: list[dict[str, Any]]) -> str:
    """Each variant, and its difference to the first of the same seed, paired by row."""
    unit = -1 / (math.log(2) * results[0]["dim"]) if setting.bits else 1.0
    lines = ["bits per dimension" if setting.bits else "log p(x), nats"]
    for result in results:
        log_p = unit * torch.tensor(result["log_p"], dtype=torch.float64)
        error = log_p.std() / len(log_p) ** 0.5
        line = f"{result['variant']:20s} seed {result['seed']}  {shown(log_p.mean(), error)}"
        line += f"   bound {unit * result['bound']:.3f}   KL {result['kl']:.1f}"
        seconds = result["core_seconds"]
        line += f"   khat > 0.7: {result['khat_above']:.0%}   {seconds['training']:.0f} core s"
        line += f"   published {setting.published.get(result['variant'], math.nan)}"
        first = next(iter(setting.variants))
        pair = [r for r in results if r["seed"] == result["seed"] and r["variant"] == first]
        if pair and result["variant"] != first:
            differences = log_p - unit * torch.tensor(pair[0]["log_p"], dtype=torch.float64)
            error = differences.std() / len(differences) ** 0.5
            line += f"   against {first}: {shown(differences.mean(), error, sign=True)}"
        lines.append(line)
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("setting", choices=SETTINGS)
    parser.add_argument("--data-dir", help="folder with fashion_mnist/, frey_face/ and mnist/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    for name in ("epochs", "batch-size", "rows", "particles"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--only", action="append", help="a variant, as the table names it")
    parser.add_argument("--json", help="write every number here, and go on from it")
    options = parser.parse_args()
    warnings.simplefilter("ignore", pv.PyroVaeWarning)  # of khat, which the table has
    names = ("epochs", "batch_size", "rows", "particles", "lr")
    given = {name: getattr(options, name) for name in names}
    setting = replace(
        SETTINGS[options.setting], **{n: v for n, v in given.items() if v is not None}
    )
    rows = load(setting, options.data_dir)
    results: list[dict[str, Any]] = []
    if options.json and os.path.exists(options.json):
        with open(options.json) as file:
            results = json.load(file)
    for seed in options.seeds:
        for variant in options.only or setting.variants:
            if any(r["variant"] == variant and r["seed"] == seed for r in results):
                continue
            results.append(run(setting, variant, seed, rows))
            if options.json:
                with open(options.json, "w") as file:
                    json.dump(results, file)
            print(table(setting, results), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
