"""Topic models of the newsgroups: nats a document and perplexity, beside the published ones.

    python benchmarks/topics.py --data-dir DIR [--seeds 0 1] [--only ProdLDA] [--json FILE]

The bound is the ELBO of the words in their order, averaged over draws; the perplexity is
exp(sum of -ELBO / sum of words) over the test documents, a mean by word: the mean by document of
its exponents is another number.  500 training documents choose the weights (``keep="best"``).
The published numbers are Miao, Yu & Blunsom's model and Srivastava & Sutton's as run on this cut.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae import likelihoods, networks


class OfLogs(nn.Module):
    """A network of log(1 + count): a word that stands 200 times weighs five, not 200."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.log1p())


def encoder(inputs: int, outputs: int, *, hidden: tuple[int, ...], **options: Any) -> nn.Module:
    return OfLogs(networks.MLP(inputs, hidden, outputs, **options))


@dataclass(frozen=True)
class Setting:
    """A model, and the numbers that ours has to reach."""

    likelihood: Any
    decoder: Any
    encoder: Any
    published: dict[str, float]
    goal: dict[str, float]
    lr: float = 1e-3
    epochs: int = 60
    batch_size: int = 200


SETTINGS = {
    "multinomial 500-50": Setting(
        likelihoods.Multinomial(),
        nn.Linear,
        functools.partial(encoder, hidden=(500,), activation="relu", init_std=None),
        {"nats": 552.3, "perplexity": 713.7},
        {"nats": 560.0},
    ),
    **{
        f"ProdLDA 100-100, 50 topics{name}": Setting(
            likelihoods.ProdLDA(batch_norm=norm),
            None,
            functools.partial(encoder, hidden=(100, 100), activation="softplus"),
            {"perplexity": 1152.9},
            {"perplexity": 1153.0},
            lr=2e-3,
        )
        for name, norm in (("", True), (", no batch norm", False))
    },
}


def train(setting: Setting, data: pv.datasets.DataSet, seed: int, epochs: int) -> tuple[Any, Any]:
    torch.manual_seed(seed)
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    held_out, rows = data.train[order[:500]], data.train[order[500:]]
    vae = pv.VAE.build(
        rows,
        latent_dim=50,
        likelihood=setting.likelihood,
        encoder=setting.encoder,
        decoder=setting.decoder,
    )
    steps = epochs * -(-len(rows) // setting.batch_size)
    run = pv.fit(
        vae,
        rows,
        pv.objectives.AEVB(kl_warmup=steps // 5),
        steps=steps,
        batch_size=setting.batch_size,
        optimizer=functools.partial(torch.optim.AdamW, weight_decay=1e-4),
        lr=setting.lr,
        schedule=functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=steps),
        seed=seed,
        validation=held_out,
        keep="best",
    )
    return vae, run


def score(vae: Any, test: pv.datasets.Data, seed: int) -> dict[str, float]:
    bound = pv.elbo(vae, test, num_particles=20, seed=seed).double()
    words = test.x.sum(1).double()
    rate = -bound.sum() / words.sum()  # nats a word
    # Of a ratio of sums: documents are the sample.
    error = (-bound - rate * words).std() / len(words) ** 0.5 / words.mean()
    return {
        "nats": -bound.mean().item(),
        "nats_error": (bound.std() / len(bound) ** 0.5).item(),
        "perplexity": rate.exp().item(),
        "perplexity_error": (rate.exp() * error).item(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", help="folder with 20news_clean/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", choices=SETTINGS, action="append")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--json", help="write every number here")
    options = parser.parse_args()
    data = pv.datasets.load("newsgroups", data_dir=options.data_dir)
    results = []
    for name in options.only or SETTINGS:
        setting = SETTINGS[name]
        epochs = options.epochs or setting.epochs
        for seed in options.seeds:
            started = time.process_time()
            vae, run = train(setting, data, seed, epochs)
            row = {"model": name, "seed": seed, "epochs": epochs}
            row |= {key: run.manifest[key] for key in ("engine", "kept_step", "steps")}
            row["core_seconds"] = time.process_time() - started
            row |= {**score(vae, data.test, seed), "published": setting.published}
            if hasattr(vae.likelihood, "top_words"):
                row["topics"] = vae.likelihood.top_words(data.train.columns, 10)
            results.append(row)
            print(
                f"{name:27s} seed {seed}  -ELBO {row['nats']:.1f} ± {row['nats_error']:.1f} nats a "
                f"document   perplexity {row['perplexity']:.1f} ± {row['perplexity_error']:.1f}   "
                f"published {setting.published}   goal {setting.goal}   "
                f"{row['core_seconds']:.0f} core s",
                flush=True,
            )
            if options.json:
                with open(options.json, "w") as file:
                    json.dump(results, file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
